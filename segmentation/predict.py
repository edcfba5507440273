"""Prediction with a finished segmentation run.

It writes to the output folder; maps and overlays at once, the other files when all images are done
(:mod:`training.guards.journal`):

  * ``maps/NAME.png``: the class index of every pixel;
  * ``overlays/NAME.jpg``: the image under its classes' colours;
  * ``areas.csv``: pixels and share of each class, a line per image and class;
  * ``images.json``: which image each map is of, and the settings;
  * ``classes.json``: the classes' names by index, and their colours.

A large image is predicted part by part (:mod:`segmentation.parts`), and its map is written row by
row. The overlay of an image that is too large to be decoded as a whole is shrunk.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
from fvcore.common.config import CfgNode
from PIL import Image

from backbones.errors import InputError
from backbones.whole_files import write_atomically
from images.configured import reading_of
from images.display import read_shown
from images.inputs import files_to_predict, output_names
from images.png_writer import GreyPngWriter
from images.windows import Windows, open_windows
from reporting.palette import class_colour
from reporting.tables import csv_lines
from segmentation.config import build_segmenter, load_config
from segmentation.figures import coloured
from segmentation.parts import class_bands
from segmentation.weights import load_segmenter
from training.configured import newest_weights, resolve_device, run_files
from training.devices import find_device
from training.guards.checkpoints import sha256_of
from training.guards.journal import Journal, write_outputs
from training.guards.run_folder import held
from training.progress import progress

logger = logging.getLogger(__name__)

AREAS, IMAGES = "areas.csv", "images.json"


def predict(
    run: Path,
    inputs: Sequence[str],
    output_dir: Path,
    weights: str | None = None,
    overrides: Sequence[str] = (),
    skip_bad_images: bool = False,
    resume: bool = False,
) -> dict[str, int]:
    """Predict class maps of images with a run's model; writes the files of this module's header.

    Args:
        run: the ``OUTPUT_DIR`` of a training by ``tools/train_segmentation.py``.
        output_dir: must not hold predictions; with ``resume``, a prediction of the same images,
            with the same weights and settings, is continued.
        weights: a model to use instead of the run's newest checkpoint.
        overrides: ``KEY VALUE ...`` that change the run's config.

    Returns:
        The number of ``images``.

    Raises:
        InputError: for inputs that cannot be read, a folder that is not a run, an output folder
            that holds predictions already, or other settings with ``resume``.
        FileNotFoundError: if ``weights`` does not exist.
    """
    config, classes = read_run(run, overrides)
    reading = replace(reading_of(config), by_parts=True)
    source = Path(weights or newest_weights(run))
    settings = {
        "run": str(run.resolve()),
        "weights": str(source),
        "weights_sha256": sha256_of(source) if source.is_file() else None,
        "overrides": list(overrides),
    }
    with held(output_dir):
        journal = Journal(output_dir, settings, AREAS, IMAGES, resume)
        files = files_to_predict(inputs, journal, skip_bad_images, reading, videos=False)
        if journal.is_finished:
            return dict(journal.counts)
        device = find_device(resolve_device(config), "MODEL.DEVICE")
        model = build_segmenter(config)
        load_segmenter(source, model)
        model.to(device).eval()
        with journal:
            names = output_names(files, journal.done.values())
            paired = zip(files, names, strict=True)
            for file, name in progress(paired, "predicting", len(files), "image"):
                picture = read_shown(str(file), reading.show_bands)
                with open_windows(file, reading) as image:
                    found = _MapWriter(image, picture.shape[:2], len(classes))
                    bands = class_bands(model, image, config)
                    written = output_dir / "maps" / f"{name}.png"
                    write_atomically(written, partial(found.write, bands))
                overlay = output_dir / "overlays" / f"{name}.jpg"
                write_atomically(overlay, partial(_save, coloured(picture, found.shown)))
                entry = {"file_name": str(file), "name": name}
                pixels = found.pixels.tolist()
                journal.add({"image": entry, "pixels": pixels}, {"images": 1})
                journal.finish(file, name)
            _write_tables(output_dir, journal, classes)
        journal.remove()
    return dict(journal.counts)


def _write_tables(output_dir: Path, journal: Journal, classes: Sequence[str]) -> None:
    """``areas.csv``, ``images.json`` and ``classes.json``, all or none."""
    named = [
        {"index": index, "name": name, "colour": list(class_colour(index))}
        for index, name in enumerate(classes)
    ]

    def areas(stream: TextIO) -> None:
        stream.write(csv_lines([["image", "class", "pixels", "share"]]))
        for entry in journal.entries():
            image, pixels = Path(entry["image"]["file_name"]).as_posix(), entry["pixels"]
            for name, count in zip(classes, pixels, strict=True):
                row = [image, name, count, count / sum(pixels)]
                stream.write(csv_lines([row]))

    def class_names(stream: TextIO) -> None:
        stream.write(json.dumps(named, indent=1) + "\n")

    write_outputs(
        {
            output_dir / "classes.json": class_names,
            output_dir / IMAGES: journal.write_record,
            output_dir / AREAS: areas,
        }
    )


def read_run(run: Path, overrides: Sequence[str] = ()) -> tuple[CfgNode, list[str]]:
    """A run's config, with the number of its classes, and their names.

    Raises:
        InputError: if the folder is not a segmentation run.
    """
    config_file, facts_file = run_files(run, "train_segmentation")
    facts = json.loads(facts_file.read_text(encoding="utf-8"))
    if facts.get("task") != "segmentation":
        raise InputError(
            f"{run} is not a run of tools/train_segmentation.py; give the OUTPUT_DIR of one"
        )
    return load_config(config_file, ["OUTPUT_DIR", str(run), *overrides]), facts["classes"]


def _save(array: np.ndarray, path: Path) -> None:
    Image.fromarray(array).save(path, format="JPEG", quality=88)


class _MapWriter:
    """Writes a class map row by row; counts pixels by class, and keeps rows for the overlay.

    Args:
        shape: height and width of the overlay.
    """

    def __init__(self, image: Windows, shape: tuple[int, ...], classes: int) -> None:
        self.size = image.height, image.width
        self.rows, self.columns = (
            ((np.arange(small) + 0.5) * large / small).astype(int)
            for small, large in zip(shape, self.size, strict=True)
        )
        self.shown = np.empty((len(self.rows), len(self.columns)), np.uint8)
        self.pixels = np.zeros(classes, np.int64)

    def write(self, bands: Iterator[np.ndarray], path: Path) -> None:
        """Write the map of these rows, from top to bottom, as a PNG."""
        top = 0
        with GreyPngWriter(path, *self.size) as writer:
            for band in bands:
                writer.write(band)
                self.pixels += np.bincount(band.ravel(), minlength=len(self.pixels))
                inside = (self.rows >= top) & (self.rows < top + len(band))
                self.shown[inside] = band[self.rows[inside] - top][:, self.columns]
                top += len(band)
