"""Read one output folder, ours or detectron2's, for the report. Every file in it may be missing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from backbones.errors import InputError
from detection.evaluation.inputs import Evaluation
from training.config_files import flatten
from training.records.metrics import read_history

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
class Run:
    """What one output folder holds; ``None`` or empty where it holds nothing.

    Args:
        name: how the report calls it.
        folder: where it is.
        metrics: what ``detection.evaluate`` wrote.
        diagnosis: what ``detection.evaluation.diagnosis`` wrote.
        history: name -> (iteration, value) in the order of iterations, from metrics.json.
        facts: run.json.
        config: config.yaml as dotted keys; ``config_text`` as it stands.
        log: the lines of log.txt.
        problems: files that are there and cannot be read, in words.
        test_sets: label -> (what run.json says of it, metrics), of a run with several test sets.
        evaluation: the ground truth and results, where they were read already.
    """

    name: str
    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    diagnosis: dict[str, Any] = field(default_factory=dict)
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    log: Sequence[str] = ()
    problems: Sequence[str] = ()
    test_sets: dict[str, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)
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
    problems: list[str] = []
    config_text = _read_text(folder / "config.yaml")
    log = _read_text(folder / "log.txt").splitlines()
    facts = _read_object(folder / "run.json", problems)
    history, unreadable = read_history(folder / "metrics.json")
    if unreadable:
        problems.append(f"metrics.json: {unreadable} lines are not JSON with an iteration")
    return Run(
        name=name or folder.resolve().name,
        folder=folder,
        metrics=_read_metrics(folder / METRICS_SUMMARY, problems),
        diagnosis=_read_object(folder / DIAGNOSIS, problems),
        history=history,
        facts=facts,
        config=_read_config(config_text, folder / "config.yaml", problems),
        config_text=config_text,
        log=log,
        problems=problems,
        test_sets=_read_test_sets(folder, facts, problems),
    )


def read_runs(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[Run]:
    """Read several runs; those that share a folder's name are told apart by their parents.

    Raises:
        InputError: if there are none, one is no run, or the names do not fit.
    """
    if not folders:
        raise InputError("a report needs at least one run's folder")
    if names is not None and len(names) != len(folders):
        raise InputError(f"{len(names)} names for {len(folders)} runs: one name each is wanted")
    if names is None:
        names = [folder.resolve().name for folder in folders]
        if len(set(names)) < len(names):
            names = ["/".join(folder.resolve().parts[-2:]) for folder in folders]
    if len(set(names)) < len(names):
        raise InputError(f"two runs have the same name: {', '.join(names)}; give --names")
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def config_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Dotted keys whose values are not the same in all runs, with each run's value as text."""
    missing = object()
    configs = [run.config for run in runs]
    keys = sorted({key for config in configs for key in config} - {"OUTPUT_DIR"})
    rows = []
    for key in keys:
        values = [config.get(key, missing) for config in configs]
        if any(value != values[0] for value in values):
            rows.append((key, ["not set" if v is missing else _as_text(v) for v in values]))
    return rows


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, default=str)


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(_read_text(path))
    except ValueError as error:
        problems.append(f"{path.name} is not JSON: {error}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} holds no JSON object")
        return {}
    return content


def _read_metrics(path: Path, problems: list[str]) -> dict[str, Any]:
    metrics = _finite(_read_object(path, problems))
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


def _read_config(text: str, path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text) if text else {}
    except yaml.YAMLError:
        problems.append(f"{path.name} is not plain YAML: its keys are not compared")
        return {}
    return dict(flatten(content)) if isinstance(content, dict) else {}
