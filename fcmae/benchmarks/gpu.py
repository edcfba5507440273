"""Measures what packing and Triton's kernels save on a GPU, and how far that is from its limit.

The *roofline* of a step is the least time in which this GPU could run its operators one after
another. An operator takes either the time of its matrix arithmetic at the measured matrix rate, or
the time to read every input and write every output once at the measured copy rate, whichever is
longer. The same operators are counted for both encoders, on all sites or on the visible ones.
Weights, the means of GRN and the depthwise convolution's arithmetic are left out, so a step could
only reach a share of 1 by fusing more than the kernels here do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from backbones.convnext import SIZES, STRIDES, build_convnext
from backbones.kernels import Kernels, use_kernels, why_no_triton
from fcmae.benchmarks.steps import EncoderCase
from fcmae.packed import MaskedDenseEncoder, PackedEncoder
from training.records.measure import Row, interleaved, synchronise

logger = logging.getLogger(__name__)

# for each operator of a block, forward then backward: multiply-adds of matrix products per site, in
# units of C*C, and values moved per site, in units of C
OPERATORS = [
    (0, 2),  # depthwise and LayerNorm: x -> y
    (4, 5),  # pwconv1
    (0, 12),  # GELU and GRN: its norm reads 4C, then 4C -> 4C
    (4, 5),  # pwconv2
    (0, 3),  # residual
    (4, 5),  # pwconv2's input gradient
    (4, 5),  # pwconv2's weight gradient
    (0, 20),  # GELU and GRN: two sums of (h, dy), then (h, dy) -> dh
    (4, 5),  # pwconv1's input gradient
    (4, 5),  # pwconv1's weight gradient
    (0, 4),  # LayerNorm and depthwise: dy and what was normalised -> dx; x for the weights
    (0, 3),  # residual
]


@dataclass(frozen=True)
class Rates:
    """Measured rates of the hardware."""

    matrix: float  # multiply-adds per second of a large matrix product in the case's precision
    copy: float  # bytes read and written per second by a large copy


def measure_rates(
    precision: str, device: torch.device, side: int = 8192, mebibytes: int = 1024
) -> Rates:
    """The best of ten runs of a matrix product of ``side`` and of a copy."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    source = torch.empty(mebibytes * 2**20, dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    product = _best_seconds(lambda: a @ b, device)
    copy = _best_seconds(lambda: target.copy_(source), device)
    return Rates(side**3 / product, 2 * source.numel() / copy)


def _best_seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    times = []
    for _ in range(10):
        synchronise(device)
        began = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return min(times)


def roofline_seconds(case: EncoderCase, rates: Rates, share: float = 1.0) -> float:
    """The roofline of the encoder's forward and backward pass on this fraction of the sites."""
    size = SIZES[case.size]
    value_bytes = 2 if case.precision == "bf16" else 4
    total, channels_in = 0.0, 3
    for c, depth, stride, k in zip(
        size.dims, size.depths, STRIDES.values(), (4, 2, 2, 2), strict=True
    ):
        sites = share * case.batch * (case.image_size // stride) ** 2
        patch = k * k * channels_in
        # stem or downsampling, its weight gradient, its input gradient (images need none)
        operators = (2 if channels_in == 3 else 3) * [(patch * c, patch + c)]
        operators += depth * [(products * c * c, moved * c) for products, moved in OPERATORS]
        for products, moved in operators:
            total += sites * max(products / rates.matrix, moved * value_bytes / rates.copy)
        channels_in = c
    return total


def gpu_encoder_case(
    case: EncoderCase,
    rounds: int,
    device: torch.device,
    kernels: Kernels = "auto",
    rates: Rates | None = None,
) -> list[Row]:
    """The encoder's forward and backward pass: a row for each way to compute it.

    Args:
        device: a GPU; on other devices no peak memory is shown.
        kernels: kernels of the packed encoder: "torch", "triton", "fused", or "auto" for a row
            each.
        rates: rates of the hardware; measured if None.

    Raises:
        ValueError: if Triton's kernels are asked for and cannot run.
    """
    rates = rates or measure_rates(case.precision, device)
    torch.manual_seed(0)
    encoder = build_convnext(case.size).to(device)
    images, mask, packed_mask = case.inputs(device)

    def masked_dense() -> Tensor:
        return MaskedDenseEncoder(encoder)(images, mask)

    def packed() -> Tensor:
        return PackedEncoder(encoder)(images, packed_mask)

    def step(forward: Callable[[], Tensor], kernels: Kernels) -> None:
        encoder.zero_grad()
        with use_kernels(kernels), case.autocast(device):
            output = forward()
        output.float().square().mean().backward()

    chosen: list[Kernels] = ["torch", "triton", "fused"] if kernels == "auto" else [kernels]
    if kernels == "auto" and (problem := why_no_triton(device)):
        logger.warning("no row for Triton's kernels: %s", problem)
        chosen = ["torch"]
    steps = {"masked-dense": partial(step, masked_dense, "torch")}
    for choice in chosen:
        steps[f"packed, {choice}"] = partial(step, packed, choice)
    seconds = interleaved(steps, rounds, device)
    visible = (~mask).float().mean().item()
    rows = []
    for name, run in steps.items():
        share = 1.0 if name == "masked-dense" else visible
        row = {
            **case.described(),
            "variant": name,
            "ms": 1e3 * seconds[name],
            "/ masked-dense": seconds[name] / seconds["masked-dense"],
            "images/s": case.batch / seconds[name],
            "share of roofline": roofline_seconds(case, rates, share) / seconds[name],
        }
        if device.type == "cuda":
            row["peak GiB"] = _peak_bytes(run, device) / 2**30
        rows.append(row | {"TFLOP/s": 2e-12 * rates.matrix, "copy GB/s": 1e-9 * rates.copy})
    return rows


def _peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """The most bytes that tensors took during a step, weights and images included."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
