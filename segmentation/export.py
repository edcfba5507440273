"""Describes a segmentation model for export: from images to the class scores of pixels."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from backbones.errors import InputError
from backbones.export import Export
from backbones.weight_files import read_metadata
from segmentation.config import build_segmenter
from segmentation.model import STRIDE, UPerNet
from segmentation.predict import read_run
from segmentation.upernet import resize
from segmentation.weights import load_segmenter
from training.configured import newest_weights


class PoolByProducts(nn.Module):
    """``nn.AdaptiveAvgPool2d(side)`` as two matrix products, for graphs with variable sizes.

    A row of either matrix holds the weights of the pixels from ``floor(i * H / side)`` to
    ``ceil((i + 1) * H / side)``.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x_nchw: Tensor) -> Tensor:
        rows, columns = (self._shares(length, x_nchw) for length in x_nchw.shape[2:])
        return rows @ x_nchw @ columns.T

    def _shares(self, length: int, like: Tensor) -> Tensor:
        place = torch.arange(length, device=like.device)
        cell = torch.arange(self.side, device=like.device)[:, None]
        first, last = cell * length // self.side, ((cell + 1) * length - 1) // self.side
        inside = ((place >= first) & (place <= last)).to(like.dtype)
        return inside / inside.sum(1, keepdim=True)


class SegmenterGraph(nn.Module):
    """Images ``[B, C, H, W]``, 0 to 255, H and W multiples of 32 -> logits ``[B, K, H, W]``."""

    def __init__(self, model: UPerNet) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        head = self.model.sem_seg_head
        for pool, side in zip(head.decode_head.psp_modules, head.options.pool_scales, strict=True):
            assert isinstance(pool, nn.Sequential)
            pool[0] = PoolByProducts(side)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        model = self.model
        dtype = model.pixel_mean.dtype
        normalised = (images.to(dtype) - model.pixel_mean) / model.pixel_std
        logits = model.sem_seg_head.logits(model.backbone.forward_features(normalised))
        return {"logits": resize(logits, scale_factor=4).float()}


def run_export(
    run: Path, precision: str = "fp32", weights: Path | None = None, overrides: tuple[str, ...] = ()
) -> Export:
    """A run's model, to be written by :func:`backbones.export.write_export`.

    Args:
        run: the ``OUTPUT_DIR`` of a training by ``tools/train_segmentation.py``.
        precision: "fp32" or "int8".
        weights: a checkpoint to use instead of the run's newest.

    Raises:
        InputError: if the folder is no such run, or for another precision.
        FileNotFoundError: if the weights do not exist.
    """
    if precision == "fp16":
        raise InputError("a segmentation model is exported in fp32 or int8")
    config, classes = read_run(run, overrides)
    model = build_segmenter(config)
    source = weights or newest_weights(run)
    load_segmenter(source, model)
    metadata = read_metadata(source) if Path(source).suffix == ".safetensors" else {}
    return graph_export(
        model,
        {
            "kind": "segmentation",
            "size": config.MODEL.CONVNEXT.SIZE,
            "class_names": json.dumps(classes),
            "input_format": config.INPUT.FORMAT,
            "pixel_range": "0 to 255",
            "pixel_mean": json.dumps(list(config.MODEL.PIXEL_MEAN)),
            "value_range": json.dumps(list(config.INPUT.VALUE_RANGE)),
            "scale": json.dumps(list(config.TEST.SCALE)),
            "size_divisor": str(STRIDE),
            "licence": metadata.get("licence", "unknown"),
        },
    )


def graph_export(model: UPerNet, metadata: dict[str, str]) -> Export:
    """A model's export; batch, height and width may vary."""
    return Export(
        SegmenterGraph(model),
        {"images": torch.zeros(2, model.backbone.in_chans, 3 * STRIDE, 4 * STRIDE)},
        {"images": {0: "batch", 2: "height", 3: "width"}},
        ["logits"],
        metadata,
    )
