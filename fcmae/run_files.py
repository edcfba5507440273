"""The small files of an image-level run: its configuration and its figures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from backbones.whole_files import write_text
from images.statistics import Statistics
from training.cli import is_main_process
from training.guards.checkpoints import list_checkpoints
from training.guards.resume import compare_settings, say_changes
from training.options import FREE_ON_RESUME, TrainingOptions

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
CLASSIFIER = "classifier.safetensors"


def as_yaml(values: Any) -> dict[str, Any]:
    """A dataclass's fields as values that YAML can write."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(values).items()}
    return {k: str(v) if isinstance(v, Path) else v for k, v in plain.items()}


def statistics_of(stored: Mapping[str, Any]) -> Statistics:
    """Statistics as :func:`as_yaml` has written them."""
    return Statistics(tuple(stored["mean"]), tuple(stored["std"]), stored["origin"])


def write_config(options: Any, derived: Mapping[str, Any]) -> None:
    """The run's options and what follows from them, to ``config.yaml`` and to the log."""
    text = yaml.safe_dump({**as_yaml(options), "derived": dict(derived)}, sort_keys=False)
    logger.info("configuration:\n%s", text)
    if is_main_process():
        write_text(Path(options.output_dir) / CONFIG, text)


def check_resumed(
    options: TrainingOptions,
    images: Mapping[str, Any],
    free: Sequence[str],
    resume: bool,
    resolved: Mapping[str, Any] | None = None,
) -> None:
    """Check that a resumed run has its old settings, and warn of permitted changes.

    Args:
        images: how many images there are and their fingerprint, as :func:`write_config` has them.
        free: options that may change, beside those of every training.
        resolved: final values of options that the training computes, by the names of
            :func:`write_config`; compared instead of the options.

    Raises:
        InputError: for others that have changed.
    """
    output_dir = Path(options.output_dir)
    config = output_dir / CONFIG
    if not (resume and list_checkpoints(output_dir) and config.is_file()):
        return
    earlier = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    derived = earlier.pop("derived", None) or {}
    now = as_yaml(options) | {"output_dir": earlier.get("output_dir")}
    for name in ("mean", "std"):  # None stands for what the run found
        if now.get(name) is None:
            now.pop(name, None)
    may_change = {*FREE_ON_RESUME, *free, *images}  # added images only give a warning
    if all(derived.get(name) == value for name, value in images.items()):
        may_change |= {"data", "val_data"}  # the same images at another place
    found = {**images, **(resolved or {})}
    earlier = {name: value for name, value in earlier.items() if name not in found}
    known = {name: derived[name] for name in found if name in derived}
    say_changes(compare_settings(earlier | known, now | found, may_change.__contains__))
