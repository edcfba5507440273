"""The classes of a trained detector, as its weights or its run recorded them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backbones.weight_files import read_metadata, split_key
from training.command_line.tasks import read_facts


def trained_classes(weights: str | Path | None, run: str | Path) -> dict[Any, str] | None:
    """Category id -> name of a detector's classes, in the order of its outputs.

    From the metadata of its weights, else the ``run.json`` of their run.

    Args:
        weights: a file; None or "" for the newest of ``run``.
        run: the ``OUTPUT_DIR`` of a training.

    Returns:
        None if neither names them.
    """
    folders = [Path(run)]
    if weights and (file := split_key(weights)[0]).is_file():
        metadata = read_metadata(file)
        if {"class_names", "category_ids"} <= metadata.keys():
            ids, names = (json.loads(metadata[key]) for key in ("category_ids", "class_names"))
            return dict(zip(ids, names, strict=True))
        folders = [*file.parents][:3]  # a checkpoint lies in RUN/checkpoints/step_N
    for folder in folders:
        if categories := read_facts(folder).get("categories"):
            return {item["id"]: item["name"] for item in categories}
    return None
