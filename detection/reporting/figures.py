"""The report's pictures: predictions beside their ground truth, as JPEG of bounded size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detection.data.checks.file_names import leaves_folder
from detection.data.checks.problems import is_text
from detection.drawing.instances import Instance, coco_instances, draw_instances
from detection.evaluation.inputs import read_ground_truth
from detection.evaluation.results import read_results
from detection.reporting.gallery import TYPICAL, Chosen
from detection.reporting.run import NamedRuns, Run
from images.display import read_shown
from images.size_limit import size_fault
from reporting.blocks import Picture, Pictures, RunName
from reporting.pictures import encode_jpeg
from training.progress import progress

PICTURE_BYTES = 3_300_000  # of all predictions together; base64 adds a third
FULL_FROM = 1.4  # times the size in the page: a larger image has its full size as a linked file
FULL_BYTES = 1_500_000
LISTED = 12  # instances that an alternative text names

Entries = dict[Any, list[dict[str, Any]]]  # image id -> annotations or detections


def read_image(path: Path, bands: Sequence[int] = ()) -> np.ndarray | None:
    """An image as ``[H, W, 3]`` uint8 RGB, None where there is none that can be decoded."""
    try:
        return read_shown(path, bands)
    except (ValueError, OSError):
        return None


def image_of(
    entry: dict[str, Any], image_root: Path, bands: Sequence[int] = ()
) -> np.ndarray | None:
    """The image of an entry of the annotations; None if that cannot or may not be read."""
    name = entry.get("file_name")
    if not is_text(name) or leaves_folder(name):
        return None
    return read_image(image_root / name, bands)


def prediction_panels(
    runs: NamedRuns,
    annotations: Path,
    image_root: Path,
    chosen: Sequence[Chosen],
    full_folder: str,
) -> tuple[list[tuple[Pictures, Sequence[str]]], list[str]]:
    """Ground truth and each run's predictions of the chosen images, side by side.

    Shown are predictions over the best threshold of their class. A picture that would lose by being
    made small has its full size too, under ``full_folder``, relative to the page.

    Returns:
        The panels, each with the groups that it was chosen for, and in words what is missing.

    Raises:
        ValueError, FileNotFoundError: if the annotations or results cannot be read.
    """
    read = {run.folder: run.evaluation for _, run in runs if run.evaluation is not None}
    truth = next((one.truth for one in read.values()), None)
    if truth is None:
        truth = read_ground_truth(annotations, image_root)
    classes = sorted(truth["categories"], key=lambda category: category["id"])
    names = {category["id"]: category["name"] for category in classes}
    sources: list[tuple[RunName | None, Entries]] = [(None, _by_image(truth["annotations"]))]
    for run_name, run in runs:
        assert run.results is not None
        if run.folder in read:
            found = read[run.folder].results
        else:
            found = read_results(run.results, truth, annotations)
        least = _thresholds(run)
        kept = [r for r in found if r["score"] >= least.get(r["category_id"], 0)]
        sources.append((run_name, _by_image(kept)))
    images = {image["id"]: image for image in truth["images"]}
    bands: list[int] = next((b for _, run in runs if (b := run.config.get("INPUT.SHOW_BANDS"))), [])
    long_side = 600 if len(sources) < 3 else 480  # as wide as the page shows them, and a bit more
    shown_twice = sum(len(choice.groups) > 1 for choice in chosen if TYPICAL in choice.groups)
    budget = PICTURE_BYTES // max(1, len(sources) * (len(chosen) + shown_twice))
    panels, missing, unlabelled = [], [], 0
    for number, choice in enumerate(progress(chosen, "drawing predictions", unit="image")):
        entry = images.get(choice.image_id, {})
        image = image_of(entry, image_root, bands)
        if image is None or not _is_of_size(image, entry["height"], entry["width"]):
            missing.append(str(entry.get("file_name", choice.image_id)))
            continue
        size, file_name = (entry["height"], entry["width"]), entry["file_name"]
        pictures, present = [], set()
        for place, (source, entries) in enumerate(sources):
            shown = coco_instances(entries[choice.image_id], names, *size)
            present |= {names[e["category_id"]] for e in entries[choice.image_id]}
            drawing = draw_instances(image, shown, long_side, font_size=15, size=size)
            unlabelled += drawing.unlabelled
            full = None
            if max(size) > FULL_FROM * long_side:
                large = draw_instances(image, shown, size=size).image
                name = f"{full_folder}/full-{number:03d}-{place}.jpg"
                full = (name, encode_jpeg(large, FULL_BYTES))
            jpeg = encode_jpeg(drawing.image, budget)
            pictures.append(_picture(jpeg, source, shown, file_name, full))
        groups = [group for group in choice.groups if group != TYPICAL]
        tags = {"Images": groups, "Class": sorted(present), "Error": choice.errors}
        panels.append((Pictures(f"{file_name} · {choice.why}", pictures, tags), choice.groups))
    return panels, _omissions(missing, len(chosen), image_root, unlabelled)


def _is_of_size(image: np.ndarray, height: int, width: int) -> bool:
    """Whether an image is of this size, or of its shape where it had to be shrunk."""
    high, wide = image.shape[:2]
    is_shrunk = bool(size_fault(height, width)) and high < height
    return (high, wide) == (height, width) or (
        is_shrunk and abs(high / height - wide / width) * max(height, width) < 2 * height / high
    )


def _thresholds(run: Run) -> dict[Any, float]:
    """category id -> the box's best threshold, or the mask's where there are no boxes."""
    rows = run.diagnosis[run.diagnosed_task]["thresholds"]
    return {row["category_id"]: row["threshold"] for row in rows}


def _picture(
    jpeg: bytes,
    source: RunName | None,
    shown: Sequence[Instance],
    file_name: str,
    full: tuple[str, bytes] | None,
) -> Picture:
    what = "Ground truth" if source is None else source.name
    number = f"{len(shown)} object{'' if len(shown) == 1 else 's'}"
    labels = [instance.label for instance in shown[:LISTED]]
    if len(shown) > LISTED:
        labels.append(f"{len(shown) - LISTED} more")
    alternative = f"{what}, {file_name}: {number}" + (f": {', '.join(labels)}" if labels else "")
    return Picture(jpeg, f"{what} · {number}", alternative, source, full)


def _omissions(missing: Sequence[str], chosen: int, image_root: Path, unlabelled: int) -> list[str]:
    omissions = []
    if missing:
        omissions.append(
            f"{len(missing)} of the {chosen} chosen images are not under {image_root}, do not "
            f"decode or have another size than the annotations say: {', '.join(missing)}."
        )
    if unlabelled:
        omissions.append(f"Labels that found no free place and are left out: {unlabelled}.")
    return omissions


def _by_image(entries: Sequence[dict[str, Any]]) -> Entries:
    grouped: Entries = defaultdict(list)
    for entry in entries:
        grouped[entry["image_id"]].append(entry)
    return grouped
