"""Prediction with a finished segmentation run.

Written to the output folder, each image's files before the next image is read:

  * ``maps/NAME.png``: the class index of every pixel;
  * ``overlays/NAME.jpg``: the image under its classes' colours;
  * ``areas.csv``: pixels and share of each class, a line per image and class;
  * ``classes.json``: the classes' names by index, and their colours.

An image of more than ``WHOLE`` pixels is predicted tile by tile with a margin around each, so that
scores of all classes are held for one tile alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image

from backbones.errors import InputError
from backbones.whole_files import write_atomically, write_json, write_text
from images.display import read_shown
from images.inputs import find_files, is_video, output_names
from reporting.palette import class_colour
from reporting.tables import csv_text
from segmentation.config import (
    build_segmenter,
    inference_options,
    load_config,
    resolve_device,
)
from segmentation.engine import newest_weights, read_pixels
from segmentation.figures import coloured
from segmentation.inference import InferenceOptions, segment
from segmentation.model import UPerNet
from segmentation.weights import load_segmenter
from training.devices import find_device
from training.progress import progress

logger = logging.getLogger(__name__)

WHOLE = 4_000_000  # pixels
SETTINGS = "unfinished.json"  # what a part of predictions was begun with
TILE, MARGIN = 1536, 128  # pixels of a tile's side, and around it


def predict(
    run: Path,
    inputs: Sequence[str],
    output_dir: Path,
    weights: str | None = None,
    overrides: Sequence[str] = (),
    skip_bad_images: bool = False,
    resume: bool = False,
) -> dict[str, int]:
    """Predict class maps of images with a run's model; writes what this module's header lists.

    Args:
        run: the ``OUTPUT_DIR`` of a training by ``tools/train_segmentation.py``.
        inputs: files, folders and glob patterns.
        output_dir: must not hold predictions; with ``resume`` those of the same images, weights
            and settings go on.
        weights: a model instead of the run's newest checkpoint.
        overrides: ``KEY VALUE ...`` that change the run's config.
        skip_bad_images: leave out files that do not decode, each with a warning.

    Returns:
        The number of ``images``.

    Raises:
        InputError: for inputs that cannot be read, a folder that is not a run, or one that holds
            predictions already.
        FileNotFoundError: if ``weights`` does not exist.
    """
    if (output_dir / "areas.csv").exists():
        raise InputError(f"{output_dir} holds predictions already: choose another folder")
    if (output_dir / SETTINGS).exists() and not resume:
        raise InputError(f"{output_dir} holds a part of predictions: go on by --resume")
    config, classes = read_run(run, overrides)
    files = [file for file in find_files(inputs, skip_bad_images) if not is_video(file)]
    if not files:
        raise InputError("there is no image among the inputs; videos are not segmented")
    device = find_device(resolve_device(config), "MODEL.DEVICE")
    model = build_segmenter(config)
    source = Path(weights or newest_weights(run))
    load_segmenter(source, model)
    named_files = dict(zip(output_names(files), files, strict=True))
    _begin(output_dir / SETTINGS, source, config, named_files)
    model.to(device).eval()
    rows: list[list[Any]] = []
    for name, file in progress(named_files.items(), "predicting", len(files), "image"):
        written = output_dir / "maps" / f"{name}.png"
        if written.is_file():  # of an earlier session; its overlay was written before it
            with Image.open(written) as image:
                labels = np.asarray(image)
        else:
            labels = class_indices(model, read_pixels(file, config), inference_options(config))
            picture = coloured(read_shown(str(file)), labels)
            overlay = output_dir / "overlays" / f"{name}.jpg"
            write_atomically(overlay, partial(_save, picture, "JPEG"))
            write_atomically(written, partial(_save, labels, "PNG"))
        counts = np.bincount(labels.ravel(), minlength=len(classes))
        rows += [
            [file.as_posix(), name, int(count), float(count / labels.size)]
            for name, count in zip(classes, counts, strict=True)
        ]
    named = [
        {"index": index, "name": name, "colour": list(class_colour(index))}
        for index, name in enumerate(classes)
    ]
    write_json(output_dir / "classes.json", named, indent=1)
    write_text(output_dir / "areas.csv", csv_text(["image", "class", "pixels", "share"], rows))
    (output_dir / SETTINGS).unlink()
    return {"images": len(files)}


def _begin(path: Path, weights: Path, config: CfgNode, files: Mapping[str, Path]) -> None:
    """Note what is predicted by what, or check that a part of it was begun in the same way.

    Raises:
        InputError: naming what differs.
    """
    asked = {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "config": config.dump(),
        "images": {name: file.as_posix() for name, file in files.items()},
    }
    if path.is_file():
        begun = json.loads(path.read_text(encoding="utf-8"))
        if changed := [key for key, value in asked.items() if begun.get(key) != value]:
            raise InputError(
                f"{path.parent} was begun with other {' and '.join(changed)}: give the same, or "
                "another --output-dir"
            )
        return
    write_json(path, asked)


def read_run(run: Path, overrides: Sequence[str] = ()) -> tuple[CfgNode, list[str]]:
    """A run's config, with the number of its classes, and their names.

    Raises:
        InputError: if the folder is not a segmentation run.
    """
    config_file, facts_file = run / "config.yaml", run / "run.json"
    if missing := [file.name for file in (config_file, facts_file) if not file.is_file()]:
        raise InputError(
            f"{run} is not a run: it has no {' and no '.join(missing)}. Give the OUTPUT_DIR of a "
            "training by tools/train_segmentation.py"
        )
    facts = json.loads(facts_file.read_text(encoding="utf-8"))
    if facts.get("task") != "segmentation":
        raise InputError(f"{run} is no run of tools/train_segmentation.py")
    return load_config(config_file, ["OUTPUT_DIR", str(run), *overrides]), facts["classes"]


def class_indices(model: UPerNet, image_hwc: np.ndarray, options: InferenceOptions) -> np.ndarray:
    """The class index of every pixel, ``[H, W]`` uint8, in memory that the tile bounds.

    Tiles are predicted at the image's own size: an image that is fitted into ``TEST.SCALE`` is
    small enough to be whole.
    """
    height, width = image_hwc.shape[:2]
    if height * width <= WHOLE or options.scale is not None:
        return segment(model, image_hwc, options).argmax(0).to(torch.uint8).cpu().numpy()
    labels = np.empty((height, width), np.uint8)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            y0, x0 = max(0, top - MARGIN), max(0, left - MARGIN)
            part = image_hwc[y0 : top + TILE + MARGIN, x0 : left + TILE + MARGIN]
            found = segment(model, part, options).argmax(0).to(torch.uint8).cpu().numpy()
            inner = found[top - y0 : top - y0 + TILE, left - x0 : left - x0 + TILE]
            labels[top : top + TILE, left : left + TILE] = inner
    return labels


def _save(array: np.ndarray, kind: str, path: Path) -> None:
    Image.fromarray(array).save(path, format=kind, **({"quality": 88} if kind == "JPEG" else {}))
