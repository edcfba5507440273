"""The small files of an image-level run: its configuration and its figures."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from backbones.whole_files import write_text
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
    if is_main_process():
        write_text(Path(options.output_dir) / CONFIG, text)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write figures, atomically, by the first of several processes."""
    if is_main_process():
        write_text(path, json.dumps(values, indent=2) + "\n")
