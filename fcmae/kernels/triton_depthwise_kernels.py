"""Triton kernels of the packed encoder: depthwise 7x7 convolution with LayerNorm, and gradients.

Packed sites ``[n, p, p, C]`` are n*p *rows* of p sites: row q = block*p + r. A convolving program
takes 16 rows of one tile of channels. For each of the 7 kernel rows it finds the sites above or
below, in the row's own block or in a neighbouring one, walks along their p + 6 columns, loads each
site once and adds it to those of the row's p outputs that lie under the kernel. Which blocks are
neighbours stands in a table; where none is visible nothing is loaded. LayerNorm follows in the same
program, once all tiles of channels are done.

The weight gradient keeps the 7 taps of one kernel row in registers over many rows of sites.

All sums are in ACC, float32 or float64. Loops over columns, outputs and taps are unrolled, and
tuples of tiles (one for each output or tap) live in registers.

Shape suffixes: q row of sites, c channel; a tile is ``[ROWS, CHANNELS]``.
"""

# mypy: disable-error-code="assignment"
# (in Triton's language a tuple may grow)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_site(x_ptr, block_q, row_q, column: tl.constexpr, c, inside_c, channels, P: tl.constexpr):
    """Sites ``[ROWS, CHANNELS]`` at a row and column of their blocks; 0 where block is -1."""
    first_q = ((block_q * P + row_q).to(tl.int64) * P + column) * channels
    mask = (block_q >= 0)[:, None] & inside_c[None, :]
    return tl.load(x_ptr + first_q[:, None] + c[None, :], mask=mask, other=0.0)


@triton.jit
def _convolved(
    x_ptr,
    weight_ptr,
    bias_ptr,
    neighbours_ptr,
    q,
    inside_q,
    c,
    inside_c,
    channels,
    P: tl.constexpr,
    FLIP: tl.constexpr,
    ACC: tl.constexpr,
):
    """The p outputs of each row, a tuple of ``[ROWS, CHANNELS]``; 0 outside the channels."""
    start = tl.zeros([q.shape[0], c.shape[0]], ACC)
    if bias_ptr is not None:
        start += tl.load(bias_ptr + c, mask=inside_c, other=0.0).to(ACC)[None, :]
    sums = ()
    for _ in tl.static_range(P):
        sums += (start,)
    for kernel_row in range(7):
        # rows and columns are counted from 3 blocks above and left, so that none is negative
        above_q = q % P + kernel_row - 3 + 3 * P
        neighbours_q = neighbours_ptr + (q // P) * 49 + above_q // P * 7
        taps = ()
        for tap in tl.static_range(7):
            at = 48 - kernel_row * 7 - tap if FLIP else kernel_row * 7 + tap
            taps += (tl.load(weight_ptr + at * channels + c, mask=inside_c, other=0.0).to(ACC),)
        for column in tl.static_range(3 * P - 3, 4 * P + 3):
            if (column % P == 0) or (column == 3 * P - 3):
                block_q = tl.load(neighbours_q + column // P, mask=inside_q, other=-1)
            site = _load_site(x_ptr, block_q, above_q % P, column % P, c, inside_c, channels, P)
            site = site.to(ACC)
            before, sums = sums, ()
            for j in tl.static_range(P):
                if (column - 3 * P + 3 >= j) and (column - 3 * P + 3 < j + 7):
                    sums += (before[j] + site * taps[column - 3 * P + 3 - j][None, :],)
                else:
                    sums += (before[j],)
    return sums


@triton.jit
def convolve_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    neighbours_ptr,
    y_ptr,
    gamma_ptr,
    beta_ptr,
    normed_ptr,
    eps,
    rows,
    channels,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    FLIP: tl.constexpr,
    ACC: tl.constexpr,
):
    q = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside_q = q < rows
    means, squares = (), ()  # of each site over the channels so far
    for _ in tl.static_range(P):
        means += (tl.zeros([ROWS], ACC),)
        squares += (tl.zeros([ROWS], ACC),)
    # 1. convolve, tile after tile of the channels
    for first in range(tl.program_id(1) * CHANNELS, channels, tl.num_programs(1) * CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        inside_c = c < channels
        inside = inside_q[:, None] & inside_c[None, :]
        sums = _convolved(
            x_ptr,
            weight_ptr,
            bias_ptr,
            neighbours_ptr,
            q,
            inside_q,
            c,
            inside_c,
            channels,
            P,
            FLIP,
            ACC,
        )
        old_means, old_squares, means, squares = means, squares, (), ()
        for j in tl.static_range(P):
            at_qc = (q.to(tl.int64) * P + j)[:, None] * channels + c[None, :]
            y = sums[j].to(y_ptr.dtype.element_ty)
            tl.store(y_ptr + at_qc, y, mask=inside)
            # the tile's statistics joined to those before (Chan, Golub and LeVeque, 1979)
            width = tl.minimum(channels - first, CHANNELS)
            mean = tl.sum(y.to(ACC), 1) / width
            centred = tl.where(inside_c[None, :], y.to(ACC) - mean[:, None], 0.0)
            apart, share = mean - old_means[j], tl.cast(width, ACC) / (first + width)
            means += (old_means[j] + apart * share,)
            between = apart * apart * share * first
            squares += (old_squares[j] + tl.sum(centred * centred, 1) + between,)
    # 2. LayerNorm: read again what this program has written
    if gamma_ptr is not None:
        tl.debug_barrier()
        for first in range(0, channels, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            inside_c = c < channels
            inside = inside_q[:, None] & inside_c[None, :]
            gamma = tl.load(gamma_ptr + c, mask=inside_c, other=0.0).to(ACC)
            beta = tl.load(beta_ptr + c, mask=inside_c, other=0.0).to(ACC)
            for j in tl.static_range(P):
                at_qc = (q.to(tl.int64) * P + j)[:, None] * channels + c[None, :]
                y = tl.load(y_ptr + at_qc, mask=inside, other=0.0).to(ACC)
                rstd = 1 / tl.sqrt(squares[j] / channels + eps)
                normed = (y - means[j][:, None]) * rstd[:, None] * gamma[None, :] + beta[None, :]
                tl.store(normed_ptr + at_qc, normed.to(normed_ptr.dtype.element_ty), mask=inside)


@triton.jit
def weight_gradient_kernel(
    x_ptr,
    grad_ptr,
    neighbours_ptr,
    partial_ptr,
    rows,
    rows_each,
    channels,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    part, kernel_row = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside_c = c < channels
    sums = ()  # one for each of the 7 taps
    for _ in tl.static_range(7):
        sums += (tl.zeros([ROWS, CHANNELS], ACC),)
    for done in range(0, rows_each, ROWS):
        q = part * rows_each + done + tl.arange(0, ROWS)
        inside_q = q < rows
        here_q = tl.where(inside_q, q // P, -1)
        grads = ()
        for j in tl.static_range(P):
            grad = _load_site(grad_ptr, here_q, q % P, j, c, inside_c, channels, P)
            grads += (grad.to(ACC),)
        above_q = q % P + kernel_row - 3 + 3 * P
        neighbours_q = neighbours_ptr + (q // P) * 49 + above_q // P * 7
        for column in tl.static_range(3 * P - 3, 4 * P + 3):
            if (column % P == 0) or (column == 3 * P - 3):
                block_q = tl.load(neighbours_q + column // P, mask=inside_q, other=-1)
            site = _load_site(x_ptr, block_q, above_q % P, column % P, c, inside_c, channels, P)
            site = site.to(ACC)
            before, sums = sums, ()
            for tap in tl.static_range(7):
                if (column - 3 * P + 3 >= tap) and (column - 3 * P + 3 < tap + P):
                    sums += (before[tap] + site * grads[column - 3 * P + 3 - tap],)
                else:
                    sums += (before[tap],)
    for tap in tl.static_range(7):
        at = (part * 49 + kernel_row * 7 + tap).to(tl.int64) * channels + c
        tl.store(partial_ptr + at, tl.sum(sums[tap], 0), mask=inside_c)


@triton.jit
def norm_gradient_kernel(
    x_ptr,
    grad_ptr,
    gamma_ptr,
    dx_ptr,
    partial_ptr,
    eps,
    sites,
    sites_each,
    channels,
    SITES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACC: tl.constexpr,
):
    """LayerNorm's input gradient, and partial sums of dgamma, dbeta and (for the bias) dx."""
    part = tl.program_id(0)
    c = tl.arange(0, CHANNELS)
    inside_c = c < channels
    gamma = tl.load(gamma_ptr + c, mask=inside_c, other=0.0).to(ACC)
    dgamma = tl.zeros([SITES, CHANNELS], ACC)
    dbeta = tl.zeros([SITES, CHANNELS], ACC)
    dbias = tl.zeros([SITES, CHANNELS], ACC)
    for done in range(0, sites_each, SITES):
        site = part * sites_each + done + tl.arange(0, SITES)
        inside = (site < sites)[:, None] & inside_c[None, :]
        at = site.to(tl.int64)[:, None] * channels + c[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(ACC)
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(ACC)
        mean = tl.sum(x, 1) / channels
        centred = tl.where(inside_c[None, :], x - mean[:, None], 0.0)
        rstd = 1 / tl.sqrt(tl.sum(centred * centred, 1) / channels + eps)
        normed = centred * rstd[:, None]
        scaled = grad * gamma[None, :]
        along = tl.sum(scaled * normed, 1) / channels
        dx = scaled - tl.sum(scaled, 1)[:, None] / channels - normed * along[:, None]
        dx = tl.where(inside, dx * rstd[:, None], 0.0).to(dx_ptr.dtype.element_ty)
        tl.store(dx_ptr + at, dx, mask=inside)
        dgamma += grad * normed
        dbeta += grad
        dbias += dx.to(ACC)
    sums_ptr = partial_ptr + part.to(tl.int64) * 3 * channels + c
    tl.store(sums_ptr, tl.sum(dgamma, 0), mask=inside_c)
    tl.store(sums_ptr + channels, tl.sum(dbeta, 0), mask=inside_c)
    tl.store(sums_ptr + 2 * channels, tl.sum(dbias, 0), mask=inside_c)
