"""YOLO: a text file for each image, a line for each object, coordinates as parts of the image.

``class x y width height`` is a box by its centre, ``class x y x y x y ...`` a polygon.
``data.yaml`` names the classes and the folders of train, val and test; images lie in ``images``,
labels in ``labels`` beside it or beside the image (Ultralytics' ``img2label_paths``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from backbones.errors import InputError
from backbones.whole_files import write_text
from detection.data.formats.labels import GONE, Builder, image_files
from detection.data.formats.outlines import joined_outline
from training.progress import progress

SPLITS = ("train", "val", "test")
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
    root = (config.parent if config else source).resolve()
    settings = _settings(config) if config else {}
    if settings.get("path"):
        named = Path(str(settings["path"])).expanduser()
        folders = [p for p in (root / named, root.parent / named, named) if p.is_dir()]
        root = folders[0].resolve() if folders else root
    names = _class_names(settings, root)
    keypoints = settings.get("kpt_shape")
    parts: dict[str, Any] = {}
    for split in SPLITS:  # some name one folder twice, since a validation set has to be named
        if settings.get(split) and settings[split] not in parts.values():
            parts[split] = settings[split]
    files: dict[str, list[Path]]
    if images is not None:
        files = {"annotations": image_files(images)}
    elif parts:
        files = {split: list(_listed(root, value)) for split, value in parts.items()}
    else:
        files = {"annotations": image_files(root)}
    found: dict[str, Builder] = {}
    for split, of_split in files.items():
        builder = Builder(images.resolve() if images else root, names)
        _read_split(builder, of_split, _labels_folder(source) if images else None, keypoints)
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
    return next(
        (p for p in (source / "data.yaml", *sorted(source.glob("*.yaml"))) if p.is_file()), None
    )


def _settings(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML: {error}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} is no data.yaml: a mapping with 'names' and 'train' is wanted")
    return tree


def _class_names(settings: dict[str, Any], root: Path) -> list[str]:
    names = settings.get("names")
    if isinstance(names, dict):
        highest = max((int(key) for key in names), default=-1)
        return [str(names.get(i, names.get(str(i), i))) for i in range(highest + 1)]
    if isinstance(names, list):
        return list(map(str, names))
    for place in (root, root / "labels"):
        if (file := place / "classes.txt").is_file():
            return [
                line.strip()
                for line in file.read_text(encoding="utf-8").split("\n")
                if line.strip()
            ]
    return [str(index) for index in range(int(settings.get("nc") or 0))]


def _listed(root: Path, value: Any) -> Iterator[Path]:
    """The images of a split: folders, or text files that list images."""
    for one in value if isinstance(value, list) else [value]:
        name = str(one)
        # Roboflow writes ../train/images for train/images
        tries = [root / name, root / name.removeprefix("../"), root / name.removeprefix("./")]
        path = next((p for p in tries if p.exists()), None)
        if path is None:
            raise InputError(f"data.yaml names {name}, which is not in {root}")
        if path.is_dir():
            yield from image_files(path.resolve())
        else:
            for line in path.read_text(encoding="utf-8").split("\n"):
                if line.strip():
                    at = Path(line.strip())
                    yield (path.parent / at if line.startswith("./") else root / at).resolve()


def label_file(image: Path, labels: Path | None) -> Path | None:
    """The labels of an image; None where there are none."""
    if labels is not None:
        tries = [labels / f"{image.stem}.txt"]
    else:
        parts = list(image.parts)
        tries = []
        if "images" in parts:
            place = len(parts) - 1 - parts[::-1].index("images")
            beside = Path(*parts[:place], "labels", *parts[place + 1 :])
            tries.append(beside.with_suffix(".txt"))
        tries.append(image.with_suffix(".txt"))
    return next((path for path in tries if path.is_file()), None)


def _read_split(builder: Builder, files: list[Path], labels: Path | None, keypoints: Any) -> None:
    sizes = builder.sizes(files)
    points = int(keypoints[0]) * int(keypoints[1]) if keypoints else 0
    for file in progress(files, "reading labels", unit="image"):
        if file not in sizes:
            continue
        image = builder.image(file, sizes[file])
        text = label_file(file, labels)
        if text is None:
            builder.note(
                image["file_name"], "has no label file", "kept as an image without objects"
            )
            continue
        seen = set()
        lines = text.read_text(encoding="utf-8-sig", errors="replace").split("\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{builder.name(text)}, line {number}"
            if line.strip() in seen:
                builder.refuse(where, "repeats another line")
                continue
            seen.add(line.strip())
            _read_line(builder, image, where, line.split(), points)
    if labels is not None or files:
        _unused(builder, files, labels)


def _unused(builder: Builder, files: list[Path], labels: Path | None) -> None:
    """Count label files that have no image."""
    used = {label_file(file, labels) for file in files}
    folders = {path.parent for path in used if path} | ({labels} if labels else set())
    for folder in sorted(folders):
        for path in sorted(folder.glob("*.txt")):
            if path not in used and path.name not in ("classes.txt", "train.txt", "val.txt"):
                builder.note(builder.name(path), "is a label file without an image")


def _read_line(
    builder: Builder, image: dict[str, Any], where: str, words: list[str], keypoints: int
) -> None:
    try:
        index, values = int(float(words[0])), [float(word) for word in words[1:]]
    except ValueError:
        index, values = -1, []
    names = list(builder.classes)
    if index < 0 or not values or any(value != value for value in values):
        builder.refuse(where, "is not 'class x y width height' or a polygon in numbers")
        return
    if index >= len(names):
        for new in range(len(names), index + 1):
            builder.class_id(str(new))
        names = list(builder.classes)
        builder.note(where, "has a class that has no name", "it is called by its number")
    width, height = image["width"], image["height"]
    count = 1 + len(values)
    if keypoints and count == BOX + keypoints:
        builder.note(where, "has keypoints", f"the keypoints are {GONE}")
        values, count = values[:4], BOX
    if count == SCORED_BOX:
        builder.note(where, "has a confidence", f"the confidence is {GONE}")
        values, count = values[:4], BOX
    if max(map(abs, values)) > 1.5:
        builder.refuse(where, "is not in parts of the image (0 to 1)")
    elif count == BOX:
        x, y, w, h = values
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        builder.box(image, where, names[index], box)
    elif count >= 7 and count % 2:
        polygon = [v * (height if i % 2 else width) for i, v in enumerate(values)]
        builder.polygons(image, where, names[index], [polygon])
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
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(f"{line}\n" for line in of_image))
    names = json.dumps([one["name"] for one in categories], ensure_ascii=False)
    write_text(folder / "data.yaml", f"path: .\ntrain: images\nval: images\nnames: {names}\n")
