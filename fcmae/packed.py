"""FCMAE's encoder on the visible sites alone, and the masked-dense computation it must equal.

The paper (section 3.1, "encoder design") treats a masked image as sparse data and runs submanifold
sparse convolution over it, so that removed patches neither cost anything nor leak into visible
ones. Two ways to compute that, both without parameters of their own, both on the weights of a
:class:`backbones.convnext.ConvNeXt`:

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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.convnext import STRIDES, Block, ConvNeXt
from fcmae.masking import PATCH, check_mask, upsample_mask, visible_patches


class MaskedDenseEncoder(nn.Module):
    """The reference: dense operators, masked before and after every spatial one.

    Args:
        encoder: whose weights are used; it stays a submodule and owns all parameters.
    """

    def __init__(self, encoder: ConvNeXt) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` and mask (True = removed) -> ``[B, C4, H/32, W/32]``.

        Returns:
            The last stage, 0 at removed sites.

        Raises:
            ValueError: if the mask does not fit the images.
        """
        check_mask(mask, images)
        x = images.contiguous(memory_format=torch.channels_last)
        x = x * upsample_mask(~mask, PATCH).unsqueeze(1)
        for stride, downsample, blocks in zip(
            STRIDES.values(), self.encoder.downsample_layers, self.encoder.stages, strict=True
        ):
            visible = upsample_mask(~mask, PATCH // stride)
            x = downsample(x) * visible.unsqueeze(1)
            for block in blocks.children():
                x = self._block(block, x, visible)
        return x

    @staticmethod
    def _block(block: nn.Module, x_nchw: Tensor, visible: Tensor) -> Tensor:
        assert isinstance(block, Block)
        y_nhwc = (block.dwconv(x_nchw) * visible.unsqueeze(1)).permute(0, 2, 3, 1)
        y_nchw = block.mix_channels(y_nhwc, visible).permute(0, 3, 1, 2)
        return x_nchw + y_nchw * visible.unsqueeze(1)


class PackedEncoder(nn.Module):
    """The encoder on visible sites alone; equal to :class:`MaskedDenseEncoder`, at less cost.

    Args:
        encoder: whose weights are used; it stays a submodule and owns all parameters.
    """

    def __init__(self, encoder: ConvNeXt) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """As :meth:`MaskedDenseEncoder.forward`; equal visible counts only."""
        check_mask(mask, images)
        # 1. keep the pixels of visible patches
        patches_n = visible_patches(mask)
        x_nppc = _blocks_of(images.permute(0, 2, 3, 1), PATCH).index_select(0, patches_n)
        # 2. four stages on packed sites
        for downsample, blocks in zip(
            self.encoder.downsample_layers, self.encoder.stages, strict=True
        ):
            x_nppc = _downsample(downsample, x_nppc)
            rows = _site_rows(patches_n, mask.shape[2], x_nppc.shape[1])
            for block in blocks.children():
                x_nppc = _block(block, x_nppc, rows, mask)
        # 3. make the last stage, one site a patch, dense again
        dense = x_nppc.new_zeros(mask.numel(), x_nppc.shape[-1])
        dense = dense.index_copy(0, patches_n, x_nppc.flatten(0, 2))
        return dense.view(*mask.shape, -1).permute(0, 3, 1, 2)


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


def _site_rows(patches_n: Tensor, columns: int, p: int) -> Tensor:
    """Where the rows of p sites of each visible patch lie in the map of all rows, ``[N * p]``.

    Row r of patch (b, i, j) is row ``((b*rows + i)*p + r)*columns + j`` of the map seen as
    ``[B*H*columns, p*C]``: sites that are neighbours along the width stay together.
    """
    above, j = patches_n // columns, patches_n % columns
    r = torch.arange(p, device=patches_n.device)
    return ((above.unsqueeze(1) * p + r) * columns + j.unsqueeze(1)).flatten()


def _depthwise(conv: nn.Conv2d, x_nppc: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    """Submanifold depthwise convolution: scatter into a zero map, convolve, gather."""
    b, h, w = mask.shape
    n, p, _, c = x_nppc.shape
    dense = x_nppc.new_zeros(b * h * p * w, p * c)
    dense = dense.index_copy(0, rows, x_nppc.reshape(n * p, p * c))
    y_bchw = conv(dense.view(b, h * p, w * p, c).permute(0, 3, 1, 2))
    y_rows = y_bchw.permute(0, 2, 3, 1).reshape(b * h * p * w, p * c)
    return y_rows.index_select(0, rows).view(n, p, p, c)


def _block(block: nn.Module, x_nppc: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    assert isinstance(block, Block)
    n, p, _, c = x_nppc.shape
    y_bvppc = _depthwise(block.dwconv, x_nppc, rows, mask).view(mask.shape[0], -1, p, p, c)
    return x_nppc + block.mix_channels(y_bvppc).view(n, p, p, c)


ENCODERS = {"packed": PackedEncoder, "masked-dense": MaskedDenseEncoder}
