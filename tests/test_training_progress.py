"""Long works show one kind of bar on a terminal, and write nothing where there is none."""

from __future__ import annotations

import logging
import os
import re
import struct
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_coco import write_small_coco

from detection.benchmarks.evaluation import write_synthetic
from detection.data.check import check_coco
from detection.data.scenes import write_scenes
from detection.evaluate import coco_metrics
from detection.evaluation.diagnosis import diagnose
from images.readers import open_images
from training.cli import log_to
from training.progress import progress

ROOT = Path(__file__).parent.parent
TIME_LEFT = re.compile(r"\d\d:\d\d<\d\d:\d\d")  # "00:01<00:02": elapsed and left

pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")


@pytest.fixture
def on_terminal(monkeypatch):
    """Run a work whose stderr is a terminal of 100 columns; what the terminal got."""

    def run(work: Callable[[], object]) -> str:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
        got: list[bytes] = []

        def read() -> None:
            try:
                while block := os.read(master, 1024):
                    got.append(block)
            except OSError:  # Linux's way to say that the other side is closed
                pass

        reader = threading.Thread(target=read)
        reader.start()
        with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            work()
        reader.join()
        os.close(master)
        return b"".join(got).decode()

    return run


def slowly(count: int = 40) -> None:
    for _ in progress(range(count), "checking pictures", unit="image"):
        time.sleep(0.02)


def test_a_terminal_sees_what_is_done_how_far_and_how_long_it_will_take(on_terminal):
    seen = on_terminal(slowly)
    assert re.search(r"checking pictures: +\d+%\|", seen)
    assert TIME_LEFT.search(seen)
    assert "image/s" in seen


def test_a_work_that_is_done_at_once_shows_nothing(on_terminal):
    assert on_terminal(lambda: slowly(3)) == ""


def test_nothing_is_written_where_stderr_is_no_terminal(capfd):
    slowly()
    assert capfd.readouterr() == ("", "")


def test_of_several_processes_one_shows_its_bar(on_terminal, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert on_terminal(slowly) == ""


def test_log_lines_stand_above_the_bar(on_terminal, monkeypatch):
    monkeypatch.setattr("training.progress.DELAY", 0)

    def work() -> None:
        log_to()
        for _ in progress(range(3), "checking"):
            logging.getLogger("training").info("something")
            time.sleep(0.15)

    lines = re.split(r"[\r\n]+", on_terminal(work))
    assert sum(bool(re.fullmatch(r"\d\d:\d\d:\d\d training: something", x)) for x in lines) == 3
    assert any(line.startswith("checking:") for line in lines)


def check(folder: Path) -> None:
    check_coco(*write_small_coco(folder))


def evaluate(folder: Path) -> None:
    coco_metrics(*write_synthetic(folder, images=2, detections=5))


def diagnose_errors(folder: Path) -> None:
    diagnose(*write_synthetic(folder, images=2, detections=5))


def draw(folder: Path) -> None:
    write_scenes(folder, train=1, val=1, unlabelled=1)


def index_shards(folder: Path) -> None:
    (folder / "a.jpg").write_bytes(b"")
    with tarfile.open(folder / "0.tar", "w") as archive:
        archive.add(folder / "a.jpg", "a.jpg")
    open_images(str(folder / "0.tar"))


@pytest.mark.parametrize(
    ("work", "texts"),
    [
        (check, ["checking annotations", "checking images"]),
        (evaluate, ["reading ground truth", "reading segm results", "evaluating"]),
        (diagnose_errors, ["matching bbox", "matching segm"]),
        (draw, ["drawing train", "drawing unlabelled"]),
        (index_shards, ["indexing shards"]),
    ],
)
def test_long_works_have_a_bar(work, texts, on_terminal, monkeypatch, tmp_path, capfd):
    for name in ("quiet", "shown"):
        (tmp_path / name).mkdir()
    work(tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr("training.progress.DELAY", 0)
    seen = on_terminal(lambda: work(tmp_path / "shown"))
    assert [text for text in texts if text not in seen] == []


def test_all_bars_are_made_in_one_place():
    packages = ("backbones", "fcmae", "detection", "training", "tools")
    files = [file for package in packages for file in (ROOT / package).rglob("*.py")]
    makers = {file.name for file in files if re.search(r"\btqdm\(", file.read_text())}
    assert makers == {"progress.py"}
