"""Prediction with a classifier: the class of each image of folders, and of each frame of videos.

It writes to the output folder:

  * ``predictions.csv``: a line for each image: ``image``, ``class``, ``probability``; then, for at
    most 100 classes, a column of probabilities for each class;
  * ``predictions.json``: ``classes``, and ``images`` with ``file_name``, ``class``,
    ``probability``, the five most probable as ``top``, and ``frame`` and ``seconds`` in a video;
    and the settings;
  * with ``pictures``: each image with its class written above it, in ``pictures/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from backbones.errors import InputError
from backbones.whole_files import write_atomically
from fcmae.classification.classifier import Classifier, load_classifier
from images.display import bands_problems, shown
from images.files import Reading
from images.inputs import Frame, files_to_predict, is_video, output_names, read_frames
from reporting.tables import csv_lines
from training.devices import find_device
from training.guards.checkpoints import sha256_of
from training.guards.journal import Journal, write_outputs
from training.guards.run_folder import held
from training.progress import progress

TABLE, RECORD = "predictions.csv", "predictions.json"
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
    resume: bool = False,
    show_bands: Sequence[int] | None = None,
) -> dict[str, int]:
    """Classify images and videos, and write the files of this module's header.

    Args:
        run: see :func:`fcmae.classification.classifier.load_classifier`.
        output_dir: must not hold predictions, unless ``resume``.
        every: classify each ``every``-th frame of a video.
        pictures: write each image with its class.
        skip_bad_images: leave out files that do not decode, each with a warning.
        resume: continue an interrupted call with the same settings.
        show_bands: channels, counted from 1, that ``pictures`` show; None for those of its
            training.

    Returns:
        The number of ``images`` (frames counted) and of ``classes`` that were found.

    Raises:
        InputError: for inputs that cannot be read, before any prediction; for a folder that holds
            predictions already; for other settings with ``resume``.
    """
    classifier = load_classifier(run)
    classifier.model.to(find_device(device))
    reading = classifier.reading
    if show_bands is not None:
        if problems := bands_problems(show_bands, reading.channels or 0):
            raise InputError(problems[0])
        reading = replace(reading, show_bands=tuple(show_bands))
    source = Path(classifier.source)
    settings = {
        "classifier": str(source.resolve()) if source.is_file() else classifier.source,
        "classifier_sha256": sha256_of(source) if source.is_file() else None,
        "every": every,
        "pictures": pictures,
    }
    with held(output_dir):
        journal = Journal(output_dir, settings, TABLE, RECORD, resume)
        files = files_to_predict(inputs, journal, skip_bad_images, reading)
        if journal.is_finished:
            return dict(journal.counts)
        named = list(zip(files, output_names(files, journal.done.values()), strict=True))
        with journal:
            for batch in _batches(named, every, reading, batch_size):
                found = classifier.probabilities([shot.frame.pixels for shot in batch])
                for shot, probabilities in zip(batch, found, strict=True):
                    file, name, frame, is_last = shot
                    entry = _entry(file, frame, classifier.classes, probabilities)
                    if pictures:
                        number = f"_{frame.number:08d}" if is_video(file) else ""
                        path = output_dir / PICTURES / f"{name}{number}.jpg"
                        words = f"{entry['class']} {100 * entry['probability']:.0f}%"
                        _write_picture(path, shown(frame.pixels, reading.show_bands), words)
                    columns = {}
                    if len(classifier.classes) <= MOST_COLUMNS:
                        columns["probabilities"] = [round(float(p), 6) for p in probabilities]
                    journal.add({"image": entry, **columns}, {"images": 1})
                    if is_last:
                        journal.finish(file, name)
            journal.counts["classes"] = len({image["class"] for image in journal.images()})
            _write_tables(output_dir, journal, classifier)
        journal.remove()
    return dict(journal.counts)


class _Shot(NamedTuple):
    """An image or a frame of a video, and whether it is the file's last."""

    file: Path
    name: str
    frame: Frame
    is_last: bool


def _batches(
    named: Sequence[tuple[Path, str]], every: int, reading: Reading, size: int
) -> Iterator[list[_Shot]]:
    batch: list[_Shot] = []
    for file, name in progress(named, "predicting", len(named), "file"):
        frames = read_frames(file, every, reading)
        frame: Frame | None = next(frames)
        while frame is not None:
            following = next(frames, None)
            batch.append(_Shot(file, name, frame, following is None))
            frame = following
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch


def _write_tables(output_dir: Path, journal: Journal, classifier: Classifier) -> None:
    def table(stream: TextIO) -> None:
        titles = ["image", "class", "probability"]
        if len(classifier.classes) <= MOST_COLUMNS:
            titles += [f"probability of {name}" for name in classifier.classes]
        stream.write(csv_lines([titles]))
        for entry in journal.entries():
            image = entry["image"]
            row = [_name(image), image["class"], image["probability"]]
            row += entry.get("probabilities", [])
            stream.write(csv_lines([row]))

    def record(stream: TextIO) -> None:
        facts = {"classifier": classifier.source, "classes": classifier.classes}
        journal.write_record(stream, **facts)

    write_outputs({output_dir / RECORD: record, output_dir / TABLE: table})


def _entry(
    file: Path, frame: Frame, classes: Sequence[str], probabilities: np.ndarray
) -> dict[str, Any]:
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    top = [{"class": classes[k], "probability": round(float(probabilities[k]), 6)} for k in order]
    place = {}
    if is_video(file):
        place = {"frame": frame.number, "seconds": round(frame.seconds, 3)}
    return {"file_name": str(file), **place, **top[0], "top": top}


def _name(entry: dict[str, Any]) -> str:
    frame = f"#{entry['frame']}" if "frame" in entry else ""
    return entry["file_name"] + frame


def _write_picture(path: Path, pixels: np.ndarray, words: str) -> None:
    """Write an RGB image, enlarged if tiny, with these words above it."""
    image = Image.fromarray(pixels)
    if (factor := SMALLEST_PICTURE / max(image.size)) > 1:
        width, height = (round(side * factor) for side in image.size)
        image = image.resize((width, height), Image.Resampling.NEAREST)
    banner = max(BANNER, max(image.size) // 25)
    page = Image.new("RGB", (image.width, image.height + banner), "white")
    page.paste(image, (0, banner))
    font = ImageFont.load_default(size=0.7 * banner)
    ImageDraw.Draw(page).text((2, banner // 8), words, fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: page.save(partial, quality=90))
