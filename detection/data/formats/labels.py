"""The result of a reader of another format: a COCO tree, and a note of every change.

Nothing is dropped silently: :meth:`Builder.note` records what was changed or left out, where and
why.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pycocotools.mask as mask_util

from backbones.errors import InputError
from detection.data.checks.images import shown_size
from detection.data.checks.problems import Findings, Problem, shorten
from detection.data.checks.segmentations import rle_of
from detection.data.formats.files import ImageFinder
from detection.data.formats.outlines import enclosed
from detection.data.windows import encode_strips
from images.threads import in_threads
from training.progress import progress

GONE = "left out"

Labels = TypeVar("Labels")


class Builder:
    """Collects the images and objects of a COCO file.

    Args:
        root: what file names will be relative to.
        classes: their names, in order; others are added as they come.

    Attributes:
        read: number of labels that were found.
    """

    def __init__(self, root: Path, classes: Iterable[str] = ()) -> None:
        self.root = root
        self.classes: dict[str, int] = {}
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.notes = Findings(root)
        self.read = 0
        for name in classes:
            self.class_id(name)

    def class_id(self, name: str) -> int:
        return self.classes.setdefault(name, len(self.classes) + 1)

    def note(self, where: str, what: str, done: str = GONE) -> None:
        self.notes.warn(where, what, done)

    def refuse(self, where: str, what: str) -> None:
        """Leave out a label; for labels that reach no method that adds an object."""
        self.read += 1
        self.note(where, what)

    def images_of(
        self, labelled: Iterable[tuple[str, Sequence[str], Labels]]
    ) -> Iterator[tuple[Labels, dict[str, Any]]]:
        """Find and add the images of labels; yields the labels of each image and its entry.

        Images of the folder that no labels name are left out, and counted.

        Args:
            labelled: where the labels stand, what their image may be called, and the labels.
        """
        finder = ImageFinder(self.root)
        every = [(where, names, labels, finder.find(*names)) for where, names, labels in labelled]
        by_path = {hit.path for _, _, _, hit in every if hit and hit.by_path}
        called: dict[Path, set[str]] = {}
        for _, names, _, hit in every:
            if hit:
                called.setdefault(hit.path, set()).add(names[0].removesuffix(hit.path.suffix))
        found = []
        for where, _, labels, hit in every:
            if hit is None:
                self.note(where, "its image is not there")
            elif not hit.by_path and (hit.path in by_path or len(called[hit.path]) > 1):
                others = "and the only one of its name is another's"
                self.note(where, f"its image is not there, {others}")
            else:
                found.append((where, labels, hit.path))
        named = dict.fromkeys(path for _, _, path in found)
        self.widen(named)
        sizes, entries = self.sizes(list(named)), {}
        for where, labels, path in progress(found, "reading labels", len(found), "image"):
            if path not in sizes:
                continue
            if path in entries:
                self.note(where, "labels an image that others label", "their objects are joined")
            else:
                entries[path] = self.image(path, sizes[path])
            yield labels, entries[path]
        for path in finder.images:
            if path not in named:
                self.note(self.name(path), "is an image without labels")

    def widen(self, files: Iterable[Path]) -> None:
        """Take as root the innermost folder that holds it and all of these image files."""
        folders = {str(file.parent) for file in files}
        self.root = Path(os.path.commonpath([str(self.root), *folders]))

    def sizes(self, files: Sequence[Path]) -> dict[Path, tuple[int, int]]:
        """Height and width of image files as they are shown, but for those that are none."""
        found = {}
        with progress(text="reading image sizes", total=len(files), unit="image") as bar:
            for file, size in zip(files, in_threads(shown_size, files), strict=True):
                bar.update()
                if size is None:
                    self.note(self.name(file), "is no image that can be read")
                else:
                    found[file] = size
        return found

    def name(self, file: Path) -> str:
        """A file's name relative to the root."""
        return os.path.relpath(file, self.root).replace(os.sep, "/")

    def image(self, file: Path, size: tuple[int, int]) -> dict[str, Any]:
        """Add an image; its entry is what objects are added to."""
        height, width = size
        entry = {
            "id": len(self.images) + 1,
            "file_name": self.name(file),
            "height": height,
            "width": width,
        }
        self.images.append(entry)
        return entry

    def compare_size(self, where: str, image: dict[str, Any], *stated: Any) -> None:
        """Note height and width that labels state and their image has not; None states nothing."""
        if None not in stated and stated != (image["height"], image["width"]):
            self.note(where, "states another size than its image has", "the image's is taken")

    def box(
        self, image: dict[str, Any], where: str, name: str, box: Sequence[float], crowd: int = 0
    ) -> None:
        """Add an object that has a box only: x, y, width, height in pixels."""
        self.read += 1
        x, y, w, h = box
        left, top = max(0.0, x), max(0.0, y)
        right, bottom = min(image["width"], x + w), min(image["height"], y + h)
        if not (w > 0 and h > 0 and right > left and bottom > top):
            self.note(where, "has no area in its image")
            return
        if max(left - x, top - y, x + w - right, y + h - bottom) > 0.01:
            self.note(where, "box leaves its image", "cut to it")
        found = [left, top, right - left, bottom - top]
        self._add(image, name, found, None, found[2] * found[3], crowd)

    def polygons(
        self,
        image: dict[str, Any],
        where: str,
        name: str,
        polygons: Sequence[Sequence[float]],
        crowd: int = 0,
    ) -> None:
        """Add an object of one or more polygons [x, y, x, y, ...] in pixels."""
        self.read += 1
        kept, moved = [], False
        for polygon in polygons:
            points = np.asarray(polygon, np.float64).reshape(-1, 2)
            inside = points.clip(0, [image["width"], image["height"]])
            moved |= bool(np.abs(inside - points).max(initial=0) > 0.01)
            if len(points) >= 3 and enclosed(inside) > 0:
                kept.append(inside)
            elif len(polygons) > 1:
                self.note(where, "has a part without area", f"the part is {GONE}")
        if not kept:
            self.note(where, "polygon has no area in its image")
            return
        if moved:
            self.note(where, "polygon leaves its image", "its points are moved to the border")
        every = np.concatenate(kept)
        low, high = every.min(0), every.max(0)
        box = [*low.tolist(), *(high - low).tolist()]
        flat = [points.reshape(-1).tolist() for points in kept]
        self._add(image, name, box, flat, float(sum(map(enclosed, kept))), crowd)

    def mask(
        self, image: dict[str, Any], where: str, name: str, mask: np.ndarray, crowd: int = 0
    ) -> None:
        """Add an object by its mask, bool ``[height, width]``."""
        self.read += 1
        if mask.shape != (image["height"], image["width"]):
            size = f"{mask.shape[1]} x {mask.shape[0]}"
            self.note(f"{where} ({size})", "mask has another size than its image")
            return
        rle = rle_of(mask)
        if not (area := float(mask_util.area(rle))):
            self.note(where, "mask is empty")
            return
        box = mask_util.toBbox(rle).tolist()
        self._add(image, name, box, rle, area, crowd)

    def mask_part(
        self, image: dict[str, Any], where: str, name: str, inside: np.ndarray, x: int, y: int
    ) -> None:
        """Add an object by a part of its mask, bool ``[h, w]``, that begins at x, y and has all.

        So a map of a thousand objects costs the area of their boxes, not of a thousand whole masks.
        """
        self.read += 1
        rle = encode_strips([(inside, x)], y, image["height"], image["width"])
        height, width = inside.shape
        self._add(image, name, [x, y, width, height], rle, float(inside.sum()), 0)

    def _add(
        self,
        image: dict[str, Any],
        name: str,
        box: list[float],
        segmentation: Any,
        area: float,
        crowd: int,
    ) -> None:
        entry = {
            "id": len(self.annotations) + 1,
            "image_id": image["id"],
            "category_id": self.class_id(name),
            "bbox": [round(value, 4) for value in box],
            "area": round(area, 4),
            "iscrowd": crowd,
        }
        if segmentation is not None:
            entry["segmentation"] = (
                segmentation
                if isinstance(segmentation, dict)
                else [[round(value, 4) for value in polygon] for polygon in segmentation]
            )
        self.annotations.append(entry)

    def tree(self) -> dict[str, Any]:
        """The COCO file."""
        return {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": key, "name": name} for name, key in self.classes.items()],
        }

    def problems(self) -> list[Problem]:
        """The changes and omissions, each kind once."""
        return self.notes.problems()


def by_image(tree: dict[str, Any]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each image of a COCO file with its annotations."""
    found: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in tree["images"]}
    for item in tree["annotations"]:
        found[item["image_id"]].append(item)
    return [(image, found[image["id"]]) for image in tree["images"]]


def label_files(tree: dict[str, Any], ending: str) -> dict[Any, Path]:
    """Image id -> the name of its label file, in formats that have one for each image.

    Raises:
        InputError: for images whose names differ only in their endings.
    """
    files = {one["id"]: Path(one["file_name"]).with_suffix(ending) for one in tree["images"]}
    names: dict[Path, list[str]] = {}
    for image in tree["images"]:
        names.setdefault(files[image["id"]], []).append(image["file_name"])
    if same := [" and ".join(several) for several in names.values() if len(several) > 1]:
        raise InputError(
            f"{shorten(same)}: would have the same label file; rename one, or write coco or cvat, "
            "which have one file for all images"
        )
    return files
