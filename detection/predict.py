"""Prediction with a finished run: overlays, and COCO results with a list of what the ids mean.

Written to the output folder:

  * ``overlays/``: a picture for each image (JPEG for JPEG, else PNG), a video for each video or, if
    asked for, a folder of its frames; detections from ``score_threshold`` on, tiny images enlarged
    until their labels can be read;
  * ``predictions.json``: every detection in COCO's results format, those below the threshold too
    (``MODEL.ROI_HEADS.SCORE_THRESH_TEST`` decides), equal to what an evaluation writes;
  * ``images.json``: ``images`` (``id``, ``file_name``, ``width``, ``height``, ``overlay``, and
    ``frame`` and ``seconds`` in a video) and the run's ``categories``.

The two JSON files appear when all is done. Each image is read, detected on, drawn and written
before the next, so memory does not grow with their number.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from backbones.errors import InputError
from backbones.whole_files import write_atomically
from detection.config import load_config
from detection.data.pixels import reading_of
from detection.data.records import Records
from detection.data.transforms import sample_of_values
from detection.dataset import CocoDataset
from detection.engines import load_engine
from detection.engines.classes import trained_classes
from detection.prediction.overlays import OverlayWriter, draw
from images.display import shown
from images.inputs import (
    Frame,
    find_files,
    is_video,
    output_names,
    read_frames,
)
from training.progress import progress

logger = logging.getLogger(__name__)


def predict(
    run: Path,
    inputs: Sequence[str],
    output_dir: Path,
    score_threshold: float = 0.5,
    every: int = 1,
    frames: bool = False,
    weights: str | None = None,
    overrides: Sequence[str] = (),
    skip_bad_images: bool = False,
) -> dict[str, int]:
    """Detect on images and videos with a run's detector and write what the header lists.

    Args:
        run: the ``OUTPUT_DIR`` of a training.
        inputs: files, folders and glob patterns.
        output_dir: must not hold predictions.
        score_threshold: of what overlays show.
        every: detect on each ``every``-th frame of a video.
        frames: write a video's overlays as JPEG files instead of a video.
        weights: a detector instead of the run's newest checkpoint.
        overrides: ``KEY VALUE ...`` that change the run's config.
        skip_bad_images: leave out files that do not decode, each with a warning.

    Returns:
        The numbers of ``images`` (frames counted), ``detections`` and ``shown`` detections.

    Raises:
        InputError: for every input that cannot be read, before any prediction; for a folder that
            is not a run or holds predictions already.
        FileNotFoundError: if ``weights`` does not exist.
    """
    if (output_dir / "predictions.json").exists():
        raise InputError(f"{output_dir} holds predictions already: choose another folder")
    config, classes = read_run(run, overrides, weights)
    reading = reading_of(config)
    files = find_files(inputs, skip_bad_images, reading)
    detect = load_engine(config.ENGINE).detector(config, classes, weights)
    bands = config.INPUT.SHOW_BANDS
    category_names = classes.category_names
    output_dir.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    counts = {"images": 0, "detections": 0, "shown": 0}

    def all_results() -> Iterator[dict[str, Any]]:
        bar = progress(text="predicting", total=len(files), unit="file")
        for file, name in zip(files, output_names(files), strict=True):
            with OverlayWriter(output_dir, file, name, frames) as overlays:
                for frame in read_frames(file, every, reading):
                    entry = image_entry(len(images) + 1, file, frame)
                    found = detect(sample_of_values(frame.pixels, config, entry["id"]))
                    kept = [result for result in found if result["score"] >= score_threshold]
                    overlay = draw(shown(frame.pixels, bands), kept, category_names)
                    images.append(entry | {"overlay": overlays.write(frame, overlay)})
                    counts["detections"] += len(found)
                    counts["shown"] += len(kept)
                    yield from found
            bar.update()
        bar.close()

    write_atomically(output_dir / "predictions.json", lambda path: write_list(path, all_results()))
    categories = [{"id": key, "name": name} for key, name in category_names.items()]
    tree = {"images": images, "categories": categories}
    write_atomically(output_dir / "images.json", lambda path: write_json(path, tree))
    counts["images"] = len(images)
    return counts


def read_run(
    run: Path, overrides: Sequence[str] = (), weights: str | None = None
) -> tuple[CfgNode, CocoDataset]:
    """The config of a run and its classes, as a data set without images.

    Args:
        run: the ``OUTPUT_DIR`` of a training.
        overrides: ``KEY VALUE ...`` that change the run's config.
        weights: a detector instead of the run's, which may tell its own classes.

    Raises:
        InputError: if the folder is not a run, or its config does not fit the overrides.
    """
    config_file, facts_file = run / "config.yaml", run / "run.json"
    if missing := [file.name for file in (config_file, facts_file) if not file.is_file()]:
        raise InputError(
            f"{run} is not a run: it has no {' and no '.join(missing)}. Give the OUTPUT_DIR of a "
            "training by tools/train_net.py"
        )
    config = load_config(config_file, ["OUTPUT_DIR", str(run), *overrides], training=False)
    classes = trained_classes(weights, run) or trained_classes(None, run)
    if not classes:
        raise InputError(
            f"{facts_file} does not tell the classes: write it anew by tools/train_net.py "
            f"--config-file {config_file} --eval-only OUTPUT_DIR {run}"
        )
    ids = {key: index for index, key in enumerate(classes)}
    return config, CocoDataset(str(run), facts_file, run, tuple(classes.values()), ids, Records())


def image_entry(key: int, file: Path, frame: Frame) -> dict[str, Any]:
    """What ``images.json`` says about an image or a frame."""
    height, width = frame.pixels.shape[:2]
    entry = {"id": key, "file_name": str(file), "width": width, "height": height}
    if is_video(file):
        entry |= {"frame": frame.number, "seconds": round(frame.seconds, 3)}
    return entry


def write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=1), encoding="utf-8")


def write_list(path: Path, items: Iterator[dict[str, Any]]) -> None:
    """Write a JSON list item by item, one a line."""
    with path.open("w", encoding="utf-8") as stream:
        separator = "["
        for item in items:
            stream.write(f"{separator}{json.dumps(item)}")
            separator = ",\n"
        stream.write("[]" if separator == "[" else "]")
