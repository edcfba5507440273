"""``--adapt-channels``: --init of other channels, pretrained and classified with by the tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from backbones.checkpoint import save_encoder
from backbones.convnext import build_convnext
from backbones.weight_files import read_weights
from training.schedule import cosine_with_warmup

STEM = "downsample_layers.0.0.weight"


@pytest.fixture
def start(tmp_path: Path):
    """An encoder of RGB, and grey images of two classes."""
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 255, (64, 64), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    torch.manual_seed(0)
    encoder = build_convnext("convnextv2_atto")
    save_encoder(encoder, tmp_path / "rgb.safetensors", {})
    return tmp_path, encoder.state_dict()[STEM]


@pytest.mark.parametrize(
    ("tool", "written", "rate"),
    [
        ("pretrain_fcmae", "encoder.safetensors", ["--base-lr", "1e-12"]),
        ("finetune_classifier", "classifier.safetensors", ["--base-lr", "1e-12"]),
    ],
)
def test_weights_of_rgb_start_a_training_on_grey_images(
    tool: str, written: str, rate: list[str], start, run_tool
) -> None:
    folder, stem = start
    arguments = [
        tool, "--model", "convnextv2_atto", "--data", folder / "data", "--init",
        folder / "rgb.safetensors", "--in-chans", 1, "--image-size", 64, "--batch-size", 2,
        "--max-steps", 1, "--workers", 0, "--device", "cpu", *rate,
    ]  # fmt: skip
    refused = run_tool(*arguments, "--output-dir", folder / "refused")
    assert refused.code == 1
    assert "--adapt-channels" in refused.err
    taken = run_tool(*arguments, "--adapt-channels", "--output-dir", folder / "run")
    assert taken.code == 0, taken.err
    tensors, _ = read_weights(folder / "run" / written)
    expected = timm.models.adapt_input_conv(1, stem)
    torch.testing.assert_close(tensors[STEM], expected, rtol=1e-3, atol=1e-4)


def test_the_schedule_ends_at_the_rate_that_min_lr_says() -> None:
    assert cosine_with_warmup(10, 2, 1e-6 / 1e-3)(10) * 1e-3 == pytest.approx(1e-6)
