"""The golden detector and its images, made from a seed by integers alone.

Weights and pixels derive from the raw 64-bit stream of PCG64, which numpy keeps the same over
versions (NEP 19), unlike its distributions and unlike torch's generators. So the files beside
this one hold outputs only, and any version of torch can be held to them.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

SEED = 20230102  # the paper's arXiv number, more or less
NUM_CLASSES = 3

# Height and width of an image, and those of the "original" that its detections are scaled to:
# odd sizes, a padded border on both sides, an odd p5, an image scaled up and one scaled down.
SIZES = (((97, 131), (194, 262)), ((160, 120), (107, 80)), ((64, 203), (64, 203)))

OVERRIDES = {
    "MODEL.CONVNEXT.SIZE": "convnextv2_atto",
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32], [64], [128], [256]],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 60,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 60,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    # More than there are anchors and proposals: nothing is drawn, every one counts.
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 20_000,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 20_000,
    "MODEL.ROI_HEADS.NUM_CLASSES": NUM_CLASSES,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.DEVICE": "cpu",
    "TEST.DETECTIONS_PER_IMAGE": 20,
}

# Gains that make an untrained detector decided: scores from 0 to 1, boxes and masks that vary.
GAINS = {
    "objectness_logits": 3.0,
    "anchor_deltas": 0.3,
    "cls_score": 4.0,
    "bbox_pred": 1.0,
    "mask_head.predictor": 3.0,
}


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
        made[name] = values.astype(np.float32)
    return made


def image(index: int) -> np.ndarray:
    """``[3, H, W]`` uint8: soft colours, noise and two rectangles."""
    (height, width), _ = SIZES[index]
    coarse = uniform(f"coarse {index}", (3, height // 16 + 1, width // 16 + 1))
    pixels = 0.5 * coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    pixels = pixels + 0.2 * uniform(f"noise {index}", (3, height, width))
    for x0, y0, x1, y1 in boxes(index)[:2].astype(int):
        pixels[:, y0:y1, x0:x1] += uniform(f"colour {x0} {y0}", (3, 1, 1))
    return np.clip(128 + 96 * pixels, 0, 255).astype(np.uint8)


def boxes(index: int) -> np.ndarray:
    """``[3, 4]`` float64 of x0, y0, x1, y1: an object in each part of the image, one off-grid."""
    (height, width), _ = SIZES[index]
    corners = np.array([[0.1, 0.1, 0.45, 0.6], [0.5, 0.3, 0.95, 0.9], [0.3, 0.55, 0.55, 0.8]])
    return np.round(corners * [width, height, width, height], 1)


def masks(index: int) -> np.ndarray:
    """``[3, H, W]`` bool: the ellipse in each box."""
    (height, width), _ = SIZES[index]
    y, x = np.mgrid[:height, :width] + 0.5
    x0, y0, x1, y1 = boxes(index).T[:, :, None, None]
    return ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1


def labels(index: int) -> np.ndarray:
    """``[3]``: the objects' classes."""
    return (np.arange(3) + index) % NUM_CLASSES


def apply_overrides(config: Any) -> Any:
    """``config`` (fvcore's or detectron2's) with the golden detector's values, in place."""
    for key, value in OVERRIDES.items():
        *parents, leaf = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return config
