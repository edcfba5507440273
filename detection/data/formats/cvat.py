"""CVAT for images 1.1: one XML file, boxes, polygons, masks and ellipses in pixels.

'CVAT for video' is read too: the shapes of each track, frame by frame, without those ``outside``.

Shapes of one label and one ``group_id`` above 0 are one object, as in CVAT's own COCO export.
Brush masks become ordinary objects; CVAT's own COCO export would make crowds of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np
import pycocotools.mask as mask_util

from backbones.errors import InputError
from backbones.whole_files import write_text
from detection.data.checks.segmentations import as_rle, rle_of
from detection.data.formats.files import read_xml
from detection.data.formats.labels import GONE, Builder, by_image
from detection.data.formats.outlines import ellipse, outlines, turned

WITHOUT_AREA = ("polyline", "points", "skeleton", "cuboid", "tag")


def read_cvat(source: Path, images: Path | None) -> dict[str, Builder]:
    """Read ``annotations.xml``, or all such files of a folder.

    Raises:
        InputError: if there is none.
    """
    files = [source] if source.is_file() else sorted(source.rglob("*.xml"))
    folder = source.parent if source.is_file() else source
    root = (images or folder).resolve()
    trees = [tree for file in files if (tree := read_xml(file, "annotations")) is not None]
    if not trees:
        raise InputError(f"{source}: no XML of 'CVAT for images' is in it")
    labels = [label for tree in trees for label in tree.iterfind("meta//label")]
    # those with a parent are the points of a skeleton
    classes = [label.findtext("name") or "" for label in labels if label.find("parent") is None]
    builder = Builder(root, classes)
    entries = [entry for tree in trees for entry in tree.iterfind("image")]
    entries += [entry for tree in trees for entry in _frames(builder, tree)]
    subsets = dict.fromkeys(entry.get("subset") or "" for entry in entries)
    if len(subsets) > 1:
        builder.note(f"subsets {', '.join(subsets)}", "are in one file", "they are joined")
    for entry, image in builder.images_of(
        (entry.get("name", ""), _names(entry), entry) for entry in entries
    ):
        _read_image(builder, image, entry)
    return {"annotations": builder}


def _names(entry: ElementTree.Element) -> list[str]:
    """An export of a project has the images of each subset in a folder of its name."""
    name, subset = entry.get("name", ""), entry.get("subset")
    return [f"{subset}/{name}", name] if subset else [name]


def _frames(builder: Builder, tree: ElementTree.Element) -> list[ElementTree.Element]:
    """The shapes of tracks as one image element per frame, named ``frame_000000`` and so on."""
    frames: dict[int, ElementTree.Element] = {}
    for track in tree.iterfind("track"):
        for shape in track:
            number = shape.get("frame") or ""
            if shape.get("outside") == "1":
                where = f"track {track.get('id')}, frame {number}"
                builder.note(where, "is outside of the picture, says CVAT")
            elif number.isdecimal():
                name = f"frame_{int(number):06d}"
                frame = frames.setdefault(int(number), ElementTree.Element("image", name=name))
                shape.set("label", track.get("label", ""))
                frame.append(shape)
            else:
                builder.refuse(f"track {track.get('id')}", "has a shape without a frame")
    return [frames[number] for number in sorted(frames)]


def _read_image(builder: Builder, image: dict[str, Any], entry: ElementTree.Element) -> None:
    size = image["height"], image["width"]
    if entry.get("width") and (entry.get("height"), entry.get("width")) != tuple(map(str, size)):
        builder.note(
            image["file_name"], "has another size than CVAT states", "the image's is taken"
        )
    groups: dict[Any, list[tuple[str, ElementTree.Element]]] = {}
    for number, shape in enumerate(entry, 1):
        group = shape.get("group_id") or "0"
        key = number if group == "0" else (shape.get("label"), group)
        groups.setdefault(key, []).append((f"{image['file_name']}, shape {number}", shape))
    for members in groups.values():
        polygons: list[list[float]] = []
        where, first = members[0]
        name = first.get("label", "")
        for place, shape in members:
            if shape.find("attribute") is not None:
                builder.note(place, "has attributes", f"the attributes are {GONE}")
            try:
                polygons += _shape(builder, image, place, shape, alone=len(members) == 1)
            except (TypeError, ValueError):
                builder.refuse(place, f"is a {shape.tag} without the numbers that it needs")
        if polygons:
            builder.polygons(image, where, name, polygons)


def _shape(
    builder: Builder, image: dict[str, Any], where: str, shape: ElementTree.Element, alone: bool
) -> list[list[float]]:
    """The polygons of a shape; single boxes and masks are added here, and give none.

    Raises:
        TypeError, ValueError: for what is not there or is no number.
    """

    def number(key: str) -> float:
        return float(shape.get(key))  # type: ignore[arg-type]

    name, degrees = shape.get("label", ""), float(shape.get("rotation") or 0)
    if shape.tag == "box":
        left, top, right, bottom = map(number, ("xtl", "ytl", "xbr", "ybr"))
        if alone and not degrees:
            builder.box(image, where, name, [left, top, right - left, bottom - top])
            return []
        if degrees:
            builder.note(where, "is a turned box", "a polygon of its corners")
        centre = np.array([left + right, top + bottom]) / 2
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        return [(turned(corners - centre, degrees) + centre).reshape(-1).tolist()]
    if shape.tag == "polygon":
        points = (shape.get("points") or "").split(";")
        return [[float(value) for point in points for value in point.split(",")]]
    if shape.tag == "ellipse":
        builder.note(where, "is an ellipse", "a polygon of 64 points")
        cx, cy, rx, ry = map(number, ("cx", "cy", "rx", "ry"))
        return [ellipse((cx, cy), (rx, ry), degrees)]
    if shape.tag == "mask":
        mask = _mask(shape, image)
        if alone:
            builder.mask(image, where, name, mask)
            return []
        return outlines(rle_of(mask), *mask.shape)
    what = "which has no area" if shape.tag in WITHOUT_AREA else "which is unknown"
    builder.refuse(where, f"is a {shape.tag}, {what}")
    return []


def _mask(shape: ElementTree.Element, image: dict[str, Any]) -> np.ndarray:
    """A mask of runs within its box, row by row, the first of them empty."""
    x, y, w, h = (int(float(shape.get(key) or "")) for key in ("left", "top", "width", "height"))
    runs = np.array([int(run) for run in (shape.get("rle") or "").split(",")])
    values = np.repeat(np.arange(len(runs)) % 2, runs)
    mask = np.zeros((image["height"], image["width"]), bool)
    part = values.reshape(h, w)[: image["height"] - y, : image["width"] - x]
    mask[y : y + part.shape[0], x : x + part.shape[1]] = part
    return mask


def write_cvat(tree: dict[str, Any], folder: Path) -> None:
    """``annotations.xml``: polygons for masks of one part without holes, masks for the others."""
    names = {one["id"]: one["name"] for one in tree["categories"]}
    labels = "".join(
        f"<label><name>{quoteattr(str(name))[1:-1]}</name></label>" for name in names.values()
    )
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        "<annotations><version>1.1</version>",
        f"<meta><task><labels>{labels}</labels></task></meta>",
    ]
    for number, (image, items) in enumerate(by_image(tree)):
        name = quoteattr(str(image["file_name"]))
        height, width = image["height"], image["width"]
        lines.append(f'<image id="{number}" name={name} width="{width}" height="{height}">')
        for item in items:
            lines.append(_line(item, quoteattr(str(names[item["category_id"]])), height, width))
        lines.append("</image>")
    write_text(folder / "annotations.xml", "\n".join([*lines, "</annotations>", ""]))


def _line(item: dict[str, Any], label: str, height: int, width: int) -> str:
    start = f'label={label} occluded="0" source="auto" z_order="0"'
    if not item.get("segmentation"):
        x, y, w, h = item["bbox"]
        return f'<box {start} xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"/>'
    rle = as_rle(item["segmentation"], height, width)
    parts = outlines(rle, height, width)
    points = [list(zip(part[::2], part[1::2], strict=True)) for part in parts]
    if len(points) == 1 and len(set(points[0])) == len(points[0]):  # no hole is joined to it
        text = ";".join(f"{x:g},{y:g}" for x, y in points[0])
        return f'<polygon {start} points="{text}"/>'
    x, y, w, h = (int(value) for value in mask_util.toBbox(rle))
    inside = mask_util.decode(rle)[y : y + h, x : x + w].reshape(-1)
    ends = np.flatnonzero(np.diff(inside, prepend=np.uint8(0)))
    runs = np.diff([0, *ends.tolist(), inside.size])
    text = ", ".join(map(str, runs.tolist()))
    return f'<mask {start} rle="{text}" left="{x}" top="{y}" width="{w}" height="{h}"/>'
