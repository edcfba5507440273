"""The report's pictures: image, truth, prediction and where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from backbones.errors import InputError
from images.display import read_shown
from reporting.blocks import Picture, Pictures, RunName
from reporting.palette import PALETTE
from reporting.pictures import encode_jpeg
from segmentation.dataset import SegmentationDataset, load_segmentation
from segmentation.upernet import IGNORED

WORST, BEST = 8, 4  # images of a report
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


def _panel(
    runs: Sequence[Source],
    dataset: SegmentationDataset,
    row: dict[str, Any],
    group: str,
    max_bytes: int,
) -> Pictures:
    record = dataset.records[row["index"]]
    image = shrunk(read_shown(record.image), cv2.INTER_AREA)
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
    """At most ``SIDE`` pixels long."""
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
