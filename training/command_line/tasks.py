"""What ``run.json`` says of a run, such as its task: so one command serves every kind of run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

Task = Literal["detection", "segmentation", "classification"]


def read_facts(folder: Path) -> dict[str, Any]:
    """What ``run.json`` in a folder says; {} where there is none that can be read."""
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def task_of(run: Path) -> Task:
    """The task that a run's files tell of; detection where they do not say."""
    facts = read_facts(run)
    if facts.get("task") == "segmentation":
        return "segmentation"
    if not facts and (run / "classifier.safetensors").is_file():
        return "classification"
    return "detection"
