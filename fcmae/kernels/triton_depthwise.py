"""The packed encoder's depthwise convolution and LayerNorm on a GPU, with their gradients.

One autograd function over the kernels of ``fcmae.kernels.triton_depthwise_kernels``. The input's
gradient is the forward convolution with the kernel turned round, because only visible sites see
each other. The gradients of weight, bias, gamma and beta are partial sums of each program, which a
second step adds in a fixed order; so they are deterministic. The input and the convolution's output
are stored for backward.

Shape suffixes: n visible block, p side of a block in sites, c channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from backbones.kernels import launching_on
from backbones.kernels.fused import autocast_inputs
from fcmae.kernels.triton_depthwise_kernels import (
    convolve_kernel,
    norm_gradient_kernel,
    weight_gradient_kernel,
)

KERNEL, MARGIN = 7, 3
ROWS, CHANNELS = 16, 64  # tile of a program: 8 values in each of 128 threads
WEIGHT_PROGRAMS = 2048  # about, for the weight gradient: several per multiprocessor
NORM_TILE, NORM_PROGRAMS = 4096, 1024  # of LayerNorm's gradient


def neighbouring_blocks(mask: Tensor, patches_n: Tensor) -> Tensor:
    """For each visible patch, the packed indices of the patches up to 3 patches away.

    Args:
        mask: bool ``[B, h, w]``, True = removed.
        patches_n: flat indices of its visible patches, ascending.

    Returns:
        int32 ``[n, 7, 7]``: the packed index of the patch at that offset; -1 where there is none.
    """
    b, h, w = mask.shape
    blocks = torch.full((b * h * w,), -1, dtype=torch.int32, device=mask.device)
    blocks[patches_n] = torch.arange(len(patches_n), dtype=torch.int32, device=mask.device)
    padded = nn.functional.pad(blocks.view(b, h, w), [MARGIN] * 4, value=-1)
    windows = padded.unfold(1, KERNEL, 1).unfold(2, KERNEL, 1)
    return windows.reshape(b * h * w, KERNEL, KERNEL)[patches_n]


def depthwise_norm(
    conv: nn.Conv2d, norm: nn.LayerNorm, x_nppc: Tensor, neighbours: Tensor
) -> Tensor:
    """``norm(conv(x))`` of packed sites ``[n, p, p, C]``, where only visible sites are seen.

    Args:
        neighbours: of :func:`neighbouring_blocks`.
    """
    (x,) = autocast_inputs(x_nppc)
    return _DepthwiseNorm.apply(
        x, conv.weight, conv.bias, norm.weight, norm.bias, norm.eps, neighbours
    )


class _DepthwiseNorm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_nppc: Tensor,
        weight: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        neighbours: Tensor,
    ) -> Tensor:
        x_nppc = x_nppc.contiguous()
        y_nppc, normed = torch.empty_like(x_nppc), torch.empty_like(x_nppc)
        _convolve(x_nppc, weight, neighbours, y_nppc, bias, (gamma, beta, normed, eps))
        ctx.eps = eps
        ctx.save_for_backward(x_nppc, weight, y_nppc, gamma, neighbours)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nppc: Tensor) -> tuple[Tensor | None, ...]:
        x_nppc, weight, y_nppc, gamma, neighbours = ctx.saved_tensors
        dy, sums = _norm_gradient(y_nppc, grad_nppc.contiguous(), gamma, ctx.eps)
        dgamma, dbeta, dbias = sums.to(weight.dtype)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(dy)
            _convolve(dy, weight, neighbours, dx)
        dweight = _weight_gradient(x_nppc, dy, neighbours).to(weight.dtype)
        return dx, dweight, dbias, dgamma, dbeta, None, None


def _convolve(
    x_nppc: Tensor,
    weight: Tensor,
    neighbours: Tensor,
    y_nppc: Tensor,
    bias: Tensor | None = None,
    norm: tuple[Tensor | None, Tensor | None, Tensor | None, float] = (None, None, None, 0.0),
) -> None:
    """Write the convolution, with the kernel turned round where there is no bias.

    Args:
        norm: LayerNorm's gamma and beta, where to write what it makes of ``y_nppc``, its epsilon.
    """
    n, p, _, c = x_nppc.shape
    tile = min(CHANNELS, triton.next_power_of_2(c))
    programs_of_a_row = triton.cdiv(c, tile) if norm[0] is None else 1
    with launching_on(x_nppc):
        convolve_kernel[(triton.cdiv(n * p, ROWS), programs_of_a_row)](
            x_nppc,
            weight.flatten(1).t().contiguous(),
            bias,
            neighbours,
            y_nppc,
            *norm,
            n * p,
            c,
            P=p,
            ROWS=ROWS,
            CHANNELS=tile,
            FLIP=bias is None,
            ACC=_ACCUMULATORS[_sum_dtype(x_nppc)],
            num_warps=4,
            enable_fp_fusion=True,
        )


def _weight_gradient(x_nppc: Tensor, grad_nppc: Tensor, neighbours: Tensor) -> Tensor:
    """``[C, 1, 7, 7]``: partial sums of each program, then their sum."""
    n, p, _, c = x_nppc.shape
    tile = min(CHANNELS, triton.next_power_of_2(c))
    tiles = triton.cdiv(c, tile)
    parts, rows_each = _shared_out(n * p, ROWS, WEIGHT_PROGRAMS // (KERNEL * tiles))
    partial = x_nppc.new_empty(parts, KERNEL**2, c, dtype=_sum_dtype(x_nppc))
    with launching_on(x_nppc):
        weight_gradient_kernel[(parts, tiles, KERNEL)](
            x_nppc,
            grad_nppc,
            neighbours,
            partial,
            n * p,
            rows_each,
            c,
            P=p,
            ROWS=ROWS,
            CHANNELS=tile,
            ACC=_ACCUMULATORS[partial.dtype],
            num_warps=4,
            enable_fp_fusion=True,
        )
    return partial.sum(0).t().reshape(c, 1, KERNEL, KERNEL)


def _norm_gradient(
    x_nppc: Tensor, grad_nppc: Tensor, gamma: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """LayerNorm's input gradient, and dgamma, dbeta and that gradient's sum: ``[3, C]``."""
    c = x_nppc.shape[-1]
    sites = x_nppc.numel() // c
    tile = triton.next_power_of_2(c)
    sites_tile = max(1, NORM_TILE // tile)
    parts, sites_each = _shared_out(sites, sites_tile, NORM_PROGRAMS)
    dx = torch.empty_like(x_nppc)
    partial = x_nppc.new_empty(parts, 3, c, dtype=_sum_dtype(x_nppc))
    with launching_on(x_nppc):
        norm_gradient_kernel[(parts,)](
            x_nppc,
            grad_nppc,
            gamma,
            dx,
            partial,
            eps,
            sites,
            sites_each,
            c,
            SITES=sites_tile,
            CHANNELS=tile,
            ACC=_ACCUMULATORS[partial.dtype],
            num_warps=8,
            enable_fp_fusion=True,
        )
    return dx, partial.sum(0)


def _shared_out(work: int, tile: int, programs: int) -> tuple[int, int]:
    """The number of programs, at most ``programs``, and the work of each in whole tiles."""
    each = triton.cdiv(triton.cdiv(work, tile), max(1, programs)) * tile
    return triton.cdiv(work, each), each


_ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
