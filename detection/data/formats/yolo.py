"""YOLO: a text file per image, a line per object, coordinates from 0 to 1.

``class x y width height`` is a box by its centre, ``class x y x y x y ...`` a polygon.
Four points (YOLO OBB) are a polygon, too. ``yolo_sets`` finds the images, the labels and the names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from backbones.whole_files import write_text
from detection.data.formats.files import image_files, read_text
from detection.data.formats.labels import GONE, Builder, label_files
from detection.data.formats.outlines import joined_outline
from detection.data.formats.yolo_sets import (
    MOST_CLASSES,
    NO_LABELS,
    NOTHING,
    class_names,
    config_file,
    folders_of_sets,
    images_of_part,
    keypoint_numbers,
    label_file,
    labels_folder,
    parts_of,
    read_settings,
)
from training.progress import progress

BOX, SCORED_BOX = 5, 6  # numbers of a line


def read_yolo(source: Path, images: Path | None) -> dict[str, Builder]:
    """Split -> the labels that were read; one split ``annotations`` if no ``data.yaml`` names any.

    Args:
        source: ``data.yaml``, or the folder of a data set.
        images: a folder of images whose labels ``source`` holds, where they lie apart.

    Raises:
        InputError: for a ``data.yaml`` that is invalid, or if no label file is found.
    """
    config = config_file(source)
    if config is None and source.name == "labels":  # what names the classes lies beside it
        config = config_file(source.parent)
        source = source if images else source.parent
    folder = source.parent if source.name == "labels" and source.is_dir() else source
    root = (config.parent if config else folder).resolve()
    settings = read_settings(config) if config else {}
    if settings.get("path") not in NOTHING:
        named = Path(str(settings["path"])).expanduser()
        folders = [p for p in (root / named, root.parent / named, named) if p.is_dir()]
        root = folders[0].resolve() if folders else root
    names = class_names(settings, root)
    points = keypoint_numbers(settings.get("kpt_shape"))
    files, gone = {"annotations": image_files(images or root)}, ""
    if images is None and (parts := parts_of(settings)):
        listed = {split: images_of_part(root, value) for split, value in parts.items()}
        # Roboflow names a folder for the test set whether there is one or not
        files = {split: value for split, value in listed.items() if value is not None}
        missing = [split for split in listed if split not in files]
        gone = ", ".join(f"{split}: {parts[split]}" for split in missing)
        if "train" in missing or not files:
            raise InputError(f"data.yaml names {gone}, which is not in {root}")
    found: dict[str, Builder] = {}
    for split, of_split in files.items():
        builder = Builder(images.resolve() if images else root, filter(None, names))
        if (
            images is None
            and split == "annotations"
            and (joined := folders_of_sets(root, of_split))
        ):
            builder.note(f"folders {joined}", "are of several sets", "joined: no data.yaml is here")
        if gone and not found:
            builder.note(gone, "is named by data.yaml, and is not there")
        _read_split(builder, of_split, labels_folder(source) if images else None, names, points)
        found[split] = builder
    if not any(builder.read for builder in found.values()):
        raise InputError(
            f"{source}: no label of YOLO's is found: give data.yaml, or a folder with images/ and "
            "labels/ in it, or --images DIR and the folder of the labels"
        )
    return found


def _read_split(
    builder: Builder, files: list[Path], labels: Path | None, names: list[str | None], points: int
) -> None:
    images = builder.root
    builder.widen(file for file in files if os.path.isfile(file))
    sizes = builder.sizes(files)
    for name in sorted({name for name in names if name and names.count(name) > 1}):
        builder.note(f"class {name}", "is named twice", "it is one class")
    for file in progress(files, "reading labels", unit="image"):
        if file not in sizes:
            continue
        image = builder.image(file, sizes[file])
        text = label_file(file, labels, images)
        if text is None:
            builder.note(
                image["file_name"], "has no label file", "kept as an image without objects"
            )
            continue
        seen = set()
        lines = [line.split() for line in read_text(text).split("\n")]
        has_tracks = any(_track_of(words) > 1 for words in lines)
        for number, words in enumerate(lines, 1):
            if not words:
                continue
            where = f"{builder.name(text)}, line {number}"
            if tuple(words) in seen:
                builder.refuse(where, "repeats another line")
                continue
            seen.add(tuple(words))
            if has_tracks and _track_of(words) >= 0:
                builder.note(where, "has the number of a track", f"the number is {GONE}")
                words = words[:-1]
            _read_line(builder, image, where, words, names, points)
    if labels is not None or files:
        _unused(builder, files, labels, images)


def _track_of(words: list[str]) -> int:
    """The last of 7 numbers, where it is whole: a track behind a box and its confidence; else -1.

    Beyond 1 it is none of a polygon's, whose last may be 0 or 1.
    """
    return int(words[6]) if len(words) == 7 and words[6].isdecimal() else -1


def _unused(builder: Builder, files: list[Path], labels: Path | None, images: Path) -> None:
    """Count label files that have no image."""
    used = {label_file(file, labels, images) for file in files}
    folders = {path.parent for path in used if path} | ({labels} if labels else set())
    for folder in sorted(folders):
        for path in sorted(folder.glob("*.txt")):
            if path not in used and path.name not in NO_LABELS:
                builder.note(builder.name(path), "is a label file without an image")


def _read_line(
    builder: Builder,
    image: dict[str, Any],
    where: str,
    words: list[str],
    names: list[str | None],
    keypoints: int,
) -> None:
    try:
        index, values = int(float(words[0])), [float(word) for word in words[1:]]
    except (ValueError, OverflowError):
        index, values = -1, []
    if not 0 <= index <= MOST_CLASSES or not values or any(value != value for value in values):
        builder.refuse(where, "is not 'class x y width height' or a polygon in numbers")
        return
    name = names[index] if index < len(names) else None
    if name is None:
        name = str(index)
        builder.note(where, "has a class that has no name", "it is called by its number")
    width, height = image["width"], image["height"]
    count = 1 + len(values)
    if keypoints and count not in (BOX, SCORED_BOX, BOX + keypoints, SCORED_BOX + keypoints):
        builder.refuse(where, f"has {count} numbers: neither a box nor one with its keypoints")
        return
    if (keypoints and count >= BOX + keypoints) or _are_keypoints(values[4:]):
        builder.note(where, "has keypoints", f"the keypoints are {GONE}")
        values, count = values[:4], BOX
    if count == SCORED_BOX or (count > SCORED_BOX and count % 2 == 0):
        builder.note(where, "has a confidence", f"the confidence is {GONE}")
        values, count = values[:-1], count - 1
    if max(map(abs, values)) > 1.5:
        builder.refuse(where, "is not in parts of the image (0 to 1)")
    elif count == BOX:
        x, y, w, h = values
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        builder.box(image, where, name, box)
    elif count >= 7 and count % 2:
        polygon = [v * (height if i % 2 else width) for i, v in enumerate(values)]
        builder.polygons(image, where, name, [polygon])
    else:
        builder.refuse(where, f"has {count} numbers: neither a box nor a polygon")


def _are_keypoints(values: list[float]) -> bool:
    """Whether numbers after a box are x, y, visibility (0, 1, 2) in turn, without a kpt_shape.

    One point with the visibility 0 or 1 may be a polygon with a confidence as well.
    """
    seen = set(values[2::3])
    return len(values) % 3 == 0 and seen <= {0, 1, 2} and (len(values) > 3 or seen == {2})


def write_yolo(tree: dict[str, Any], folder: Path) -> None:
    """``labels/*.txt`` and ``data.yaml``; the parts and holes of a mask are one outline, joined."""
    categories = sorted(tree["categories"], key=lambda one: one["id"])
    indices = {one["id"]: index for index, one in enumerate(categories)}
    lines: dict[Any, list[str]] = {image["id"]: [] for image in tree["images"]}
    images = {image["id"]: image for image in tree["images"]}
    for item in tree["annotations"]:
        image = images[item["image_id"]]
        width, height = image["width"], image["height"]
        if item.get("segmentation"):
            outline = joined_outline(item["segmentation"], height, width)
            values = [v / (height if i % 2 else width) for i, v in enumerate(outline)]
        else:
            x, y, w, h = item["bbox"]
            values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
        if values:
            numbers = " ".join(f"{min(max(value, 0.0), 1.0):.7g}" for value in values)
            lines[item["image_id"]].append(f"{indices[item['category_id']]} {numbers}")
    files = label_files(tree, ".txt")
    for key, of_image in lines.items():
        write_text(folder / "labels" / files[key], "".join(f"{line}\n" for line in of_image))
    names = json.dumps([one["name"] for one in categories], ensure_ascii=False)
    write_text(folder / "data.yaml", f"path: .\ntrain: images\nval: images\nnames: {names}\n")
