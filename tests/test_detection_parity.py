"""One model, two engines: the torchvision engine is held to what detectron2 computes.

The golden files hold it everywhere; where detectron2 is installed, they are held to it in turn.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import inputs
from pycocotools import mask as rle

from detection.config import default_config
from detection.engines.torchvision_model import build_mask_rcnn
from detection.engines.weights import detectron2_to_torchvision, torchvision_to_detectron2

GOLDEN = json.loads((Path(__file__).parent / "golden" / "detectron2.json").read_text())
IMAGES = range(len(inputs.SIZES))


@pytest.fixture(scope="module")
def torchvision_detector():
    model = build_mask_rcnn(inputs.apply_overrides(default_config()))
    arrays = inputs.weights(GOLDEN["shapes"])
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    model.load_state_dict(detectron2_to_torchvision(state))
    return model


@pytest.fixture(scope="module")
def torchvision_detections(torchvision_detector):
    batch = [
        {"image": torch.from_numpy(inputs.image(i)), "height": size[0], "width": size[1]}
        for i, (_, size) in enumerate(inputs.SIZES)
    ]
    torchvision_detector.eval()
    with torch.no_grad():
        found = torchvision_detector(batch)
    return [
        {
            "boxes": image["boxes"].tolist(),
            "scores": image["scores"].tolist(),
            "classes": image["labels"].tolist(),
            "masks": [encode(mask) for mask in image["masks"].numpy()],
        }
        for image in found
    ]


def encode(mask):
    return rle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def decode(counts, size):
    return rle.decode({"size": list(size), "counts": counts.encode()}).astype(bool)


def test_names_and_shapes_of_the_weights_map_onto_detectron2s(torchvision_detector):
    ours = torchvision_to_detectron2(torchvision_detector.state_dict())
    assert {name: list(tensor.shape) for name, tensor in ours.items()} == GOLDEN["shapes"]


def assert_same_detections(found, expected, boxes, scores, pixels):
    """``found`` and ``expected`` in the golden files' form, within the given differences."""
    for (_, size), ours, theirs in zip(inputs.SIZES, found, expected, strict=True):
        assert ours["classes"] == theirs["classes"]
        np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=scores, rtol=0)
        np.testing.assert_allclose(ours["boxes"], theirs["boxes"], atol=boxes, rtol=0)
        differing = sum(
            (decode(a, size) != decode(b, size)).sum()
            for a, b in zip(ours["masks"], theirs["masks"], strict=True)
        )
        assert differing <= pixels


def test_torchvision_detections_are_detectron2s_stored_ones(torchvision_detections):
    # Another machine's rounding (1e-7 a weight) moved boxes by 3e-4 and one pixel of 60 masks.
    assert_same_detections(
        torchvision_detections, GOLDEN["detections"], boxes=2e-3, scores=1e-4, pixels=5
    )


def test_golden_detections_would_show_a_difference():
    for (_, (height, width)), golden in zip(inputs.SIZES, GOLDEN["detections"], strict=True):
        assert len(golden["scores"]) == 20
        assert max(golden["scores"]) - min(golden["scores"]) > 0.4
        assert len(set(golden["classes"])) == inputs.NUM_CLASSES
        areas = [decode(counts, (height, width)).sum() for counts in golden["masks"]]
        assert min(areas) > 0
        assert max(areas) > 10 * min(areas)


@pytest.fixture(scope="module")
def torchvision_losses(torchvision_detector):
    batch = [
        {
            "image": torch.from_numpy(inputs.image(i)),
            "boxes": torch.from_numpy(inputs.boxes(i)).float(),
            "labels": torch.from_numpy(inputs.labels(i)),
            "masks": torch.from_numpy(inputs.masks(i)),
        }
        for i in IMAGES
    ]
    torchvision_detector.train()
    with torch.no_grad():
        return {name: float(value) for name, value in torchvision_detector(batch).items()}


def test_torchvision_losses_are_detectron2s_stored_ones(torchvision_losses):
    assert torchvision_losses == pytest.approx(GOLDEN["losses"], rel=2e-5)


@pytest.fixture(scope="module")
def detectron2_today():
    from golden.outputs import compute_golden

    return compute_golden()


@pytest.mark.detectron2
def test_golden_files_are_what_detectron2_says_today(detectron2_today):
    assert detectron2_today["shapes"] == GOLDEN["shapes"]
    assert detectron2_today["losses"] == pytest.approx(GOLDEN["losses"], rel=2e-5)
    assert_same_detections(
        detectron2_today["detections"], GOLDEN["detections"], boxes=2e-3, scores=1e-4, pixels=5
    )


@pytest.mark.detectron2
def test_engines_agree_to_rounding_and_in_every_mask_pixel(
    torchvision_detections, detectron2_today
):
    assert_same_detections(
        torchvision_detections, detectron2_today["detections"], boxes=1e-4, scores=1e-5, pixels=0
    )


@pytest.mark.detectron2
def test_engines_losses_agree_to_six_digits(torchvision_losses, detectron2_today):
    assert torchvision_losses == pytest.approx(detectron2_today["losses"], rel=1e-6)
