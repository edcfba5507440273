"""LabelMe: a JSON file for each image, shapes of points in pixels.

Shapes of one label and one ``group_id`` are one object. Rectangles are boxes if all shapes of the
files are rectangles, else polygons of four corners, as in LabelMe's own exporter.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backbones.errors import InputError
from backbones.whole_files import write_atomically, write_json
from detection.data.checks.segmentations import rle_of
from detection.data.formats.files import ImageFinder, read_json
from detection.data.formats.labels import Builder, by_image, label_files
from detection.data.formats.outlines import ellipse, outlines, points_of
from training.progress import progress

Shape = dict[str, Any]
POLYGONS = ("polygon", "oriented_rectangle", "rotation")  # the last is X-AnyLabeling's turned box


def read_labelme(
    source: Path, images: Path | None, unpacked: Path | None = None
) -> dict[str, Builder]:
    """Read all JSON files of a folder, or one; images are found by ``imagePath`` or by name.

    Args:
        unpacked: a folder for the images that are in the files themselves (``imageData``): written
            there where an image file is not to be found.

    Raises:
        InputError: if no JSON file there is one of LabelMe.
    """
    folder = source.parent if source.is_file() else source
    builder = Builder((images or folder).resolve())
    trees = {}
    files = [source] if source.is_file() else sorted(source.rglob("*.json"))
    for file in progress(files, "reading labels", unit="file"):
        if _is_labelme(tree := read_json(file)):
            trees[file] = tree
        else:
            builder.note(file.name, "is no file of LabelMe")
    if not trees:
        raise InputError(f"{source}: no JSON file of LabelMe is in it")
    kinds = {str(shape.get("shape_type")) for tree in trees.values() for shape in tree["shapes"]}
    boxes_only = kinds <= {"rectangle"}
    names = {file: _names(file, tree, folder, images) for file, tree in trees.items()}
    if unpacked is not None:
        _unpack_missing(builder, trees, names, unpacked.resolve())
    for file, entry in builder.images_of((file.name, names[file], file) for file in trees):
        tree = trees[file]
        if _is_set(tree.get("flags")):
            builder.note(file.name, "has flags", "the flags are left out")
        builder.compare_size(file.name, entry, tree.get("imageHeight"), tree.get("imageWidth"))
        groups: dict[Any, list[tuple[int, Shape]]] = {}
        for number, shape in enumerate(tree["shapes"], 1):
            group = shape.get("group_id")
            key = number if group is None else (str(shape.get("label")), str(group))
            groups.setdefault(key, []).append((number, shape))
        for members in groups.values():
            _object(builder, entry, file.name, members, boxes_only)
    return {"annotations": builder}


def _names(file: Path, tree: dict[str, Any], folder: Path, images: Path | None) -> list[str]:
    """What an image may be called: ``imagePath`` is a path from the label file's own folder."""
    path = str(tree["imagePath"]).replace("\\", "/")
    beside = file.parent.relative_to(folder)
    own = [] if images else [os.path.join(file.parent.resolve(), path)]
    return [*own, os.path.join(beside, path), path, (beside / file.stem).as_posix()]


def _unpack_missing(
    builder: Builder, trees: dict[Path, Any], names: dict[Path, list[str]], unpacked: Path
) -> None:
    """Write the images that are in label files and nowhere else; ``names`` then lead to them."""
    finder, any_other = ImageFinder(builder.root), False
    for file, tree in trees.items():
        if finder.find(*names[file]):
            any_other = True
        elif isinstance(tree.get("imageData"), str):
            path = unpacked / names[file][-1]
            names[file] = [_unpack(tree["imageData"], path) or ""]
            builder.note(file.name, "has its image inside", f"unpacked into {unpacked}")
    if not any_other and unpacked.is_dir():
        builder.root = unpacked


def _unpack(text: str, path: Path) -> str | None:
    """Write an image that is in a file as base64; its path, None if it is none."""
    try:
        data = base64.b64decode(text)
        with Image.open(io.BytesIO(data)) as picture:
            kind = str(picture.format).lower()
    except Exception:  # Pillow's decoders raise nearly everything on damaged files
        return None
    path = path.with_name(f"{path.name}.{'jpg' if kind == 'jpeg' else kind}")

    def write(file: Path) -> None:
        file.write_bytes(data)

    write_atomically(path, write)
    return str(path)


def _is_set(flags: Any) -> bool:
    return isinstance(flags, dict) and any(flags.values())


def _is_labelme(tree: Any) -> bool:
    if not isinstance(tree, dict) or "imagePath" not in tree:
        return False
    shapes = tree.get("shapes")
    return isinstance(shapes, list) and all(isinstance(shape, dict) for shape in shapes)


def _object(
    builder: Builder,
    image: dict[str, Any],
    file: str,
    members: list[tuple[int, Shape]],
    boxes_only: bool,
) -> None:
    """Add one object of one or more shapes."""
    polygons: list[list[float]] = []
    name = str(members[0][1].get("label"))
    where = f"{file}, shape {', '.join(str(number) for number, _ in members)}"
    size = image["height"], image["width"]
    for number, shape in members:
        kind, place = str(shape.get("shape_type") or "polygon"), f"{file}, shape {number}"
        points = points_of(shape.get("points"))
        if _is_set(shape.get("flags")):
            builder.note(place, "has flags", "the flags are left out")
        if not shape.get("label"):
            builder.refuse(place, "has no label")
        elif points is None or not len(points):
            builder.refuse(place, "has no points in numbers")
        elif kind == "mask":
            mask = _mask(shape, points, size)
            if mask is None:
                builder.refuse(place, "has a mask that does not decode")
            elif len(members) == 1:
                builder.mask(image, place, name, mask)
            else:
                polygons += outlines(rle_of(mask), *size)
        elif kind in POLYGONS:
            polygons.append(points.reshape(-1).tolist())
        elif kind == "rectangle" and len(points) >= 2:
            (left, top), (right, bottom) = points.min(0), points.max(0)
            if boxes_only:
                builder.box(image, place, name, [left, top, right - left, bottom - top])
            else:
                builder.note(place, "is a rectangle among polygons", "its corners are a polygon")
                polygons.append([left, top, right, top, right, bottom, left, bottom])
        elif kind == "circle" and len(points) == 2:
            radius = math.dist(*points)
            builder.note(place, "is a circle", "a polygon of 64 points")
            polygons.append(ellipse(points[0], (radius, radius)))
        else:
            builder.refuse(place, f"is a {kind}, which has no area")
    if polygons:
        builder.polygons(image, where, name, polygons)


def _mask(shape: Shape, points: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """A shape's PNG in its box as a mask of the image."""
    try:
        data = base64.b64decode(shape.get("mask") or "")
        with Image.open(io.BytesIO(data)) as picture:
            inside = np.asarray(picture.convert("L")) > 0
    except (binascii.Error, OSError, ValueError, TypeError):
        return None
    x, y = (int(value) for value in np.rint(points.min(0)))
    mask = np.zeros(size, bool)
    top, left = max(0, y), max(0, x)
    part = inside[top - y : top - y + size[0] - top, left - x : left - x + size[1] - left]
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return mask


def write_labelme(tree: dict[str, Any], folder: Path) -> None:
    """A JSON file for each image; the parts of a mask are polygons of one group.

    LabelMe opens a file only if its ``imagePath`` leads from there to the image: it does where the
    tree says in ``info`` where the images are.
    """
    root, files = tree.get("info", {}).get("image_root"), label_files(tree, ".json")
    names = {one["id"]: one["name"] for one in tree["categories"]}
    for image, items in by_image(tree):
        shapes: list[Shape] = []
        for number, item in enumerate(items, 1):
            if item.get("segmentation"):
                kind = "polygon"
                parts = outlines(item["segmentation"], image["height"], image["width"])
                found = [np.reshape(part, (-1, 2)).tolist() for part in parts]
            else:
                x, y, w, h = item["bbox"]
                kind, found = "rectangle", [[[x, y], [x + w, y + h]]]
            label = {"label": names[item["category_id"]], "flags": {}, "shape_type": kind}
            group = number if len(found) > 1 else None
            shapes += [label | {"points": points, "group_id": group} for points in found]
        path, name = folder / files[image["id"]], image["file_name"]
        place = Path(root, name) if root else path.with_name(Path(name).name)
        write_json(
            path,
            {
                "version": "5.0.0",
                "flags": {},
                "shapes": shapes,
                "imagePath": _way(path, place),
                "imageData": None,
                "imageHeight": image["height"],
                "imageWidth": image["width"],
            },
        )


def _way(file: Path, image: Path) -> str:
    """The path from a label file to an image; from the root where both have none in common."""
    try:
        return Path(os.path.relpath(image, file.parent)).as_posix()
    except ValueError:
        return image.as_posix()
