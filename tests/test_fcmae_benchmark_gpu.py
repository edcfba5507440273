"""The GPU benchmark's arithmetic, and its code run on a CPU with interpreted kernels."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from backbones.convnext import SIZES, ConvNeXt, Size
from backbones.kernels import use_kernels, why_no_triton
from fcmae.benchmarks import gpu as benchmark_gpu
from fcmae.benchmarks.gpu import Rates, gpu_encoder_case, measure_rates, roofline_seconds
from fcmae.benchmarks.steps import EncoderCase
from fcmae.masking import random_mask
from fcmae.packed import PackedEncoder
from reporting.tables import by_column, markdown_table

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROBLEM = why_no_triton(DEVICE)
needs_triton = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))
ENDLESS = float("inf")


@pytest.fixture
def toy(monkeypatch):
    """A case of which Triton's interpreter computes a step in less than a second."""
    monkeypatch.setitem(SIZES, "toy", Size((8, 12, 16, 24), (1, 0, 0, 1), 2))
    return EncoderCase("toy", batch=1, image_size=64, mask_ratio=0.5)


@needs_triton
def test_roofline_counts_the_matrix_products_that_a_step_runs(toy):
    """The packed encoder's pointwise layers, all others being Triton's."""
    encoder = ConvNeXt(SIZES["toy"]).to(DEVICE)
    images, mask = torch.randn(1, 3, 64, 64), random_mask(1, (2, 2), 0.5)
    with FlopCounterMode(display=False) as counted, use_kernels("triton"):
        PackedEncoder(encoder)(images.to(DEVICE), mask.to(DEVICE)).sum().backward()
    operations = roofline_seconds(toy, Rates(matrix=1, copy=ENDLESS), share=0.5)
    assert 2 * operations == counted.get_total_flops()


def test_roofline_of_traffic_by_hand(monkeypatch):
    """A block moves 27 C values a site forward and 47 C backward, as the module lists them."""
    monkeypatch.setitem(SIZES, "flat", Size((10, 10, 10, 10), (1, 0, 0, 2), 2))
    case = EncoderCase("flat", "bf16", batch=3, image_size=32)
    sites = (64, 16, 4, 1)
    stem = 2 * (48 + 10) * sites[0]
    downsampling = 3 * (40 + 10) * sum(sites[1:])
    blocks = 74 * 10 * (sites[0] + 2 * sites[3])
    expected = 3 * 2 * (stem + downsampling + blocks) / 5e3
    assert roofline_seconds(case, Rates(ENDLESS, 5e3)) == pytest.approx(expected)


def test_roofline_takes_the_longer_of_arithmetic_and_traffic_of_each_operator():
    case = EncoderCase("convnextv2_base", "bf16", batch=256)
    products = roofline_seconds(case, Rates(4e14, ENDLESS))
    traffic = roofline_seconds(case, Rates(ENDLESS, 4e12))
    both = roofline_seconds(case, Rates(4e14, 4e12))
    assert 1.01 * max(products, traffic) < both < 0.99 * (products + traffic)
    assert roofline_seconds(case, Rates(4e14, 4e12), 0.25) == pytest.approx(both / 4)


def test_rates_count_multiply_adds_and_both_ways_of_a_copy(monkeypatch):
    ran = []

    def two_seconds(run, device):
        ran.append(run())
        return 2.0

    monkeypatch.setattr(benchmark_gpu, "_best_seconds", two_seconds)
    rates = measure_rates("bf16", DEVICE, side=16, mebibytes=3)
    assert rates == Rates(matrix=16**3 / 2, copy=3 * 2**20)
    assert (ran[0].shape, ran[0].dtype) == ((16, 16), torch.bfloat16)


@needs_triton
def test_each_way_to_compute_the_encoder_gets_a_row(toy):
    rows = gpu_encoder_case(toy, 1, DEVICE, rates=Rates(1e10, 1e9))
    variants = ["masked-dense", "packed, torch", "packed, triton", "packed, fused"]
    assert [row["variant"] for row in rows] == variants
    for row in rows:
        assert row["images/s"] == pytest.approx(1e3 / row["ms"])
        assert row["/ masked-dense"] == pytest.approx(row["ms"] / rows[0]["ms"])
    dense, packed = (row["share of roofline"] * row["ms"] for row in rows[:2])
    assert packed == pytest.approx(dense / 2)
    assert ("peak GiB" in rows[0]) == (DEVICE.type == "cuda")
    assert "packed, triton" in markdown_table(*by_column(rows))


def test_without_triton_its_row_is_missing_and_said_to_be(toy, monkeypatch, caplog):
    monkeypatch.setattr(benchmark_gpu, "why_no_triton", lambda device: "it is not there")
    with caplog.at_level(logging.WARNING):
        rows = gpu_encoder_case(toy, 1, DEVICE, rates=Rates(1e10, 1e9))
    assert [row["variant"] for row in rows] == ["masked-dense", "packed, torch"]
    assert "it is not there" in caplog.text
