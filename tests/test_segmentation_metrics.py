"""Metrics from one confusion matrix, against detectron2's, mmsegmentation's and naive loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmentation.metrics import ConfusionMatrix, boundary_region, segmentation_metrics
from segmentation.upernet import IGNORED

GOLDEN = Path(__file__).parent / "golden/mmsegmentation.json"
NAMES = ["sky", "road", "car", "boat"]


def maps() -> list[tuple[np.ndarray, np.ndarray]]:
    """(truth, prediction) of three images; boats are predicted but nowhere in the truth."""
    generator = np.random.default_rng(0)
    pairs = []
    for height, width in ((40, 60), (33, 21), (64, 64)):
        truth = generator.integers(0, 3, (height, width))
        prediction = np.where(generator.random((height, width)) < 0.7, truth, 0)
        prediction[:3, :3] = 3
        truth[-5:] = IGNORED
        pairs.append((truth, prediction))
    return pairs


def measured(pairs=None) -> dict:
    matrix = ConfusionMatrix(len(NAMES))
    for truth, prediction in pairs or maps():
        matrix.add(truth, prediction)
    return segmentation_metrics(matrix, NAMES)


def naive_iou(k: int) -> float | None:
    inter = union = 0
    for truth, prediction in maps():
        for t, p in zip(truth.flat, prediction.flat, strict=True):
            if t != IGNORED:
                inter += t == k and p == k
                union += k in (t, p)
    return 100 * inter / union if union else None


def test_iou_and_accuracy_are_those_of_a_loop_over_all_pixels_of_the_set():
    metrics = measured()
    for k, name in enumerate(NAMES):
        assert metrics["per_class"][name]["IoU"] == pytest.approx(naive_iou(k), abs=1e-12)
    labelled = [(t[t != IGNORED], p[t != IGNORED]) for t, p in maps()]
    right = sum((t == p).sum() for t, p in labelled)
    assert metrics["sem_seg"]["pACC"] == 100 * right / sum(t.size for t, _ in labelled)
    road = [(p[t == 1] == 1) for t, p in labelled]
    assert metrics["per_class"]["road"]["ACC"] == pytest.approx(100 * np.concatenate(road).mean())
    assert metrics["counts"]["pixels"] == sum(t.size for t, _ in labelled)


def test_a_class_that_is_only_predicted_counts_by_mmsegmentations_convention_alone():
    metrics = measured()
    of_truth = [naive_iou(k) for k in range(3)]
    assert naive_iou(3) == 0
    assert metrics["sem_seg"]["mIoU"] == pytest.approx(np.mean(of_truth))
    assert metrics["sem_seg"]["mIoU_mmseg"] == pytest.approx(np.mean([*of_truth, 0.0]))


def test_a_class_that_is_nowhere_counts_by_neither_and_has_no_figure():
    pairs = [(truth, np.where(prediction == 3, 0, prediction)) for truth, prediction in maps()]
    metrics = measured(pairs)
    assert metrics["per_class"]["boat"]["IoU"] is None
    assert metrics["sem_seg"]["mIoU"] == metrics["sem_seg"]["mIoU_mmseg"]


def test_an_empty_set_has_no_figures_instead_of_nan():
    metrics = segmentation_metrics(ConfusionMatrix(2), ["a", "b"])
    assert set(metrics["sem_seg"].values()) == {None}


def test_matrices_of_several_processes_add_up():
    whole, parts = ConfusionMatrix(4), ConfusionMatrix(4)
    for truth, prediction in maps():
        whole.add(truth, prediction)
        part = ConfusionMatrix(4)
        part.add(truth, prediction)
        parts += part
    assert segmentation_metrics(parts, NAMES) == segmentation_metrics(whole, NAMES)


def test_the_boundary_is_what_lies_within_a_share_of_the_diagonal_of_the_edge():
    mask = np.zeros((60, 80), bool)
    mask[10:50, 20:70] = True
    expected = mask.copy()
    expected[12:48, 22:68] = False  # 0.02 of a diagonal of 100 pixels
    assert np.array_equal(boundary_region(mask), expected)
    assert boundary_region(np.ones((60, 80), bool))[0].all()  # the image's border is an edge


def test_boundary_iou_of_a_shifted_square_is_far_below_its_iou():
    truth, prediction = np.zeros((2, 100, 100), int)
    truth[20:80, 20:80], prediction[22:82, 20:80] = 1, 1
    matrix = ConfusionMatrix(2)
    matrix.add(truth, prediction)
    metrics = segmentation_metrics(matrix, ["ground", "square"])["per_class"]["square"]
    g, p = boundary_region(truth == 1), boundary_region(prediction == 1)
    assert metrics["boundary_IoU"] == pytest.approx(100 * (g & p).sum() / (g | p).sum())
    assert metrics["boundary_IoU"] < metrics["IoU"] - 30


def test_every_figure_is_mmsegmentations_to_the_last_digit_of_its_float32():
    """Golden numbers of that project's own two functions on the same maps; it divides in float32,
    and its pixel counts are exact there."""
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = measured()
    for k, name in enumerate(NAMES):
        for theirs, ours in (("IoU", "IoU"), ("Acc", "ACC")):
            value = found["per_class"][name][ours]
            if expected[theirs][k] is None:
                assert value is None
            else:
                assert np.float32(value / 100) == np.float32(expected[theirs][k])
    pairs = {"mIoU": "mIoU_mmseg", "aAcc": "pACC", "mAcc": "mACC"}
    for theirs, ours in pairs.items():  # a mean of float32 rounds at each addition
        assert found["sem_seg"][ours] / 100 == pytest.approx(expected[theirs], rel=3e-7)
    assert found["sem_seg"]["mIoU"] != found["sem_seg"]["mIoU_mmseg"]


@pytest.mark.detectron2
def test_every_figure_is_detectron2s_to_the_last_digit(tmp_path):
    import torch
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.evaluation import SemSegEvaluator

    records = []
    for index, (truth, _) in enumerate(maps()):
        path = tmp_path / f"{index}.png"
        Image.fromarray(truth.astype(np.uint8)).save(path)
        records.append({"file_name": f"{index}.jpg", "sem_seg_file_name": str(path)})
    name = f"maps_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=NAMES, ignore_label=IGNORED)
    evaluator = SemSegEvaluator(name, distributed=False)
    evaluator.reset()
    for record, (_, prediction) in zip(records, maps(), strict=True):
        logits = torch.nn.functional.one_hot(torch.tensor(prediction), len(NAMES))
        evaluator.process([record], [{"sem_seg": logits.permute(2, 0, 1).float()}])
    expected = evaluator.evaluate()["sem_seg"]
    found = measured()
    for key in ("mIoU", "fwIoU", "mACC", "pACC"):
        assert found["sem_seg"][key] == pytest.approx(expected[key], abs=1e-12)
    for class_name in NAMES[:3]:
        assert found["per_class"][class_name]["IoU"] == expected[f"IoU-{class_name}"]
        assert found["per_class"][class_name]["ACC"] == expected[f"ACC-{class_name}"]
