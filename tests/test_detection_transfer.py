"""From a detector to one of other classes, of other channels, in part: both engines alike."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import timm
import torch
from small_detector import small_config
from torch import Tensor, nn
from torchvision.models import resnet18

from backbones.checkpoint import save_encoder
from backbones.convnext import build_convnext
from backbones.errors import InputError
from backbones.weight_files import read_state_dict, save_pickle, save_safetensors
from detection.engines.renaming import is_detectron2, torchvision_to_detectron2
from detection.engines.torchvision.engine import load_initial_weights
from detection.engines.torchvision.model import build_mask_rcnn
from detection.engines.transfer import COCO, Classes, parse_aliases, select_classes
from detection.engines.weights import freeze_parts, read_detector
from detection.run import run
from training.configured import newest_weights

OLD, NEW = ["apple", "nut", "leaf"], ["leaf", "stone", "apple", "cell"]
CLASSES = "MODEL.ROI_HEADS.NUM_CLASSES"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    """A detector of three classes whose every row is of another value, in detectron2's names."""
    torch.manual_seed(0)
    model = build_mask_rcnn(small_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "predictor" in name:
                parameter.copy_(torch.randn(parameter.shape))
                rows = 4 if "bbox_pred" in name else 1
                if "cls_score" not in name and "conv5" not in name:
                    parameter[:rows] = 0  # the background's
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "model.safetensors"
    save_safetensors(model.state_dict(), path, {"class_names": json.dumps(OLD)})
    d2 = torchvision_to_detectron2(model.state_dict())
    save_pickle(d2, folder / "d2.pth", "model", {"class_names": json.dumps(OLD)})
    save_pickle(d2, folder / "nameless.pth", "model")
    return path, d2


def transferred(path: Path, **changes) -> dict[str, Tensor]:
    config = small_config({"MODEL.WEIGHTS": str(path), CLASSES: len(NEW), "SEED": 5, **changes})
    model = build_mask_rcnn(config)
    load_initial_weights(config, model, NEW)
    return torchvision_to_detectron2(model.state_dict())


def test_rows_of_classes_of_the_same_name_are_kept_and_the_others_are_new(trained, caplog) -> None:
    path, old = trained
    with caplog.at_level(logging.INFO, "detection"):
        new = transferred(path)
    assert "2 of 4 classes kept: leaf, apple, 2 new: stone, cell" in caplog.text
    kept = {0: 2, 2: 0}  # here -> there
    for name, tensor in new.items():
        if "cls_score" in name:
            assert torch.equal(tensor[-1], old[name][-1])  # the background
        elif "bbox_pred" not in name and "mask_head.predictor" not in name:
            assert torch.equal(tensor, old[name]), name
            continue
        each = 4 if "bbox_pred" in name else 1
        for here, there in kept.items():
            expected = old[name][each * there : each * (there + 1)]
            assert torch.equal(tensor[each * here : each * (here + 1)], expected), name
        fresh = torch.cat([tensor[each * here : each * (here + 1)] for here in (1, 3)])
        if name.endswith("bias"):
            assert not fresh.any()
        else:
            std = 0.01 if "cls_score" in name else 0.001  # detectron2's of fresh heads
            assert 0.5 * std < fresh.std() < 2 * std
    again = transferred(path)
    assert all(torch.equal(again[name], new[name]) for name in new)
    assert any(not torch.equal(transferred(path, SEED=6)[n], new[n]) for n in new if "cls" in n)


@pytest.mark.parametrize("file", ["model.safetensors", "d2.pth"])
@pytest.mark.detectron2
def test_both_engines_begin_with_equal_weights(trained, file: str) -> None:
    from detection.config import to_detectron2
    from detection.engines.detectron2.trainer import build_detector

    config = small_config({CLASSES: len(NEW), "SEED": 5, "ENGINE": "detectron2"})
    cfg = to_detectron2(config)
    model = build_detector(cfg, str(trained[0].parent / file), class_names=NEW)
    expected = transferred(trained[0])
    found = model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(found[name].cpu(), tensor), name


def test_a_detector_of_the_same_classes_is_loaded_as_it_is_and_of_another_order_by_name(
    trained,
) -> None:
    path, old = trained
    for names, order in ((OLD, [0, 1, 2]), (["leaf", "apple", "nut"], [2, 0, 1])):
        config = small_config({"MODEL.WEIGHTS": str(path)})
        model = build_mask_rcnn(config)
        load_initial_weights(config, model, names)
        found = torchvision_to_detectron2(model.state_dict())
        scores = "roi_heads.box_predictor.cls_score.weight"
        assert torch.equal(found[scores], old[scores][[*order, 3]])
    with pytest.raises(InputError, match="is not this detector"):  # without the data's names
        read_detector(path, build_mask_rcnn(small_config({CLASSES: 4})))


def test_aliases_name_a_class_that_is_called_otherwise_in_the_file(trained) -> None:
    path, old = trained
    new = transferred(path, **{"MODEL.CLASS_ALIASES": ["stone=nut"]})
    name = "roi_heads.mask_head.predictor.weight"
    assert torch.equal(new[name][:3], old[name][[2, 1, 0]])


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        (["cell=leaf"], "class 'leaf' of the file is matched by leaf and cell"),
        (["cell=root"], "the file has no class 'root'"),
        (["tree=leaf"], "the data have no class 'tree'"),
        (["cell=nut", "cell=apple"], "'cell' stands 2 times"),
    ],
)
def test_classes_that_cannot_be_matched_are_one_message(trained, aliases, message: str) -> None:
    with pytest.raises(InputError, match=message):
        transferred(trained[0], **{"MODEL.CLASS_ALIASES": aliases})


def test_classes_of_one_name_in_the_file_are_refused(trained) -> None:
    with pytest.raises(InputError, match="the file has class 'a' twice"):
        select_classes(trained[1], ["a", "a", "b"], Classes(["a"], {}, 0), "x.pth")


def test_a_detector_that_does_not_name_its_classes_is_taken_by_number_or_refused(trained) -> None:
    path = trained[0].parent / "nameless.pth"
    with pytest.raises(InputError, match="a detector of 3 classes that does not name them"):
        transferred(path)
    config = small_config({"MODEL.WEIGHTS": str(path)})
    load_initial_weights(config, build_mask_rcnn(config), ["a", "b", "c"])


def test_a_nameless_detector_of_80_classes_is_cocos() -> None:
    assert (len(COCO), COCO[0], COCO[79]) == (80, "person", "toothbrush")
    state = torchvision_to_detectron2(build_mask_rcnn(small_config({CLASSES: 80})).state_dict())
    chosen = select_classes(state, COCO, Classes(["dog"], {}, 0), "x")
    name = "roi_heads.box_predictor.bbox_pred.weight"
    assert torch.equal(chosen[name], state[name][4 * 16 : 4 * 17])


def test_aliases_are_read_from_text() -> None:
    assert parse_aliases(["a=b", " c = d e"]) == {"a": "b", "c": "d e"}


# --- what does not learn ---

PARTS = {
    "encoder": r"backbone\.(body|bottom_up)\.",
    "pyramid": r"backbone\.fpn",
    "heads": r"rpn\.|proposal_generator\.|roi_heads\.",
}


def assert_frozen(model: nn.Module, parts: list[str]) -> None:
    for name, parameter in model.named_parameters():
        frozen = any(re.match(PARTS[part], name) for part in parts)
        assert parameter.requires_grad != frozen, name


@pytest.mark.parametrize("parts", [["encoder"], ["pyramid"], ["heads"], ["encoder", "pyramid"]])
def test_parts_that_are_frozen_do_not_learn(parts: list[str]) -> None:
    model = build_mask_rcnn(small_config())
    freeze_parts(model, parts)
    assert_frozen(model, parts)
    with pytest.raises(InputError, match="nothing is left that learns"):
        freeze_parts(model, list(PARTS))


@pytest.mark.detectron2
def test_detectron2_freezes_the_same_parts() -> None:
    from detection.config import to_detectron2
    from detection.engines.detectron2.trainer import build_detector

    model = build_detector(to_detectron2(small_config({"ENGINE": "detectron2"})))
    freeze_parts(model, ["encoder", "pyramid"])
    assert_frozen(model, ["encoder", "pyramid"])


@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_a_training_leaves_frozen_parts_as_they_were(engine: str, data, tmp_path: Path) -> None:
    """From a detector of one class more, on either engine: what is frozen is bitwise the file's."""
    torch.manual_seed(0)
    start = build_mask_rcnn(small_config())
    file = tmp_path / "start.safetensors"
    save_safetensors(start.state_dict(), file, {"class_names": json.dumps(["box", "x", "disc"])})
    changes = {"ENGINE": engine, CLASSES: 0, "SOLVER.MAX_ITER": 2, "SOLVER.STEPS": ()}
    changes |= {"MODEL.WEIGHTS": str(file), "MODEL.FREEZE": ["encoder", "pyramid"]}
    changes |= {"DATASETS.TRAIN": (data,), "OUTPUT_DIR": str(tmp_path / "run")}
    run(small_config(changes))
    ended = read_state_dict(newest_weights(tmp_path / "run"))
    if not is_detectron2(ended):
        ended = torchvision_to_detectron2(ended)
    began = torchvision_to_detectron2(start.state_dict())
    learnt = {name for name, tensor in ended.items() if not torch.equal(tensor, began[name])}
    assert len(ended) == len(began)
    assert not [name for name in learnt if name.startswith("backbone.")]
    assert any(name.startswith("proposal_generator.") for name in learnt)
    assert any(name.startswith("roi_heads.") for name in learnt)


# --- other channels, other architectures ---


@pytest.mark.parametrize(("whole", "bands"), [(True, 1), (False, 1), (True, 4), (False, 13)])
def test_weights_of_other_channels_need_the_key(whole: bool, bands: int, tmp_path: Path) -> None:
    grey = {"INPUT.FORMAT": "L" if bands == 1 else "raw", "MODEL.CONVNEXT.IN_CHANS": bands}
    grey |= {"MODEL.PIXEL_MEAN": [100.0] * bands, "MODEL.PIXEL_STD": [50.0] * bands}
    path = tmp_path / "x.safetensors"
    if whole:
        source = build_mask_rcnn(small_config())
        save_safetensors(source.state_dict(), path, {"class_names": json.dumps(OLD)})
        stem = source.backbone.body.downsample_layers[0][0].weight
        key = "MODEL.WEIGHTS"
    else:
        encoder = build_convnext("convnextv2_atto")
        save_encoder(encoder, path, {})
        stem = encoder.downsample_layers[0][0].weight
        key = "MODEL.CONVNEXT.WEIGHTS"
    config = small_config({**grey, key: str(path)})
    with pytest.raises(InputError, match=r"downsample_layers\.0\.0\.weight"):
        load_initial_weights(config, build_mask_rcnn(config), OLD)
    config = small_config({**grey, key: str(path), "MODEL.CONVNEXT.ADAPT_CHANNELS": True})
    model = build_mask_rcnn(config)
    load_initial_weights(config, model, OLD)
    found = model.backbone.body.downsample_layers[0][0].weight
    torch.testing.assert_close(found, timm.models.adapt_input_conv(bands, stem.detach()))


def yolo() -> dict[str, Tensor]:
    return {f"model.{n}.conv.weight": torch.ones(1) for n in range(30)}


@pytest.mark.parametrize("state", [resnet18().state_dict(), yolo()], ids=["ResNet", "YOLO"])
def test_a_checkpoint_of_another_architecture_is_one_message(state, tmp_path: Path) -> None:
    torch.save({"model": state}, tmp_path / "x.pth")
    for key, message in (
        ("MODEL.WEIGHTS", "is of another architecture: it has no ConvNeXt"),
        ("MODEL.CONVNEXT.WEIGHTS", "no ConvNeXt encoder in it"),
    ):
        config = small_config({key: str(tmp_path / "x.pth")})
        with pytest.raises(InputError, match=message) as caught:
            load_initial_weights(config, build_mask_rcnn(config), OLD)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
