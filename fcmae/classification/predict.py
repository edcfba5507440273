"""Prediction with a classifier: the class of each image of folders, and of each frame of videos.

Written to the output folder:

  * ``predictions.csv``: a line for each image: ``image``, ``class``, ``probability``; then, of a
    classifier of at most 100 classes, a column of probabilities for each class;
  * ``predictions.json``: ``classes``, and ``images`` with ``file_name``, ``class``,
    ``probability``, the five most probable as ``top``, and ``frame`` and ``seconds`` in a video;
  * with ``pictures``: each image with its class written above it, in ``pictures/``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from backbones.errors import InputError
from backbones.whole_files import write_atomically, write_files
from fcmae.classification.classifier import load_classifier
from images.display import shown
from images.inputs import Frame, find_files, is_video, output_names, read_frames
from reporting.tables import csv_text
from training.devices import find_device
from training.progress import progress

PICTURES, TOP, MOST_COLUMNS = "pictures", 5, 100
SMALLEST_PICTURE, BANNER = 160, 16  # pixels


def predict_classes(
    run: str | Path,
    inputs: Sequence[str],
    output_dir: Path,
    every: int = 1,
    pictures: bool = False,
    skip_bad_images: bool = False,
    device: str | None = None,
    batch_size: int = 32,
) -> dict[str, int]:
    """Classify images and videos and write what the header lists.

    Args:
        run: see :func:`fcmae.classification.classifier.load_classifier`.
        inputs: files, folders and glob patterns.
        output_dir: must not hold predictions.
        every: classify each ``every``-th frame of a video.
        pictures: write each image with its class.
        skip_bad_images: leave out files that do not decode, each with a warning.
        device: see :func:`training.devices.find_device`.
        batch_size: images at a time.

    Returns:
        The number of ``images`` (frames counted) and of ``classes`` that were found.

    Raises:
        InputError: for every input that cannot be read, before any prediction; for a folder that
            holds predictions already.
    """
    if (output_dir / "predictions.csv").exists():
        raise InputError(f"{output_dir} holds predictions already: choose another folder")
    classifier = load_classifier(run)
    classifier.model.to(find_device(device))
    files = find_files(inputs, skip_bad_images, classifier.reading)
    entries: list[dict[str, Any]] = []
    columns: list[list[float]] = []
    waiting: list[tuple[Path, str, Frame]] = []

    def classify() -> None:
        found = classifier.probabilities([frame.pixels for _, _, frame in waiting])
        for (file, name, frame), probabilities in zip(waiting, found, strict=True):
            entry = _entry(file, frame, classifier.classes, probabilities)
            entries.append(entry)
            if len(classifier.classes) <= MOST_COLUMNS:
                columns.append([round(float(p), 6) for p in probabilities])
            if pictures:
                number = f"_{frame.number:08d}" if is_video(file) else ""
                path = output_dir / PICTURES / f"{name}{number}.jpg"
                words = f"{entry['class']} {100 * entry['probability']:.0f}%"
                _write_picture(path, frame.pixels, words)
        waiting.clear()

    bar = progress(text="predicting", total=len(files), unit="file")
    for file, name in zip(files, output_names(files), strict=True):
        for frame in read_frames(file, every, classifier.reading):
            waiting.append((file, name, frame))
            if len(waiting) == batch_size:
                classify()
        bar.update()
    bar.close()
    if waiting:
        classify()
    titles = ["image", "class", "probability"]
    rows = [[_name(e), e["class"], e["probability"]] for e in entries]
    if columns:
        titles += [f"probability of {name}" for name in classifier.classes]
        rows = [row + more for row, more in zip(rows, columns, strict=True)]
    tree = {"classifier": classifier.source, "classes": classifier.classes, "images": entries}
    write_files(
        {
            output_dir / "predictions.csv": csv_text(titles, rows),
            output_dir / "predictions.json": json.dumps(tree, indent=1) + "\n",
        }
    )
    return {"images": len(entries), "classes": len({entry["class"] for entry in entries})}


def _entry(
    file: Path, frame: Frame, classes: Sequence[str], probabilities: np.ndarray
) -> dict[str, Any]:
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    top = [{"class": classes[k], "probability": round(float(probabilities[k]), 6)} for k in order]
    place = {}
    if is_video(file):
        place = {"frame": frame.number, "seconds": frame.number / frame.rate}
    return {"file_name": str(file), **place, **top[0], "top": top}


def _name(entry: dict[str, Any]) -> str:
    frame = f"#{entry['frame']}" if "frame" in entry else ""
    return entry["file_name"] + frame


def _write_picture(path: Path, pixels: np.ndarray, words: str) -> None:
    """An image, tiny ones enlarged, under a banner with these words."""
    image = Image.fromarray(shown(pixels))
    if (factor := SMALLEST_PICTURE / max(image.size)) > 1:
        width, height = (round(side * factor) for side in image.size)
        image = image.resize((width, height), Image.Resampling.NEAREST)
    page = Image.new("RGB", (image.width, image.height + BANNER), "white")
    page.paste(image, (0, BANNER))
    ImageDraw.Draw(page).text((2, 2), words, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: page.save(partial, quality=90))
