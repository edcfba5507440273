"""Finds the best weights on ``DATASETS.VAL``, and whether the training should end early.

Both engines evaluate on the validation sets each ``TEST.EVAL_PERIOD`` and after the last step. The
weights with the highest ``TEST.BEST_METRIC`` so far are saved as ``model_best.*``: the model's, or
with ``SOLVER.EMA`` their average, whichever is better. ``validation.json`` holds every value, so
that a resumed run continues with them. The test sets are not used for this choice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from backbones.whole_files import write_json

logger = logging.getLogger(__name__)

RECORD = "validation.json"
BEST_WEIGHTS = "model_best"  # the file name, without the ending, which the engine chooses
Kind = Literal["model", "average"]
PREFIXES: dict[Kind, str] = {"model": "", "average": "ema/"}  # in the names of metrics


@dataclass
class Validation:
    """The values so far, the same in every process; the main process writes them.

    Attributes:
        patience: end after this many evaluations in a row without a better one; 0 for never.
        evaluations: one dictionary each: ``iteration``, ``model`` and ``average`` (percent).
    """

    folder: Path
    metric: str
    patience: int
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, config: Any, continues: bool) -> Validation | None:
        """None without ``DATASETS.VAL``.

        Args:
            config: this project's or detectron2's.
            continues: whether a checkpoint is resumed from.
        """
        if not config.DATASETS.VAL:
            return None
        folder = Path(config.OUTPUT_DIR)
        earlier = read_record(folder)["evaluations"] if continues else []
        patience = config.SOLVER.EARLY_STOPPING.PATIENCE
        return cls(folder, config.TEST.BEST_METRIC, patience, earlier)

    def reach(self, step: int) -> None:
        """Forget evaluations after a step, because a run is resumed from there.

        The best one is kept, because its weights are on the disk.
        """
        best = self.best["iteration"] if self.best else 0
        self.evaluations = [
            each
            for each in self.evaluations
            if each["iteration"] <= step or each["iteration"] == best
        ]

    def knows(self, step: int) -> bool:
        return any(each["iteration"] == step for each in self.evaluations)

    @property
    def best(self) -> dict[str, Any] | None:
        """``iteration``, ``value`` and ``weights`` of the first of the best; None before any."""
        values = [
            {"iteration": each["iteration"], "value": each[kind], "weights": kind}
            for each in self.evaluations
            for kind in PREFIXES
            if kind in each
        ]
        return max(values, key=lambda each: each["value"], default=None)

    @property
    def is_over(self) -> bool:
        """Whether the training should end, by ``patience``."""
        if not self.patience or self.best is None:
            return False
        since = sum(each["iteration"] > self.best["iteration"] for each in self.evaluations)
        return since >= self.patience

    def record(self, step: int, metrics: Mapping[str, float], save: Callable[[Kind], None]) -> None:
        """Record an evaluation; every process calls it.

        Args:
            metrics: by name, such as ``ema/bbox/AP``, for further sets ``ema/LABEL/bbox/AP``; only
                the main process has them. The mean over the sets counts.
            save: writes the model's weights or the average's as the best; the main process calls
                it.
        """
        own = {kind: mean_of(metrics, prefix, self.metric) for kind, prefix in PREFIXES.items()}
        values = _of_main_process({kind: value for kind, value in own.items() if value is not None})
        before = self.best
        self.evaluations.append({"iteration": step, **values})
        self.evaluations.sort(key=lambda each: each["iteration"])
        if metrics:  # the main process
            if self.best != before and self.best is not None:
                save(self.best["weights"])
            self._write(step)

    def _write(self, step: int) -> None:
        tree = {
            "metric": self.metric,
            "best": self.best,
            "stopped": step if self.is_over else None,
            "evaluations": self.evaluations,
        }
        write_json(self.folder / RECORD, tree, indent=2)
        newest = next(each for each in self.evaluations if each["iteration"] == step)
        if self.best is not None:
            logger.info(
                "validation: %s %s; the best so far is %.2f at step %d",
                self.metric,
                ", ".join(f"{newest[kind]:.2f} ({kind})" for kind in PREFIXES if kind in newest),
                self.best["value"],
                self.best["iteration"],
            )
        if self.is_over:
            logger.info(
                "the training ends at step %d: %d evaluations brought nothing better "
                "(SOLVER.EARLY_STOPPING.PATIENCE)",
                step,
                self.patience,
            )


def mean_of(metrics: Mapping[str, float], prefix: str, metric: str) -> float | None:
    """The mean of ``prefix[LABEL/]metric`` over the sets; None where there is none."""
    others = [other for other in PREFIXES.values() if other and other != prefix]
    values = [
        value
        for name, value in metrics.items()
        if name == f"{prefix}{metric}"
        or (
            name.startswith(prefix)
            and name.endswith(f"/{metric}")
            and not any(name.startswith(other) for other in others)
        )
    ]
    return sum(values) / len(values) if values else None


def _of_main_process(value: Any) -> Any:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def read_record(folder: Path) -> dict[str, Any]:
    """A run's ``validation.json``; one without evaluations if there is no file."""
    file = folder / RECORD
    if not file.is_file():
        return {"metric": None, "best": None, "stopped": None, "evaluations": []}
    return json.loads(file.read_text(encoding="utf-8"))
