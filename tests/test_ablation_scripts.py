"""The scripts of ablations/: their configs are there, and each goes on where it was interrupted."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from detection.config import load_config
from fcmae.grids.grid import load_grid

ROOT = Path(__file__).parent.parent
ABLATIONS = ROOT / "ablations"
GRIDS = [path for path in sorted(ABLATIONS.glob("*/*.yaml")) if "\nrows:" in path.read_text()]


def loaded(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{script.parent.name}_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_grids_name_files_that_are_there(path):
    for row in load_grid(path).rows:
        for stage in row.stages.values():
            config = stage.get("config-file", "")
            homes = (ROOT, ROOT / "det_configs")
            assert not config or any((home / config).is_file() for home in homes)


@pytest.mark.parametrize("arm", ["tiles", "whole", "resized"])
def test_the_arms_of_the_comparison_of_tiles_are_configs(arm):
    compare = loaded(ABLATIONS / "tiles/compare.py")
    config = load_config(compare.CONFIG, compare.settings_of(arm, 256))
    assert config.INPUT.TILES.ENABLED is (arm != "resized")


def test_an_interrupted_run_of_the_comparison_of_plans_begins_anew(tmp_path, monkeypatch):
    compare = loaded(ABLATIONS / "plan/compare.py")

    def trains(command, **_):
        folder = Path(command[command.index("OUTPUT_DIR") + 1])
        assert not folder.exists()  # a training refuses a folder that holds a run
        (folder / "inference").mkdir(parents=True)
        summary = {"bbox": {"AP": 5.0, "AP50": 9.0}, "segm": {"AP": 4.0}}
        (folder / "inference/metrics_summary.json").write_text(json.dumps(summary))
        (folder / "metrics.json").write_text('{"iteration": 7}\n')
        return subprocess.CompletedProcess(command, 0, "", "")

    (tmp_path / "scenes_quick_1").mkdir()
    (tmp_path / "scenes_quick_1/log.txt").write_text("interrupted")
    (tmp_path / "data/scenes.partial").mkdir(parents=True)
    (tmp_path / "plan_scenes.yaml").write_text("")
    monkeypatch.setattr(compare, "write_scenes", lambda folder, **_: folder.mkdir())
    monkeypatch.setattr(compare.subprocess, "run", trains)
    compare.compare("scenes", 1, tmp_path, tmp_path)
    rows = compare.read_rows(tmp_path / "results.csv")
    assert [(row["arm"], row["iterations"], row["box_ap"]) for row in rows] == [
        ("quick", "7", "5.00"),
        ("planned", "7", "5.00"),
    ]
