"""The files of a finished prediction, each written from the journal line by line.

* ``predictions.json``: every detection in COCO's results format, those below the threshold too;
* ``images.json``: which file or frame each image id is, the categories, the settings;
* ``annotations.json``: the detections from the threshold on as a COCO data set, which labelling
  tools import to start from and trainings read;
* ``counts.csv``: for each image and class the number of objects and the pixels that they cover;
* if asked for, ``labels_FORMAT/``: ``annotations.json`` in another format, to be corrected in other
  tools and imported again as labels to train on. Image names are relative to the images' common
  folder, as ``tools/import_dataset.py --images`` needs them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from pycocotools import mask as rle_codec

from detection.data.formats.convert import WRITERS
from reporting.tables import csv_lines
from training.guards.journal import Journal, write_json_list, write_outputs

logger = logging.getLogger(__name__)

PREDICTIONS, IMAGES = "predictions.json", "images.json"
COUNTS = ("image_id", "file_name", "frame", "seconds", "class", "count", "area")


def write_files_of(folder: Path, journal: Journal, names: Mapping[Any, str]) -> None:
    """Write the files, all or none; ``names`` are the classes' by category id."""
    write_outputs(
        {
            folder / file: partial(write, journal=journal, names=names)
            for file, write in OUTPUTS.items()
        }
    )


def _predictions(stream: TextIO, journal: Journal, names: Mapping[Any, str]) -> None:
    write_json_list(stream, (result for entry in journal.entries() for result in entry["results"]))


def _images(stream: TextIO, journal: Journal, names: Mapping[Any, str]) -> None:
    journal.write_record(stream, categories=_categories(names))


def _annotations(stream: TextIO, journal: Journal, names: Mapping[Any, str]) -> None:
    folders = {os.path.dirname(os.path.abspath(i["file_name"])) for i in journal.images()}
    root = os.path.commonpath(folders)
    stream.write(f'{{"info": {json.dumps({"image_root": root})},\n"images": ')
    write_json_list(
        stream,
        (i | {"file_name": _relative(i["file_name"], root)} for i in journal.images()),
    )
    stream.write(f',\n"categories": {json.dumps(_categories(names))},\n"annotations": ')
    entries = journal.entries()
    shown = (result for entry in entries for result in _shown(journal, entry["results"]))
    write_json_list(
        stream,
        (
            {"id": key, **result, "area": area_of(result), "iscrowd": 0}
            for key, result in enumerate(shown, 1)
        ),
    )
    stream.write("}\n")


def _counts(stream: TextIO, journal: Journal, names: Mapping[Any, str]) -> None:
    stream.write(csv_lines([COUNTS]))
    for entry in journal.entries():
        image = entry["image"]
        count, area = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0)
        for result in _shown(journal, entry["results"]):
            count[result["category_id"]] += 1
            area[result["category_id"]] += area_of(result)
        where = [image["id"], image["file_name"], image.get("frame"), image.get("seconds")]
        rows = [[*where, name, count[key], f"{area[key]:.10g}"] for key, name in names.items()]
        stream.write(csv_lines(rows))


OUTPUTS: dict[str, Callable[..., None]] = {
    PREDICTIONS: _predictions,
    "annotations.json": _annotations,
    "counts.csv": _counts,
    IMAGES: _images,
}


def _relative(name: str, root: str) -> str:
    return Path(os.path.relpath(os.path.abspath(name), root)).as_posix()


def area_of(result: Mapping[str, Any]) -> float:
    """Pixels of a detection's mask, or of its box where it has none."""
    if "segmentation" in result:
        return float(rle_codec.area(result["segmentation"]))
    return float(result["bbox"][2] * result["bbox"][3])


def _shown(journal: Journal, results: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    threshold = journal.settings["score_threshold"]
    return (result for result in results if result["score"] >= threshold)


def _categories(names: Mapping[Any, str]) -> list[dict[str, Any]]:
    return [{"id": key, "name": name} for key, name in names.items()]


def write_labels(output_dir: Path, formats: Sequence[str]) -> None:
    """Write ``labels_FORMAT/`` for each of WRITERS' formats; ``coco`` is there already."""
    formats = [name for name in formats if name != "coco"]
    if not formats:
        return
    tree = json.loads((output_dir / "annotations.json").read_text(encoding="utf-8"))
    for image in tree["images"]:
        if "frame" in image:  # of a video, by its number
            path = Path(image["file_name"])
            image["file_name"] = (path.parent / path.stem / f"{image['frame']:06d}.jpg").as_posix()
    for name in formats:
        WRITERS[name](tree, output_dir / f"labels_{name}")
        logger.info("labels: %s", output_dir / f"labels_{name}")
