"""The report's pictures: image, truth, prediction and where they differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from backbones.errors import InputError
from images.configured import shown_bands
from images.display import read_shown
from reporting.blocks import Block, Gallery, Paragraph, Picture, Pictures, RunName
from reporting.palette import PALETTE
from reporting.pictures import encode_jpeg
from segmentation.dataset import SegmentationDataset, load_segmentation
from segmentation.upernet import IGNORED
from training.command_line.tasks import read_facts

WORST, BEST = 8, 4  # images of a report
CHANGED = 6  # images that lost and that gained most, each
SIDE = 420  # pixels of a picture's long side
PICTURE_BYTES = 3_000_000  # of all pictures together
OPACITY = 0.65  # of a class's colour over the image
RIGHT, WRONG, NO_CLASS = (200, 200, 200), (220, 30, 30), (0, 0, 0)

Source = tuple[RunName, Path, list[dict[str, Any]], dict[str, Any]]


def picture_panels(runs: Sequence[Source]) -> tuple[list[Pictures], list[str]]:
    """The images that went worst and best in the first run, with every run's prediction.

    Args:
        runs: (name, folder, rows of ``per_image.json``, facts of ``run.json``).

    Returns:
        The panels, and what had to be left out.

    Raises:
        InputError, FileNotFoundError: if the test set cannot be read.
    """
    rows = [row for row in runs[0][2] if row["mIoU"] is not None and row.get("map")]
    test = runs[0][3].get("datasets", {}).get("test")
    if not rows or not test:
        return [], []
    dataset = load_segmentation(test["name"], *test.get("label_options", (IGNORED, False)))
    ordered = sorted(rows, key=lambda row: row["mIoU"])
    worst = ordered[:WORST]
    best = [row for row in ordered[::-1][:BEST] if row not in worst]
    share = PICTURE_BYTES // ((len(worst) + len(best)) * (2 + 2 * len(runs)))
    panels, omitted = [], []
    for group, chosen in (("worst", worst), ("best", best)):
        for row in chosen:
            try:
                panels.append(_panel(runs, dataset, row, group, share))
            except (InputError, OSError, IndexError) as error:
                omitted.append(f"{row['image']} cannot be shown: {error}")
    return panels, omitted


def changed_maps(runs: Sequence[tuple[RunName, Path]]) -> list[Block]:
    """The images whose own mean IoU fell and rose most from the first of two runs to the last.

    Args:
        runs: names and folders. Nothing comes of those that have no predictions.
    """
    try:
        sources = [(name, folder, *_recorded(folder)) for name, folder in runs]
        first, last = (
            {row["index"]: row["mIoU"] for row in rows if row["mIoU"] is not None}
            for rows in (sources[0][2], sources[-1][2])
        )
        change = {index: last[index] - first[index] for index in first.keys() & last.keys()}
        order = sorted(change, key=lambda index: (change[index], index))
        chosen = {
            "lost most": [i for i in order[:CHANGED] if change[i] < 0],
            "gained most": [i for i in order[::-1][:CHANGED] if change[i] > 0],
        }
        test = sources[0][3]["datasets"]["test"]
        dataset = load_segmentation(test["name"], *test.get("label_options", (IGNORED, False)))
        rows = {row["index"]: row for row in sources[0][2]}
        share = PICTURE_BYTES // (2 * CHANGED * (2 + 2 * len(runs)))
        panels = [
            _panel(sources, dataset, rows[index], group, share)
            for group, indices in chosen.items()
            for index in indices
        ]
    except (OSError, ValueError, KeyError, IndexError) as error:
        return [Paragraph(f"The predictions cannot be shown: {error}", "warning")]
    return [Gallery(panels)] if panels else []


def _recorded(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of a run's ``per_image.json`` and facts of its ``run.json``."""
    rows = json.loads((folder / "inference" / "per_image.json").read_text(encoding="utf-8"))
    return rows, read_facts(folder)


def _panel(
    runs: Sequence[Source],
    dataset: SegmentationDataset,
    row: dict[str, Any],
    group: str,
    max_bytes: int,
) -> Pictures:
    record = dataset.records[row["index"]]
    bands = next((told for _, folder, *_ in runs if (told := shown_bands(folder))), [])
    image = shrunk(read_shown(record.image, bands), cv2.INTER_AREA)
    truth = shrunk(dataset.class_map(record), cv2.INTER_NEAREST)
    name = Path(record.image).name
    names = dataset.classes.names
    present = ", ".join(names[k] for k in np.unique(truth) if k != IGNORED)
    pictures = [
        Picture(encode_jpeg(image, max_bytes), "image", f"{name}"),
        Picture(encode_jpeg(coloured(image, truth), max_bytes), "truth", f"the truth: {present}"),
    ]
    for run, folder, of_run, _ in runs:
        own = next((r for r in of_run if r["index"] == row["index"] and r.get("map")), None)
        if own is None:
            continue
        with Image.open(folder / "inference" / own["map"]) as file:
            prediction = shrunk(np.asarray(file), cv2.INTER_NEAREST)
        found = ", ".join(names[k] for k in np.unique(prediction))
        score = "" if own["mIoU"] is None else f", mIoU {own['mIoU']:.1f}"
        drawn = encode_jpeg(coloured(image, prediction), max_bytes)
        pictures.append(Picture(drawn, f"prediction{score}", f"predicted: {found}", run))
        wrong = encode_jpeg(differences(truth, prediction), max_bytes)
        pictures.append(Picture(wrong, "differences", "where it is wrong, in red", run))
    return Pictures(name, pictures, {"images": [group], "class": [*present.split(", ")]})


def shrunk(array: np.ndarray, interpolation: int) -> np.ndarray:
    """The array, resized where its longer side has more than ``SIDE`` pixels."""
    factor = SIDE / max(array.shape[:2])
    if factor >= 1:
        return array
    size = (max(1, round(array.shape[1] * factor)), max(1, round(array.shape[0] * factor)))
    return cv2.resize(array, size, interpolation=interpolation)


def coloured(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The image ``[H, W, 3]`` under the colours of its classes; black where there is none."""
    colours = np.zeros((IGNORED + 1, 3), np.float32)
    for index in range(IGNORED):
        colours[index] = PALETTE[index % len(PALETTE)]
    blended = (1 - OPACITY) * image + OPACITY * colours[labels]
    blended[labels == IGNORED] *= 0.3
    return blended.astype(np.uint8)


def differences(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """``[H, W, 3]``: grey where they agree, red where they differ, black without a class."""
    picture = np.empty((*truth.shape, 3), np.uint8)
    picture[:] = RIGHT
    picture[truth != prediction] = WRONG
    picture[truth == IGNORED] = NO_CLASS
    return picture
