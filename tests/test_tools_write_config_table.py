"""The table of configs, from files and runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import det_configs

SHIPPED = Path(det_configs.__file__).parent
CONFIG = "quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml"


@pytest.fixture
def configs(tmp_path):
    """One config alone, without results."""
    folder = tmp_path / "configs"
    shutil.copytree(SHIPPED / "_base_", folder / "_base_")
    (folder / "quick").mkdir()
    shutil.copy(SHIPPED / CONFIG, folder / CONFIG)
    (folder / "results.json").write_text("{}")
    (folder / "README.md").write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    return folder


def test_a_runs_result_stands_in_the_table_and_the_text_around_it_stays(
    configs, tmp_path, run_tool
):
    assert run_tool("write_config_table", "--configs", configs).code == 0
    table = (configs / "README.md").read_text()
    assert table.startswith("before\n")
    assert table.endswith("after\n")
    assert "old" not in table
    assert f"| `{CONFIG}` | torchvision |" in table
    assert "| not yet run |" in table

    run = tmp_path / "run"
    (run / "inference").mkdir(parents=True)
    metrics = {"bbox": {"AP": 12.34}, "segm": {"AP": 5.67}}
    (run / "inference/metrics_summary.json").write_text(json.dumps(metrics))
    shutil.copytree(configs / "_base_", tmp_path / "_base_")
    text = (configs / CONFIG).read_text()
    (run / "config.yaml").write_text(text)
    shown = run_tool("write_config_table", "--configs", configs, "--config", CONFIG, "--run", run)
    assert shown.code == 0, shown.err
    assert "| 12.3 / 5.7 (torchvision) |" in (configs / "README.md").read_text()


def test_a_run_without_its_config_is_one_message(configs, tmp_path, run_tool):
    shown = run_tool("write_config_table", "--configs", configs, "--run", tmp_path)
    assert shown.code == 1
    assert "--run and --config go together" in shown.err
    shown = run_tool(
        "write_config_table", "--configs", configs, "--config", "quick/x.yaml", "--run", tmp_path
    )
    assert shown.code == 1
    assert "there is no config" in shown.err
