"""detectron2's test-time augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from detection.dataset import CocoDataset
from detection.engines.detectron2.results import AugmentedInBoxes, write_predictions


def write_augmented_predictions(
    cfg: Any, model: nn.Module, dataset: CocoDataset, folder: str = "inference_TTA"
) -> Path:
    """Detect with test-time augmentation (``TEST.AUG``) and write into ``folder``.

    Every image is resized once, from its original to each of ``TEST.AUG.MIN_SIZES``, flipped or
    not; the boxes of all are merged by ordinary suppression, the masks averaged.

    Returns:
        ``OUTPUT_DIR/{folder}/coco_instances_results.json``.
    """
    originals = cfg.clone()
    originals.defrost()
    originals.INPUT.MIN_SIZE_TEST = 0
    return write_predictions(originals, AugmentedInBoxes(cfg, model), dataset, folder)
