"""Read a data set's images as a config says; for both engines and for prediction.

A model's input has detectron2's range 0 to 255 for all depths. Values of 8 bits stay uint8; deeper
ones become float32 and keep their precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from backbones.errors import InputError
from images.configured import reading_of
from images.files import EIGHT_BITS, ImageError, read_image
from images.windows import Windows, open_windows


def read_record(record: dict[str, Any], config: CfgNode) -> np.ndarray:
    """A record's image, ``[H, W, C]``: uint8, or float32 in 0..1; colours are red, green, blue.

    Of a record with a ``tile`` (:mod:`detection.data.tiles`) only that part.

    Raises:
        InputError: if it does not decode, or not to the record's height and width.
    """
    if "tile" in record:
        with open_record(record, config) as image:
            return image.read(*record["tile"])
    with _remedies(record):
        pixels = read_image(record["file_name"], reading_of(config))
    _check_size(record, *pixels.shape[:2])
    return pixels


@contextmanager
def open_record(record: dict[str, Any], config: CfgNode) -> Iterator[Windows]:
    """A record's image, to be read part by part.

    Raises:
        InputError: as :func:`read_record`, while it is open, too.
    """
    with _remedies(record), open_windows(record["file_name"], reading_of(config)) as image:
        _check_size(record, image.height, image.width)
        yield image


@contextmanager
def _remedies(record: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise InputError(
            f"{error}; replace the image, or remove image {record['image_id']} from the annotations"
        ) from error


def _check_size(record: dict[str, Any], height: int, width: int) -> None:
    given = record.get("image_size", (record["height"], record["width"]))
    if (height, width) != given:
        raise InputError(
            f"{record['file_name']} is {width} x {height} pixels, but the annotations say "
            f"{given[1]} x {given[0]}; correct one of them"
        )


def to_tensor(pixels: np.ndarray) -> Tensor:
    """``[H, W, C]`` -> ``[C, H, W]`` in 0 to 255: uint8, or float32."""
    tensor = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
    return tensor * EIGHT_BITS if tensor.is_floating_point() else tensor
