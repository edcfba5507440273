"""One model, two engines: the torchvision engine is held to what detectron2 computes.

The golden file holds it everywhere; where detectron2 is installed, both are held to it in turn.
Every case (plain or with "LN", random or trained weights, one image or more, of odd sizes) is
compared in detections, losses and gradients.
"""

from functools import cache

import numpy as np
import pytest
import torch
from golden import inputs, outputs
from torchvision.ops import box_iou
from two_engines import Detectron2Detector, TorchvisionDetector, assert_same_detections

GOLDEN = outputs.read()
CASES = pytest.mark.parametrize("case", inputs.CASES, ids=str)
SAME_MACHINE = {"boxes": 1e-4, "scores": 1e-5, "pixels": 0, "losses": 1e-5, "gradients": 1e-4}
# Other kernels (no AVX-512, no oneDNN), or weights perturbed by 1e-7, moved boxes by up to 7e-5,
# scores by 2e-6, losses by 7e-7 and, where a ReLU's input crossed 0, a gradient by 7e-5.
ANOTHER_MACHINE = {"boxes": 5e-4, "scores": 1e-5, "pixels": 1, "losses": 1e-5, "gradients": 1e-3}


@cache
def computed(case, engine):
    return outputs.compute(case, engine)


def assert_same(found, expected, boxes, scores, pixels, losses, gradients):
    """Two engines' outputs in the golden file's form, within the given differences."""
    assert found["shapes"] == expected["shapes"]
    assert_same_detections(
        [outputs.unpack(image) for image in found["detections"]],
        [outputs.unpack(image) for image in expected["detections"]],
        boxes,
        scores,
        pixels,
    )
    assert found["losses"] == pytest.approx(expected["losses"], rel=losses)
    assert found["gradients"].keys() == expected["gradients"].keys()
    rounding = 1e-8 * max(length for length, *_ in expected["gradients"].values())
    for name, (length, *values) in expected["gradients"].items():
        atol = gradients * length + rounding
        np.testing.assert_allclose(found["gradients"][name], [length, *values], 0, atol, name)


@CASES
def test_torchvision_computes_what_detectron2_stored(case):
    assert_same(computed(case, TorchvisionDetector), GOLDEN[str(case)], **ANOTHER_MACHINE)


@pytest.mark.detectron2
@CASES
def test_golden_file_is_what_detectron2_says_today(case):
    assert_same(computed(case, Detectron2Detector), GOLDEN[str(case)], **ANOTHER_MACHINE)


@pytest.mark.detectron2
@CASES
def test_engines_agree_in_detections_losses_and_gradients(case):
    assert_same(
        computed(case, TorchvisionDetector), computed(case, Detectron2Detector), **SAME_MACHINE
    )


@CASES
def test_golden_outputs_would_show_a_difference(case):
    golden = GOLDEN[str(case)]
    for image in map(outputs.unpack, golden["detections"]):
        assert len(image.scores) >= 4
        assert max(image.scores) - min(image.scores) > 0.1
        areas = image.masks.flatten(1).sum(1)
        assert max(areas) > 1.2 * min(areas)
    assert len(golden["losses"]) == 5
    assert all(value > 0 for value in golden["losses"].values())
    assert all(length > 0 for length, *_ in golden["gradients"].values())


@pytest.mark.parametrize("weights", ["random", "trained"])
def test_golden_detections_are_of_every_class(weights):
    cases = [case for case in inputs.CASES if case.weights == weights]
    found = {n for c in cases for image in GOLDEN[str(c)]["detections"] for n in image["classes"]}
    assert found == set(range(inputs.NUM_CLASSES))


@pytest.mark.parametrize("variant", inputs.VARIANTS)
def test_trained_detectors_find_most_objects(variant):
    """At least 2 of 3 on each golden image: what is compared is a detector at work."""
    for case in inputs.CASES:
        if (case.variant, case.weights) != (variant, "trained"):
            continue
        for sample, image in zip(case.samples(), GOLDEN[str(case)]["detections"], strict=True):
            found = outputs.unpack(image)
            height, width = sample["image"].shape[1:]
            scale = torch.tensor([sample["width"] / width, sample["height"] / height]).repeat(2)
            right_class = sample["labels"][:, None] == found.classes
            right_place = box_iou(sample["boxes"] * scale, found.boxes) > 0.45
            hits = right_class & right_place & (found.scores > 0.15)
            assert hits.any(1).sum() >= 2
