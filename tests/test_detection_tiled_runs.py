"""Runs with tiles: trained, predicted on, evaluated and reported; the same on both engines."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from log_handlers import restored_log_handlers
from pycocotools import mask as rle
from small_detector import small_config, spread_scores
from tiled_coco import tiled_coco, write_tiled_coco

from backbones.weight_files import save_safetensors
from detection.data.pixels import open_record
from detection.data.tiles import tile_sample, tiles_of
from detection.dataset import load_dataset
from detection.detector import Detector
from detection.engines import load_engine
from detection.engines.seams import join_tiles
from detection.engines.torchvision.model import build_mask_rcnn
from detection.predict import predict
from detection.run import complete, run
from images.files import Reading, read_image

TILES = {
    "INPUT.TILES.ENABLED": True,
    "INPUT.TILES.SIZE": 128,
    "INPUT.TILES.OVERLAP": 48,
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 30,
    "SEED": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_tiled_coco(folder, tiled_coco())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = build_mask_rcnn(small_config(TILES))
    spread_scores(model)
    path = tmp_path_factory.mktemp("weights") / "detector.safetensors"
    save_safetensors({k: v.contiguous() for k, v in model.state_dict().items()}, path, {})
    return path


@pytest.fixture(
    scope="module",
    params=["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)],
)
def trained(request, tmp_path_factory, data):
    """A run of two steps whose tiles are found by the objects."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    changes = {"INPUT.TILES.SIZE": 0, "INPUT.TILES.OVERLAP": -1, "ENGINE": request.param}
    changes |= {"DATASETS.TRAIN": (data,), "DATASETS.TEST": (data,), "SOLVER.MAX_ITER": 2}
    changes |= {"SOLVER.STEPS": (), "MODEL.ROI_HEADS.NUM_CLASSES": 0}
    changes |= {"TEST.EVAL_PERIOD": 1, "TEST.DETECTIONS_PER_IMAGE": 101}
    config = small_config(TILES | changes | {"OUTPUT_DIR": str(folder)})
    with restored_log_handlers():
        run(config)
    return folder


def results_of(folder):
    return json.loads((folder / "inference" / "coco_instances_results.json").read_text())


def test_a_run_writes_down_the_tiles_that_it_found(trained):
    tiles = yaml.safe_load((trained / "config.yaml").read_text())["INPUT"]["TILES"]
    assert (tiles["SIZE"], tiles["OVERLAP"]) == (512, 128)
    counts = json.loads((trained / "inference" / "tiles.json").read_text())
    assert counts["size"] == 512
    assert counts["images"] == counts["tiles"] == 2
    assert counts["found"] == len(results_of(trained)) > 12


def test_ap_at_the_limit_stands_beside_cocos_in_training_and_after(trained):
    lines = (trained / "metrics.json").read_text().splitlines()
    metrics = {key: value for line in lines for key, value in json.loads(line).items()}
    assert {"segm/AP", "segm/AP_at_limit", "bbox/AP_at_limit"} <= set(metrics)
    summary = json.loads((trained / "inference" / "metrics_summary.json").read_text())
    assert summary["at_limit"]["max_detections"] == 101
    said = (trained / "log.txt").read_text()
    assert "101 detections of a class and image in place of COCO's 100" in said
    assert "with 101 detections of a class and image" in (trained / "report.md").read_text()


def test_an_evaluation_takes_the_runs_tiles_and_others_where_asked(trained, data):
    name = trained.parent.name
    engine = "detectron2" if "detectron2" in name else "torchvision"
    changes = {"INPUT.TILES.SIZE": 0, "INPUT.TILES.OVERLAP": 40, "ENGINE": engine}
    changes |= {"DATASETS.TEST": (data,), "OUTPUT_DIR": str(trained)}
    before = (trained / "config.yaml").read_text()
    with restored_log_handlers():
        run(small_config(TILES | changes), eval_only=True)
        assert json.loads((trained / "inference" / "tiles.json").read_text())["overlap"] == 40
        run(small_config(TILES | changes | {"INPUT.TILES.SIZE": 128}), eval_only=True)
    counts = json.loads((trained / "inference" / "tiles.json").read_text())
    assert (counts["size"], counts["tiles"]) == (128, 2 * 4 * 3)
    assert (trained / "config.yaml").read_text() == before


def test_an_evaluation_does_not_find_tiles_by_the_labels_that_it_is_measured_by(tmp_path, data):
    changes = {"INPUT.TILES.SIZE": 0, "INPUT.TILES.OVERLAP": -1, "OUTPUT_DIR": str(tmp_path)}
    dataset = load_dataset(data)
    config = small_config(TILES | changes)
    trained = complete(config, [dataset, dataset], resume=False).INPUT.TILES
    assert (trained.SIZE, trained.OVERLAP) == (512, 128)
    evaluated = complete(config, [None, dataset], resume=False, eval_only=True).INPUT.TILES
    assert (evaluated.SIZE, evaluated.OVERLAP) == (1024, 256)  # as fcmae predict --tiles auto


def test_predictions_are_the_joined_detections_of_the_tiles(tmp_path, data, weights):
    config = small_config(TILES | {"OUTPUT_DIR": str(tmp_path)})
    dataset = load_dataset(data)
    engine = load_engine("torchvision")
    detect = engine.detector(config, dataset, str(weights))
    expected, counts = [], Counter()
    for record in dataset.records:
        with open_record(record, config) as image:
            tiles = tiles_of(image.height, image.width, config)
            assert len(tiles) == 12
            found = [
                (tile, detect(tile_sample(image, tile, config, record["image_id"])))
                for tile in tiles
            ]
        expected += join_tiles(found, record["height"], record["width"], counts)
    engine.predict(config, dataset, str(weights))
    assert results_of(tmp_path) == expected
    facts = json.loads((tmp_path / "inference" / "tiles.json").read_text())
    assert facts["found"] == counts["found"] > len(expected)
    assert facts["repeated"] == counts["repeated"] > 0
    assert len(expected) > TILES["TEST.DETECTIONS_PER_IMAGE"]
    for result in expected:
        assert result["segmentation"]["size"] == [230, 330]


def test_workers_share_the_images_and_change_nothing(tmp_path, data, weights):
    dataset = load_dataset(data)
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        config = small_config(
            TILES | {"OUTPUT_DIR": str(folder), "DATALOADER.NUM_WORKERS": workers}
        )
        load_engine("torchvision").predict(config, dataset, str(weights))
    assert results_of(tmp_path / "0") == results_of(tmp_path / "2")


@pytest.mark.detectron2
def test_both_engines_join_to_the_same_result(tmp_path, data, weights):
    dataset, found = load_dataset(data), {}
    for engine in ("torchvision", "detectron2"):
        folder = tmp_path / engine
        config = small_config(TILES | {"ENGINE": engine, "OUTPUT_DIR": str(folder)})
        load_engine(engine).predict(config, dataset, str(weights))
        found[engine] = results_of(folder)
    ours, theirs = found.values()
    assert len(ours) == len(theirs) > 12
    for one, other in zip(ours, theirs, strict=True):
        assert one["category_id"] == other["category_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
        masks = [rle.decode(result["segmentation"]) for result in (one, other)]
        assert (masks[0] != masks[1]).sum() <= 2


def test_predict_and_python_find_what_the_evaluation_finds(trained, tmp_path, data):
    _, _, images = data.rpartition(":")
    tiles = ["INPUT.TILES.SIZE", "128", "INPUT.TILES.OVERLAP", "48"]
    with restored_log_handlers():
        predict(trained, [f"{images}/1.tif"], tmp_path / "out", overrides=tiles)
        detector = Detector(trained, overrides=tiles)
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(found) > TILES["TEST.DETECTIONS_PER_IMAGE"]
    again = detector(read_image(f"{images}/1.tif", Reading(3)), score_threshold=0.0)
    assert [one.score for one in again] == [result["score"] for result in found]
    for one, result in zip(again, found, strict=True):
        np.testing.assert_array_equal(one.mask, rle.decode(result["segmentation"]))


def test_the_report_tells_the_tiles(trained):
    page = (trained / "report.md").read_text()
    assert "trained on tiles of 512 pixels" in page
    assert "tiles of 128 pixels that share" in page  # the newest evaluation's
