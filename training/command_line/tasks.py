"""Reads ``run.json``, such as the task of a run, so that one command serves runs of every task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

Task = Literal["detection", "segmentation", "classification"]


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of a folder's ``run.json``; {} if there is none that can be read."""
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def task_of(run: Path) -> Task:
    """A run's task, by its files; detection if they do not say."""
    facts = read_facts(run)
    if facts.get("task") == "segmentation":
        return "segmentation"
    if not facts and (run / "classifier.safetensors").is_file():
        return "classification"
    return "detection"
