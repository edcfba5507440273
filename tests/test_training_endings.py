"""Real signals and dead workers, whatever a training does at that moment, lose no step."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import torch
from test_training_loop import NoisySamples, losses, small_model

from training import loop
from training.cli import run_tool
from training.guards import endings
from training.guards.checkpoints import checkpoint_step, list_checkpoints
from training.guards.endings import REQUEUE, requeue
from training.loop import train
from training.options import LoopOptions
from training.schedule import cosine_with_warmup

ROOT = Path(__file__).resolve().parent.parent
STEPS = 12


class Samples(NoisySamples):
    """Samples 4 to 7 of the order wait, once, until they are let go on."""

    def __init__(self, folder: Path, wait_in: str, workers: int) -> None:
        self.folder, self.wait_in, self.workers = folder, wait_in, workers
        self.served = 0

    def __getitem__(self, index):
        self.served += 1
        if self.wait_in == "data" and self.served > 4 * 5:
            wait(self.folder)
        return super().__getitem__(index)


def wait(folder: Path) -> None:
    """Say so, and stay."""
    (folder / "waiting").touch()
    time.sleep(120)


def run(
    folder: Path, wait_in: str, workers: int, deadline: float, place: dict[str, str] | None = None
) -> None:
    """A small training, as a tool starts it, that stays somewhere at its fifth step.

    Args:
        place: among several processes, as torchrun tells it.
    """
    os.environ.update(place or {})
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    endings.DEADLINE, loop.PATIENCE = deadline, 1.0
    model = small_model()

    def stay(step, _model):
        if step == 5 and wait_in == "evaluation":
            wait(folder)

    def compute(model, batch):
        if wait_in == "step" and (folder / "metrics.json").read_text().count("\n") == 5:
            wait(folder)
        return losses(model, batch)

    def main():
        options = LoopOptions(
            output_dir=folder, max_steps=STEPS, batch_size=4, workers=workers, log_every=1,
            checkpoint_every=4, resume=True, device="cpu", trackers=(),
        )  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        samples = Samples(folder, wait_in, workers)
        train(model, optimizer, cosine_with_warmup(20, 2), samples, torch.stack, compute, options,
              stay)  # fmt: skip

    sys.stderr = (folder / "said.txt").open("a", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    raise SystemExit(run_tool(main))


def start(folder: Path, wait_in: str = "", workers: int = 0, deadline: float = 28.0):
    folder.mkdir(exist_ok=True)
    process = forked.start(run, folder, wait_in, workers, deadline)
    end = time.monotonic() + 60
    while wait_in and process.is_alive() and not (folder / "waiting").exists():
        assert time.monotonic() < end, "the training did not come so far"
        time.sleep(0.01)
    return process


def test_a_process_beside_the_first_that_waits_for_data_ends_too_and_nothing_is_lost(tmp_path):
    """The first is in the midst of the step by then, waiting for the other's gradients."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "run"
    folder.mkdir()
    processes = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        place |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        place = {name: str(value) for name, value in place.items()}
        processes.append(forked.start(run, folder, "data" if rank else "", 0, 28.0, place))
    end = time.monotonic() + 60
    while not (folder / "waiting").exists() and all(each.is_alive() for each in processes):
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.5)  # for the first to come into the step
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
    assert [ended(process, 20) for process in processes] == [143, 143]
    assert steps_saved(folder) == 10  # the other's ten samples are two a step
    assert "Traceback" not in (folder / "said.txt").read_text()
    assert ended(start(folder), 60) == 0


def ended(process, within: float) -> int:
    process.join(within)
    assert process.exitcode is not None, f"it still runs after {within} s"
    return process.exitcode


def steps_saved(folder: Path) -> int:
    found = list_checkpoints(folder)
    return checkpoint_step(found[-1]) if found else 0


@pytest.mark.parametrize(("number", "code"), [("INT", 130), ("TERM", 143), ("HUP", 129)])
@pytest.mark.parametrize("wait_in", ["data", "evaluation"])
def test_each_signal_writes_a_checkpoint_while_the_loop_waits_and_nothing_is_lost(
    tmp_path, number, code, wait_in
):
    process = start(tmp_path / "run", wait_in)
    os.killpg(process.pid, getattr(signal, f"SIG{number}"))
    assert ended(process, 20) == code
    assert steps_saved(tmp_path / "run") == 5
    assert f"SIG{number}" in (tmp_path / "run/said.txt").read_text()
    assert ended(start(tmp_path / "run"), 60) == 0
    assert ended(start(tmp_path / "whole"), 60) == 0
    lines = [
        [json.loads(line)["total_loss"] for line in (tmp_path / name / "metrics.json").open()]
        for name in ("run", "whole")
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == STEPS


def test_workers_do_not_die_of_a_signal_to_the_whole_job(tmp_path):
    process = start(tmp_path / "run", "data", workers=2)
    while steps_saved(tmp_path / "run") < 4 and process.is_alive():
        time.sleep(0.01)  # the workers are ahead of the training
    os.killpg(process.pid, signal.SIGINT)
    assert ended(process, 20) == 130
    assert steps_saved(tmp_path / "run") >= 4


def test_a_second_signal_ends_at_once_and_says_what_is_lost(tmp_path):
    process = start(tmp_path / "run", "step")
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(endings.SAME + 0.3)
    assert process.is_alive()  # a signal that comes at once is the same, sent by a launcher
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process, 5) == 143
    said = (tmp_path / "run/said.txt").read_text()
    assert re.search(r"a second signal.*lost: 1 step after .*step_00000004", said)
    assert steps_saved(tmp_path / "run") == 4


def test_a_process_that_hangs_ends_at_the_deadline(tmp_path):
    process = start(tmp_path / "run", "step", deadline=2.0)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process, 10) == 143
    assert 1.5 < time.monotonic() - began < 6
    assert "no checkpoint within 2 s" in (tmp_path / "run/said.txt").read_text()


def test_slurms_signal_writes_a_checkpoint_and_the_training_goes_on(tmp_path):
    folder = tmp_path / "run"
    process = start(folder)
    while steps_saved(folder) == 0 and process.is_alive():
        os.kill(process.pid, signal.SIGUSR1) if (folder / "metrics.json").exists() else None
        time.sleep(0.01)
    assert ended(process, 60) == 0
    assert steps_saved(folder) == STEPS


def test_slurms_signal_before_the_training_is_heeded_behind_its_first_step():
    with endings.ended_by_signals():
        os.kill(os.getpid(), signal.SIGUSR1)
        with endings.Endings(lambda: "nothing") as held:
            assert held.checkpoint_asked
        with endings.Endings(lambda: "nothing") as held:
            assert not held.checkpoint_asked


def test_a_requeue_is_asked_of_slurm_where_the_user_asked_for_it(monkeypatch, caplog):
    asked = []
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    requeue(asked.append)
    assert "not a Slurm job" in caplog.text
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    requeue(asked.append)
    assert asked == [["scontrol", "requeue", "17"]]
    assert REQUEUE == "FCMAE_REQUEUE"


@pytest.mark.parametrize("number", ["KILL", "STOP"])
def test_a_dead_or_stopped_worker_is_an_error_whose_remedies_are_named(tmp_path, number):
    process = start(tmp_path / "run", "data", workers=1)
    metrics = tmp_path / "run/metrics.json"
    while metrics.read_text().count("\n") < 5 and process.is_alive():
        time.sleep(0.01)  # the worker is ahead of the training
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), getattr(signal, f"SIG{number}"))
    assert ended(process, 30) == 1
    said = (tmp_path / "run/said.txt").read_text().splitlines()[-1]
    remedies = ["--workers 0", "continue with --resume"]
    for remedy in [*remedies, *(["--shm-size", "--ipc=host"] if number == "KILL" else [])]:
        assert remedy in said
    assert f"step {steps_saved(tmp_path / 'run')} is written" in said


SHARED = """
import torch
from training.cli import run_tool
from training.data import BatchOrder, build_loader

class Large(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return torch.zeros(2**18)

def main():
    next(iter(build_loader(Large(), BatchOrder(4, 4, 0), torch.stack, workers=2)))

raise SystemExit(run_tool(main))
"""


def test_too_small_a_shared_memory_is_an_error_within_seconds():
    mount = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "-m", "bash", "-c", mount, "-", sys.executable, "-c", SHARED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this machine mounts nothing for this user")
    assert done.returncode == 1
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    for remedy in ("--workers 0", "--shm-size", "--ipc=host"):
        assert remedy in said


CHILD = """
import signal, sys, time
from pathlib import Path
from training.cli import run_tool

def main():
    run = Path(sys.argv[1])
    try:
        run.mkdir()
        time.sleep(120)
    finally:
        (run / "checkpoint").touch()

raise SystemExit(run_tool(main))
"""
PARENT = """
import sys
from pathlib import Path
from training.cli import run_tool
from training.command_line.jobs import Job, run_jobs
run = Path(sys.argv[2])
command = [sys.executable, "-c", sys.argv[1], str(run)]
raise SystemExit(run_tool(lambda: run_jobs([Job("child", command, run, 1)], Path.cwd())))
"""


@pytest.mark.parametrize(("number", "code"), [("TERM", 143), ("HUP", 129), ("KILL", -9)])
def test_who_starts_children_ends_them_first_with_their_checkpoint(tmp_path, number, code):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD, tmp_path / "run"], cwd=ROOT, stderr=subprocess.PIPE
    )
    while not (tmp_path / "run").exists():
        assert parent.poll() is None, parent.stderr.read()
        time.sleep(0.02)
    parent.send_signal(getattr(signal, f"SIG{number}"))
    assert parent.wait(20) == code
    end = time.monotonic() + (5 if number == "KILL" else 0.1)
    while time.monotonic() < end and not (tmp_path / "run/checkpoint").exists():
        time.sleep(0.02)
    assert (tmp_path / "run/checkpoint").exists()
