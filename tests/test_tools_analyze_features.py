"""The command line: what it leaves behind, and how it fails."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from backbones.checkpoint import save_encoder
from backbones.convnext import ConvNeXt, Size
from fcmae.features.analysis import analyze
from fcmae.features.images import AnalysisImages, View
from fcmae.features.models import load_model


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    model = ConvNeXt(Size((4, 6, 8, 10), (1, 1, 2, 1), 2))
    save_encoder(model, tmp_path / "encoder.safetensors", {})
    return tmp_path / "encoder.safetensors"


def rows_of(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_several_models_on_the_same_labelled_images(run_tool, image_folder, encoder, tmp_path):
    out = tmp_path / "out"
    result = run_tool(
        "analyze_features",
        *("--model", f"small={encoder}", "--model", "vit=random:vit_tiny_patch16_224"),
        *("--data", image_folder, "--output-dir", out, "--images", 6, "--image-size", "64x32"),
        *("--batch-size", 4, "--map-image", 5, "--device", "cpu"),
    )
    assert result.code == 0, result.err
    rows = rows_of(out / "cosine_distance.csv")
    assert [row["model"] for row in rows] == ["small"] * 5 + ["vit"] * 12
    model = load_model("small", str(encoder))
    images = AnalysisImages(str(image_folder), View((64, 32)), images=6)
    batches = images.batches(model.statistics, 6, 0, torch.device("cpu"))
    for row, block in zip(rows, analyze(model.model, batches), strict=False):
        assert (row["block"], int(row["images"]), row["tap"]) == (block.block, 6, "grn")
        assert int(row["channels"]) == block.channels
        for measure in ("cosine_distance", "effective_rank", "class_selectivity", "dead"):
            assert float(row[measure]) == pytest.approx(getattr(block, measure), abs=1e-5)
    for name in ("cosine_distance", "measures", "class_selectivity"):
        assert picture_is_drawn(out / f"{name}.png")
    for name in ("small", "vit"):
        assert picture_is_drawn(out / f"channel_maps/{name}.png")


def picture_is_drawn(path):
    """More than text on white: at least a fiftieth of the pixels has a colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (np.ptp(pixels, -1) > 20).mean() > (0.02 if "maps" in str(path) else 0.001)


def test_images_without_classes_have_no_selectivity(run_tool, image_folder, encoder, tmp_path):
    out = tmp_path / "out"
    result = run_tool(
        "analyze_features",
        *("--model", f"small={encoder}", "--data", image_folder / "part0", "--output-dir", out),
        *("--image-size", 32, "--tap", "dwconv", "--device", "cpu"),
    )
    assert result.code == 0, result.err
    assert "no classes: no class selectivity" in result.err
    rows = rows_of(out / "cosine_distance.csv")
    assert {row["class_selectivity"] for row in rows} == {"nan"}
    assert [int(row["channels"]) for row in rows] == [4, 6, 8, 8, 10]
    assert not (out / "class_selectivity.png").exists()


def test_runs_are_drawn_by_block_and_epoch(run_tool, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"batch_size": 5, "derived": {"images": 10}}))
    lines = [
        {"iteration": 10, "block_distance/stages.0.0": 0.5, "block_distance/stages.1.0": 0.4},
        {"iteration": 20, "total_loss": 1.0},
        {"iteration": 30, "block_distance/stages.0.0": 0.3, "block_distance/stages.1.0": 0.1},
    ]
    (run / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run_tool("analyze_features", "--run", f"r={run}", "--output-dir", tmp_path / "out")
    assert result.code == 0, result.err
    rows = rows_of(tmp_path / "out/distance_by_epoch.csv")
    values = [(r["epoch"], r["step"], r["block"], r["cosine_distance"]) for r in rows]
    assert values == [
        ("5", "10", "stages.0.0", "0.5"),
        ("5", "10", "stages.1.0", "0.4"),
        ("15", "30", "stages.0.0", "0.3"),
        ("15", "30", "stages.1.0", "0.1"),
    ]
    assert picture_is_drawn(tmp_path / "out/distance_by_epoch.png")


def test_models_of_other_channels_are_refused_together(run_tool, image_folder, encoder, tmp_path):
    five = ConvNeXt(Size((4, 6, 8, 10), (1, 1, 1, 1), 1), in_chans=5)
    metadata = {"mean": "[0, 0, 0, 0, 0]", "std": "[1, 1, 1, 1, 1]"}
    save_encoder(five, tmp_path / "five.safetensors", metadata)
    result = run_tool(
        "analyze_features",
        *("--model", f"three={encoder}", "--model", f"five={tmp_path}/five.safetensors"),
        *("--data", image_folder, "--output-dir", tmp_path / "out"),
    )
    assert result.code == 1
    assert "different numbers of channels: three 3, five 5" in result.err


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["a"], "--model a is not NAME=SOURCE"),
        (["a/b=random:convnextv2_atto"], "with a NAME that a file can have"),
        (["a=x", "a=y", "b="], "--model a is given twice: x and y; --model b= is not"),
        (["a=missing.safetensors"], "missing.safetensors"),
        (["a=other.safetensors"], "no ConvNeXt encoder in it"),
        (["a=random:nothing"], "timm has no model 'nothing'"),
        (["a=random:resnet18"], "give --tap block"),
    ],
)
def test_bad_input_is_one_message(run_tool, image_folder, tmp_path, monkeypatch, models, message):
    monkeypatch.chdir(tmp_path)
    save_file({"x": torch.ones(1)}, "other.safetensors")
    flags = [part for model in models for part in ("--model", model)]
    result = run_tool(
        "analyze_features", *flags, "--data", image_folder, "--output-dir", tmp_path / "out"
    )
    assert result.code == 1
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.err


def test_wrong_usage_is_exit_code_2_and_help_shows_commands(run_tool, tmp_path):
    assert run_tool("analyze_features", "--output-dir", tmp_path).code == 2
    lacking = run_tool("analyze_features", "--output-dir", tmp_path, "--model", "a=b")
    assert lacking.code == 2
    assert "--model needs --data" in lacking.err
    shown = run_tool("analyze_features", "--help")
    assert shown.code == 0
    assert "python tools/analyze_features.py --run grn=" in shown.out
