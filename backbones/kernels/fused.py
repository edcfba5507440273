"""Two operators of a ConvNeXt block, written by hand because PyTorch's are slow or need memory.

* The weight gradient of a 7x7 depthwise convolution. PyTorch's own, for channels-last maps on a
CPU,
  is several times slower than the forward pass. It is itself a convolution: of each channel's input
  with the gradient of that channel's output as the kernel. Here maps are cut into tiles, and every
  (tile, channel) becomes a channel of one *forward* depthwise convolution with a 7x7 output, which
  is then summed over tiles.
* GELU followed by GRN. Autograd would store five tensors; here only the input and one norm for each
  image and channel are stored, and the rest is computed again. Without gradients it is computed in
  place, in chunks that fit into a core's cache.

Both are exact. ``docs/performance.md`` says what they save.

Shape suffixes: B image, S site, C channel, n tile, s side of a tile, k = 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from backbones.kernels import hand_written_gradients_run, nobody_reads_the_graph, triton_runs
from backbones.normalization import GRN_EPS

KERNEL, MARGIN = 7, 3
BYTES_AT_ONCE = 3 * 2**18  # of one convolution over tiles, so that it fits into a core's cache
TILE = 14


def tile_weight_gradient(
    tiles: int, tile_bytes: int, tiles_at: Callable[[slice], tuple[Tensor, Tensor]]
) -> Tensor:
    """The kernel's gradient, from tiles of the output's gradient and of the input around them.

    Args:
        tiles: number of tiles.
        tile_bytes: bytes of the input around one tile.
        tiles_at: called with a slice of the tiles; returns the input around each,
            ``[n, s + 6, s' + 6, C]``, and the output's gradient, ``[n, s, s', C]``; any strides.

    Returns:
        ``[C, 1, 7, 7]``, accumulated in float32 at least.
    """
    total: Tensor | None = None
    at_once = max(1, BYTES_AT_ONCE // tile_bytes)
    for first in range(0, tiles, at_once):
        window, gradient = tiles_at(slice(first, first + at_once))
        n, rows, columns, channels = window.shape
        # (tile, channel) becomes the channel of one channels-last image
        image = window.permute(1, 2, 0, 3).reshape(1, rows, columns, n * channels)
        kernel = gradient.permute(0, 3, 1, 2).reshape(n * channels, 1, *gradient.shape[1:3])
        product = F.conv2d(image.permute(0, 3, 1, 2), kernel, groups=n * channels)
        dtype = torch.promote_types(product.dtype, torch.float32)
        part = product.view(n, channels, KERNEL, KERNEL).sum(0, dtype=dtype)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total.unsqueeze(1)


def tiles_of(x_bhwc: Tensor, side: int, margin: int = 0) -> Tensor:
    """A view of a map as tiles with a margin around each: ``[B, h, w, s + 2m, s + 2m, C]``.

    Args:
        x_bhwc: ``[B, h*s + 2m, w*s + 2m, C]``, the margin around the whole map included.
    """
    b, height, width, c = x_bhwc.shape
    rows, columns = (height - 2 * margin) // side, (width - 2 * margin) // side
    sb, sh, sw, sc = x_bhwc.stride()
    reach = side + 2 * margin
    return x_bhwc.as_strided(
        (b, rows, columns, reach, reach, c), (sb, side * sh, side * sw, sh, sw, sc)
    )


def dense_weight_gradient(x_bhwc: Tensor, gradient_bhwc: Tensor) -> Tensor:
    """The kernel's gradient for whole maps ``[B, H, W, C]`` of input and output gradient."""
    _, height, width, _ = x_bhwc.shape
    side = min(TILE, max(height, width))
    right, below = -width % side, -height % side
    x = F.pad(x_bhwc, (0, 0, MARGIN, MARGIN + right, MARGIN, MARGIN + below))
    g = F.pad(gradient_bhwc, (0, 0, 0, right, 0, below)) if right or below else gradient_bhwc
    windows, gradients = tiles_of(x, side, MARGIN), tiles_of(g, side)
    at = torch.cartesian_prod(*[torch.arange(size) for size in gradients.shape[:3]])

    def tiles_at(part: slice) -> tuple[Tensor, Tensor]:
        image, row, column = at[part].unbind(1)
        return windows[image, row, column], gradients[image, row, column]

    return tile_weight_gradient(len(at), windows[0, 0, 0].nbytes, tiles_at)


class _DepthwiseConvolution(Function):
    @staticmethod
    def forward(ctx: Any, x_nchw: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x_nchw, weight)
        return F.conv2d(x_nchw, weight, bias, padding=MARGIN, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x_nchw, weight = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = F.conv2d(gradient, weight.flip(2, 3), padding=MARGIN, groups=len(weight))
        grad_weight = dense_weight_gradient(
            x_nchw.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
        )
        return grad_x, grad_weight.to(weight.dtype), gradient.sum((0, 2, 3))


def depthwise_convolution(conv: nn.Conv2d, x_nchw: Tensor) -> Tensor:
    """``conv(x_nchw)`` for a 7x7 depthwise convolution, with the faster gradient on a CPU."""
    if not (
        hand_written_gradients_run()
        and x_nchw.device.type == "cpu"
        and conv.weight.requires_grad
        and conv.dilation == (1, 1)
    ):
        return conv(x_nchw)
    assert conv.bias is not None
    return _DepthwiseConvolution.apply(*autocast_inputs(x_nchw, conv.weight, conv.bias))


def autocast_inputs(*tensors: Tensor) -> list[Tensor]:
    """Cast tensors as autocast would for an operator; custom functions must do that themselves."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [tensor.to(dtype) for tensor in tensors]


class _GeluGrn(Function):
    """y = x (gamma n + 1) + beta; x = GELU(h), n = g / (mean g + eps), g = ||x|| of an image."""

    @staticmethod
    def forward(ctx: Any, h_bsc: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        x = F.gelu(h_bsc)
        dtype = torch.promote_types(x.dtype, torch.float32)
        # not by torch.linalg.vector_norm, which takes 3 times as long over a middle dimension
        squares = x.square() if x.dtype == dtype else x.to(dtype).square_()
        g_bc = squares.sum(1).sqrt()
        n_bc = g_bc / (g_bc.mean(-1, keepdim=True) + GRN_EPS)
        ctx.save_for_backward(h_bsc, gamma, g_bc)
        scale = (gamma * n_bc + 1).unsqueeze(1).to(x.dtype)
        return torch.addcmul(beta.to(x.dtype), x, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_bsc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h_bsc, gamma, g_bc = ctx.saved_tensors
        x = F.gelu(h_bsc)
        mean = g_bc.mean(-1, keepdim=True) + GRN_EPS
        n_bc = g_bc / mean
        # the sum over sites of dy * x, for each image and channel, rounded only at the end
        dyx_bc = torch.mul(dy_bsc, x).sum(1).to(g_bc.dtype)
        dn_bc = gamma * dyx_bc
        dg_bc = dn_bc / mean - (dn_bc * n_bc).mean(-1, keepdim=True) / mean
        direct = (gamma * n_bc + 1).unsqueeze(1).to(x.dtype)
        through_norm = torch.where(g_bc > 0, dg_bc / g_bc, 0).unsqueeze(1)
        # in place, because a CPU writes faster to memory already in use than to new memory
        dx = x.mul_(through_norm.to(x.dtype)).addcmul_(dy_bsc, direct)
        dh = torch.ops.aten.gelu_backward.grad_input(dx, h_bsc, grad_input=dx)
        return dh, (dyx_bc * n_bc).sum(0), dy_bsc.sum((0, 1))


def gelu_grn_runs(h: Tensor) -> bool:
    """Whether :func:`gelu_grn` replaces the two modules for this tensor."""
    if torch.is_grad_enabled():
        return hand_written_gradients_run()
    return nobody_reads_the_graph() and (h.device.type == "cpu" or triton_runs(h))


def gelu_grn(h: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """GELU, then GRN in the paper's final form, over all sites between first and last dimension.

    Args:
        h: ``[B, ..., C]``; without gradients it may be overwritten by the result.
        gamma, beta: C values each.
    """
    h_bsc, gamma, beta = h.flatten(1, -2), gamma.flatten(), beta.flatten()
    if triton_runs(h):
        from backbones.kernels.triton_gelu_grn import GeluGrn

        return GeluGrn.apply(h_bsc, gamma, beta).view(h.shape)
    if torch.is_grad_enabled():
        return _GeluGrn.apply(h_bsc, gamma, beta).view(h.shape)
    g_bc = _gelu_norms(h_bsc)
    n_bc = g_bc / (g_bc.mean(-1, keepdim=True) + GRN_EPS)
    scale = (gamma * n_bc + 1).unsqueeze(1).to(h.dtype)
    return torch.addcmul(beta.to(h.dtype), h_bsc, scale, out=h_bsc).view(h.shape)


def _gelu_norms(h_bsc: Tensor) -> Tensor:
    """GELU in place; returns its norm over each image's sites, ``[B, C]``, in float32 at least.

    Chunks of sites are squared and summed while they are in the cores' caches.
    """
    b, s, c = h_bsc.shape
    dtype = torch.promote_types(h_bsc.dtype, torch.float32)
    squares_bc = h_bsc.new_zeros(b, c, dtype=dtype)
    sites = max(1, torch.get_num_threads() * BYTES_AT_ONCE // (c * dtype.itemsize))
    images = max(1, sites // max(1, s))
    for image in range(0, b, images):
        for site in range(0, s, sites):
            x = torch.ops.aten.gelu_(h_bsc[image : image + images, site : site + sites])
            squares_bc[image : image + images] += x.to(dtype).square().sum(1)
    return squares_bc.sqrt_()
