"""The golden detectors and their images, made from a seed by integers alone.

Random weights and pixels derive from the raw 64-bit stream of PCG64, which numpy keeps the same
over versions (NEP 19), unlike its distributions and unlike torch's generators. Trained weights
are files beside this one (``trained_*.safetensors``, detectron2's names, halves). So the golden
file holds outputs only, and any version of torch can be held to it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from fvcore.common.config import CfgNode
from safetensors.torch import load_file
from torch import Tensor

from backbones.convnext import SIZES, Size
from detection.config import default_config

FOLDER = Path(__file__).resolve().parent
SEED = 20230102  # the paper's arXiv number, more or less
NUM_CLASSES = 3
TINY = {"tiny_test_encoder": Size((8, 16, 24, 32), (1, 1, 2, 1), 2)}

# Height and width of an image, and those of the "original" that its detections are scaled to:
# odd sizes, a padded border on both sides, an odd p5, an image scaled up and one scaled down.
IMAGES = (((97, 131), (194, 262)), ((160, 120), (107, 80)), ((64, 203), (64, 203)))

OVERRIDES: dict[str, Any] = {
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 60,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 60,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    # More than there are anchors and proposals: nothing is drawn, every one counts.
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 20_000,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 20_000,
    "MODEL.ROI_HEADS.NUM_CLASSES": NUM_CLASSES,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.DEVICE": "cpu",
    "TEST.DETECTIONS_PER_IMAGE": 20,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "LN": {
        "MODEL.FPN.NORM": "LN",
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": 16,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.NORM": "LN",
        "MODEL.ROI_MASK_HEAD.NORM": "LN",
    },
}

# Four channels of real numbers, with random weights alone.
BANDS: dict[str, dict[str, Any]] = {
    "bands": {
        "INPUT.FORMAT": "raw",
        "MODEL.CONVNEXT.IN_CHANS": 4,
        "MODEL.PIXEL_MEAN": [110.0, 105.5, 100.0, 127.25],
        "MODEL.PIXEL_STD": [60.0, 55.25, 50.0, 70.0],
    }
}

# Gains that make an untrained detector decided: scores from 0 to 1, boxes and masks that vary.
GAINS = {
    "objectness_logits": 3.0,
    "anchor_deltas": 0.3,
    "cls_score": 2.0,
    "bbox_pred": 1.0,
    "mask_head.predictor": 3.0,
}


@dataclass(frozen=True)
class Case:
    """One detector on one batch: the unit of what the engines must agree on.

    Args:
        variant: of ``VARIANTS`` or ``BANDS``.
        weights: "random" or "trained".
        batch: indices of ``IMAGES``.
        size: the encoder.
    """

    variant: str
    weights: str
    batch: tuple[int, ...]
    size: str = next(iter(TINY))

    def __str__(self) -> str:
        return "-".join([self.size, self.variant, self.weights, *map(str, self.batch)])

    def config(self) -> CfgNode:
        """This detector's config; build it inside of :func:`tiny_encoder`."""
        config = default_config()
        variant = (VARIANTS | BANDS)[self.variant]
        pairs = {"MODEL.CONVNEXT.SIZE": self.size} | OVERRIDES | variant
        config.merge_from_list([item for pair in pairs.items() for item in pair])
        config.freeze()
        return config

    def state(self, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
        """Its weights under detectron2's names, float32; ``shapes`` are those of random ones."""
        if self.weights == "trained":
            halves = load_file(trained_file(self.variant))
            return {name: value.float() for name, value in halves.items()}
        return {name: torch.from_numpy(array) for name, array in weights(shapes).items()}

    def samples(self) -> list[dict[str, Any]]:
        """Its images with their objects, and the sizes that detections are scaled to."""
        found = []
        for index in self.batch:
            size, (height, width) = IMAGES[index]
            made = sample(f"golden {index}", size)
            if self.variant in BANDS:
                made["image"] = with_a_band(made["image"], f"golden {index}")
            found.append(made | {"height": height, "width": width})
        return found


CASES = [
    *(Case(*options) for options in product(VARIANTS, ("random", "trained"), ((0,), (1, 2)))),
    Case("plain", "random", (0, 1, 2), "convnextv2_atto"),
    *(Case("bands", "random", batch) for batch in ((0,), (1, 2))),
]


@contextmanager
def tiny_encoder() -> Iterator[None]:
    """Let configs name an encoder of 22 thousand parameters."""
    with patch.dict(SIZES, TINY):
        yield


def trained_file(variant: str) -> Path:
    """The trained weights of a variant."""
    return FOLDER / f"trained_{variant}.safetensors"


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float64 numbers in [-1, 1), a function of (SEED, name, shape)."""
    raw = np.random.PCG64([SEED, zlib.crc32(name.encode())]).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(11)) * 2.0**-52 - 1).reshape(shape)


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """A detector's weights by detectron2's names: float32, of unit gain but for ``GAINS``."""
    made = {}
    for name, shape in shapes.items():
        values = uniform(name, tuple(shape))
        if len(shape) == 1 and name.endswith(".weight"):  # a norm's
            values = 1 + 0.3 * values
        elif len(shape) == 1 or ".grn." in name:
            values = 0.1 * values
        else:
            gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
            values = values * gain * np.sqrt(3 / np.prod(shape[1:]))
        if name.endswith("cls_score.weight"):  # rows that sum to 0, or one class wins everywhere
            half = shape[1] // 2
            values[:, half:] = -values[:, :half]
        made[name] = values.astype(np.float32)
    return made


def with_a_band(image: Tensor, name: str) -> Tensor:
    """uint8 ``[3, H, W]`` -> float32 ``[4, H, W]`` of 0 to 255, between the whole numbers too."""
    fractions = uniform(f"{name} fractions", (3, *image.shape[1:]))
    colours = (image.numpy() + 0.4 * fractions).clip(0, 255)
    band = 127.5 + 127.5 * uniform(f"{name} band", (1, *image.shape[1:]))
    return torch.from_numpy(np.concatenate([colours, band]).astype(np.float32))


def sample(name: str, size: tuple[int, int], objects: int = 3) -> dict[str, Any]:
    """A training sample: ellipses on a soft background, each in the colour of its class.

    Returns:
        ``image`` ``[3, H, W]`` uint8, ``boxes`` ``[N, 4]`` (x0, y0, x1, y1, off the grid),
        ``labels`` ``[N]`` and ``masks`` ``[N, H, W]`` bool; later objects hide earlier ones.
    """
    height, width = size
    sides = np.array([width, height])
    extent = 0.325 + 0.125 * uniform(f"{name} extents", (objects, 2))
    corner = (1 - extent) * (0.5 + 0.5 * uniform(f"{name} corners", (objects, 2)))
    boxes = np.concatenate([corner * sides, (corner + extent) * sides], 1)
    labels = (np.arange(objects) + zlib.crc32(name.encode())) % NUM_CLASSES

    coarse = uniform(f"{name} coarse", (3, height // 16 + 1, width // 16 + 1))
    pixels = 0.5 * coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    pixels = pixels + 0.2 * uniform(f"{name} noise", (3, height, width))
    masks = np.zeros((objects, height, width), bool)
    y, x = np.mgrid[:height, :width] + 0.5
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        across, down = (2 * x - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)
        inside = across * across + down * down <= 1
        masks[:index] &= ~inside
        masks[index] = inside
        pixels[labels[index], inside] += 1.0
    return {
        "image": torch.from_numpy(np.clip(110 + 90 * pixels, 0, 255).astype(np.uint8)),
        "boxes": torch.from_numpy(boxes).float(),
        "labels": torch.from_numpy(labels),
        "masks": torch.from_numpy(masks),
        "height": height,
        "width": width,
    }
