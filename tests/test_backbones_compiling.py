"""Compiled inference: the same features, without gradients alone, and eager where it cannot be."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from backbones import compiling
from backbones.checkpoint import save_encoder
from backbones.compiling import compiled_encoders
from backbones.convnext import STAGES, ConvNeXt, Size

SMALL = Size((8, 16, 24, 32), (1, 0, 0, 1), 2)  # compiling costs by the number of blocks


@pytest.fixture
def encoder() -> ConvNeXt:
    torch.manual_seed(0)
    model = ConvNeXt(SMALL, out_norms=STAGES).eval()
    for name, parameter in model.named_parameters():
        if "grn" in name:
            torch.nn.init.normal_(parameter)
    return model


def test_compiled_features_equal_eager_ones_at_several_sizes(encoder, monkeypatch) -> None:
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        seen.append(graph)
        return graph

    monkeypatch.setattr(compiling, "BACKEND", backend)
    with torch.no_grad(), compiled_encoders():
        for shape in ((2, 3, 64, 64), (2, 3, 64, 96), (3, 3, 97, 131), (2, 3, 160, 64)):
            images = torch.randn(shape)
            found = encoder.forward_features(images)
            expected = encoder._stage_features(images)
            for stage in STAGES:
                torch.testing.assert_close(found[stage], expected[stage], rtol=1e-4, atol=1e-5)
    assert len(seen) == 1  # not one for each size


def test_training_and_what_stands_outside_are_not_compiled(encoder, monkeypatch) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        raise AssertionError("compiled")

    monkeypatch.setattr(compiling, "BACKEND", backend)
    images = torch.randn(1, 3, 32, 32)
    with compiled_encoders():
        encoder.forward_features(images)["stage4"].sum().backward()
    with torch.no_grad():
        encoder.forward_features(images)


def test_an_encoder_with_hooks_calls_them(encoder, monkeypatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "no such backend")
    seen = []
    encoder.stages[0][0].act.register_forward_hook(lambda *call: seen.append(call[2].shape))
    with torch.no_grad(), compiled_encoders():
        for _ in range(2):
            encoder.forward_features(torch.randn(1, 3, 32, 32))
    assert seen == [(1, 8, 8, 32)] * 2


def test_where_nothing_can_be_compiled_the_encoder_runs_and_says_so_once(
    encoder, monkeypatch, caplog
) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiling, "BACKEND", backend)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), caplog.at_level(logging.WARNING), compiled_encoders():
        found = [encoder.forward_features(images)["stage4"] for _ in range(2)]
    with torch.no_grad():
        expected = encoder.forward_features(images)["stage4"]
    assert all(torch.equal(features, expected) for features in found)
    (record,) = [r for r in caplog.records if r.name == "backbones.compiling"]
    assert "nothing can be compiled here" in record.getMessage()
    assert "No working C++ compiler found" in record.getMessage()


def test_compiled_embeddings_are_the_eager_ones(monkeypatch, run_tool, tmp_path) -> None:
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        seen.append(graph)
        return graph

    monkeypatch.setattr(compiling, "BACKEND", backend)
    whole = ConvNeXt(Size(SMALL.dims, (1, 1, 1, 1), 2))  # files of fewer stages are refused
    save_encoder(whole, tmp_path / "e.safetensors", {})
    generator = np.random.default_rng(0)
    for number in range(4):
        pixels = generator.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    found = []
    for flags in ((), ("--compile",)):
        command = ["--encoder", tmp_path / "e.safetensors", "--data", tmp_path, "--workers", 0]
        command += ["--output", tmp_path / "f.npz", "--image-size", 64, "--device", "cpu", *flags]
        result = run_tool("embed", *command)
        assert result.code == 0, result.err
        with np.load(tmp_path / "f.npz", allow_pickle=False) as archive:
            found.append(archive["features"])
    assert len(seen) == 1
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-5)
