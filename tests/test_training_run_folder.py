"""One process at a time writes a run's folder, which is never written over and has room."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training_loop import small_model, small_training
from timm.utils import ModelEmaV3

from backbones.errors import InputError
from training.guards.checkpoints import list_checkpoints
from training.guards.run_folder import LOCK, checkpoint_bytes, held, refuse_full_disk
from training.records.metrics import train_seconds
from training.records.trackers import PROJECT
from training.schedule import warn_of_schedule

ROOT = Path(__file__).resolve().parent.parent
HOLD = """
import sys, time
from pathlib import Path
from training.guards.run_folder import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_who_writes_and_a_killed_ones_lock_is_stale(
    tmp_path, holder
):
    with (
        pytest.raises(InputError, match="is being written by process") as caught,
        held(tmp_path / "run"),
    ):
        pass
    for word in (str(holder.pid), socket.gethostname(), "since 20", str(tmp_path / "run")):
        assert word in str(caught.value)
    assert (tmp_path / "run" / LOCK).is_file()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with held(tmp_path / "run"), held(tmp_path / "run"):  # also from within
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run" / LOCK).exists()


@pytest.mark.parametrize(
    ("content", "is_free"),
    [
        ({"pid": 1, "host": socket.gethostname(), "since": "2026-01-01"}, False),
        ({"pid": 2**22 + 1, "host": socket.gethostname(), "since": "2026-01-01"}, True),
        ({"pid": 1, "host": "another-machine", "since": "2026-01-01"}, False),
        ({}, True),
    ],
)
def test_where_the_file_system_has_no_locks_the_holders_number_is_asked(
    tmp_path, monkeypatch, content, is_free
):
    def none_here(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", none_here)
    (tmp_path / LOCK).write_text(json.dumps(content))
    if is_free:
        with held(tmp_path):
            pass
    else:
        with pytest.raises(InputError, match=r"remove .*lock"), held(tmp_path):
            pass


def test_what_is_refused_leaves_no_folder_behind(tmp_path):
    with pytest.raises(InputError, match="wrong"), held(tmp_path / "new"):
        raise InputError("wrong")
    assert not (tmp_path / "new").exists()


def test_a_disk_too_small_for_the_checkpoints_is_said_before_training(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, 10 * 2**20))
    refuse_full_disk(tmp_path / "not/yet", 5 * 2**20, keep=1)
    with pytest.raises(InputError, match=r"has 10 MB left, and 3 checkpoints.*need 15 MB"):
        refuse_full_disk(tmp_path / "not/yet", 5 * 2**20, keep=2)


def test_a_checkpoint_is_as_large_as_was_foretold(tmp_path):
    average = ModelEmaV3(small_model(0.0), decay=0.5)
    small_training(tmp_path, 1, dropout=0.0, ema=average)
    files = list_checkpoints(tmp_path)[-1].glob("*.[sb]*")
    written = sum(file.stat().st_size for file in files)
    expected = checkpoint_bytes(small_model(0.0), average.module)
    assert expected == pytest.approx(written, abs=12_000)  # names and the like


def test_two_sessions_of_a_run_are_one_curve_whose_steps_are_there_once(tmp_path):
    options = {"log_every": 1, "checkpoint_every": 2, "trackers": ("tensorboard",)}
    small_training(tmp_path, 3, **options)
    seconds = train_seconds(tmp_path / "metrics.json")
    for file in sorted(list_checkpoints(tmp_path)[-1].iterdir()):
        file.unlink()
    list_checkpoints(tmp_path)
    (tmp_path / "checkpoints/step_00000003").rmdir()
    small_training(tmp_path, 5, resume=True, **options)
    events = EventAccumulator(str(tmp_path / "tensorboard" / PROJECT))
    events.Reload()
    assert [event.step for event in events.Scalars("total_loss")] == [1, 2, 3, 4, 5]
    folders = {p.parent for p in (tmp_path / "tensorboard").rglob("events*")}
    assert len(folders) <= 2  # the curves, and the first session's configuration
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").open()]
    assert [line["train_seconds"] for line in lines] == sorted(x["train_seconds"] for x in lines)
    assert lines[-1]["train_seconds"] > lines[1]["train_seconds"] > 0
    assert seconds > lines[1]["train_seconds"]


def test_weights_are_evaluated_between_steps_as_they_are_from_a_file(tmp_path):
    """bf16's autocast belongs to the steps: the same weights have one result."""
    images = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    seen = {}

    def evaluate(step, model):
        model.eval()
        fresh = small_model(0.0)
        fresh.load_state_dict(model.state_dict())
        with torch.no_grad():
            seen[step] = (model(images), fresh.eval()(images))

    def measure(step, model):
        evaluate(f"measure {step}", model)
        return {}

    average = ModelEmaV3(small_model(0.0), decay=0.5)
    trained = small_training(
        tmp_path, 2, precision="bf16", after=evaluate, measure=measure, ema=average,
        dropout=0.0, log_every=1,
    )  # fmt: skip
    evaluate("end", trained)
    evaluate("average", average.module)
    assert len(seen) == 6
    for where, (found, expected) in seen.items():
        assert torch.equal(found, expected), where


def test_schedules_that_cannot_teach_are_said(caplog):
    warn_of_schedule(100, 10, drops=[50, 80])
    assert not caplog.messages
    warn_of_schedule(6, 1000)
    warn_of_schedule(100, 50, drops=[20, 80])
    warn_of_schedule(1, 1, first_factor=0.001)
    assert [m.partition(":")[0].partition(",")[0] for m in caplog.messages] == [
        "the warm-up of 1000 steps does not end within the run of 6",
        "the learning rate drops at step 20",
        "the warm-up of 1 step does not end within the run of 1",
    ]
