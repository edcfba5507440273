"""Read a run's output folder, of either engine, for the report. Any file may be missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from backbones.errors import InputError, counted
from detection.evaluation.inputs import Evaluation
from reporting.blocks import Cell, RunName
from reporting.run_files import RunFiles, read_object, read_run_files

METRICS_SUMMARY = Path("inference") / "metrics_summary.json"
RESULTS = Path("inference") / "coco_instances_results.json"
DIAGNOSIS = Path("inference") / "diagnosis.json"
METRICS_KEYS = ("bbox", "segm", "per_class", "curves", "counts")
FILES = (
    Path("config.yaml"),
    Path("metrics.json"),
    Path("run.json"),
    METRICS_SUMMARY,
    RESULTS,
)


@dataclass(frozen=True)
class Run(RunFiles):
    """What one output folder holds; ``None`` or empty where it holds nothing."""

    name: str  # how the report calls it
    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)  # of ``detection.evaluate``
    diagnosis: dict[str, Any] = field(default_factory=dict)  # of ``detection.evaluation.diagnosis``
    # label -> (what run.json says of it, metrics), of a run with several test sets
    test_sets: dict[str, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)
    # the ground truth and results, where they were read already
    evaluation: Evaluation | None = field(default=None, repr=False, compare=False)

    def fact(self, *keys: str) -> Any:
        """A value inside run.json, None where it is not recorded."""
        value: Any = self.facts
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def metric(self, task: str, name: str) -> float | None:
        """A metric in percent; None where it was not recorded or not measurable."""
        value = self.metrics.get(task)
        return value.get(name) if isinstance(value, dict) else None

    @property
    def diagnosed_task(self) -> str:
        """The task whose images and thresholds the report shows: boxes, if they were diagnosed."""
        return next(task for task in ("bbox", "segm") if task in self.diagnosis)

    @property
    def results(self) -> Path | None:
        path = self.folder / RESULTS
        return path if path.is_file() else None


NamedRuns = Sequence[tuple[RunName, Run]]


def columns_of_runs(named: NamedRuns, before: int, each: int) -> list[tuple[Cell, int]]:
    """The heading above a table's columns, ``each`` per run; none for a single run."""
    return [("", before), *((name, each) for name, _ in named)] if len(named) > 1 else []


class EvaluatedRun(NamedTuple):
    """A run's folder, with its ground truth and results, which were read already."""

    folder: Path
    evaluation: Evaluation


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read a run's folder.

    Raises:
        InputError: if the folder does not exist or has none of a run's files.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; a run's output folder is wanted")
    if not any((folder / file).is_file() for file in FILES):
        raise InputError(
            f"{folder} holds no run: none of {', '.join(map(str, FILES))} is there; "
            "give the OUTPUT_DIR of a training"
        )
    files = read_run_files(folder)
    return Run(
        name=name or folder.resolve().name,
        folder=folder,
        metrics=_read_metrics(folder / METRICS_SUMMARY, files.problems),
        diagnosis=read_object(folder / DIAGNOSIS, files.problems),
        test_sets=_read_test_sets(folder, files.facts, files.problems),
        **vars(files),
    )


def read_runs(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[Run]:
    """Read several runs; those that share a folder's name are told apart by their parents.

    Raises:
        InputError: if there are none, one is no run, or the names do not fit.
    """
    if not folders:
        raise InputError("a report needs at least one run's folder")
    if names is not None and len(names) != len(folders):
        raise InputError(
            f"{counted(len(names), 'name')} for {counted(len(folders), 'run')}: one name each is "
            "wanted"
        )
    if names is None:
        names = [folder.resolve().name for folder in folders]
        if len(set(names)) < len(names):
            names = ["/".join(folder.resolve().parts[-2:]) for folder in folders]
    if len(set(names)) < len(names):
        raise InputError(f"two runs have the same name: {', '.join(names)}; give --names")
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read_metrics(path: Path, problems: list[str]) -> dict[str, Any]:
    metrics = _finite(read_object(path, problems))
    if any(not isinstance(metrics.get(key, {}), dict) for key in METRICS_KEYS):
        problems.append(f"{path.name} has not the form that detection.evaluate writes")
        return {}
    return metrics


def _read_test_sets(
    folder: Path, facts: dict[str, Any], problems: list[str]
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    datasets = facts.get("datasets")
    rows = datasets.get("tests") if isinstance(datasets, dict) else None
    return {
        str(row["label"]): (
            row,
            _read_metrics(folder / str(row.get("folder")) / METRICS_SUMMARY.name, problems),
        )
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and "label" in row
    }


def _finite(value: Any) -> Any:
    """The same with None for nan, which is how detectron2 says "no ground truth"."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
