"""Which task a finished run's folder is of, so that one command serves every kind of run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

Task = Literal["detection", "segmentation", "classification"]


def task_of(run: Path) -> Task:
    """The task that a run's files tell of; detection where they do not say."""
    try:
        facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = {}
    if isinstance(facts, dict) and facts.get("task") == "segmentation":
        return "segmentation"
    if not facts and (run / "classifier.safetensors").is_file():
        return "classification"
    return "detection"
