"""Label Studio's JSON export: tasks with rectangles, polygons, ellipses and brushes, in percent."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

from backbones.errors import InputError
from detection.data.formats.files import read_json
from detection.data.formats.labels import GONE, Builder
from detection.data.formats.outlines import ellipse, points_of, turned
from images.folders import ending_of
from images.formats import image_endings


def read_label_studio(source: Path, images: Path | None) -> dict[str, Builder]:
    """Read an export, or all of a folder; images are found by their names.

    Raises:
        InputError: if no file there is such an export.
    """
    files = [source] if source.is_file() else sorted(source.rglob("*.json"))
    root = (images or (source.parent if source.is_file() else source)).resolve()
    builder = Builder(root)
    tasks = [task for file in files for task in _tasks(file)]
    if not tasks:
        raise InputError(f"{source}: it is no JSON export of Label Studio")
    labelled, seen = [], set()
    for place, task in enumerate(tasks):
        names = _image_names(task)
        key = task.get("id", place)
        where = f"task {key} ({names[0]})"
        if "data" not in task and (str(key), names[0]) in seen:  # JSON-MIN has a task per labelling
            builder.note(where, "was labelled several times", "the first labelling is taken")
            continue
        seen.add((str(key), names[0]))
        results = _results(builder, where, task)
        if results is None:
            builder.note(where, "is not labelled")
        else:
            labelled.append((where, names, (where, results)))
    for (where, results), image in builder.images_of(labelled):
        _read_results(builder, image, where, results)
    return {"annotations": builder}


def _tasks(file: Path) -> list[dict[str, Any]]:
    tree = read_json(file)
    marks = {"annotations", "completions", "image", "annotation_id", "annotator", "lead_time"}
    marks.add("predictions")
    return [
        task
        for task in (tree if isinstance(tree, list) else [])
        if isinstance(task, dict) and marks & task.keys()
    ]


def _image_names(task: dict[str, Any]) -> list[str]:
    """Possible names of the image: the path in a URL, also without the prefix of uploads."""
    data = task.get("data")
    values = [*(data.values() if isinstance(data, dict) else task.values())]
    values += [task.get("file_upload")]
    names: list[str] = []
    for value in values:
        if not isinstance(value, str) or not value:
            continue
        parts = urlsplit(value)
        path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
        base = path.rsplit("/", 1)[-1]
        names += [path.lstrip("/"), base, re.sub(r"^[0-9a-f]{8}-", "", base)]
    return sorted(names, key=lambda name: ending_of(name) not in image_endings()) or [""]


def _results(builder: Builder, where: str, task: dict[str, Any]) -> list[Any] | None:
    """The labels of a task's image; None if nobody has labelled it."""
    if "data" not in task and "annotations" not in task:  # the export JSON-MIN
        lists = [value for value in task.values() if isinstance(value, list)]
        return [
            {"value": one}
            for value in lists
            for one in value
            if isinstance(one, dict) and any(key.endswith("labels") for key in one)
        ]
    if task.get("predictions"):
        builder.note(where, "has predictions", "they are left out: nobody has confirmed them")
    every = task.get("annotations") or task.get("completions")
    every = [one for one in every if isinstance(one, dict)] if isinstance(every, list) else []
    done = [one for one in every if not one.get("was_cancelled")]
    if len(done) < len(every):
        builder.note(where, "was skipped by an annotator", "that labelling is left out")
    if len(done) > 1:
        builder.note(where, "was labelled several times", "the first labelling is taken")
    if not done:
        return None
    results = done[0].get("result")
    return results if isinstance(results, list) else []


def _read_results(builder: Builder, image: dict[str, Any], where: str, results: list[Any]) -> None:
    drawn = [result for result in results if isinstance(result, dict)]
    placed = [one for one in drawn if _has_place(one.get("value")) and one.get("to_name")]
    pictures = {str(one["to_name"]) for one in placed}
    if len(pictures) > 1:
        builder.note(where, "has several pictures", f"its labels are {GONE}: export one a task")
        builder.read += len(drawn)
        return
    for number, result in enumerate(results, 1):
        if isinstance(result, dict):
            _read_result(builder, image, f"{where}, result {number}", result)


def _has_place(value: Any) -> bool:
    return isinstance(value, dict) and bool({"x", "points", "rle"} & value.keys())


def _read_result(
    builder: Builder, image: dict[str, Any], where: str, result: dict[str, Any]
) -> None:
    value = result.get("value")
    if not isinstance(value, dict) or result.get("type") in ("choices", "textarea", "rating"):
        builder.note(where, f"is a {result.get('type', 'result')}, which is no object")
        return
    labels = next((v for k, v in value.items() if k.endswith("labels") and v), None)
    if not isinstance(labels, list):
        builder.refuse(where, "has no label")
        return
    if result.get("image_rotation", value.get("image_rotation")):
        remedy = "turn it back in Label Studio and export again"
        builder.refuse(where, f"was drawn on a picture that was turned there ({remedy})")
        return
    if "keypointlabels" in value:
        builder.refuse(where, "is a keypoint, which has no area")
        return
    if len(labels) > 1:
        builder.note(where, "has several labels", "the first is taken")
    name, scale = str(labels[0]), np.array([image["width"], image["height"]]) / 100
    try:
        if "rle" in value and _other_size(result, image):
            builder.refuse(where, "was brushed on a picture of another size")
        elif "rle" in value:
            mask = decode_brush(value["rle"], image["height"], image["width"])
            builder.mask(image, where, name, mask)
        elif "imageDataURL" in value:
            builder.mask(image, where, name, _bitmask(str(value["imageDataURL"])))
        elif "points" in value:
            points = points_of(value["points"])
            if points is None:
                raise ValueError("no points")
            builder.polygons(image, where, name, [(points * scale).reshape(-1).tolist()])
        elif "radiusX" in value:
            centre = np.array([value["x"], value["y"]]) * scale
            radii = np.array([value["radiusX"], value["radiusY"]]) * scale
            builder.note(where, "is an ellipse", "a polygon of 64 points")
            turn = float(value.get("rotation") or 0)
            builder.polygons(image, where, name, [ellipse(centre, radii, turn)])
        else:
            corner = np.array([value["x"], value["y"]]) * scale
            sides = np.array([value["width"], value["height"]]) * scale
            if turn := float(value.get("rotation") or 0):  # around the corner
                corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * sides
                points = turned(corners, turn) + corner
                builder.note(where, "is a turned box", "a polygon of its corners")
                builder.polygons(image, where, name, [points.reshape(-1).tolist()])
            else:
                builder.box(image, where, name, [*corner, *sides])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, OSError):
        builder.refuse(where, "is no shape that is known, or lacks its numbers")


def _other_size(result: dict[str, Any], image: dict[str, Any]) -> bool:
    """Whether a result states the size of a picture that is not the image's."""
    places = (result, result["value"])  # the latter in JSON-MIN
    stated = [
        tuple(place.get(f"original_{side}") for side in ("height", "width")) for place in places
    ]
    return any(None not in one and one != (image["height"], image["width"]) for one in stated)


def _bitmask(url: str) -> np.ndarray:
    """A PNG in a URL as a mask: where it is opaque, or not black.

    Raises:
        ValueError, OSError: if it is none.
    """
    data = base64.b64decode(url.partition(",")[2])
    with Image.open(io.BytesIO(data)) as picture:
        has_alpha = "A" in picture.getbands()
        return np.asarray(picture.getchannel("A") if has_alpha else picture.convert("L")) > 0


def decode_brush(data: list[int], height: int, width: int) -> np.ndarray:
    """A brush's mask: its alpha channel, of Label Studio's run-length code of RGBA values.

    The code begins with the number of values (32 bits), the bits of a value minus 1 (5 bits), and
    four bit widths of run lengths, each minus 1 (4 bits each). Then follow runs: a bit that says
    whether one value is repeated, 2 bits that choose the width of the run's length, the length, and
    the value or values.

    Raises:
        ValueError, IndexError: if the values are not those of the image.
    """
    bits = "".join(f"{byte:08b}" for byte in data)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise IndexError("the code ends too early")
        return int(bits[at - count : at], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    if total != height * width * 4:
        raise ValueError(f"{total} values are not those of {width} x {height} pixels")
    values, place = np.zeros(total, np.uint8), 0
    while place < total:
        repeated = read(1)
        end = place + 1 + read(sizes[read(2)])
        if repeated:
            values[place:end] = read(word)
        else:
            values[place:end] = [read(word) for _ in range(end - place)]
        place = end
    return values.reshape(height, width, 4)[..., 3] > 0
