from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from torch import nn

from fcmae.benchmarks.data import data_case, write_photographs
from fcmae.benchmarks.growth import Sweep, draw_growth, measure_growth
from fcmae.benchmarks.steps import EncoderCase, arithmetic_bound, encoder_case, saved_bytes
from training.records.measure import interleaved, peak_bytes


def test_bound_is_the_visible_share_where_nothing_is_depthwise():
    """All arithmetic but the depthwise convolutions shrinks to 19 of 49 patches."""
    bound = arithmetic_bound(EncoderCase("convnextv2_atto"))
    assert bound == pytest.approx(0.420, abs=5e-4)
    assert arithmetic_bound(EncoderCase("convnextv2_base")) == pytest.approx(0.397, abs=5e-4)
    assert arithmetic_bound(EncoderCase("convnextv2_base", mask_ratio=0.0)) == 1


def test_saved_bytes_count_each_activation_once_and_no_weights():
    layer = nn.Linear(8, 16)
    x = torch.randn(4, 8, requires_grad=True)
    weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    assert saved_bytes(lambda: layer(x), weights) == 4 * 8 * 4
    assert saved_bytes(lambda: layer(x).exp() * x.sum(), weights) > 4 * 8 * 4


def test_interleaving_runs_every_variant_once_a_round():
    calls = []
    variants = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    assert set(interleaved(variants, 2, torch.device("cpu"))) == {"a", "b"}
    assert calls == ["a", "b"] * 3


def test_peak_is_what_tensors_hold_at_once_and_not_their_sum():
    x = torch.ones(1000)

    def run():
        a = x * 2  # 4000 bytes
        b = a + a  # 8000
        del a
        return torch.cat((b, b)).sum()  # 4000 + 8000

    torch.ones(1000).mul(2)  # warm
    assert 12000 <= peak_bytes(run, torch.device("cpu")) < 12600


def test_packed_saves_less_for_backward_than_masked_dense():
    row = encoder_case(
        EncoderCase("convnextv2_atto", batch=2, image_size=96), 1, torch.device("cpu")
    )
    assert row["saved packed / masked-dense"] < 0.5
    assert row["packed ms"] > 0


def test_tool_prints_a_table_or_json(run_tool):
    arguments = ["pretrain", "--sizes", "convnextv2_atto", "--batch", "1", "--image-size", "64"]
    shown = run_tool("benchmark", *arguments, "--rounds", "1")
    assert shown.code == 0
    assert "| packed / masked-dense |" in shown.out
    result = json.loads(run_tool("benchmark", *arguments, "--rounds", "1", "--json").out)
    assert result["pretrain"][0]["pixels"] == 64


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_one_message(run_tool):
    result = run_tool("benchmark", "encoder", "--device", "cuda")
    assert result.code == 1
    assert "PyTorch finds 0 GPU(s)" in result.err


def test_growth_changes_one_thing_at_a_time_and_draws_it(tmp_path):
    measured = []

    def measure(case: EncoderCase) -> dict:
        measured.append(case)
        columns = {"encoder": case.size, "batch": case.batch, "pixels": case.image_size}
        ratios = ("packed / masked-dense", "saved packed / masked-dense", "bound")
        times = {f"{name} ms": 1.0 for name in ("dense", "masked-dense", "packed")}
        return {**columns, "mask": case.mask_ratio, **times, **dict.fromkeys(ratios, 0.5)}

    sweeps = (Sweep("mask_ratio", (0.0, 0.9), "mask"), Sweep("image_size", (64, 96), "pixels"))
    growth = measure_growth(measure, sweeps, EncoderCase("convnextv2_atto", batch=3))
    assert [(c.mask_ratio, c.image_size) for c in measured] == [
        (0.0, 224),
        (0.9, 224),
        (0.6, 64),
        (0.6, 96),
    ]
    assert {c.batch for c in measured} == {3}
    draw_growth(growth, tmp_path / "growth.svg", "title")
    assert "<svg" in (tmp_path / "growth.svg").read_text()


def test_a_pretraining_run_is_timed_on_its_own_images(image_folder):
    case = EncoderCase("convnextv2_atto", batch=2, image_size=64)
    row = data_case(case, workers=0, steps=2, data=image_folder)
    assert row["images"] == "12 of images"
    assert 0 < row["data wait %"] < 100  # without workers each step reads its batch itself
    assert row["step ms"] > 0
    assert row["images/s a worker"] > 0
    # at that many images a second a worker's second holds rate / 2 batches, so as many tables
    share = row["index tables ms"] / 1e3 * row["images/s a worker"] / 2
    assert row["index tables, % of a worker"] == pytest.approx(100 * share)


def test_synthetic_photographs_have_the_size_of_imagenets(tmp_path):
    files = sorted(write_photographs(tmp_path / "images").iterdir())
    with Image.open(files[0]) as picture:
        assert (picture.format, picture.size) == ("JPEG", (500, 375))
    assert 30_000 < files[0].stat().st_size < 200_000
    assert files[0].read_bytes() != files[1].read_bytes()
