"""``--num-gpus`` starts processes as torchrun does, in every command that trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backbones.errors import InputError
from training.command_line.launch import start_processes

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("pretrain_fcmae", "finetune_classifier", "train_net", "train_segmentation")
SCRIPT = """
import os, sys
from pathlib import Path
from training.command_line.launch import start_processes
if (code := start_processes(2, 1, 0, "auto")) >= 0:
    sys.exit(code)
rank = os.environ["RANK"]
Path(sys.argv[1], rank).write_text(os.environ["WORLD_SIZE"])
sys.exit(3 * int(sys.argv[2]))
"""


def run(*command):
    environment = {k: v for k, v in os.environ.items() if k != "WORLD_SIZE"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("fails", [0, 1])
def test_each_process_runs_the_command_and_a_failures_code_is_passed_on(tmp_path, fails):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run(tmp_path / "script.py", tmp_path, fails)
    assert done.returncode == 3 * fails, done.stderr
    if not fails:
        assert [(tmp_path / rank).read_text() for rank in "01"] == ["2", "2"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_trains_has_the_flags(command, run_tool):
    assert "--num-gpus" in run_tool(command, "--help").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 0, "auto"), "--num-gpus is 0"),
        ((2, 2, 0, "auto"), "--dist-url is 'auto'.*tcp://HOST:PORT"),
    ],
)
def test_numbers_that_cannot_be_are_refused(arguments, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=message):
        start_processes(*arguments)


def test_more_processes_than_gpus_or_than_torchrun_started_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"--num-gpus is 2, but this machine has 1 GPU"):
        start_processes(2, 1, 0, "auto")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert start_processes(4, 1, 0, "auto") == start_processes(1, 1, 0, "auto") == -1
    with pytest.raises(InputError, match=r"asks for 2 processes, but torchrun has started 4"):
        start_processes(2, 1, 0, "auto")


def largest_difference(a: Path, b: Path) -> float:
    first, second = load_file(a), load_file(b)
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes would want two GPUs")
def test_a_classifier_in_two_processes_is_one_run_with_the_weights_of_one(
    image_folder, tmp_path, run_tool
):
    """Without ``--device`` and without a GPU: the same batch, shared by the processes."""
    arguments = (
        *("--model", "convnextv2_atto", "--data", image_folder, "--image-size", 32),
        *("--drop-path", 0, "--mixup", 0, "--cutmix", 0, "--workers", 0, "--seed", 1),
        *("--batch-size", 4, "--max-steps", 3, "--output-dir"),
    )
    assert run_tool("finetune_classifier", *arguments, tmp_path / "one").code == 0
    tool = "tools/finetune_classifier.py"
    done = run(tool, *arguments, tmp_path / "two", "--num-gpus", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes" in (tmp_path / "two" / "log.txt").read_text()
    one, two = (tmp_path / run / "classifier.safetensors" for run in ("one", "two"))
    assert largest_difference(one, two) < 1e-5
