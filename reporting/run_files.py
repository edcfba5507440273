"""Reads the files of a run's folder for a report, for every task. Any file may be missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from backbones.errors import counted
from reporting.blocks import NOT_RECORDED, Block, Details, Paragraph
from training.config_files import flatten
from training.records.metrics import read_history

LOG_LINES = 40  # last lines of the log on the page


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The content of the files that runs of every task have; empty if a file is missing."""

    config_text: str = ""  # config.yaml as it stands
    config: dict[str, Any] = field(default_factory=dict)  # the same as dotted keys
    facts: dict[str, Any] = field(default_factory=dict)  # run.json
    # metrics.json: name -> (iteration, value) in the order of iterations
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    log: Sequence[str] = ()  # the lines of log.txt
    problems: list[str] = field(default_factory=list)  # messages about unreadable files

    def details(self, of_run: str = "") -> list[Block]:
        """Blocks with the whole configuration and the end of the log, shown after a click."""
        blocks: list[Block] = []
        if self.config_text:
            blocks.append(Details(f"Full configuration{of_run}", self.config_text))
        else:
            blocks.append(Paragraph(f"Full configuration{of_run}: {NOT_RECORDED}."))
        if self.log:
            shown = f"last {min(LOG_LINES, len(self.log))} of {counted(len(self.log), 'line')}"
            blocks.append(Details(f"Log{of_run}, {shown}", "\n".join(self.log[-LOG_LINES:])))
        return blocks


def read_run_files(folder: Path) -> RunFiles:
    problems: list[str] = []
    config_text = read_text(folder / "config.yaml")
    history, unreadable = read_history(folder / "metrics.json")
    if unreadable:
        problems.append(f"metrics.json: {counted(unreadable, 'line')} without JSON of an iteration")
    return RunFiles(
        config_text=config_text,
        config=_read_config(config_text, problems),
        facts=read_object(folder / "run.json", problems),
        history=history,
        log=read_text(folder / "log.txt").splitlines(),
        problems=problems,
    )


def read_text(path: Path) -> str:
    """A file's text; "" if it does not exist."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    """The JSON object in a file; ``{}``, and a message in ``problems``, if it holds none."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        problems.append(f"{path.name} is not JSON: {error}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} holds no JSON object")
        return {}
    return content


def _read_config(text: str, problems: list[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text) if text else {}
    except yaml.YAMLError:
        problems.append("config.yaml is not plain YAML: its keys are not compared")
        return {}
    return dict(flatten(content)) if isinstance(content, dict) else {}


def config_differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Dotted keys whose values are not the same in all runs, with each run's value as text."""
    missing = object()
    rows = []
    for key in sorted({key for config in configs for key in config} - {"OUTPUT_DIR"}):
        values = [config.get(key, missing) for config in configs]
        if any(value != values[0] for value in values):
            rows.append((key, ["not set" if v is missing else _as_text(v) for v in values]))
    return rows


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, default=str)
