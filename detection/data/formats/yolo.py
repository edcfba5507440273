"""YOLO: a text file for each image, a line for each object, coordinates as parts of the image.

``class x y width height`` is a box by its centre, ``class x y x y x y ...`` a polygon.
``data.yaml`` names the classes and the folders of train, val and test; images lie in ``images``,
labels in ``labels`` beside it or beside the image (Ultralytics' ``img2label_paths``). Darknet's
``obj.data`` names a file of the classes and lists of the images.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from backbones.errors import InputError
from backbones.whole_files import write_text
from detection.data.formats.files import ImageFinder, image_files, read_text
from detection.data.formats.labels import GONE, Builder
from detection.data.formats.outlines import joined_outline
from training.progress import progress

SPLITS = ("train", "val", "test")
SPELT = {"val": ("val", "valid")}  # Darknet's
DARKNET = "obj.data"
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels/classes.txt")
NO_LABELS = ("classes.txt", "train.txt", "val.txt", "test.txt")
MOST_CLASSES = 100_000  # a number beyond is no class
BOX, SCORED_BOX = 5, 6  # numbers of a line


def read_yolo(source: Path, images: Path | None) -> dict[str, Builder]:
    """Split -> what was read; one split ``annotations`` where no ``data.yaml`` names any.

    Args:
        source: ``data.yaml``, or the folder of a data set.
        images: a folder of images whose labels ``source`` holds, where they lie apart.

    Raises:
        InputError: for a ``data.yaml`` that is none, or where no label file is found.
    """
    config = _config_file(source)
    if config is None and source.name == "labels":  # what names the classes lies beside it
        config = _config_file(source.parent)
        source = source if images else source.parent
    folder = source.parent if source.name == "labels" and source.is_dir() else source
    root = (config.parent if config else folder).resolve()
    settings = _settings(config) if config else {}
    if settings.get("path"):
        named = Path(str(settings["path"])).expanduser()
        folders = [p for p in (root / named, root.parent / named, named) if p.is_dir()]
        root = folders[0].resolve() if folders else root
    names = _class_names(settings, root)
    points = _keypoints(settings.get("kpt_shape"))
    files, gone = {"annotations": image_files(images or root)}, ""
    if images is None and (parts := _parts(settings)):
        listed = {split: _listed(root, value) for split, value in parts.items()}
        # Roboflow names a folder for the test set whether there is one or not
        files = {split: value for split, value in listed.items() if value is not None}
        missing = [split for split in listed if split not in files]
        gone = ", ".join(f"{split}: {parts[split]}" for split in missing)
        if "train" in missing or not files:
            raise InputError(f"data.yaml names {gone}, which is not in {root}")
    found: dict[str, Builder] = {}
    for split, of_split in files.items():
        builder = Builder(images.resolve() if images else root, filter(None, names))
        if gone and not found:
            builder.note(gone, "is named by data.yaml, and is not there")
        _read_split(builder, of_split, _labels_folder(source) if images else None, names, points)
        found[split] = builder
    if not any(builder.read for builder in found.values()):
        raise InputError(
            f"{source}: no label of YOLO's is found: give data.yaml, or a folder with images/ and "
            "labels/ in it, or --images DIR and the folder of the labels"
        )
    return found


def _labels_folder(source: Path) -> Path:
    """Where the label files of a ``data.yaml`` or of a folder are, if images lie apart."""
    folder = source.parent if source.is_file() else source
    return folder / "labels" if (folder / "labels").is_dir() else folder


def _config_file(source: Path) -> Path | None:
    if source.is_file():
        return source
    tries = [source / "data.yaml", *sorted(source.glob("*.y*ml")), source / DARKNET]
    return next((path for path in tries if path.is_file()), None)


def _settings(path: Path) -> dict[str, Any]:
    text = read_text(path)
    if path.suffix.lower() not in (".yaml", ".yml"):
        pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
        return {key.strip(): value.strip() for key, _, value in pairs}
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {error}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} is no data.yaml: a mapping with 'names' and 'train' is wanted")
    return tree


def _class_names(settings: dict[str, Any], root: Path) -> list[str | None]:
    """The names by their numbers; None for a number that ``data.yaml`` passes over."""
    names = settings.get("names")
    if isinstance(names, dict):
        numbered = {str(key): str(name) for key, name in names.items()}
        if wrong := [key for key in numbered if not key.isdecimal() or int(key) > MOST_CLASSES]:
            raise InputError(f"data.yaml: names has the key {wrong[0]!r}; keys are 0, 1, 2, ...")
        highest = max(map(int, numbered), default=-1)
        return [numbered.get(str(index)) for index in range(highest + 1)]
    if isinstance(names, list):
        return list(map(str, names))
    files = [root / name for name in NAME_FILES]
    if isinstance(names, str):  # Darknet's, whose folder is often another than the one of the files
        files = [root / names, root / Path(names).name, *files]
    for file in files:
        if file.is_file():
            return [line.strip() for line in read_text(file).splitlines() if line.strip()]
    count = str(settings.get("nc") or settings.get("classes") or 0)
    if not count.isdecimal() or int(count) > MOST_CLASSES:
        raise InputError(f"data.yaml: nc is {count}; it is how many classes there are")
    return [str(index) for index in range(int(count))]


def _keypoints(shape: Any) -> int:
    """How many numbers of a line are keypoints', by ``kpt_shape``."""
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and set(map(type, shape)) == {int}):
        raise InputError(f"data.yaml: kpt_shape is {shape}; it is [how many, 2 or 3 numbers each]")
    return int(shape[0]) * int(shape[1])


def _parts(settings: dict[str, Any]) -> dict[str, Any]:
    """Split -> the folders or lists of its images."""
    parts: dict[str, Any] = {}
    for split in SPLITS:  # some name one folder twice, since a validation set has to be named
        value = next((settings[k] for k in SPELT.get(split, (split,)) if settings.get(k)), None)
        if value and value not in parts.values():
            parts[split] = value
    return parts


def _listed(root: Path, value: Any) -> list[Path] | None:
    """The images of a split: folders, or text files that list images; None if one is not there."""
    found: list[Path] = []
    for one in value if isinstance(value, list) else [value]:
        name = str(one)
        # Roboflow writes ../train/images for train/images, CVAT data/train.txt for train.txt
        shorter = (name.removeprefix("../"), name.removeprefix("./"), name.removeprefix("data/"))
        tries = [root / name, *(root / short for short in shorter)]
        path = next((p for p in tries if p.exists()), None)
        if path is None:
            return None
        if path.is_dir():
            found += image_files(Path(os.path.abspath(path)))  # labels lie beside a link, too
            continue
        finder = ImageFinder(root)
        for line in filter(None, map(str.strip, read_text(path).splitlines())):
            at = path.parent / line if line.startswith("./") else root / line
            at = at if at.is_file() else finder.find(line) or at
            found.append(Path(os.path.abspath(at)))
    return found


def label_file(image: Path, labels: Path | None, images: Path) -> Path | None:
    """The labels of an image; None where there are none.

    Args:
        labels: their folder, in the same folders as the images in ``images``; None if they lie
            where Ultralytics looks for them.
    """
    if labels is not None:
        inside = Path(os.path.relpath(image, images)).with_suffix(".txt")
        tries = [labels / inside, labels / inside.name]
    else:
        parts = list(image.parts)
        tries = []
        if "images" in parts:
            place = len(parts) - 1 - parts[::-1].index("images")
            beside = Path(*parts[:place], "labels", *parts[place + 1 :])
            tries.append(beside.with_suffix(".txt"))
        tries.append(image.with_suffix(".txt"))
    return next((path for path in tries if path.is_file()), None)


def _read_split(
    builder: Builder, files: list[Path], labels: Path | None, names: list[str | None], points: int
) -> None:
    sizes = builder.sizes(files)
    for name in sorted({name for name in names if name and names.count(name) > 1}):
        builder.note(f"class {name}", "is named twice", "it is one class")
    for file in progress(files, "reading labels", unit="image"):
        if file not in sizes:
            continue
        image = builder.image(file, sizes[file])
        text = label_file(file, labels, builder.root)
        if text is None:
            builder.note(
                image["file_name"], "has no label file", "kept as an image without objects"
            )
            continue
        seen = set()
        lines = read_text(text).split("\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{builder.name(text)}, line {number}"
            if line.strip() in seen:
                builder.refuse(where, "repeats another line")
                continue
            seen.add(line.strip())
            _read_line(builder, image, where, line.split(), names, points)
    if labels is not None or files:
        _unused(builder, files, labels)


def _unused(builder: Builder, files: list[Path], labels: Path | None) -> None:
    """Count label files that have no image."""
    used = {label_file(file, labels, builder.root) for file in files}
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
    if keypoints and count == BOX + keypoints:
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
    for key, of_image in lines.items():
        name = Path(images[key]["file_name"]).with_suffix(".txt")
        path = folder / "labels" / name
        write_text(path, "".join(f"{line}\n" for line in of_image))
    names = json.dumps([one["name"] for one in categories], ensure_ascii=False)
    write_text(folder / "data.yaml", f"path: .\ntrain: images\nval: images\nnames: {names}\n")
