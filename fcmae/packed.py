"""FCMAE's encoder on the visible sites only, and the masked-dense computation it must equal.

The paper (section 3.1, "encoder design") treats a masked image as sparse data and runs submanifold
sparse convolution over it, so that removed patches cost nothing and do not leak into visible ones.
Here are two ways to compute that. Both use the weights of a :class:`backbones.convnext.ConvNeXt`
and have no parameters of their own:

* :class:`MaskedDenseEncoder`: every operator on the whole map, multiplied by the mask before and
  after each spatial one. It saves nothing and is the reference.
* :class:`PackedEncoder`: masks are made of 32x32 patches, so a visible patch is a block of 8x8,
  4x4, 2x2 and 1x1 sites at the four stages. Stem and downsampling never cross a block; LayerNorm,
  pointwise layers and GELU see one site; GRN sees the visible sites of one image. All of these run
  on packed sites. Only the 7x7 depthwise convolution crosses blocks: sites are scattered into a
  zero map, convolved and gathered.

Deliberate deviations from the authors' code (facebookresearch/ConvNeXt-V2): GRN's norm is over the
sites of each image, not of the whole batch, as in the dense encoder that is fine-tuned afterwards;
images need not be square nor have 3 channels; mixed precision works; a visible patch that is black
stays visible (libraries that drop all-zero sites lose it).

Shape suffixes: b image, v visible patch of an image, p side of a patch in sites, c channels,
n = b*v; ``x_nppc`` is the packed layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from backbones.convnext import STRIDES, Block, ConvNeXt
from backbones.kernels import triton_runs
from backbones.kernels.fused import (
    MARGIN,
    autocast_inputs,
    dense_weight_gradient,
    tile_weight_gradient,
    tiles_of,
)
from fcmae.masking import PATCH, check_mask, upsample_mask
from fcmae.packed_mask import PackedMask, Places, plain_mask

LAST = ("stage4",)
SMALLEST_TILE = 4  # for smaller patches, margins would cost more than whole maps


class _MaskedEncoder(nn.Module):
    """Runs an encoder on masked images.

    Args:
        encoder: the encoder; it is a submodule and owns all parameters.
    """

    def __init__(self, encoder: ConvNeXt) -> None:
        super().__init__()
        self.encoder = encoder

    def features(
        self, images: Tensor, mask: Tensor, names: Sequence[str] = LAST
    ) -> dict[str, Tensor]:
        """Images ``[B, C, H, W]`` and mask (True = removed) -> the named stages, made dense.

        Returns:
            By name, ``[B, C, H/stride, W/stride]``, 0 at removed sites.

        Raises:
            ValueError: if the mask does not fit the images.
        """
        raise NotImplementedError

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """The last stage, ``[B, C4, H/32, W/32]``; see :meth:`features`."""
        return self.features(images, mask)["stage4"]


class MaskedDenseEncoder(_MaskedEncoder):
    """The reference: dense operators, masked before and after every spatial one."""

    def features(
        self, images: Tensor, mask: Tensor, names: Sequence[str] = LAST
    ) -> dict[str, Tensor]:
        """See :meth:`_MaskedEncoder.features`."""
        check_mask(mask, images)
        features = {}
        x = images.contiguous(memory_format=torch.channels_last)
        x = x * upsample_mask(~mask, PATCH).unsqueeze(1)
        for name, downsample, blocks in zip(
            STRIDES, self.encoder.downsample_layers, self.encoder.stages, strict=True
        ):
            visible = upsample_mask(~mask, PATCH // STRIDES[name])
            x = downsample(x) * visible.unsqueeze(1)
            run = self.encoder.run_of(name)
            for block in blocks.children():
                x = run(self._block, block, x, visible)
            if name in names:
                features[name] = x
        return features

    @staticmethod
    def _block(block: nn.Module, x_nchw: Tensor, visible: Tensor) -> Tensor:
        assert isinstance(block, Block)
        y_nhwc = (block.dwconv(x_nchw) * visible.unsqueeze(1)).permute(0, 2, 3, 1)
        y_nchw = block.mix_channels(y_nhwc, visible).permute(0, 3, 1, 2)
        return x_nchw + y_nchw * visible.unsqueeze(1)


class PackedEncoder(_MaskedEncoder):
    """The encoder on visible sites only; equal to :class:`MaskedDenseEncoder`, at less cost."""

    def features(
        self, images: Tensor, mask: Tensor | PackedMask, names: Sequence[str] = LAST
    ) -> dict[str, Tensor]:
        """See :meth:`_MaskedEncoder.features`; all images must have equally many visible patches.

        A :class:`fcmae.packed_mask.PackedMask` already has the index tables that are otherwise made
        here.
        """
        check_mask(plain_mask(mask), images)
        packed = mask if isinstance(mask, PackedMask) else PackedMask.of(mask)
        stages, features = packed.places(), {}
        # 1. keep the pixels of visible patches
        patches_n = stages[0].patches
        x_nppc = _blocks_of(images.permute(0, 2, 3, 1), PATCH).index_select(0, patches_n)
        neighbours = _neighbours(packed.mask, patches_n)
        # 2. four stages on packed sites
        for name, places, downsample, blocks in zip(
            STRIDES, stages, self.encoder.downsample_layers, self.encoder.stages, strict=True
        ):
            x_nppc = _downsample(downsample, x_nppc)
            run = self.encoder.run_of(name)
            for block in blocks.children():
                x_nppc = run(_block, block, x_nppc, places, neighbours)
            # 3. make the stages dense that the decoder takes
            if name in names:
                features[name] = places.scatter(x_nppc).permute(0, 3, 1, 2)
        return features


def _blocks_of(x_bhwc: Tensor, side: int) -> Tensor:
    """Cut a map into blocks of ``side`` sites: ``[B, h*s, w*s, C]`` -> ``[B*h*w, s, s, C]``."""
    b, height, width, c = x_bhwc.shape
    x = x_bhwc.reshape(b, height // side, side, width // side, side, c)
    return x.transpose(2, 3).reshape(-1, side, side, c)


def _downsample(layers: nn.Module, x_nppc: Tensor) -> Tensor:
    """Stem or downsampling layer inside each block: a convolution without overlap is a Linear."""
    assert isinstance(layers, nn.Sequential)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            k = layer.kernel_size[0]
            n, p = x_nppc.shape[:2]
            x_kernel = _blocks_of(x_nppc, k).flatten(1)
            weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
            x_nppc = F.linear(x_kernel, weight, layer.bias).view(n, p // k, p // k, -1)
        elif isinstance(layer, nn.LayerNorm):  # LayerNorm2d, but channels are last already
            x_nppc = nn.LayerNorm.forward(layer, x_nppc)
    return x_nppc


def _convolve(x_bhwc: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = F.conv2d(x_bhwc.permute(0, 3, 1, 2), weight, bias, padding=MARGIN, groups=len(weight))
    return y.permute(0, 2, 3, 1)


class _SubmanifoldDepthwise(Function):
    """Scatter into a zero map, convolve, gather; only the packed input is stored for backward."""

    @staticmethod
    def forward(ctx: Any, x_nppc: Tensor, weight: Tensor, bias: Tensor, places: Places) -> Tensor:
        ctx.save_for_backward(x_nppc, weight)
        ctx.places = places
        return places.gather(_convolve(places.scatter(x_nppc), weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_nppc: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_nppc, weight = ctx.saved_tensors
        places = ctx.places
        # only visible sites see each other, so the input's gradient is the same operation with the
        # kernel turned round
        gradient_bhwc = places.scatter(gradient_nppc)
        grad_x = places.gather(_convolve(gradient_bhwc, weight.flip(2, 3)))
        grad_weight = _weight_gradient(x_nppc, gradient_nppc, gradient_bhwc, places)
        return grad_x, grad_weight.to(weight.dtype), gradient_nppc.sum((0, 1, 2)), None


def _weight_gradient(
    x_nppc: Tensor, gradient_nppc: Tensor, gradient_bhwc: Tensor, places: Places
) -> Tensor:
    """From visible patches and the sites around them; from whole maps if patches are tiny."""
    x_bhwc = places.scatter(x_nppc)
    p = x_nppc.shape[2]
    if p < SMALLEST_TILE:
        return dense_weight_gradient(x_bhwc, gradient_bhwc)
    windows = tiles_of(F.pad(x_bhwc, (0, 0, *[MARGIN] * 4)), p, MARGIN)
    _, h, w = places.shape
    at = (places.patches // (h * w), places.patches // w % h, places.patches % w)

    def tiles_at(part: slice) -> tuple[Tensor, Tensor]:
        image, row, column = (index[part] for index in at)
        return windows[image, row, column], gradient_nppc[part]

    return tile_weight_gradient(len(x_nppc), windows[0, 0, 0].nbytes, tiles_at)


def _depthwise(conv: nn.Conv2d, x_nppc: Tensor, places: Places) -> Tensor:
    """Submanifold depthwise convolution of packed sites."""
    if x_nppc.device.type == "cpu":
        assert conv.bias is not None
        x, weight, bias = autocast_inputs(x_nppc, conv.weight, conv.bias)
        return _SubmanifoldDepthwise.apply(x, weight, bias, places)
    y_bchw = conv(places.scatter(x_nppc).permute(0, 3, 1, 2))
    return places.gather(y_bchw.permute(0, 2, 3, 1))


def _neighbours(mask: Tensor, patches_n: Tensor) -> Tensor | None:
    """The table for Triton's depthwise convolution; None if that does not run."""
    if not triton_runs(mask):
        return None
    from fcmae.kernels.triton_depthwise import neighbouring_blocks

    return neighbouring_blocks(mask, patches_n)


def _block(block: nn.Module, x_nppc: Tensor, places: Places, neighbours: Tensor | None) -> Tensor:
    assert isinstance(block, Block)
    if neighbours is None:
        y_nppc = block.norm(_depthwise(block.dwconv, x_nppc, places))
    else:
        from fcmae.kernels.triton_depthwise import depthwise_norm

        y_nppc = depthwise_norm(block.dwconv, block.norm, x_nppc, neighbours)
    y_bvppc = y_nppc.view(places.shape[0], -1, *x_nppc.shape[1:])
    mixed = block.mix_normalised_channels(y_bvppc, convolve=places.convolve)
    return x_nppc + mixed.view(x_nppc.shape)


ENCODERS = {"packed": PackedEncoder, "masked-dense": MaskedDenseEncoder}
