"""Nothing is lost: whole pretraining runs under real signals, in processes of their own."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Set
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fcmae.pretrain import PretrainOptions, pretrain
from training.data import SigtermOnlyFromTrainer
from training.guards.checkpoints import list_checkpoints

STEPS, KILLS = 6, 20


def run(data: Path, folder: Path, resume: bool, workers: int) -> None:
    """What a process does; a checkpoint after each step."""
    multiprocessing.set_start_method("fork", force=True)  # the loader's, as on a command line
    torch.set_num_threads(1)
    os.setpgid(0, 0)  # a job of its own, whose loader workers a signal can reach
    # shells have the jobs that they start in the background, such as these tests, ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = PretrainOptions(
        model="convnextv2_atto",
        data=str(data),
        output_dir=str(folder),
        image_size=(32, 64),
        batch_size=3,
        max_steps=STEPS,
        base_lr=0.1,
        decoder_dim=16,
        workers=workers,
        device="cpu",
        log_every=1,
        checkpoint_every=1,
        panel_every=3,
        trackers=(),
    )
    pretrain(options, resume)


def start(data: Path, folder: Path, resume: bool = True, workers: int = 1) -> ForkServerProcess:
    return forked.start(run, data, folder, resume, workers)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(12):
        pixels = generator.integers(0, 256, (80, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(images, folder, resume=False, workers=0)
    process.join()
    assert process.exitcode == 0
    return folder


def half_written(folder: Path) -> set[tuple[str, int]]:
    """The half-written checkpoints, told apart from those of an earlier process by their times."""
    found = set()
    for partial in (folder / "checkpoints").glob("*.partial"):
        with contextlib.suppress(FileNotFoundError):  # renamed, or removed, since
            found.add((partial.name, partial.stat().st_ctime_ns))
    return found


def wait_for_writing(
    folder: Path, process: ForkServerProcess, stale: Set[tuple[str, int]] = frozenset()
) -> None:
    """Return when the process writes a checkpoint, or has ended."""
    while process.is_alive() and not half_written(folder) - stale:
        time.sleep(0.001)


def assert_equal_runs(a: Path, b: Path) -> None:
    """Bit-identical encoder, weights and optimizer state; the same metrics, each step once."""
    checkpoints = [list_checkpoints(folder)[-1] for folder in (a, b)]
    assert checkpoints[0].name == checkpoints[1].name == f"step_{STEPS:08d}"
    for names in (["encoder.safetensors"] * 2, [c / "model.safetensors" for c in checkpoints]):
        first, second = load_file(a / names[0]), load_file(b / names[1])
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    states = [torch.load(c / "optimizer.bin", weights_only=True)["state"] for c in checkpoints]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert all(torch.equal(state[name], states[1][key][name]) for name in state)
    lines = [[json.loads(line) for line in (f / "metrics.json").open()] for f in (a, b)]
    assert [line["iteration"] for line in lines[1]] == list(range(1, STEPS + 1))
    assert [line["total_loss"] for line in lines[0]] == [line["total_loss"] for line in lines[1]]
    panels = [sorted(p.name for p in (f / "reconstructions").glob("*.png")) for f in (a, b)]
    assert panels[0] == panels[1]


def test_killed_at_any_moment_and_resumed_a_run_ends_with_the_same_bits(images, whole, tmp_path):
    generator = random.Random(0)
    began = time.monotonic()
    probe = start(images, tmp_path / "probe")
    wait_for_writing(tmp_path / "probe", probe)
    probe.join()
    duration = time.monotonic() - began
    kills, while_writing, runs = 0, 0, 0
    while kills < KILLS:
        runs += 1
        folder = tmp_path / f"run{runs}"
        while True:
            stale = half_written(folder)
            process = start(images, folder)
            if kills < KILLS and kills % 2:
                wait_for_writing(folder, process, stale)
                time.sleep(generator.uniform(0, duration / STEPS / 2))
            elif kills < KILLS:
                process.join(generator.uniform(0, duration))
            else:
                process.join()
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            kills += 1
            while_writing += bool(half_written(folder) - stale)
        assert_equal_runs(whole, folder)
    assert while_writing >= KILLS / 5, "the kills missed the writing of checkpoints"
    print(f"{kills} kills, {while_writing} while writing, {runs} runs of {duration:.1f} s")


@pytest.mark.parametrize(
    ("number", "to_group", "exit_code"),
    [(signal.SIGTERM, False, 143), (signal.SIGTERM, True, 143), (signal.SIGINT, True, 130)],
    ids=["terminated", "terminated with its workers", "interrupted with its workers"],
)
def test_signal_while_a_checkpoint_is_written(images, whole, tmp_path, number, to_group, exit_code):
    folder = tmp_path / "signalled"
    process = start(images, folder)
    wait_for_writing(folder, process)
    (os.killpg if to_group else os.kill)(process.pid, number)
    process.join(30)
    assert process.exitcode == exit_code
    assert not list((folder / "checkpoints").glob("*.partial"))
    again = start(images, folder)
    again.join()
    assert_equal_runs(whole, folder)


def test_loader_worker_heeds_sigterm_from_its_training_process_alone():
    def worker():
        SigtermOnlyFromTrainer(os.getppid())(0)
        ready.set()
        time.sleep(60)

    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=worker)
    process.start()
    ready.wait()
    subprocess.run(["kill", "-TERM", str(process.pid)], check=True)
    process.join(0.5)
    assert process.is_alive()
    process.terminate()
    process.join(10)
    assert process.exitcode == 0
