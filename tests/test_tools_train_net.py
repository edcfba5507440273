"""The command line: detectron2's flags, overrides, exit codes, one message for bad input."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_coco import write_small_coco
from small_detector import small_config

TOOL = Path(__file__).resolve().parent.parent / "tools" / "train_net.py"


@pytest.fixture
def command(tmp_path):
    """Arguments of a small training, with the path of its output folder."""
    annotations, images = write_small_coco(tmp_path / "data")
    data = f"json:{annotations}:{images}"
    (tmp_path / "small.yaml").write_text(
        small_config({"MODEL.ROI_HEADS.NUM_CLASSES": 0, "SOLVER.MAX_ITER": 2}).dump()
    )
    arguments = ["--config-file", tmp_path / "small.yaml", "DATASETS.TRAIN", data]
    return [*arguments, "DATASETS.TEST", data, "OUTPUT_DIR", tmp_path / "run"], tmp_path / "run"


@pytest.fixture
def call(monkeypatch, capfd):
    """Run the command line in this process: its exit code and what it wrote to stderr."""
    spec = importlib.util.spec_from_file_location("train_net_under_test", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tools/train_net.py", *map(str, arguments)])
        capfd.readouterr()
        code = tool.run_tool(tool.main)
        return code, capfd.readouterr().err

    return call


def start(*arguments, program=(sys.executable,)):
    return subprocess.run(
        [*program, str(TOOL), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=TOOL.parent.parent,
        timeout=300,
    )


def assert_one_message(result, *parts):
    code, stderr = result
    assert code == 1, stderr
    assert "Traceback" not in stderr
    assert len([line for line in stderr.splitlines() if line.startswith("error: ")]) == 1
    for part in parts:
        assert part in stderr


def test_training_resuming_and_evaluating_from_the_command_line(command, call):
    arguments, out = command
    result = start(*arguments)
    assert result.returncode == 0, result.stderr
    facts = json.loads((out / "run.json").read_text())
    assert "train_net.py --config-file" in facts["command"]
    assert_one_message(call(*arguments), "holds a run already", "--resume")
    longer = ["--resume", *arguments, "SOLVER.MAX_ITER", "3", "--engine", "torchvision"]
    code, stderr = call(*longer)
    assert code == 0, stderr
    assert "SOLVER.MAX_ITER was 2, is 3" in stderr
    assert call("--eval-only", *arguments)[0] == 0


def test_two_processes_train_and_predict_every_image_once(command, call):
    arguments, out = command
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    result = start(*arguments, program=(*torchrun, "--standalone"))
    assert result.returncode == 0, result.stderr
    results = json.loads((out / "inference/coco_instances_results.json").read_text())
    ids = [entry["image_id"] for entry in results]
    assert ids == sorted(ids)
    summary = (out / "inference/metrics_summary.json").read_text()
    assert call("--eval-only", *arguments)[0] == 0
    assert (out / "inference/metrics_summary.json").read_text() == summary


def test_unknown_keys_and_bad_values_are_one_message(command, call):
    arguments, out = command
    result = call(*arguments, "SOLVR.BASE_LR", "1", "SOLVER.MAX_ITER", "many")
    assert_one_message(result, "SOLVR.BASE_LR", "SOLVER.BASE_LR", "many")
    assert not out.exists()


def test_wandb_that_is_not_installed_is_one_message_before_training(command, call, monkeypatch):
    arguments, out = command
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_one_message(call(*arguments, "--wandb"), "WANDB is True", "pip install wandb")
    assert not out.exists()


def test_a_missing_image_is_one_message_before_training(command, call, tmp_path):
    arguments, out = command
    (tmp_path / "data/images/7.png").unlink()
    assert_one_message(call(*arguments), "7.png")
    assert not (out / "metrics.json").exists()


def test_wrong_usage_is_exit_code_2_and_help_shows_commands(call, capfd):
    for arguments, code in (
        ([], 2),
        (["--config-file", "a.yaml", "--engine", "mmdet"], 2),
        (["--help"], 0),
    ):
        with pytest.raises(SystemExit) as end:
            call(*arguments)
        assert end.value.code == code
    shown = capfd.readouterr().out
    assert "--eval-only" in shown
    assert "torchrun" in shown
