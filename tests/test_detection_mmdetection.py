"""Detectors in mmdetection's layout find on either engine what mmdetection finds with them."""

from __future__ import annotations

import json
import logging
from typing import Any
from unittest.mock import patch

import pytest
import torch
from fvcore.common.config import CfgNode
from golden import inputs, mmdetection, outputs
from torch import Tensor
from two_engines import Detectron2Detector, TorchvisionDetector, assert_same_detections

from backbones.convnext import SIZES
from backbones.errors import InputError
from backbones.weight_files import read_weights
from detection.config import default_config
from detection.engines.mmdetection import is_mmdetection, mmdetection_to_detectron2
from detection.engines.weights import read_detector

GOLDEN = mmdetection.read()
SIZE = "tiny_test_encoder"
CASCADE: dict[str, Any] = {
    "ENGINE": "detectron2",
    "MODEL.ROI_HEADS.NAME": "PerClassCascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 2,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 16,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "BN",
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": (
        (10.0, 10.0, 5.0, 5.0),
        (20.0, 20.0, 10.0, 10.0),
        (1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067),
    ),
}


@pytest.fixture(autouse=True)
def tiny():
    with patch.dict(SIZES, {SIZE: mmdetection.SIZE}):
        yield


def config(kind: str) -> CfgNode:
    made = default_config()
    pairs = (
        {"MODEL.CONVNEXT.SIZE": SIZE} | inputs.OVERRIDES | (CASCADE if kind == "cascade" else {})
    )
    made.merge_from_list([item for pair in pairs.items() for item in pair])
    made.freeze()
    return made


def state(kind: str) -> dict[str, Tensor]:
    return mmdetection.weights(GOLDEN[kind]["shapes"])


def assert_finds_the_same(detector, kind: str) -> None:
    # one image at a time: padding to a larger one changes what an encoder sees at the border
    found = [detector.detect([sample])[0] for sample in mmdetection.samples()]
    expected = [outputs.unpack(image) for image in GOLDEN[kind]["detections"]]
    assert_same_detections(found, expected, boxes=2e-3, scores=1e-5, pixels=1)


def test_torchvision_finds_what_mmdetection_finds() -> None:
    detector = TorchvisionDetector(config("mask"))
    detector.load(mmdetection_to_detectron2(state("mask")))
    assert_finds_the_same(detector, "mask")


@pytest.mark.detectron2
@pytest.mark.parametrize("kind", ["mask", "cascade"])
def test_detectron2_finds_what_mmdetection_finds(kind: str) -> None:
    import detection.engines.detectron2.cascade  # noqa: F401 - registers these heads

    detector = Detectron2Detector(config(kind))
    detector.load(mmdetection_to_detectron2(state(kind)))
    assert_finds_the_same(detector, kind)


@pytest.mark.detectron2
def test_detectron2s_own_cascade_is_another_function() -> None:
    """What the heads of mmdetection's kind are for: the softmax of each stage moves the scores."""
    import detection.engines.detectron2.cascade as heads

    detector = Detectron2Detector(config("cascade"))
    detector.load(mmdetection_to_detectron2(state("cascade")))
    refined = heads.PerClassCascadeROIHeads._refined

    def of_first_class(self, predictor, predictions, proposals):
        scores, deltas = predictions
        only = torch.zeros_like(scores)
        only[:, 0] = 1
        return refined(self, predictor, (only, deltas), proposals)

    with (
        patch.object(heads.PerClassCascadeROIHeads, "_refined", of_first_class),
        pytest.raises(AssertionError),
    ):
        assert_finds_the_same(detector, "cascade")


def test_golden_detections_would_show_a_difference() -> None:
    for kind in GOLDEN:
        for image in map(outputs.unpack, GOLDEN[kind]["detections"]):
            assert len(image.scores) >= 10
            assert max(image.scores) - min(image.scores) > 0.1
            assert len(set(image.classes.tolist())) > 1
            areas = image.masks.flatten(1).sum(1)
            assert max(areas) > 1.2 * min(areas)


@pytest.mark.detectron2
def test_a_cascade_of_this_kind_trains_all_of_its_heads() -> None:
    import detection.engines.detectron2.cascade  # noqa: F401 - registers these heads

    detector = Detectron2Detector(config("cascade"))
    detector.load(mmdetection_to_detectron2(state("cascade")))
    losses, gradients = detector.learn(mmdetection.samples())
    assert {"loss_mask", *(f"loss_{what}_stage{n}" for what in ("cls", "box_reg") for n in range(3))
            } < losses.keys()  # fmt: skip
    for name in ("box_predictor.2.bbox_pred.weight", "mask_head.1.predictor.weight"):
        assert gradients[f"roi_heads.{name}"].norm() > 0


# --- files ---


@pytest.mark.parametrize("version", [2, 3])
def test_model_weights_reads_the_file_as_it_was_published(version: int, tmp_path, caplog) -> None:
    """With the authors' names of a block's layers, too, and classes in the file's ``meta``."""
    content = state("mask")
    if version == 2:
        authors = {"depthwise_conv": "dwconv", "pointwise_conv": "pwconv"}
        for theirs, own in authors.items():
            content = {name.replace(theirs, own): t for name, t in content.items()}
        meta: dict[str, Any] = {"CLASSES": ("a", "b", "c"), "mmdet_version": "2.1"}
    else:
        meta = {"dataset_meta": {"CLASSES": ("a", "b", "c")}, "epoch": 36}
    path = tmp_path / "mask_rcnn.pth"
    torch.save({"meta": meta, "state_dict": content, "optimizer": {}}, path)
    assert json.loads(read_weights(path)[1]["class_names"]) == ["a", "b", "c"]
    detector = TorchvisionDetector(config("mask"))
    with caplog.at_level(logging.INFO, "detection"):
        read_detector(path, detector.model)
    total = len(detector.model.state_dict())
    assert f"{total} of {total} tensors from the detector {path}" in caplog.text
    assert_finds_the_same(detector, "mask")


@pytest.mark.parametrize("target", ["detectron2", "torchvision"])
def test_the_tool_converts_it_for_either_engine(target: str, run_tool, tmp_path) -> None:
    content = {"meta": {"CLASSES": ("a", "b", "c")}, "state_dict": state("mask")}
    torch.save(content, tmp_path / "mm.pth")
    output = tmp_path / ("out.pth" if target == "detectron2" else "out.safetensors")
    result = run_tool("convert_checkpoint", tmp_path / "mm.pth", output, "--to", target)
    assert result.code == 0, result.err
    assert "not carried over" not in result.out
    tensors, metadata = read_weights(output)
    assert json.loads(metadata["class_names"]) == ["a", "b", "c"]
    detector = TorchvisionDetector(config("mask"))
    read_detector(output, detector.model)
    assert_finds_the_same(detector, "mask")
    assert not is_mmdetection(tensors)


def test_heads_that_are_none_of_these_are_named() -> None:
    with pytest.raises(InputError, match=r"2 of .* tensors are not of mmdetection's"):
        mmdetection_to_detectron2(
            state("mask") | {"bbox_head.x": torch.ones(1), "roi_head.iou_head.y": torch.ones(1)}
        )


def test_the_encoder_of_such_a_file_starts_any_detector(tmp_path) -> None:
    from backbones.checkpoint import build_encoder

    torch.save({"state_dict": state("cascade")}, tmp_path / "x.pth")
    encoder, result = build_encoder(tmp_path / "x.pth")
    assert result.loaded == result.total
    assert result.format == "mmpretrain"
    assert sorted(encoder.out_norms) == ["stage1", "stage2", "stage3", "stage4"]
    own = state("cascade")["backbone.norm2.weight"]
    assert torch.equal(encoder.out_norms["stage3"].weight, own)
