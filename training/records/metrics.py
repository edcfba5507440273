"""``metrics.json`` and the log lines of a run."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from backbones.whole_files import write_text
from training.records.environment import peak_memory_mb

logger = logging.getLogger(__name__)


class MetricsFile:
    """``metrics.json``: one JSON object per line, with detectron2's key names.

    For a resumed run, lines after the resumed step are removed, and a last line that was cut off.
    The file is replaced at once, so another interruption cannot damage it.
    """

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.path = path
        lines = (
            path.read_text(encoding="utf-8").splitlines() if resumed_step and path.exists() else []
        )
        kept = [line for line in lines if _iteration(line, path) <= resumed_step]
        write_text(path, "".join(line + "\n" for line in kept))
        self.seconds = train_seconds(path)  # training time of earlier sessions

    def holds(self, entry: dict[str, Any]) -> bool:
        """Whether it has the same line already: a resumed run repeats the last evaluation."""
        return json.dumps(entry) in self.path.read_text(encoding="utf-8").splitlines()

    def write(self, entry: dict[str, float | int]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")


def read_history(path: Path) -> tuple[dict[str, list[tuple[int, float]]], int]:
    """The curves of a ``metrics.json``: name -> (iteration, value), in the iterations' order.

    A later line of the same iteration, of a resumed run, replaces the earlier. Values that are not
    finite are left out. Without the file there are no curves.

    Returns:
        The curves, and how many lines are not JSON with an iteration.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    unreadable = 0
    for line in filter(str.strip, text.splitlines()):
        try:
            entry = json.loads(line)
            iteration = int(entry.pop("iteration"))
        except (ValueError, KeyError, TypeError, AttributeError):
            unreadable += 1
            continue
        for name, value in entry.items():
            if isinstance(value, int | float) and math.isfinite(value):
                curves[name][iteration] = float(value)
    return {name: sorted(points.items()) for name, points in curves.items()}, unreadable


def train_seconds(path: Path) -> float:
    """Seconds that a run has trained, in all its sessions, by its ``metrics.json``."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = (json.loads(line) for line in reversed(lines) if '"train_seconds"' in line)
    return next((float(entry["train_seconds"]) for entry in entries), 0.0)


def log_period(steps: int) -> int:
    """Steps between two lines: 20, or a tenth of a run of fewer than 200 steps."""
    return min(20, max(1, steps // 10))


def _iteration(line: str, path: Path) -> float:
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        logger.warning("%s: a line that was cut off is removed: %r", path, line)
        return float("inf")


class Window:
    """Values of the steps since the last line of ``metrics.json``."""

    def __init__(self, batch_size: int, max_steps: int) -> None:
        self.batch_size, self.max_steps = batch_size, max_steps
        self.values: dict[str, list[float]] = defaultdict(list)

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.values[name].append(value)

    def means(self) -> dict[str, float]:
        """The mean of each value; empties the window.

        ``time`` and ``data_time`` (seconds) are per step, losses are means over micro-batches.
        """
        means = {name: sum(values) / len(values) for name, values in self.values.items()}
        means["data_time"] = sum(self.values["data_time"]) / len(self.values["time"])
        self.values.clear()
        return means

    def entry(self, done: int, lr: float, means: dict[str, float]) -> dict[str, float | int]:
        """A line of ``metrics.json``."""
        return {
            "iteration": done,
            **means,
            "lr": lr,
            "images_per_second": self.batch_size / means["time"],
            "eta_seconds": (self.max_steps - done) * means["time"],
            "max_mem": peak_memory_mb(),
        }


def log_line(entry: dict[str, float | int], max_steps: int) -> str:
    losses = "  ".join(f"{k} {v:.4f}" for k, v in entry.items() if "loss" in k)
    eta = time.strftime("%H:%M:%S", time.gmtime(entry["eta_seconds"]))
    return (
        f"step {entry['iteration']}/{max_steps}  {losses}  lr {entry['lr']:.2e}  "
        f"{entry['images_per_second']:.1f} images/s  data {entry['data_time']:.3f} s  "
        f"{entry['max_mem']:.0f} MB  eta {eta}"
    )
