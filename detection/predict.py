"""Prediction with a finished run: overlays, COCO results and annotations, counts per image.

Written to the output folder:

  * ``overlays/``: a picture for each image (JPEG for JPEG, else PNG), a video for each video or, if
    asked for, a folder of its frames; detections from ``score_threshold`` on, tiny images enlarged
    until their labels can be read;
  * the files of :mod:`detection.prediction.outputs`, when all is done.

Each image is read, detected on, drawn and written before the next, so memory does not grow with
their number; its detections are kept at once (:mod:`training.guards.journal`).
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from backbones.errors import InputError
from detection.config import load_config
from detection.data.records import Records
from detection.data.tiles import resolve_tiles
from detection.dataset import CocoDataset
from detection.engines import load_engine
from detection.engines.classes import trained_classes
from detection.engines.results import detect_on_image
from detection.prediction.outputs import IMAGES, PREDICTIONS, write_files_of
from detection.prediction.overlays import OverlayWriter, draw
from images.configured import reading_of
from images.display import LARGEST, shown
from images.inputs import (
    Frame,
    files_to_predict,
    is_video,
    output_names,
    read_windows,
)
from images.windows import Windows
from training.configured import newest_weights, run_files
from training.guards.checkpoints import sha256_of
from training.guards.journal import Journal
from training.guards.run_folder import held
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
    classes: Sequence[str] | None = None,
    resume: bool = False,
) -> dict[str, int]:
    """Detect on images and videos with a run's detector and write what the header lists.

    Args:
        run: the ``OUTPUT_DIR`` of a training.
        inputs: files, folders and glob patterns; overlays of earlier predictions are left out.
        output_dir: must not hold predictions yet, except with ``resume``.
        score_threshold: of overlays, annotations and counts, 0 to 1.
        every: detect on each ``every``-th frame of a video.
        frames: write a video's overlays as JPEG files instead of a video.
        weights: a detector instead of the run's newest checkpoint.
        overrides: ``KEY VALUE ...`` that change the run's config.
        skip_bad_images: leave out files that do not decode, each with a warning.
        classes: names of the classes to detect; None for all.
        resume: continue an earlier call that had the same settings and was interrupted.

    Returns:
        The numbers of ``images`` (frames counted), ``detections`` and ``shown`` detections.

    Raises:
        InputError: for every input that cannot be read, before any prediction; for a folder that
            is not a run, holds predictions already or is written by another process; for settings
            that are invalid, or that differ from those of the call to resume.
        FileNotFoundError: if ``weights`` does not exist.
    """
    if not 0 <= score_threshold <= 1:
        raise InputError(f"the score threshold is {score_threshold}; scores go from 0 to 1")
    config, dataset = read_run(run, overrides, weights)
    names = _chosen(dataset.category_names, classes)
    reading, bands = reading_of(config), config.INPUT.SHOW_BANDS
    detector = Path(weights or newest_weights(Path(config.OUTPUT_DIR)))
    settings = {
        "run": str(run.resolve()),
        "weights": str(detector),
        "weights_sha256": sha256_of(detector) if detector.is_file() else None,
        "score_threshold": score_threshold,
        "every": every,
        "frames": frames,
        "overrides": list(overrides),
        "classes": list(names.values()),
    }
    with held(output_dir):
        journal = Journal(output_dir, settings, PREDICTIONS, IMAGES, resume)
        files = files_to_predict(inputs, journal, skip_bad_images, reading)
        if journal.is_finished:
            return dict(journal.counts)
        detect = load_engine(config.ENGINE).detector(config, dataset, weights)
        with journal:
            bar = progress(text="predicting", total=len(files), unit="file")
            for file, name in zip(files, output_names(files, journal.done.values()), strict=True):
                with OverlayWriter(output_dir, file, name, frames) as overlays:
                    for frame, image in read_windows(file, every, reading):
                        entry = image_entry(journal.counts["images"] + 1, file, frame, image)
                        found = detect_on_image(detect, image, config, entry["id"])
                        found = [result for result in found if result["category_id"] in names]
                        sure = [result for result in found if result["score"] >= score_threshold]
                        pixels = shown(image.shrunk(LARGEST if image.too_large else None), bands)
                        overlay = draw(pixels, sure, names, (image.height, image.width))
                        entry["overlay"] = overlays.write(frame, overlay)
                        journal.add(
                            {"image": entry, "results": found},
                            {"images": 1, "detections": len(found), "shown": len(sure)},
                        )
                journal.finish(file, name)
                bar.update()
            bar.close()
            write_files_of(output_dir, journal, names)
        journal.remove()
    return dict(journal.counts)


def _chosen(names: Mapping[Any, str], classes: Sequence[str] | None) -> dict[Any, str]:
    """Category id -> name of the classes that were asked for."""
    known = list(names.values())
    if unknown := [name for name in classes or () if name not in known]:
        close = [difflib.get_close_matches(name, known, n=1) for name in unknown]
        hints = [
            f"{name!r}" + (f" (did you mean {found[0]!r}?)" if found else "")
            for name, found in zip(unknown, close, strict=True)
        ]
        raise InputError(f"the run has no class {', '.join(hints)}; it has: {', '.join(known)}")
    return {key: name for key, name in names.items() if classes is None or name in classes}


def read_run(
    run: Path, overrides: Sequence[str] = (), weights: str | None = None
) -> tuple[CfgNode, CocoDataset]:
    """The config of a run and its classes, as a data set without images.

    Args:
        overrides: ``KEY VALUE ...`` that change the run's config.
        weights: a detector instead of the run's; it may name its own classes.

    Raises:
        InputError: if the folder is not a run, or its config does not fit the overrides.
    """
    config_file, facts_file = run_files(run, "train_net")
    config = load_config(config_file, ["OUTPUT_DIR", str(run), *overrides], training=False)
    if config.INPUT.TILES.ENABLED:
        trained = yaml.safe_load(config_file.read_text(encoding="utf-8")).get("INPUT", {})
        if not trained.get("TILES", {}).get("ENABLED"):
            logger.warning(
                "%s was not trained on tiles but on images resized to %s pixels; tiles keep their "
                "images' own pixels, so objects may be larger or smaller than it learnt them",
                run,
                trained.get("MIN_SIZE_TRAIN"),
            )
        config = resolve_tiles(config, Records())
    classes = trained_classes(weights, run) or trained_classes(None, run)
    if not classes:
        raise InputError(
            f"{facts_file} does not tell the classes: write it anew by tools/train_net.py "
            f"--config-file {config_file} --eval-only OUTPUT_DIR {run}"
        )
    ids = {key: index for index, key in enumerate(classes)}
    return config, CocoDataset(str(run), facts_file, run, tuple(classes.values()), ids, Records())


def image_entry(key: int, file: Path, frame: Frame, image: Windows) -> dict[str, Any]:
    """What ``images.json`` says about an image or a frame."""
    entry = {"id": key, "file_name": str(file), "width": image.width, "height": image.height}
    if is_video(file):
        entry |= {"frame": frame.number, "seconds": round(frame.seconds, 3)}
    return entry
