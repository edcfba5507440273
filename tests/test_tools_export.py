"""The export tool's command line: exit codes and messages; what it writes is tested elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_detector import small_config

from backbones.checkpoint import save_encoder
from backbones.convnext import ConvNeXt, Size
from backbones.export import FIRST_TORCH
from backbones.weight_files import save_safetensors
from detection.engines.torchvision.model import build_mask_rcnn

pytestmark = pytest.mark.skipif(torch.__version__ < FIRST_TORCH, reason="torch is too old")

SMALL = Size((8, 16, 24, 32), (1, 1, 1, 1), 2)


def test_an_encoder_is_written_and_what_is_free_is_said(run_tool, tmp_path: Path) -> None:
    save_encoder(ConvNeXt(SMALL), tmp_path / "encoder.safetensors", {"licence": "CC0"})
    output = tmp_path / "encoder.pt2"
    result = run_tool("export", "--encoder", tmp_path / "encoder.safetensors", "--output", output)
    assert result.code == 0
    assert f"wrote   {output}: encoder, fp32, {output.stat().st_size} bytes" in result.out
    assert "free    in images: batch, height, width" in result.out
    assert "licence of the weights: CC0" in result.out
    assert torch.export.load(output)


def test_soft_nms_exits_1_with_its_replacement(run_tool, tmp_path: Path) -> None:
    config = small_config({"MODEL.ROI_HEADS.SOFT_NMS.ENABLED": True})
    (tmp_path / "config.yaml").write_text(config.dump())
    (tmp_path / "last_checkpoint").write_text("model.safetensors")
    classes = {"class_names": '["a", "b", "c"]', "category_ids": "[1, 2, 3]"}
    tensors = build_mask_rcnn(config).state_dict()
    save_safetensors(tensors, tmp_path / "model.safetensors", classes)
    result = run_tool("export", "--run", tmp_path, "--output", tmp_path / "x.pt2")
    assert result.code == 1
    assert "soft-NMS cannot be exported" in result.err
    assert "MODEL.ROI_HEADS.SOFT_NMS.ENABLED False" in result.err
    assert not (tmp_path / "x.pt2").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nowhere", "--output", "x.pt2"], "nowhere holds no run"),
        (["--run", "nowhere", "--output", "x.pth"], "x.pth: give a file name that ends in"),
        (["--encoder", "nowhere.pth", "--output", "x.pt2"], "no checkpoint file nowhere.pth"),
        (["--run", "nowhere", "--evaluate", "x.onnx"], "nowhere holds no run"),
    ],
)
def test_what_is_not_there_is_one_sentence(arguments, message, run_tool) -> None:
    result = run_tool("export", *arguments)
    assert result.code == 1
    assert message in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "a"], "give either --output or --evaluate"),
        (["--run", "a", "--output", "x.onnx", "--evaluate", "x.onnx"], "give either --output"),
        (["--encoder", "a", "--evaluate", "x.onnx"], "are for --run"),
        (["--output", "x.onnx"], "one of the arguments --run --encoder is required"),
    ],
)
def test_wrong_usage_exits_2(arguments, message, run_tool) -> None:
    result = run_tool("export", *arguments)
    assert result.code == 2
    assert message in result.err
