"""Mean and deviation that a segmentation model normalises its images by, and where they come from.

The first that there is: ``MODEL.PIXEL_MEAN`` and ``PIXEL_STD`` of the config; those of the run that
is continued or evaluated; of the model in ``MODEL.WEIGHTS``; of the encoder in
``MODEL.CONVNEXT.WEIGHTS``; ImageNet's for RGB of 8 bits; measured on the training set.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from backbones.checkpoint import open_encoder
from backbones.weight_files import read_metadata
from images.statistics import IMAGENET, ImageFiles, measure, to_pixel_scale
from segmentation.config import reading
from segmentation.dataset import SegmentationDataset

logger = logging.getLogger(__name__)

MEASURED_IMAGES = 2000


def with_statistics(
    config: CfgNode, dataset: SegmentationDataset, continues: bool
) -> tuple[CfgNode, str]:
    """The config with mean and deviation, and whence they are.

    Args:
        dataset: what is measured, if it comes to that.
        continues: whether ``OUTPUT_DIR`` holds the run that this belongs to.

    Raises:
        InputError: for weights that cannot be read, or a channel that is constant.
    """
    if config.MODEL.PIXEL_MEAN:
        return config, "the config"
    mean, std, origin = _known(config, continues) or _of_data(config, dataset)
    for name, values in (("mean", mean), ("deviation", std)):
        logger.info("pixel %s %s (%s)", name, " ".join(f"{v:.6g}" for v in values), origin)
    config = config.clone()
    config.defrost()
    config.MODEL.PIXEL_MEAN, config.MODEL.PIXEL_STD = mean, std
    config.freeze()
    return config, origin


def _known(config: CfgNode, continues: bool) -> tuple[list[float], list[float], str] | None:
    """Of the run, the whole model or the encoder; None where none tells."""
    model, told = config.MODEL, []
    run = Path(config.OUTPUT_DIR) / "config.yaml"
    if continues and not model.WEIGHTS and run.is_file():
        told.append((run.read_text(encoding="utf-8"), str(run)))
    if Path(model.WEIGHTS).suffix == ".safetensors" and Path(model.WEIGHTS).is_file():
        told.append((read_metadata(Path(model.WEIGHTS)).get("config", ""), model.WEIGHTS))
    for text, source in told:
        tree: Any = yaml.safe_load(text) or {}
        theirs = tree.get("MODEL", {})
        if len(theirs.get("PIXEL_MEAN", [])) == model.CONVNEXT.IN_CHANS:
            return list(theirs["PIXEL_MEAN"]), list(theirs["PIXEL_STD"]), source
    if model.WEIGHTS or not model.CONVNEXT.WEIGHTS:
        return None
    encoder = open_encoder(model.CONVNEXT.WEIGHTS, model.CONVNEXT.IN_CHANS)
    if encoder.statistics is None or encoder.in_chans != model.CONVNEXT.IN_CHANS:
        return None
    mean, std = (to_pixel_scale(values, config.INPUT.FORMAT) for values in encoder.statistics)
    return mean, std, f"the encoder {model.CONVNEXT.WEIGHTS}"


def _of_data(config: CfgNode, dataset: SegmentationDataset) -> tuple[list[float], list[float], str]:
    """ImageNet's for RGB of 8 bits, else measured."""
    images = ImageFiles([record.image for record in dataset.records], reading(config))
    found = IMAGENET
    if config.INPUT.FORMAT not in ("RGB", "BGR") or not images.eight_bit():
        found = measure(images, MEASURED_IMAGES, config.SEED, config.DATALOADER.NUM_WORKERS)
    return (
        to_pixel_scale(found.mean, config.INPUT.FORMAT),
        to_pixel_scale(found.std, config.INPUT.FORMAT),
        found.origin,
    )
