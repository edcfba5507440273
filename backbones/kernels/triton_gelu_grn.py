"""GELU and GRN as one function on a GPU, in Triton.

``backbones.kernels.fused`` has the same for a CPU.

    x = GELU(h),  g = ||x|| over an image's sites,  n = g / (mean of g over channels + eps),
    y = x (gamma n + 1) + beta

Forward reads h twice (for the norm, then to apply it) and writes y. Backward reads h and dy twice
(for two sums over sites, then to apply them) and writes dh. h and g are stored for backward. Sums
are in float32 (float64 for float64 inputs), first over chunks of sites, then over chunks, in a
fixed order.

Shape suffixes: b image, s site, c channel, k chunk of sites.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from backbones.kernels import launching_on
from backbones.normalization import GRN_EPS

CHUNK = tl.constexpr(256)  # sites per program
SITES, CHANNELS = tl.constexpr(16), 128  # tile of a program: 16 values in each of 128 threads


@triton.jit
def _gelu(h):
    """GELU by the error function, and its derivative."""
    half = 0.5 * tl.erf(h * 0.7071067811865476) + 0.5
    slope = half + h * tl.exp(-0.5 * h * h) * 0.3989422804014327
    return h * half, slope


@triton.jit
def _tile(chunks, channels, CHANNELS: tl.constexpr):
    """This program's image, chunk of sites and channels."""
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    return tl.program_id(0) // chunks, tl.program_id(0) % chunks, c, c < channels


@triton.jit
def _values(image, first, sites, c, inside_c, channels):
    """Offsets of the values of ``SITES`` sites from ``first`` on, and which of them exist."""
    site = first + tl.arange(0, SITES)
    inside = (site < sites)[:, None] & inside_c[None, :]
    return (image.to(tl.int64) * sites + site)[:, None] * channels + c[None, :], inside


@triton.jit
def _square_sums_kernel(
    h_ptr, partial_ptr, sites, chunks, channels, CHANNELS: tl.constexpr, ACC: tl.constexpr
):
    image, chunk, c, inside_c = _tile(chunks, channels, CHANNELS)
    squares = tl.zeros([SITES, CHANNELS], ACC)
    for s in range(chunk * CHUNK, min((chunk + 1) * CHUNK, sites), SITES):
        at, inside = _values(image, s, sites, c, inside_c, channels)
        x, _ = _gelu(tl.load(h_ptr + at, mask=inside, other=0.0).to(ACC))
        squares += x * x
    at = tl.program_id(0).to(tl.int64) * channels + c
    tl.store(partial_ptr + at, tl.sum(squares, 0), mask=inside_c)


@triton.jit
def _apply_kernel(
    h_ptr, norm_ptr, mean_ptr, gamma_ptr, beta_ptr, y_ptr,
    sites, chunks, channels, CHANNELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    image, chunk, c, inside_c = _tile(chunks, channels, CHANNELS)
    norm = tl.load(norm_ptr + image.to(tl.int64) * channels + c, mask=inside_c, other=0.0)
    gamma = tl.load(gamma_ptr + c, mask=inside_c, other=0.0).to(ACC)
    beta = tl.load(beta_ptr + c, mask=inside_c, other=0.0).to(ACC)
    scale = gamma * norm / tl.load(mean_ptr + image) + 1
    for s in range(chunk * CHUNK, min((chunk + 1) * CHUNK, sites), SITES):
        at, inside = _values(image, s, sites, c, inside_c, channels)
        x, _ = _gelu(tl.load(h_ptr + at, mask=inside, other=0.0).to(ACC))
        y = x * scale[None, :] + beta[None, :]
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_sums_kernel(
    h_ptr, dy_ptr, partial_ptr,
    sites, chunks, channels, CHANNELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Partial sums over sites of dy * x, and of dy."""
    image, chunk, c, inside_c = _tile(chunks, channels, CHANNELS)
    products = tl.zeros([SITES, CHANNELS], ACC)
    gradients = tl.zeros([SITES, CHANNELS], ACC)
    for s in range(chunk * CHUNK, min((chunk + 1) * CHUNK, sites), SITES):
        at, inside = _values(image, s, sites, c, inside_c, channels)
        x, _ = _gelu(tl.load(h_ptr + at, mask=inside, other=0.0).to(ACC))
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(ACC)
        products += dy * x
        gradients += dy
    at = tl.program_id(0).to(tl.int64) * 2 * channels + c
    tl.store(partial_ptr + at, tl.sum(products, 0), mask=inside_c)
    tl.store(partial_ptr + at + channels, tl.sum(gradients, 0), mask=inside_c)


@triton.jit
def _input_gradient_kernel(
    h_ptr, dy_ptr, norm_ptr, mean_ptr, gamma_ptr, dyx_ptr, through_mean_ptr, dh_ptr,
    sites, chunks, channels, CHANNELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    image, chunk, c, inside_c = _tile(chunks, channels, CHANNELS)
    at_bc = image.to(tl.int64) * channels + c
    norm = tl.load(norm_ptr + at_bc, mask=inside_c, other=0.0)
    dyx = tl.load(dyx_ptr + at_bc, mask=inside_c, other=0.0)
    gamma = tl.load(gamma_ptr + c, mask=inside_c, other=0.0).to(ACC)
    mean = tl.load(mean_ptr + image)
    scale = gamma * norm / mean + 1
    dnorm = (gamma * dyx - tl.load(through_mean_ptr + image)) / mean
    through_norm = dnorm / tl.where(norm > 0, norm, 1.0)  # a norm of 0: x is 0 at all sites
    for s in range(chunk * CHUNK, min((chunk + 1) * CHUNK, sites), SITES):
        at, inside = _values(image, s, sites, c, inside_c, channels)
        x, slope = _gelu(tl.load(h_ptr + at, mask=inside, other=0.0).to(ACC))
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(ACC)
        dh = (dy * scale[None, :] + x * through_norm[None, :]) * slope
        tl.store(dh_ptr + at, dh.to(dh_ptr.dtype.element_ty), mask=inside)


class GeluGrn(Function):
    """``h [B, S, C]``, gamma and beta ``[C]`` -> y ``[B, S, C]`` in h's type."""

    @staticmethod
    def forward(ctx: Any, h_bsc: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        h_bsc = h_bsc.contiguous()
        partial_bkc = _over_tiles(_square_sums_kernel, h_bsc, sums=1).squeeze(2)
        g_bc = partial_bkc.sum(1).sqrt_()
        y_bsc = torch.empty_like(h_bsc)
        _over_tiles(_apply_kernel, h_bsc, g_bc, g_bc.mean(-1) + GRN_EPS, gamma, beta, y_bsc)
        ctx.save_for_backward(h_bsc, gamma, g_bc)
        return y_bsc

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_bsc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h_bsc, gamma, g_bc = ctx.saved_tensors
        dy_bsc = dy_bsc.contiguous()
        mean_b = g_bc.mean(-1) + GRN_EPS
        sums_b2c = _over_tiles(_gradient_sums_kernel, h_bsc, dy_bsc, sums=2).sum(1)
        dyx_bc = sums_b2c[:, 0].contiguous()
        dgamma_bc = dyx_bc * g_bc / mean_b.unsqueeze(1)
        # the part of every channel's gradient that comes from the mean over channels
        through_mean_b = (gamma * dgamma_bc).mean(-1)
        dh_bsc = torch.empty_like(h_bsc)
        tensors = dy_bsc, g_bc, mean_b, gamma, dyx_bc, through_mean_b, dh_bsc
        _over_tiles(_input_gradient_kernel, h_bsc, *tensors)
        return dh_bsc, dgamma_bc.sum(0).to(gamma.dtype), sums_b2c[:, 1].sum(0).to(gamma.dtype)


def _over_tiles(kernel: Any, h_bsc: Tensor, *tensors: Tensor, sums: int = 0) -> Tensor:
    """Launch a kernel over images, chunks of sites and tiles of channels.

    Returns:
        Its partial sums, ``[B, K, sums, C]``.
    """
    b, s, c = h_bsc.shape
    chunks = triton.cdiv(s, CHUNK.value)
    dtype = torch.promote_types(h_bsc.dtype, torch.float32)
    partial_bkxc = h_bsc.new_empty(b, chunks, sums, c, dtype=dtype)
    tile = min(CHANNELS, triton.next_power_of_2(c))
    with launching_on(h_bsc):
        kernel[(b * chunks, triton.cdiv(c, tile))](
            h_bsc,
            *tensors,
            *([partial_bkxc] if sums else []),
            s,
            chunks,
            c,
            CHANNELS=tile,
            ACC=tl.float64 if dtype == torch.float64 else tl.float32,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return partial_bkxc
