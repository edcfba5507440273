"""Ground truth beside detections on a few test images, for the experiment trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from detection.data.pixels import read_record
from detection.data.tile_records import busiest_tile
from detection.data.transforms import sample_of_values
from detection.dataset import CocoDataset
from detection.drawing.instances import coco_instances, draw_instances
from detection.engines.interface import Detect
from images.display import shown
from training.data import evenly_spread

IMAGES = 4
LONG_SIDE, GAP = 640, 8  # pixels of each of the two drawings, and between them
SCORE = 0.5  # of the detections that are shown, as in tools/predict.py


def overlays_due(config: CfgNode, step: int) -> bool:
    """Whether overlays follow a step: where the run evaluates, and after its last one."""
    period, last = config.TEST.EVAL_PERIOD, config.SOLVER.MAX_ITER
    watched = config.DATASETS.VAL or config.DATASETS.TEST
    return bool(watched) and (step == last or (period > 0 and step % period == 0))


def overlays(config: CfgNode, dataset: CocoDataset, detect: Detect) -> dict[str, np.ndarray]:
    """Detect on a few images of a data set, the same ones each time, and draw them.

    Returns:
        ``predictions/FILE`` -> uint8 ``[H, W, 3]``, RGB: ground truth on the left, on the right
        the detections that score at least ``SCORE``. The images are spread evenly over those with
        objects; of each only one tile, where the config has tiles.
    """
    names = dataset.category_names
    ids = {index: key for key, index in dataset.contiguous_ids.items()}
    pictures = {}
    for record in _chosen(dataset):
        record = busiest_tile(record, config)
        values = read_record(record, config)
        sample = sample_of_values(values, config, record["image_id"])
        found = [result for result in detect(sample) if result["score"] >= SCORE]
        truth = [
            annotation | {"category_id": ids[annotation["category_id"]]}
            for annotation in record["annotations"]
        ]
        name = Path(record["file_name"]).relative_to(dataset.image_folder).as_posix()
        pictures[f"predictions/{name}"] = _side_by_side(
            shown(values, config.INPUT.SHOW_BANDS), (truth, found), names
        )
    return pictures


def _chosen(dataset: CocoDataset) -> list[dict[str, Any]]:
    records = [record for record in dataset.records if record["annotations"]]
    return [records[place] for place in evenly_spread(records, IMAGES)]


def _side_by_side(
    pixels: np.ndarray, sides: Sequence[Sequence[Mapping[str, Any]]], names: Mapping[Any, str]
) -> np.ndarray:
    drawings = [
        draw_instances(pixels, coco_instances(side, names, *pixels.shape[:2]), LONG_SIDE).image
        for side in sides
    ]
    gap = np.full((drawings[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate((drawings[0], gap, drawings[1]), axis=1)
