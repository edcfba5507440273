"""Reads from a detector's or segmenter's config how images are read and normalised.

Mean and standard deviation are the first of these that exist: ``MODEL.PIXEL_MEAN`` and
``PIXEL_STD`` of the config; those of the run that is continued or evaluated; those of the whole
model in ``MODEL.WEIGHTS``; those of the encoder in ``MODEL.CONVNEXT.WEIGHTS``; ImageNet's for RGB
of 8 bits; measured ones. The range of values (``INPUT.VALUE_RANGE``) comes from the same place. The
bands that pictures show (``INPUT.SHOW_BANDS``) are looked for in the same order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from fvcore.common.config import CfgNode

from backbones.checkpoint import open_encoder
from backbones.convnext import SIZES
from backbones.errors import InputError
from backbones.normalization import GRNOptions
from backbones.pyramid import Contradiction
from backbones.weight_files import read_metadata, split_key
from backbones.weights.sources import numbers, run_of
from images.files import Reading, as_range
from images.statistics import (
    IMAGENET,
    ImageFiles,
    measure,
    to_pixel_scale,
)
from images.unlike_imagenet import warn_if_unlike

logger = logging.getLogger(__name__)

Trained = tuple[Mapping[str, Any], str]  # a config as a tree, and where it was read from

CHANNELS = {"RGB": 3, "BGR": 3, "L": 1, "raw": None}  # of INPUT.FORMAT; raw: IN_CHANS
MEASURED_IMAGES = 2000


class PixelStatistics(NamedTuple):
    """Per channel, in ``INPUT.FORMAT``'s order, from 0 to 255; ``origin`` says from where."""

    mean: list[float]
    std: list[float]
    value_range: list[float]
    origin: str


def reading_of(config: CfgNode) -> Reading:
    """How a config's image files become arrays.

    Args:
        config: this project's or detectron2's.
    """
    channels = CHANNELS[config.INPUT.FORMAT]
    return Reading(
        channels or config.MODEL.CONVNEXT.IN_CHANS,
        converts=channels is not None,
        value_range=as_range(config.INPUT.VALUE_RANGE),
        channels_setting=f"INPUT.FORMAT {config.INPUT.FORMAT!r}"
        + ("" if channels else " (MODEL.CONVNEXT.IN_CHANS)"),
        range_setting="INPUT.VALUE_RANGE",
        all_channels="INPUT.FORMAT raw MODEL.CONVNEXT.IN_CHANS {}",
        by_parts="TILES" in config.INPUT and config.INPUT.TILES.ENABLED,
        show_bands=tuple(config.INPUT.SHOW_BANDS),
    )


def in_order(pixels: np.ndarray, config: CfgNode) -> np.ndarray:
    """Red, green, blue -> the channels' order of ``INPUT.FORMAT``."""
    return pixels[:, :, ::-1] if config.INPUT.FORMAT == "BGR" else pixels


def with_statistics(
    config: CfgNode, images: Sequence[str] | None, continues: bool = False
) -> tuple[CfgNode, str]:
    """The config with mean, deviation and range filled in, and where they come from, in words.

    Args:
        images: the files to measure, if nothing else gives them.
        continues: whether ``OUTPUT_DIR`` holds the run that is continued or evaluated.

    Raises:
        InputError: if nothing gives them, or a channel is constant.
        FileNotFoundError: if a file of weights does not exist.
    """
    config, origin = with_weights_statistics(config, continues)
    return (config, origin) if origin else _completed(config, _by_default(config, images))


def with_weights_statistics(config: CfgNode, continues: bool) -> tuple[CfgNode, str]:
    """As :func:`with_statistics`, without images; (config, "") if nothing gives them."""
    trained = list(_trained(config, continues))
    config = _with_bands(config, trained)
    if config.MODEL.PIXEL_MEAN:
        return config, "the config"
    found = _of_weights(config, trained)
    return _completed(config, found) if found else (config, "")


def _with_bands(config: CfgNode, trained: Sequence[Trained]) -> CfgNode:
    """The config with ``SHOW_BANDS`` of the run or weights it starts from, if it has none."""
    if config.INPUT.SHOW_BANDS:
        return config
    channels = config.MODEL.CONVNEXT.IN_CHANS
    for told, count, source in _told_bands(config, trained):
        if told and count == channels:
            logger.info("INPUT.SHOW_BANDS %s (%s)", told, source)
            config = config.clone()
            config.defrost()
            config.INPUT.SHOW_BANDS = list(told)
            config.freeze()
            break
    return config


def _told_bands(
    config: CfgNode, trained: Sequence[Trained]
) -> Iterator[tuple[Sequence[int], int | None, str]]:
    """Yield (bands, number of channels, source) of a run, a whole model, and an encoder's file."""
    for tree, source in trained:
        channels = tree.get("MODEL", {}).get("CONVNEXT", {}).get("IN_CHANS")
        yield tree.get("INPUT", {}).get("SHOW_BANDS", []), channels, source
    weights = config.MODEL.CONVNEXT.WEIGHTS
    try:
        metadata = read_metadata(weights) if Path(split_key(weights)[0]).is_file() else {}
    except (InputError, OSError):
        return  # loading it later reports the error; a finished model does not need the file
    bands = [int(band) for band in numbers(metadata, "show_bands") or ()]
    yield bands, int(metadata.get("in_chans", 0)), f"the encoder {weights}"


def _completed(config: CfgNode, found: PixelStatistics) -> tuple[CfgNode, str]:
    if not config.INPUT.VALUE_RANGE and found.value_range:
        logger.info("INPUT.VALUE_RANGE %s (%s)", found.value_range, found.origin)
    logger.info(
        "pixel mean %s, deviation %s of 0 to 255 (%s)",
        *(" ".join(f"{value:.6g}" for value in values) for values in found[:2]),
        found.origin,
    )
    config = config.clone()
    config.defrost()
    config.MODEL.PIXEL_MEAN, config.MODEL.PIXEL_STD = found.mean, found.std
    config.INPUT.VALUE_RANGE = config.INPUT.VALUE_RANGE or found.value_range
    config.freeze()
    return config, found.origin


def known_statistics(config: CfgNode) -> tuple[list[float], list[float]]:
    """The config's mean and deviation, else ImageNet's if there are three channels.

    Raises:
        InputError: if it has none for another number of channels.
    """
    if config.MODEL.PIXEL_MEAN:
        return list(config.MODEL.PIXEL_MEAN), list(config.MODEL.PIXEL_STD)
    if config.MODEL.CONVNEXT.IN_CHANS != 3:
        raise InputError(
            f"MODEL.PIXEL_MEAN is empty, and ImageNet's has 3 channels, not the "
            f"{config.MODEL.CONVNEXT.IN_CHANS} of MODEL.CONVNEXT.IN_CHANS: give PIXEL_MEAN and "
            "PIXEL_STD (a training would measure them)"
        )
    return IMAGENET.of_pixels(config.INPUT.FORMAT)


def shared_contradictions(config: CfgNode) -> Iterator[Contradiction]:
    """Contradictions among the keys that detection's and segmentation's configs share."""
    convnext, mean, std = config.MODEL.CONVNEXT, config.MODEL.PIXEL_MEAN, config.MODEL.PIXEL_STD
    channels = CHANNELS[config.INPUT.FORMAT] or convnext.IN_CHANS
    for name, count in (
        ("MODEL.CONVNEXT.IN_CHANS", convnext.IN_CHANS),
        ("MODEL.PIXEL_MEAN", len(mean) or channels),
        ("MODEL.PIXEL_STD", len(std) or channels),
    ):
        if count != channels:
            yield (
                (name, "INPUT.FORMAT"),
                f"{name} is for {count} channels, but INPUT.FORMAT {config.INPUT.FORMAT!r} "
                f"has {channels}"
                + ("" if config.INPUT.FORMAT == "raw" else "; 'raw' has IN_CHANS channels"),
            )
    if bool(mean) != bool(std):
        given, other = ("MEAN", "STD") if mean else ("STD", "MEAN")
        yield (
            ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"),
            f"MODEL.PIXEL_{given} is given without MODEL.PIXEL_{other}: give both or neither",
        )
    if config.SOLVER.IMS_PER_BATCH % config.SOLVER.ACCUMULATE:
        yield (
            ("SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATE"),
            f"SOLVER.IMS_PER_BATCH is {config.SOLVER.IMS_PER_BATCH}, the images of one optimizer "
            f"step, which SOLVER.ACCUMULATE {config.SOLVER.ACCUMULATE} does not divide",
        )
    if wrong := [band for band in config.INPUT.SHOW_BANDS if band > channels]:
        yield (
            ("INPUT.SHOW_BANDS", "INPUT.FORMAT"),
            f"INPUT.SHOW_BANDS names {wrong}, but images have {channels} channels",
        )
    keys = tuple(f"MODEL.CONVNEXT.GRN.{name}" for name in convnext.GRN)
    try:
        options = GRNOptions.of_config(convnext.GRN)
    except ValueError as error:
        yield keys, f"MODEL.CONVNEXT.GRN: {error}"
        return
    if SIZES[convnext.SIZE].version == 1 and options != GRNOptions():
        yield (
            ("MODEL.CONVNEXT.SIZE", *keys),
            f"MODEL.CONVNEXT.GRN is {options}, but {convnext.SIZE}, a ConvNeXt V1, has no GRN",
        )


def _of_weights(config: CfgNode, trained: Sequence[Trained]) -> PixelStatistics | None:
    """Statistics of the continued run, the whole model or the encoder; None if none has them."""
    model = config.MODEL
    for tree, source in trained:
        theirs = tree.get("MODEL", {})
        if theirs.get("PIXEL_MEAN") and len(theirs["PIXEL_MEAN"]) == model.CONVNEXT.IN_CHANS:
            stated = tree.get("INPUT", {}).get("VALUE_RANGE", [])
            mean, std = list(theirs["PIXEL_MEAN"]), list(theirs["PIXEL_STD"])
            return PixelStatistics(mean, std, list(stated), source)
    if model.WEIGHTS or not model.CONVNEXT.WEIGHTS:
        return None
    encoder = open_encoder(model.CONVNEXT.WEIGHTS, model.CONVNEXT.IN_CHANS)
    if encoder.statistics is None or encoder.in_chans != model.CONVNEXT.IN_CHANS:
        return None
    mean, std = (to_pixel_scale(values, config.INPUT.FORMAT) for values in encoder.statistics)
    stated = list(encoder.numbers("value_range") or ())
    return PixelStatistics(mean, std, stated, f"the encoder {model.CONVNEXT.WEIGHTS}")


def _trained(config: CfgNode, continues: bool) -> Iterator[Trained]:
    """Yield (config as a tree, source) of the run that is continued and of ``MODEL.WEIGHTS``."""
    run, weights = Path(config.OUTPUT_DIR) / "config.yaml", config.MODEL.WEIGHTS
    if continues and not weights and run.is_file():
        yield _read_file(run), str(run)
    if weights:
        yield _config_of(split_key(weights)[0]), weights


def _config_of(weights: Path) -> Mapping[str, Any]:
    """The config that a model was trained with, from its file or its run's folder."""
    if weights.is_file() and (text := read_metadata(weights).get("config")):
        return _read_yaml(text)
    return _read_file(run_of(weights) / "config.yaml")


def shown_bands(run: Path) -> list[int]:
    """The bands that the pictures of a finished run of any kind show; [] for the first three."""
    tree = _read_file(run / "config.yaml")
    of_config, of_options = tree.get("INPUT") or {}, tree.get("derived") or {}
    return of_config.get("SHOW_BANDS") or of_options.get("show_bands") or []


def _read_file(path: Path) -> Mapping[str, Any]:
    """The content of a YAML file; {} if there is no file."""
    return _read_yaml(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _read_yaml(text: str) -> Mapping[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _by_default(config: CfgNode, paths: Sequence[str] | None) -> PixelStatistics:
    """ImageNet's for RGB of 8 bits, else measured.

    Raises:
        InputError: if there is nothing to measure, or a channel is constant.
    """
    images = None if paths is None else ImageFiles(paths, reading_of(config))
    if config.INPUT.FORMAT in ("RGB", "BGR") and (images is None or images.eight_bit()):
        if images is not None and not (config.MODEL.WEIGHTS or config.MODEL.CONVNEXT.WEIGHTS):
            warn_if_unlike(
                images,
                lambda found: "their own: MODEL.PIXEL_MEAN {} MODEL.PIXEL_STD {}".format(
                    *found.of_pixels_rounded(config.INPUT.FORMAT)
                ),
            )
        return PixelStatistics(*known_statistics(config), [], "ImageNet")
    if images is None:
        known_statistics(config)
        raise InputError("MODEL.PIXEL_MEAN is empty, and there is no data set to measure it on")
    logger.info(
        "measuring mean and deviation: ImageNet's are for RGB of 8 bits; MODEL.PIXEL_MEAN and "
        "PIXEL_STD would save this"
    )
    found = measure(images, MEASURED_IMAGES, config.SEED, config.DATALOADER.NUM_WORKERS)
    return PixelStatistics(*found.of_pixels(config.INPUT.FORMAT), [], found.origin)
