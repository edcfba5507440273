"""Parts of the torchvision engine's detector beside torchvision's own: norm, pyramid, box head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from backbones.convnext import STRIDES, ConvNeXt
from backbones.normalization import NORM_EPS
from backbones.pyramid import Pyramid, levels_of


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of NCHW in detectron2's arithmetic: "LN" of pyramid and heads.

    torch's own LayerNorm computes mean and variance in another order. Its rounding moves boxes by
    3e-5 pixels and, once in a few images, changes a pixel of a mask.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_nchw: Tensor) -> Tensor:
        # in float32 at least: the square of 256 overflows float16
        x = x_nchw.to(torch.promote_types(x_nchw.dtype, torch.float32))
        centred = x - x.mean(1, keepdim=True)
        variance = centred.pow(2).mean(1, keepdim=True)
        normalised = (centred / torch.sqrt(variance + NORM_EPS)).to(x_nchw.dtype)
        return self.weight[:, None, None] * normalised + self.bias[:, None, None]


NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "": None,
    "LN": ChannelNorm,
    "GN": partial(nn.GroupNorm, 32),
}


class ConvNeXtFPN(nn.Module):
    """An encoder with a feature pyramid; only the levels that the heads read are built.

    Args:
        norm: "", "LN" or "GN", after each convolution of the pyramid.

    Attributes:
        strides: level name (of ``p2`` to ``p5``, and the subsampled one above) -> stride.
        size_divisibility: height and width of images are padded to a multiple of it.
    """

    def __init__(self, body: ConvNeXt, plan: Pyramid, out_channels: int, norm: str):
        super().__init__()
        self.body, self.plan = body, plan
        self.fpn = FeaturePyramidNetwork(
            [body.out_channels[name] for name in plan.stages],
            out_channels,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=NORMS[norm],
        )
        self.all_levels = levels_of(plan.stages, extra=1)
        for place, level in enumerate(self.all_levels[: len(plan.stages)]):
            feeds_top = place == len(plan.stages) - 1 and plan.above
            if level not in plan.levels and not feeds_top:
                self.fpn.layer_blocks[place] = nn.Identity()
        self.strides = {level: 2 ** int(level[1:]) for level in plan.levels}
        self.size_divisibility = STRIDES[plan.stages[-1]]

    def forward(self, x_nchw: Tensor) -> dict[str, Tensor]:
        """Images ``[B, C, H, W]`` -> level name -> ``[B, out_channels, H/stride, W/stride]``."""
        stages = self.body.forward_features(x_nchw)
        maps = self.fpn(OrderedDict((name, stages[name]) for name in self.plan.stages)).values()
        found = dict(zip(self.all_levels, maps, strict=True))
        return {level: found[level] for level in self.plan.levels}


class BoxHead(nn.Sequential):
    """Convolutions, then fully connected layers, each with a ReLU, on pooled regions.

    Layers are named as torchvision names them: ``0.0`` (and its norm ``0.1``), ``fc6``, ``fc7``.
    """

    def __init__(
        self, in_channels: int, size: int, convs: list[int], fcs: list[int], norm: str
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for index, width in enumerate(convs):
            layers[str(index)] = Conv2dNormActivation(channels, width, norm_layer=NORMS[norm])
            channels = width
        layers["flatten"] = nn.Flatten()
        width_in = channels * size * size
        for index, width in enumerate(fcs):
            layers[f"fc{6 + index}"] = nn.Linear(width_in, width)
            layers[f"relu{6 + index}"] = nn.ReLU()
            width_in = width
        super().__init__(layers)
        self.out_channels = width_in
