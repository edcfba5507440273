"""The detection benchmark measures what it says: the same detector, the same numbers."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from pycocotools import mask as rle_codec
from torchvision.models._utils import IntermediateLayerGetter

from detection.benchmarks import evaluation as benchmark_evaluation
from detection.benchmarks.detectors import (
    LOGIT_SPREAD,
    RESNET,
    DetectorCase,
    ResNet50,
    detectron2_detector,
    make_samples,
    torchvision_detector,
)
from detection.benchmarks.engines import adapter_case, engines_case
from detection.benchmarks.evaluation import evaluation_case, write_synthetic
from detection.benchmarks.prediction import prediction_case
from detection.benchmarks.tables import PARTS, detection_tables

CPU = torch.device("cpu")
SMALL = DetectorCase(
    "convnextv2_atto",
    image_size=96,
    overrides=tuple(
        str(word)
        for pair in {
            "MODEL.FPN.OUT_CHANNELS": 32,
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
            "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
            "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
            "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
            "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
            "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
        }.items()
        for word in pair
    ),
)


def test_the_weights_detect_and_training_steps_change_them():
    detector = torchvision_detector(SMALL, CPU)
    logits = []
    predictor = detector.model.roi_heads.box_predictor
    predictor.register_forward_hook(lambda module, inputs, outputs: logits.append(outputs[0]))
    (found,) = detector.infer()
    assert logits[0].std().item() == pytest.approx(LOGIT_SPREAD, rel=1e-3)
    assert 20 < len(found["scores"]) <= 100
    assert found["masks"].shape[1:] == (96, 96)
    before = predictor.cls_score.weight.clone()
    assert detector.optimizer.state == {}
    detector.train()
    assert not torch.equal(before, predictor.cls_score.weight)
    weights = sum(p.numel() * 4 for p in detector.model.parameters()) / 2**20
    assert detector.mebibytes(lambda: None) == pytest.approx(3 * weights, rel=0.01)  # AdamW's two
    assert detector.mebibytes(detector.train) > 4 * weights  # and the gradients


def test_samples_are_ellipses_inside_their_boxes():
    (sample,) = make_samples(SMALL)
    for box, mask in zip(sample["boxes"].tolist(), sample["masks"].numpy(), strict=True):
        x, y, w, h = rle_codec.toBbox(rle_codec.encode(mask.astype("uint8", order="F"))).tolist()
        assert [x, y, x + w, y + h] == pytest.approx(box, abs=2)
        width, height = box[2] - box[0], box[3] - box[1]
        assert mask.sum() == pytest.approx(3.14159 / 4 * width * height, rel=0.2, abs=6)


@pytest.mark.detectron2
def test_both_engines_run_the_same_detector_on_the_same_images():
    ours = torchvision_detector(SMALL, CPU)
    theirs = detectron2_detector(SMALL, CPU, ours.model.state_dict())
    (found,), (reference,) = ours.infer(), theirs.infer()
    instances = reference["instances"]
    assert torch.allclose(found["boxes"], instances.pred_boxes.tensor, atol=1e-4)
    assert torch.allclose(found["scores"], instances.scores, atol=1e-5)
    assert torch.equal(found["masks"], instances.pred_masks)
    groups = [[len(g["params"]) for g in d.optimizer.param_groups] for d in (ours, theirs)]
    assert sum(groups[0]) == sum(groups[1])


@pytest.mark.detectron2
def test_ratios_are_quotients_of_what_was_measured():
    training = {row["what"]: row for row in engines_case(SMALL, 1, CPU)}["training"]
    for unit, ratio in (("s", "time ratio"), ("MiB", "memory ratio")):
        quotient = training[f"torchvision {unit}"] / training[f"detectron2 {unit}"]
        assert training[ratio] == quotient > 0
    row = adapter_case(replace(SMALL, image_size=32), 1, CPU)
    assert row["adapter / bare"] == row["adapter s"] / row["bare encoder s"]


@pytest.mark.detectron2
def test_inference_holds_at_most_what_detectron2_holds_where_the_mask_head_is_the_peak():
    """As in every config of COCO; memory is no timing and the same in each run."""
    wide = ("MODEL.ROI_MASK_HEAD.CONV_DIM", "128", "MODEL.ROI_MASK_HEAD.NUM_CONV", "2")
    case = replace(SMALL, overrides=SMALL.overrides + wide)
    ours = torchvision_detector(case, CPU)
    theirs = detectron2_detector(case, CPU, ours.model.state_dict())
    assert ours.mebibytes(ours.infer) <= theirs.mebibytes(theirs.infer)


def test_resnet_is_torchvisions_with_stem_and_first_stage_frozen():
    torch.manual_seed(0)
    model = ResNet50().eval()
    stages = {f"layer{i}": f"stage{i}" for i in range(1, 5)}
    images = torch.randn(1, 3, 64, 96)
    expected = IntermediateLayerGetter(model.body, stages)(images)
    features = model.forward_features(images)
    assert list(features) == list(expected)
    for (name, feature), stride in zip(features.items(), (4, 8, 16, 32), strict=True):
        assert torch.equal(feature, expected[name])
        assert feature.shape == (1, model.out_channels[name], 64 // stride, 96 // stride)
    learns = {n.split(".")[0] for n, p in model.body.named_parameters() if p.requires_grad}
    assert learns == {"layer2", "layer3", "layer4"}


@pytest.fixture
def small_cases(monkeypatch):
    original = DetectorCase.config
    monkeypatch.setattr(
        DetectorCase, "config", lambda case: original(replace(case, overrides=SMALL.overrides))
    )


def test_costs_are_of_torchvision_alone_where_detectron2_is_missing(monkeypatch, small_cases):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "detectron2" else find_spec(name)
    )
    tables = detection_tables([("convnextv2_atto", "fp32", 1, 96)], 1, CPU, 0)
    assert next(iter(tables.values())) == [{"skipped": "detectron2 is not installed"}]
    check_costs(tables["cost on the torchvision engine"])
    assert len(tables) == 2


@pytest.mark.detectron2
def test_costs_of_both_engines_alone_are_relative_to_each_ones_resnet(small_cases):
    tables = detection_tables([("convnextv2_atto", "fp32", 1, 96)], 1, CPU, 5000, ["cost"])
    assert list(tables) == ["cost on the torchvision engine", "cost on the detectron2 engine"]
    for rows in tables.values():
        check_costs(rows)


@pytest.mark.detectron2
def test_both_engines_resnets_have_as_many_weights_and_freeze_as_many():
    counts = []
    for build in (torchvision_detector, detectron2_detector):
        parameters = list(build(replace(SMALL, size=RESNET), CPU).model.parameters())
        counts.append([sum(p.numel() for p in parameters if p.requires_grad == b) for b in (0, 1)])
    background = 4 * (32 + 1) + 1 * (16 + 1)  # torchvision's rows of boxes and masks
    assert counts[0] == [counts[1][0], counts[1][1] + background]
    assert counts[0][0] > 0


def check_costs(rows):
    reference, atto = rows
    assert (reference["detector"], atto["detector"]) == (RESNET, "convnextv2_atto")
    for name in ("training s", "training MiB", "inference s", "inference MiB"):
        assert reference[f"{name} / {RESNET}"] == 1
        assert atto[f"{name} / {RESNET}"] == atto[name] / reference[name]
    assert atto[f"training MiB / {RESNET}"] < 0.6  # 3.7 M parameters against 25 M


def test_synthetic_results_are_cocos_size_and_some_are_right(tmp_path):
    truth_path, results_path = write_synthetic(tmp_path, images=20, detections=100)
    truth, results = (json.loads(path.read_text()) for path in (truth_path, results_path))
    assert (len(truth["images"]), len(truth["categories"]), len(results)) == (20, 80, 2000)
    assert 80 < len(truth["annotations"]) < 200
    row = evaluation_case(20)
    assert row["ours / pycocotools"] == row["ours s"] / row["pycocotools s"]
    assert row["ours / pycocotools"] < 0.6  # 0.1 at 5,000 images; processor time, once


def test_evaluation_whose_numbers_differ_is_no_result(monkeypatch):
    monkeypatch.setattr(
        benchmark_evaluation,
        "pycocotools_metrics",
        lambda truth, results: {"bbox": [0.0] * 12},
    )
    with pytest.raises(RuntimeError, match="is not pycocotools'"):
        evaluation_case(2, detections=10)


def test_tool_measures_the_shapes_that_were_asked_for(run_tool, monkeypatch):
    calls = []

    def recorded(*options):
        calls.append(options)
        return {"heading": [{"ratio": 0.5}]}

    monkeypatch.setattr("detection.benchmarks.tables.detection_tables", recorded)
    arguments = ["--sizes", "convnextv2_pico", "--image-size", "320", "--rounds", "2"]
    arguments += ["--images", "0", "--only", "cost", "--json"]
    shown = run_tool("benchmark", "detection", *arguments)
    assert json.loads(shown.out)["heading"] == [{"ratio": 0.5}]
    run_tool("benchmark", "detection")
    assert calls[0] == ([("convnextv2_pico", "fp32", 1, 320)], 2, CPU, 0, ["cost"])
    assert [shape[2:] for shape in calls[1][0]] == [(1, 512)] * len(calls[1][0])
    assert calls[1][3:] == (5000, PARTS)


def test_unknown_sizes_are_named():
    with pytest.raises(ValueError, match="no config of 'convnextv2_giant'"):
        DetectorCase("convnextv2_giant").config()


def test_prediction_of_one_image_tells_its_detections_and_what_it_held():
    row = prediction_case(160, 120, 7, "torchvision")
    assert (row["megapixels"], row["detections"]) == (0.0192, 7)
    assert 0 < row["MiB more"] < 2000
