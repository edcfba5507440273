"""Counts parameters and multiply-adds of the model that a config describes.

By PyTorch's own counter, without weights in memory, for one image of 2048 x 512 pixels. A
multiply-add counts as one FLOP, as in the papers' tables. Parameters of both heads are counted, but
multiply-adds only of the main head, as at inference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch.utils.flop_counter import FlopCounterMode

from segmentation.config import build_segmenter

WIDTH, HEIGHT = 2048, 512


class Complexity(NamedTuple):
    """Number of trained values, and multiply-adds for an image."""

    parameters: int
    flops: int


def complexity(config: CfgNode, width: int = WIDTH, height: int = HEIGHT) -> Complexity:
    """Count parameters and multiply-adds of a config's model.

    Args:
        config: with ``NUM_CLASSES`` given.
        width, height: of the image, pixels.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = build_segmenter(config).eval()
        image = torch.zeros(1, config.MODEL.CONVNEXT.IN_CHANS, height, width)
        model.sem_seg_head.logits(model.backbone.forward_features(image))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Complexity(parameters, counter.get_total_flops() // 2)  # it counts a multiply-add twice
