"""A ConvNeXt V2 block's two products with GELU and GRN between them, fused on a GPU, in Triton.

    h = x W1' + b1,  a = GELU(h),  g = ||a|| over an image's sites,  n = g / (mean g + eps),
    z = a (gamma n + 1) + beta,  y = z W2' + b2

Tensors of 4C channels are only read and written by the kernels of the products:

* forward: the first product's kernel also computes bias, GELU and the sums of squares, and writes
h;
  the second one's first computes GELU again and GRN's scale.
* backward: the kernel of dz = dy W2 also computes GRN's two sums over sites; that of dx = dh W1
first
  computes the gradient through GRN and GELU, and writes dh for the weights' gradients.

So tensors of 4C channels are written three times (h, dz, dh) and read six times in a step. With
separate kernels for GELU and GRN they are written four times and read twelve times. x, h and g are
stored for backward; z, which the gradient of W2 needs, is computed again. Sums are in float32
(float64 for float64), over tiles of sites, then over tiles, in a fixed order. Tiles do not cross
images.

Not measured on a GPU: ``use_kernels("fused")`` (``--kernels fused``) asks for it, "auto" does not.

Shape suffixes: b image, s site, c channel, e = 4c expanded channel, t tile of sites.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from backbones.kernels import interpreted, launching_on
from backbones.kernels.triton_gelu_grn import _apply_kernel, _gelu, _over_tiles
from backbones.normalization import GRN_EPS

# sizes of a program's tile of the product, and of a step of its sum
SITES, COLUMNS, DEPTH = 64, tl.constexpr(64), tl.constexpr(32)


@triton.jit
def _rows(tiles, sites, SITES: tl.constexpr):
    """This program's image, its sites' rows in ``[B * S, ...]``, and which of them exist."""
    image = tl.program_id(0) // tiles
    site = (tl.program_id(0) % tiles) * SITES + tl.arange(0, SITES)
    return image, image.to(tl.int64) * sites + site, site < sites


@triton.jit
def _columns(count):
    """This program's columns of the product, and a mask of those that exist."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return column, column < count


@triton.jit
def _product(a, b, ACC: tl.constexpr, WIDE: tl.constexpr):
    """A product of tiles. ``WIDE`` is for the interpreter, which reads bfloat16 as integers."""
    if WIDE:
        a, b = a.to(ACC), b.to(ACC)
    return tl.dot(a, b, input_precision="ieee", out_dtype=ACC)


@triton.jit
def _rows_times_columns(
    a_ptr, w_ptr, row, inside_r, column, inside, depth, by_k, by_column,
    SITES: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Rows of ``a [B * S, depth]`` times columns of w, whose strides are ``by_k, by_column``."""
    total = tl.zeros([SITES, COLUMNS], ACC)
    for first in range(0, depth, DEPTH):
        k = first + tl.arange(0, DEPTH)
        a_at = row[:, None] * depth + k[None, :]
        w_at = k[:, None] * by_k + column[None, :] * by_column
        a = tl.load(a_ptr + a_at, mask=inside_r[:, None] & (k < depth)[None, :], other=0.0)
        w = tl.load(w_ptr + w_at, mask=inside[None, :] & (k < depth)[:, None], other=0.0)
        total += _product(a, w, ACC, WIDE)
    return total


@triton.jit
def _expand_kernel(
    x_ptr, w_ptr, bias_ptr, h_ptr, partial_ptr, sites, tiles, c, e,
    SITES: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """h of a tile, and the sum over its sites of GELU(h) squared."""
    _, row, inside_r = _rows(tiles, sites, SITES)
    column, inside = _columns(e)
    h = _rows_times_columns(x_ptr, w_ptr, row, inside_r, column, inside, c, 1, c, SITES, ACC, WIDE)
    h += tl.load(bias_ptr + column, mask=inside, other=0.0).to(ACC)[None, :]
    rounded = h.to(h_ptr.dtype.element_ty)
    both = inside_r[:, None] & inside[None, :]
    tl.store(h_ptr + row[:, None] * e + column[None, :], rounded, mask=both)
    a, _ = _gelu(rounded.to(ACC))
    squares = tl.sum(tl.where(both, a * a, 0.0), 0)
    tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * e + column, squares, mask=inside)


@triton.jit
def _contract_kernel(
    h_ptr, scale_ptr, beta_ptr, w_ptr, bias_ptr, y_ptr, sites, tiles, c, e,
    SITES: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y of a tile from h: GELU and GRN's scale, then the product."""
    image, row, inside_r = _rows(tiles, sites, SITES)
    column, inside = _columns(c)
    y = tl.zeros([SITES, COLUMNS], ACC)
    for first in range(0, e, DEPTH):
        k = first + tl.arange(0, DEPTH)
        h_at, w_at = row[:, None] * e + k[None, :], column[None, :] * e + k[:, None]
        h = tl.load(h_ptr + h_at, mask=inside_r[:, None] & (k < e)[None, :], other=0.0)
        scale = tl.load(scale_ptr + image.to(tl.int64) * e + k, mask=k < e, other=0.0)
        beta = tl.load(beta_ptr + k, mask=k < e, other=0.0).to(ACC)
        a, _ = _gelu(h.to(ACC))
        z = (a * scale[None, :] + beta[None, :]).to(h_ptr.dtype.element_ty)
        w = tl.load(w_ptr + w_at, mask=inside[None, :] & (k < e)[:, None], other=0.0)
        y += _product(z, w, ACC, WIDE)
    y += tl.load(bias_ptr + column, mask=inside, other=0.0).to(ACC)[None, :]
    both = inside_r[:, None] & inside[None, :]
    y_at = row[:, None] * c + column[None, :]
    tl.store(y_ptr + y_at, y.to(y_ptr.dtype.element_ty), mask=both)


@triton.jit
def _expand_gradient_kernel(
    dy_ptr, w_ptr, h_ptr, dz_ptr, partial_ptr, sites, tiles, c, e,
    SITES: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dz of a tile, and the sums over its sites of dz * a and of dz."""
    _, row, inside_r = _rows(tiles, sites, SITES)
    column, inside = _columns(e)
    dz = _rows_times_columns(
        dy_ptr, w_ptr, row, inside_r, column, inside, c, e, 1, SITES, ACC, WIDE
    )
    both = inside_r[:, None] & inside[None, :]
    at = row[:, None] * e + column[None, :]
    rounded = dz.to(dz_ptr.dtype.element_ty)
    tl.store(dz_ptr + at, rounded, mask=both)
    a, _ = _gelu(tl.load(h_ptr + at, mask=both, other=0.0).to(ACC))
    dz = tl.where(both, rounded.to(ACC), 0.0)
    sums_at = partial_ptr + tl.program_id(0).to(tl.int64) * 2 * e + column
    tl.store(sums_at, tl.sum(dz * a, 0), mask=inside)
    tl.store(sums_at + e, tl.sum(dz, 0), mask=inside)


@triton.jit
def _contract_gradient_kernel(
    dz_ptr, h_ptr, scale_ptr, through_norm_ptr, w_ptr, dx_ptr, dh_ptr, sites, tiles, c, e,
    SITES: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dx of a tile, after the gradient through GRN and GELU, which column 0 writes."""
    image, row, inside_r = _rows(tiles, sites, SITES)
    column, inside = _columns(c)
    dx = tl.zeros([SITES, COLUMNS], ACC)
    for first in range(0, e, DEPTH):
        k = first + tl.arange(0, DEPTH)
        at, of_image = row[:, None] * e + k[None, :], image.to(tl.int64) * e + k
        both = inside_r[:, None] & (k < e)[None, :]
        dz = tl.load(dz_ptr + at, mask=both, other=0.0).to(ACC)
        a, slope = _gelu(tl.load(h_ptr + at, mask=both, other=0.0).to(ACC))
        scale = tl.load(scale_ptr + of_image, mask=k < e, other=0.0)
        through = tl.load(through_norm_ptr + of_image, mask=k < e, other=0.0)
        dh = ((dz * scale[None, :] + a * through[None, :]) * slope).to(dh_ptr.dtype.element_ty)
        if tl.program_id(1) == 0:
            tl.store(dh_ptr + at, dh, mask=both)
        w_at = k[:, None] * c + column[None, :]
        w = tl.load(w_ptr + w_at, mask=inside[None, :] & (k < e)[:, None], other=0.0)
        dx += _product(dh, w, ACC, WIDE)
    dx_at = row[:, None] * c + column[None, :]
    both = inside_r[:, None] & inside[None, :]
    tl.store(dx_ptr + dx_at, dx.to(dx_ptr.dtype.element_ty), mask=both)


class FusedMlp(Function):
    """``x [B, S, C]``, W1 ``[E, C]``, b1, gamma, beta ``[E]``, W2 ``[C, E]``, b2 ``[C]`` -> y.

    All but gamma and beta have the same type, which is also y's.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_bsc: Tensor,
        w1_ec: Tensor,
        b1_e: Tensor,
        gamma_e: Tensor,
        beta_e: Tensor,
        w2_ce: Tensor,
        b2_c: Tensor,
    ) -> Tensor:
        x_bsc, w1_ec, w2_ce = x_bsc.contiguous(), w1_ec.contiguous(), w2_ce.contiguous()
        b, s, c = x_bsc.shape
        e = len(w1_ec)
        h_bse = x_bsc.new_empty(b, s, e)
        partial = _launch(_expand_kernel, x_bsc, w1_ec, e, [x_bsc, w1_ec, b1_e, h_bse], sums=1)
        g_be = partial.sum((1, 2)).sqrt_()
        scale_be = _scale(g_be, gamma_e)
        y_bsc = torch.empty_like(x_bsc)
        _launch(
            _contract_kernel, x_bsc, w1_ec, c, [h_bse, scale_be, beta_e, w2_ce, b2_c, y_bsc], sums=0
        )
        ctx.save_for_backward(x_bsc, h_bse, g_be, w1_ec, gamma_e, beta_e, w2_ce)
        return y_bsc

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_bsc: Tensor) -> tuple[Tensor, ...]:
        x_bsc, h_bse, g_be, w1_ec, gamma_e, beta_e, w2_ce = ctx.saved_tensors
        dy_bsc = dy_bsc.contiguous()
        c, e = x_bsc.shape[-1], h_bse.shape[-1]
        dz_bse = torch.empty_like(h_bse)
        tensors = [dy_bsc, w2_ce, h_bse, dz_bse]
        sums = _launch(_expand_gradient_kernel, x_bsc, w1_ec, e, tensors, sums=2).sum(1)
        dza_be, mean_b1 = sums[:, 0], g_be.mean(-1, keepdim=True) + GRN_EPS
        dgamma_be = dza_be * g_be / mean_b1
        through_mean = (gamma_e * dgamma_be).mean(-1, keepdim=True)
        norm = torch.where(g_be > 0, g_be, 1)  # a norm of 0: a is 0 at all sites
        through_norm = (gamma_e * dza_be - through_mean) / mean_b1 / norm
        dh_bse, dx_bsc = torch.empty_like(h_bse), torch.empty_like(x_bsc)
        tensors = [dz_bse, h_bse, _scale(g_be, gamma_e), through_norm, w1_ec, dx_bsc, dh_bse]
        _launch(_contract_gradient_kernel, x_bsc, w1_ec, c, tensors, sums=0)
        z_bse = dz_bse  # uses its memory again
        _over_tiles(_apply_kernel, h_bse, g_be, mean_b1.flatten(), gamma_e, beta_e, z_bse)
        dtype = g_be.dtype
        return (
            dx_bsc,
            dh_bse.flatten(0, 1).T @ x_bsc.flatten(0, 1),
            dh_bse.sum((0, 1), dtype=dtype).to(w1_ec.dtype),
            dgamma_be.sum(0).to(gamma_e.dtype),
            sums[:, 1].sum(0).to(beta_e.dtype),
            dy_bsc.flatten(0, 1).T @ z_bse.flatten(0, 1),
            dy_bsc.sum((0, 1), dtype=dtype).to(w2_ce.dtype),
        )


def _scale(g_be: Tensor, gamma_e: Tensor) -> Tensor:
    """GRN's scale, ``[B, E]``."""
    n_be = g_be / (g_be.mean(-1, keepdim=True) + GRN_EPS)
    return (gamma_e.to(g_be.dtype) * n_be + 1).contiguous()


def _launch(
    kernel: Any, x_bsc: Tensor, w1_ec: Tensor, columns: int, tensors: list[Tensor], sums: int
) -> Tensor:
    """Launch a kernel over tiles of sites and of ``columns``; its sums ``[B, T, sums, E]``."""
    b, s, c = x_bsc.shape
    e = len(w1_ec)
    dtype = torch.promote_types(x_bsc.dtype, torch.float32)
    side = max(16, min(SITES, triton.next_power_of_2(s)))
    tiles = triton.cdiv(s, side)
    partial = x_bsc.new_empty(b, tiles, sums, e, dtype=dtype)
    with launching_on(x_bsc):
        kernel[(b * tiles, triton.cdiv(columns, COLUMNS.value))](
            *tensors,
            *([partial] if sums else []),
            s,
            tiles,
            c,
            e,
            SITES=side,
            ACC=tl.float64 if dtype == torch.float64 else tl.float32,
            WIDE=interpreted(),
            num_warps=4,
        )
    return partial


def fused_mlp(
    x: Tensor, pwconv1: torch.nn.Linear, gamma: Tensor, beta: Tensor, pwconv2: torch.nn.Linear
) -> Tensor:
    """``pwconv2(GRN(GELU(pwconv1(x))))`` for ``x [B, ..., C]``, in autocast's type."""
    from backbones.kernels.fused import autocast_inputs

    products = (pwconv1.weight, pwconv1.bias, pwconv2.weight, pwconv2.bias)
    x_cast, w1, b1, w2, b2 = autocast_inputs(x, *products)
    y = FusedMlp.apply(x_cast.flatten(1, -2), w1, b1, gamma.flatten(), beta.flatten(), w2, b2)
    return y.view(x.shape)
