"""Trained by one engine, evaluated by the other: the same detections and the same AP."""

import json
from pathlib import Path

import numpy as np
import pytest
from golden import inputs
from golden.scenes import config_of, scenes

from detection.dataset import load_dataset
from detection.engines import load_engine
from detection.evaluate import coco_metrics
from training.configured import newest_weights

pytestmark = pytest.mark.detectron2
ENGINES = ("torchvision", "detectron2")


@pytest.fixture(autouse=True)
def tiny_encoder():
    with inputs.tiny_encoder():
        yield


def assert_same_evaluation(trained_by, config, dataset):
    """Train by one engine and predict with its weights by both; returns their common AP."""
    load_engine(trained_by).train(config, dataset, resume=False)
    weights = str(newest_weights(Path(config.OUTPUT_DIR)))
    metrics, detections = [], []
    for name in ENGINES:
        results = load_engine(name).predict(config, dataset, weights)
        metrics.append(coco_metrics(dataset.annotations, results))
        detections.append(json.loads(results.read_text()))
    for ours, theirs in zip(*detections, strict=True):
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-4)
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
        for key in ("image_id", "category_id", "segmentation"):
            assert ours[key] == theirs[key]
    for task in ("bbox", "segm"):
        assert metrics[0][task] == pytest.approx(metrics[1][task], abs=1e-3)
    return metrics[0]["bbox"]["AP"]


@pytest.mark.parametrize("trained_by", ENGINES)
def test_either_engines_training_scores_the_same_on_both(trained_by, tmp_path):
    weights = str(inputs.trained_file("LN"))
    config = config_of(
        tmp_path / "run",
        {"MODEL.WEIGHTS": weights, "SOLVER.MAX_ITER": 3, "SOLVER.BASE_LR": 1e-4},
    )
    assert assert_same_evaluation(trained_by, config, scenes(tmp_path / "data")) > 10


@pytest.mark.parametrize("trained_by", ENGINES)
@pytest.mark.parametrize(("name", "count", "steps"), [("nuclei", 3, 20), ("coco_mini", 3, 20)])
def test_real_images_score_the_same_on_both_engines(
    trained_by, name, count, steps, real_data, tmp_path
):
    source = real_data / name
    tree = json.loads((source / "annotations" / "val.json").read_text())
    sizes = np.unique([item["image_id"] for item in tree["annotations"]], return_counts=True)
    ids = [int(i) for i, objects in zip(*sizes, strict=True) if 3 <= objects <= 40][:count]
    tree["images"] = [image for image in tree["images"] if image["id"] in ids]
    tree["annotations"] = [item for item in tree["annotations"] if item["image_id"] in ids]
    (tmp_path / "few.json").write_text(json.dumps(tree))
    dataset = load_dataset(f"json:{tmp_path / 'few.json'}:{source / 'images'}")
    classes = len(dataset.class_names)
    changes = {"MODEL.ROI_HEADS.NUM_CLASSES": classes, "SOLVER.MAX_ITER": steps}
    changes |= {"SOLVER.BASE_LR": 2e-3, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001}
    config = config_of(tmp_path / "run", changes)
    assert assert_same_evaluation(trained_by, config, dataset) >= 0
