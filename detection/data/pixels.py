"""The pixels of a data set's images, read as a config says; both engines and prediction use it.

In a model's input all depths share detectron2's unit: 0 to 255. Values of 8 bits stay uint8; deeper
ones are float32 and keep their levels between the whole numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from backbones.errors import InputError
from images.configured import reading_of
from images.files import EIGHT_BITS, read_image
from images.picture import picture_of


def read_record(record: dict[str, Any], config: CfgNode) -> np.ndarray:
    """A record's image, ``[H, W, C]``: uint8, or float32 in 0..1; colours are red, green, blue.

    Raises:
        InputError: if it does not decode, or not to the record's height and width.
    """
    path = record["file_name"]
    try:
        pixels = read_image(path, reading_of(config))
    except InputError as error:
        raise InputError(
            f"{error}; replace the image, or remove image {record['image_id']} from the annotations"
        ) from error
    height, width = pixels.shape[:2]
    if (height, width) != (record["height"], record["width"]):
        raise InputError(
            f"{path} is {width} x {height} pixels, but the annotations say {record['width']} x "
            f"{record['height']}; correct one of them"
        )
    return pixels


def values_of(pixels: np.ndarray, config: CfgNode) -> np.ndarray:
    """An array ``[H, W]`` or ``[H, W, C]`` (RGB) as :func:`read_record` gives a file's.

    Raises:
        InputError: if it is no image, or not of the config's channels.
    """
    return reading_of(config).read(picture_of(pixels))


def to_tensor(pixels: np.ndarray) -> Tensor:
    """``[H, W, C]`` -> ``[C, H, W]`` in 0 to 255: uint8, or float32."""
    tensor = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
    return tensor * EIGHT_BITS if tensor.is_floating_point() else tensor
