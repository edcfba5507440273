"""The files of a finished prediction, each written from the journal line by line.

* ``predictions.json``: every detection in COCO's results format, those below the threshold too;
* ``images.json``: which file or frame each image id is, the categories, the settings;
* ``annotations.json``: the detections from the threshold on as a COCO data set, which labelling
  tools import to start from and trainings read;
* ``counts.csv``: of each image and class how many there are and how many pixels they cover.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from pycocotools import mask as rle_codec

from backbones.whole_files import write_all
from detection.prediction.journal import IMAGES, PREDICTIONS, Journal
from reporting.tables import csv_text

COUNTS = ("image_id", "file_name", "frame", "seconds", "class", "count", "area")


def write_outputs(folder: Path, journal: Journal, names: Mapping[Any, str]) -> None:
    """Write the files, all or none.

    Args:
        names: category id -> class.
    """
    write_all(
        {folder / name: partial(_write, write, journal, names) for name, write in OUTPUTS.items()}
    )


def _write(
    write: Callable[[TextIO, Journal, Mapping[Any, str]], None],
    journal: Journal,
    names: Mapping[Any, str],
    path: Path,
) -> None:
    # names of files that are no UTF-8 come out as they are
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        write(stream, journal, names)


def _predictions(stream: TextIO, journal: Journal, names: Mapping[Any, str]) -> None:
    _json_list(stream, (result for _, results in journal.images() for result in results))


def _images(stream: TextIO, journal: Journal, names: Mapping[Any, str]) -> None:
    info = {"settings": journal.settings, "counts": journal.counts}
    stream.write(f'{{"info": {json.dumps(info)},\n"images": ')
    _json_list(stream, (image for image, _ in journal.images()))
    stream.write(f',\n"categories": {json.dumps(_categories(names))}}}\n')


def _annotations(stream: TextIO, journal: Journal, names: Mapping[Any, str]) -> None:
    folders = {os.path.dirname(os.path.abspath(i["file_name"])) for i, _ in journal.images()}
    root = os.path.commonpath(folders)
    stream.write(f'{{"info": {json.dumps({"image_root": root})},\n"images": ')
    _json_list(
        stream,
        (i | {"file_name": _relative(i["file_name"], root)} for i, _ in journal.images()),
    )
    stream.write(f',\n"categories": {json.dumps(_categories(names))},\n"annotations": ')
    shown = (result for _, results in journal.images() for result in _shown(journal, results))
    _json_list(
        stream,
        (
            {"id": key, **result, "area": area_of(result), "iscrowd": 0}
            for key, result in enumerate(shown, 1)
        ),
    )
    stream.write("}\n")


def _counts(stream: TextIO, journal: Journal, names: Mapping[Any, str]) -> None:
    stream.write(csv_text(COUNTS, []))
    for image, results in journal.images():
        count, area = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0)
        for result in _shown(journal, results):
            count[result["category_id"]] += 1
            area[result["category_id"]] += area_of(result)
        where = [image["id"], image["file_name"], image.get("frame"), image.get("seconds")]
        rows = [[*where, name, count[key], f"{area[key]:.10g}"] for key, name in names.items()]
        stream.write(csv_text(COUNTS, rows).partition("\n")[2])


OUTPUTS: dict[str, Callable[[TextIO, Journal, Mapping[Any, str]], None]] = {
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


def _json_list(stream: TextIO, items: Iterable[Any]) -> None:
    """A JSON list, one item per line."""
    separator = "["
    for item in items:
        stream.write(f"{separator}{json.dumps(item)}")
        separator = ",\n"
    stream.write("[]" if separator == "[" else "]")
