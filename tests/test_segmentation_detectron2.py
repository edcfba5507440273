"""detectron2's SemanticSegmentor with our head is the same function of the weights."""

from __future__ import annotations

import pytest
import torch

from segmentation.config import build_segmenter, load_config
from segmentation.transforms import padded
from segmentation.upernet import IGNORED

CONFIG = "quick/upernet_convnextv2_atto_scratch_quick.yaml"
SMALL = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5", "MODEL.DEVICE", "cpu"]

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def both():
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from segmentation.d2_head import add_segmentation_config
    from training.command_line.shipped_files import DET_CONFIGS, find_shipped

    torch.manual_seed(0)
    ours = build_segmenter(load_config(CONFIG, SMALL))
    for name, parameter in ours.named_parameters():
        if "grn" in name:
            torch.nn.init.normal_(parameter)
    cfg = get_cfg()
    add_segmentation_config(cfg)
    cfg.merge_from_file(str(find_shipped(CONFIG, DET_CONFIGS, "config file")))
    cfg.merge_from_list([*SMALL, "MODEL.CONVNEXT.ALLOW_IGNORED_KEYS", "True"])
    theirs = build_model(cfg)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("size", [(64, 96), (75, 58)])
def test_logits_are_the_same(both, size):
    ours, theirs = both
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    with torch.no_grad():
        (expected,) = theirs.eval()([{"image": image, "height": size[0], "width": size[1]}])
        (found,) = ours.eval()([{"image": image}])
    torch.testing.assert_close(found, expected["sem_seg"], rtol=1e-5, atol=1e-5)


def test_losses_and_gradients_are_the_same(both):
    ours, theirs = both
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    labels = torch.randint(0, 5, (2, 64, 64))
    labels[:, :9] = IGNORED
    losses = []
    for model, key in ((ours, "labels"), (theirs, "sem_seg")):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout2d):
                module.eval()
        model.zero_grad()
        inputs = [{"image": i, key: t} for i, t in zip(images, labels, strict=True)]
        found = model(inputs)
        sum(found.values()).backward()
        losses.append(found)
    assert losses[0].keys() == losses[1].keys()
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name])
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad)


def test_sizes_that_are_padded_ignore_the_padding(both):
    ours, theirs = both
    image = torch.randint(0, 256, (3, 50, 40), dtype=torch.uint8)
    labels = torch.randint(0, 5, (50, 40))
    for module in (*ours.modules(), *theirs.modules()):
        module.train(not isinstance(module, torch.nn.Dropout2d))
    found = ours([{"image": image, "labels": labels}])
    expected = theirs([{"image": image, "sem_seg": labels}])
    for name in found:
        torch.testing.assert_close(found[name], expected[name])
    assert padded(labels.numpy(), (64, 64), IGNORED)[63, 63] == IGNORED
