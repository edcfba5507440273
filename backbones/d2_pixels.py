"""Mean and standard deviation of a detectron2 project's images, from its encoder's weights.

They come from the encoder's file, else they are ImageNet's for three channels. For another number
of channels they must be given. (This project's own configs, see ``images.configured``, would
measure them.)
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

import timm

from backbones.checkpoint import open_encoder
from backbones.d2_config import RGB_MEAN, RGB_STD
from backbones.errors import InputError
from backbones.weight_files import split_key

logger = logging.getLogger("detectron2.convnext")  # detectron2 shows only its own loggers


def pixel_mean(weights: str, in_chans: int = 3, input_format: str = "RGB") -> list[float]:
    """A model's ``pixel_mean``, from 0 to 255, in the order of ``input_format``.

    For a LazyConfig: ``model.pixel_mean = L(pixel_mean)(weights=...)``, so that it follows the
    weights named on the command line.

    Args:
        weights: the encoder's weights: a path or ``timm:NAME``; "" for none.
        in_chans: channels of the images.
        input_format: "RGB", "BGR", "L" or "raw".

    Raises:
        InputError: if they are unknown for this number of channels.
    """
    return _values(weights, in_chans, input_format)[0]


def pixel_std(weights: str, in_chans: int = 3, input_format: str = "RGB") -> list[float]:
    """A model's ``pixel_std``, see :func:`pixel_mean`."""
    return _values(weights, in_chans, input_format)[1]


def told_by_weights(weights: str, in_chans: int) -> tuple[list[float], list[float]] | None:
    """Mean and deviation, from 0 to 255, RGB; None if these weights do not say them.

    Missing weights are only a warning: a finished detector does not need them.
    """
    found = _told(weights, in_chans)
    if found is None:
        return None
    mean, std = ([float(f"{255 * value:.8g}") for value in values] for values in found)
    return mean, std


@lru_cache(maxsize=4)
def _told(weights: str, in_chans: int) -> tuple[list[float], list[float]] | None:
    if weights.startswith("timm:"):  # without a download
        try:
            cfg = timm.get_pretrained_cfg(weights.removeprefix("timm:"))
        except RuntimeError:  # no such tag: loading it later reports the error
            return None
        if cfg is None or in_chans != 3 or not (cfg.mean and cfg.std):
            return None
        return list(cfg.mean), list(cfg.std)
    if not weights:
        return None
    if not Path(split_key(weights)[0]).is_file():
        logger.warning(
            "%s, which would tell the mean and deviation of the images, is not there: give them "
            "if they are not ImageNet's",
            weights,
        )
        return None
    file = open_encoder(weights, in_chans)
    return file.statistics if file.in_chans == in_chans else None


def _values(weights: str, in_chans: int, input_format: str) -> tuple[list[float], list[float]]:
    told = told_by_weights(weights, in_chans)
    if told is None and in_chans != 3:
        raise InputError(
            f"the mean and deviation of {in_chans} channels are unknown: give pixel_mean and "
            "pixel_std (MODEL.PIXEL_MEAN and MODEL.PIXEL_STD)"
        )
    mean, std = told or (list(RGB_MEAN), list(RGB_STD))
    order = -1 if input_format == "BGR" else 1
    whose = f"those of {weights}" if told else "ImageNet's"
    logger.info("pixel mean %s, deviation %s: %s", mean[::order], std[::order], whose)
    return mean[::order], std[::order]
