"""ConvNeXt V1 and V2: one encoder for pretraining, classification and detection.

ConvNeXt V2 is "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders"
(arXiv 2301.00808): the V1 block (arXiv 2201.03545) with Global Response Normalization (GRN)
after the GELU in place of layer scale. This is an independent implementation under Apache-2.0;
parameter names are those of the authors' repository, so their checkpoints load unrenamed.
The authors' *weights* are CC BY-NC 4.0 (V2) and MIT (V1).

Deliberate deviations from the authors' code:
  * activations are always channels-last in memory; a block's Linear layers, LayerNorm and GRN
    get a contiguous ``[B, H, W, C]`` view, without a copy.
  * one class for V1 and V2; sizes are rows of a table.

Shape suffixes: B batch, C channels, H/W height and width of a stage, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones.blocks import Block, Downsampling, LayerNorm2d, init_weights
from backbones.compiling import compiled_runs, run_compiled
from backbones.errors import InputError
from backbones.kernels import functions_are_transformed
from backbones.normalization import GRN, NORM_EPS, GRNOptions

__all__ = [
    "GRN", "SIZES", "STAGES", "STRIDES", "Block", "ConvNeXt", "GRNOptions", "LayerNorm2d", "Size",
    "build_convnext", "init_weights",
]  # fmt: skip

logger = logging.getLogger(__name__)

STAGES = ("stage1", "stage2", "stage3", "stage4")
STRIDES = {"stage1": 4, "stage2": 8, "stage3": 16, "stage4": 32}


@dataclass(frozen=True)
class Size:
    """One row of the size table: channels and blocks of the four stages; V1 or V2 blocks."""

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    version: Literal[1, 2]


SIZES = {
    "convnextv2_atto": Size((40, 80, 160, 320), (2, 2, 6, 2), 2),
    "convnextv2_femto": Size((48, 96, 192, 384), (2, 2, 6, 2), 2),
    "convnextv2_pico": Size((64, 128, 256, 512), (2, 2, 6, 2), 2),
    "convnextv2_nano": Size((80, 160, 320, 640), (2, 2, 8, 2), 2),
    "convnextv2_tiny": Size((96, 192, 384, 768), (3, 3, 9, 3), 2),
    "convnextv2_base": Size((128, 256, 512, 1024), (3, 3, 27, 3), 2),
    "convnextv2_large": Size((192, 384, 768, 1536), (3, 3, 27, 3), 2),
    "convnextv2_huge": Size((352, 704, 1408, 2816), (3, 3, 27, 3), 2),
    "convnext_atto": Size((40, 80, 160, 320), (2, 2, 6, 2), 1),  # V1 below tiny: timm's
    "convnext_femto": Size((48, 96, 192, 384), (2, 2, 6, 2), 1),
    "convnext_pico": Size((64, 128, 256, 512), (2, 2, 6, 2), 1),
    "convnext_nano": Size((80, 160, 320, 640), (2, 2, 8, 2), 1),
    "convnext_tiny": Size((96, 192, 384, 768), (3, 3, 9, 3), 1),
    "convnext_small": Size((96, 192, 384, 768), (3, 3, 27, 3), 1),
    "convnext_base": Size((128, 256, 512, 1024), (3, 3, 27, 3), 1),
    "convnext_large": Size((192, 384, 768, 1536), (3, 3, 27, 3), 1),
    "convnext_xlarge": Size((256, 512, 1024, 2048), (3, 3, 27, 3), 1),
}


class ConvNeXt(nn.Module):
    """A four-stage ConvNeXt; see :func:`build_convnext` for the usual way to make one.

    Args:
        size: a row of ``SIZES``.
        in_chans: channels of the input images.
        num_classes: build a classification head (``norm``, ``head``); 0 for an encoder without.
        drop_path_rate: stochastic depth: the last block's probability of being skipped; it grows
            linearly from 0 at the first block.
        out_norms: stages whose output gets a LayerNorm (detection needs one on each).
        checkpoint_stages: stages that recompute their blocks in backward, to save memory.
        grn: the form of GRN, or the layer in its place (V2 only).
        last_stage: later stages are not built; drop path rates stay those of the whole encoder.
        output_stride: 32, 16 or 8. For 16 the last stage, for 8 the last two, do not downsample but
            dilate their convolutions (as timm's ``output_stride``).

    Attributes:
        out_channels, out_strides: by stage name, of the outputs of ``forward_features``.
        grn: the options as given; None for V1.

    Raises:
        InputError: for a stage name that does not exist, a drop path rate outside [0, 1), a V1 with
            options for GRN, or options for stages that are not built.
    """

    def __init__(
        self,
        size: Size,
        in_chans: int = 3,
        num_classes: int = 0,
        drop_path_rate: float = 0.0,
        out_norms: Sequence[str] = (),
        checkpoint_stages: Sequence[str] = (),
        grn: GRNOptions | None = None,
        last_stage: str = STAGES[-1],
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        for option, names in (
            ("out_norms", out_norms),
            ("checkpoint_stages", checkpoint_stages),
            ("last_stage", [last_stage]),
        ):
            if unknown := [name for name in names if name not in STAGES]:
                raise InputError(f"{option} names {unknown}; the stages are {', '.join(STAGES)}")
        built = STAGES[: 1 + STAGES.index(last_stage)]
        if missing := [name for name in out_norms if name not in built]:
            raise InputError(f"out_norms names {missing}; last_stage is {last_stage}")
        if num_classes and last_stage != STAGES[-1]:
            raise InputError(f"last_stage is {last_stage}; a classifier needs {STAGES[-1]}")
        if output_stride not in (8, 16, 32):
            raise InputError(f"output_stride is {output_stride}; allowed: 8, 16, 32")
        if not 0 <= drop_path_rate < 1:
            raise InputError(f"drop_path_rate is {drop_path_rate}; it must be in [0, 1)")
        if in_chans < 1:
            raise InputError(f"in_chans is {in_chans}; an image has at least 1 channel")
        if size.version == 1 and grn not in (None, GRNOptions()):
            raise InputError(f"grn is {grn}; a ConvNeXt V1 has no GRN: choose a convnextv2 size")
        self.size = size
        self.grn = (grn or GRNOptions()) if size.version == 2 else None
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.checkpoint_stages = frozenset(checkpoint_stages)
        dims, depths = size.dims[: len(built)], size.depths[: len(built)]
        self.out_channels = dict(zip(built, dims, strict=True))
        self.out_strides = {name: min(STRIDES[name], output_stride) for name in built}
        dilations = [STRIDES[name] // self.out_strides[name] for name in built]

        stem = nn.Sequential(
            nn.Conv2d(in_chans, dims[0], kernel_size=4, stride=4), LayerNorm2d(dims[0])
        )
        self.downsample_layers = nn.ModuleList([stem])
        for (c_in, c_out), dilation in zip(pairwise(dims), dilations[1:], strict=True):
            self.downsample_layers.append(
                nn.Sequential(LayerNorm2d(c_in), Downsampling(c_in, c_out, dilation))
            )
        rates = iter(torch.linspace(0, drop_path_rate, sum(size.depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.Sequential(
                *[Block(c, size.version, next(rates), grn, dilation=dilation) for _ in range(depth)]
            )
            for c, depth, dilation in zip(dims, depths, dilations, strict=True)
        )
        self.out_norms = nn.ModuleDict(
            {stage: LayerNorm2d(self.out_channels[stage]) for stage in out_norms}
        )
        if num_classes:
            self.norm = nn.LayerNorm(dims[-1], eps=NORM_EPS)
            self.head = nn.Linear(dims[-1], num_classes)
        self.apply(init_weights)

    def freeze(self, freeze_at: int) -> None:
        """Stop the first ``freeze_at`` of (stem, stage 1, ..., stage 4) from learning.

        This is detectron2's ``MODEL.BACKBONE.FREEZE_AT``. Output norms always learn.

        Raises:
            InputError: if it is not 0 to 5.
        """
        if not 0 <= freeze_at <= 1 + len(STAGES):
            raise InputError(
                f"FREEZE_AT is {freeze_at}; 0 freezes nothing, 1 the stem, 2 the stem and "
                f"stage1, and so on to {1 + len(STAGES)}"
            )
        if freeze_at:
            self.downsample_layers[0].requires_grad_(False)
        for stage in range(min(freeze_at - 1, len(self.stages))):
            self.downsample_layers[stage].requires_grad_(False)
            self.stages[stage].requires_grad_(False)
        if freeze_at:
            logger.info("FREEZE_AT %d: stem and %d stage(s) do not learn", freeze_at, freeze_at - 1)

    def run_of(self, stage: str) -> Callable[..., Tensor]:
        """A function ``run(function, *arguments)`` by which to call a stage's blocks.

        Blocks of ``checkpoint_stages`` store nothing for the backward pass and run again there.
        """
        if stage in self.checkpoint_stages and torch.is_grad_enabled():
            return partial(checkpoint, use_reentrant=False)
        return lambda function, *arguments: function(*arguments)

    def forward_features(self, x_nchw: Tensor) -> dict[str, Tensor]:
        """Images ``[B, in_chans, H, W]`` -> stage name -> ``[B, C, H/stride, W/stride]``.

        If height or width is not a multiple of 32, the incomplete border is lost, as in every
        ConvNeXt; detection pads to a multiple of 32 beforehand.
        """
        if compiled_runs():
            return run_compiled(self, self._stage_features, x_nchw)
        return self._stage_features(x_nchw)

    def _stage_features(self, x_nchw: Tensor) -> dict[str, Tensor]:
        x = x_nchw
        if not functions_are_transformed():  # vmap has no memory formats
            x = x.contiguous(memory_format=torch.channels_last)
        features = {}
        for name, downsample, blocks in zip(
            self.out_channels, self.downsample_layers, self.stages, strict=True
        ):
            x = downsample(x)
            run = self.run_of(name)
            for block in blocks.children():
                x = run(block, x)
            features[name] = self.out_norms[name](x) if name in self.out_norms else x
        return features

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Images ``[B, in_chans, H, W]`` -> logits ``[B, num_classes]``.

        Raises:
            InputError: if the model was built without ``num_classes``.
        """
        if not self.num_classes:
            raise InputError(
                "this encoder has no head: build it with num_classes, or call forward_features"
            )
        x_bc = self.forward_features(x_nchw)["stage4"].mean((-2, -1))
        return self.head(self.norm(x_bc))


def build_convnext(name: str, **options) -> ConvNeXt:
    """Build a ConvNeXt by the name of its size.

    Args:
        name: a key of ``SIZES``, such as ``"convnextv2_atto"`` or ``"convnext_tiny"``.
        **options: those of :class:`ConvNeXt`.

    Raises:
        InputError: if the name is not in the table; the message lists it.
    """
    if name not in SIZES:
        raise InputError(f"unknown encoder {name!r}; the sizes are {', '.join(SIZES)}")
    return ConvNeXt(SIZES[name], **options)
