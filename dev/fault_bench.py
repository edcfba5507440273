"""What the rows of the bench of faults share: inputs, undisturbed runs, how a row is judged."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fault_processes import STEPS, Run, Training, write_inputs

LEFT_WITHIN = 6.0  # seconds


@dataclass
class Row:
    """A row of the table; ``right`` says whether all is as it should be."""

    done: str
    tool: str
    exit: object
    line: str
    lost: str
    seconds: float
    right: bool

    def cells(self, home: Path) -> tuple[object, ...]:
        line = self.line.replace(f"{home}/", "").replace(str(home), "")
        seconds = f"{self.seconds:.1f}"
        return (self.done, self.tool, self.exit, line[:160], self.lost, seconds,
                "yes" if self.right else "NO")  # fmt: skip


class Bench:
    """Makes inputs and undisturbed runs once, and lends copies of them."""

    def __init__(self, home: Path) -> None:
        self.home, self.number = home, 0
        self.inputs = home / "inputs"
        write_inputs(self.inputs)

    def fresh(self, name: str = "run") -> Path:
        self.number += 1
        return self.home / f"{self.number:03d}" / name

    def start(
        self, tool: str, arguments: list[str], limit: Callable[[], None] | None = None
    ) -> Run:
        self.number += 1
        return Run(tool, arguments, self.home / f"{self.number:03d}.log", limit)

    def train(
        self, training: Training, out: Path, *more: str, workers: int = 0, steps: int = STEPS,
        limit: Callable[[], None] | None = None,
    ) -> Run:  # fmt: skip
        arguments = training.arguments(self.inputs, out, steps, workers)
        flags = [item for item in more if item.startswith("--")]
        rest = [item for item in more if not item.startswith("--")]
        if training.tool.startswith("train_"):
            return self.start(training.tool, [*flags, *arguments, *rest], limit)
        return self.start(training.tool, [*arguments, *more], limit)

    def whole(self, training: Training) -> Path:
        """A run that nothing happened to."""
        out = self.home / "whole" / training.name.replace(", ", "_")
        if not out.exists():
            run = self.train(training, out)
            if run.end() != 0:
                raise AssertionError(
                    f"{training.name} does not run: {run.log.read_text(encoding='utf-8')}"
                )
        return out

    def copy(self, training: Training) -> Path:
        """A copy of that run, without its final weights' files where checkpoints are apart."""
        out = self.fresh()
        shutil.copytree(self.whole(training), out)
        return out


def judged(
    run: Run, done: str, tool: str, expected: int, lost: str = "nothing", right: bool = True,
    words: tuple[str, ...] = (),
) -> Row:  # fmt: skip
    """The row of a process: it ends as expected, in one line that says these words."""
    code = run.end()
    line = run.line()
    end = time.monotonic() + LEFT_WITHIN
    while (left := run.left_behind()) and time.monotonic() < end:
        time.sleep(0.1)  # loader workers end with their training, not before it
    right = right and code == expected and not run.has_traceback() and lost == "nothing"
    right = right and all(word in line for word in words) and not left
    if left:
        lost = f"{len(left)} processes left"
    return Row(done, tool, "hangs" if code is None else code, line, lost,
               getattr(run, "seconds", 0.0), right)  # fmt: skip
