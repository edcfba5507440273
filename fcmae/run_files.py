"""The small files of an image-level run: its configuration and its figures."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from backbones.weight_files import write_atomically
from training.cli import is_main_process

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"


def as_yaml(values: Any) -> dict[str, Any]:
    """A dataclass's fields as YAML knows them."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(values).items()}
    return {k: str(v) if isinstance(v, Path) else v for k, v in plain.items()}


def write_config(options: Any, derived: Mapping[str, Any]) -> None:
    """The run's options and what follows from them, to ``config.yaml`` and to the log.

    Args:
        options: a dataclass with the run's ``output_dir``.
        derived: what was made of them, written under ``derived``.
    """
    text = yaml.safe_dump({**as_yaml(options), "derived": dict(derived)}, sort_keys=False)
    logger.info("configuration:\n%s", text)
    _write(Path(options.output_dir) / CONFIG, text)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write figures, atomically, by the first of several processes."""
    _write(path, json.dumps(values, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    if is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
