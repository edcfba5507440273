"""The table of results, from docs/results.json and from runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KNOWN = {"name": "old", "config": "a.yaml", "engine": "torchvision", "box AP": 9.96, "mask AP": 1.0}


@pytest.fixture
def files(tmp_path):
    """A page and a json, with one measured entry and one that has not been run."""
    (tmp_path / "page.md").write_text(
        "before\n<!-- results -->\nx\n<!-- end of results -->\nafter\n"
    )
    planned = {"name": "planned", "config": "b.yaml", "engine": "detectron2"}
    (tmp_path / "results.json").write_text(json.dumps([KNOWN, planned]))
    return "--page", tmp_path / "page.md", "--results", tmp_path / "results.json"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "inference").mkdir(parents=True)
    metrics = {"bbox": {"AP": 12.345}, "segm": {"AP": 6.78}}
    (folder / "inference/metrics_summary.json").write_text(json.dumps(metrics))
    facts = {"engine": "detectron2", "config_file": "b.yaml", "command": "train_net.py b.yaml"}
    facts |= {"started": "2026-11-24T09:59:58+00:00", "device": "cpu", "versions": {"torch": "3.1"}}
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


def test_the_table_is_what_the_json_says(run_tool):
    shown = run_tool(
        "write_results_table",
        *("--check", "--page", ROOT / "docs/real_runs.md", "--results", ROOT / "docs/results.json"),
    )
    assert shown.code == 0, shown.err
    for entry in json.loads((ROOT / "docs/results.json").read_text()):
        assert (ROOT / entry["config"]).is_file()
        if "box AP" in entry:
            assert entry["date"]
            assert entry["versions"]["torch"]


def test_a_runs_facts_go_into_the_json_and_its_numbers_into_the_table(
    files, run, tmp_path, run_tool
):
    assert run_tool("write_results_table", *files).code == 0
    page = (tmp_path / "page.md").read_text()
    assert re.fullmatch(r"before\n<!-- results -->\n.*<!-- end of results -->\nafter\n", page, re.S)
    assert "| old | `a.yaml` | torchvision | 10.0 | 1.0 |  |  |\n" in page
    assert "| planned | `b.yaml` | detectron2 | not yet run | not yet run |  |  |\n" in page

    assert run_tool("write_results_table", *files, "--run", "planned", run).code == 0
    page = (tmp_path / "page.md").read_text()
    assert "| planned | `b.yaml` | detectron2 | 12.3 | 6.8 | 2026-11-24 | 3.1 |\n" in page
    old, entry = json.loads((tmp_path / "results.json").read_text())
    assert old == KNOWN
    assert (entry["box AP"], entry["mask AP"]) == (12.345, 6.78)
    assert entry["command"] == "train_net.py b.yaml"
    assert run_tool("write_results_table", *files, "--check").code == 0

    (tmp_path / "page.md").write_text(page.replace("12.3", "52.3"))
    shown = run_tool("write_results_table", *files, "--check")
    assert shown.code == 1
    assert "is out of date: run dev/write_results_table.py" in shown.err


def test_a_run_that_was_not_evaluated_is_refused_with_what_is_missing(files, run, run_tool):
    (run / "inference/metrics_summary.json").unlink()
    shown = run_tool("write_results_table", *files, "--run", "planned", run)
    assert shown.code == 1
    assert "does not record box AP: give the OUTPUT_DIR of a run" in shown.err
