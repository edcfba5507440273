"""Repair faults of a COCO file that have one remedy; contradictions remain errors.

Beyond the other spellings that every reader takes (``detection.data.coco_file``):

  * text that is not Unicode is read as Windows-1252;
  * numbers written as text become numbers; ``iscrowd`` and ``ignore`` become 0 or 1 of ``iscrowd``;
  * annotation ids that are missing or used twice are given anew, an annotation, image or class that
    is listed twice word for word is kept once;
  * image ids of annotations that are file names, or have zeros before them, are those of the one
    image that fits; annotations of images that are not listed go, unless most are such;
  * polygons that are one flat list, lists of points (of numbers or of x and y) or a level too deep,
    and an RLE in a list, are written as COCO has them; polygons of fewer than 3 points or an odd
    count of numbers go where the object has others;
  * objects that have no mask at all go, where masks are wanted and most objects have one;
  * a missing box or area is the mask's; a box that leaves the image is cut to it, where it leaves
    by at most a pixel or agrees with the mask;
  * missing sizes of images are their files', and file names lead to the one file that fits, where
    no other image is in it;
  * a class 0 that nothing uses, which Roboflow writes, goes.
"""

from __future__ import annotations

from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util

from detection.data.checks.annotations import BOX_TOLERANCE, boxes_differ, is_id
from detection.data.checks.file_names import files_by_name
from detection.data.checks.problems import Findings, Problem
from detection.data.checks.segmentations import are_finite, as_rle, is_finite, mask_bounds
from detection.data.checks.spellings import (
    as_numbers,
    as_pairs,
    count_of,
    holds_text,
    is_numbers,
    number_of,
    polygons_of,
)
from detection.data.coco_file import LISTS, no_garbage_collection, read_coco
from detection.data.image_repair import repair_image_ids, repair_images
from training.progress import progress

GONE = "left out"
FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


def repair_coco(
    annotations: Path, image_folder: Path, masks: bool = True
) -> tuple[dict[str, Any], list[Problem]]:
    """Read a file and mend it; with ``masks`` every object must have one.

    Returns:
        The mended tree, {} for a file that is no COCO (the problem says what it is), and what was
        changed: each kind once, with every place.
    """
    changes = Findings(annotations)
    tree, _ = read_coco(annotations, changes, any_text=True)
    if tree:
        files_by_name.cache_clear()
        _Repair(tree, image_folder, masks, changes).run()
    return tree, changes.problems()


class _Repair:
    """One tree that is mended in place."""

    def __init__(self, tree: dict[str, Any], folder: Path, masks: bool, changes: Findings) -> None:
        self.tree, self.folder, self.masks, self.changes = tree, folder, masks, changes

    def run(self) -> None:
        for name in LISTS:
            self.tree[name] = self._listed_once(self.tree[name], name)
        repair_images(self.tree["images"], self.folder, self._say)
        with no_garbage_collection():
            self._annotations()
        self._class_0()

    def _say(self, where: str, what: str, done: str) -> None:
        self.changes.warn(where, what, done)

    def _listed_once(self, entries: list[dict], name: str) -> list[dict]:
        """Without entries that repeat an earlier one word for word."""
        counts = Counter(entry["id"] for entry in entries if is_id(entry.get("id")))
        first: dict[Any, dict] = {}
        kept = []
        for entry in entries:
            key = entry.get("id")
            twice = is_id(key) and counts[key] > 1
            if twice and first.setdefault(key, entry) is not entry and first[key] == entry:
                self._say(f"{name} {key}", "is listed twice, word for word", "kept once")
                continue
            kept.append(entry)
        return kept

    def _annotations(self) -> None:
        images = {image["id"]: image for image in self.tree["images"] if is_id(image.get("id"))}
        repair_image_ids(self.tree["annotations"], images, self._say)
        lost = sum(not _is_listed(item, images) for item in self.tree["annotations"])
        if lost * 2 > len(self.tree["annotations"]):
            lost = 0  # an error that stays: it is the ids that are wrong, or the list of images
        kept = []
        for item in progress(self.tree["annotations"], "repairing annotations", unit="object"):
            where = f"annotation {item.get('id')} (image {item.get('image_id')})"
            if not _is_listed(item, images):
                if lost:
                    self._say(where, "its image is not listed", GONE)
                else:
                    kept.append(item)
                continue
            self._objects(item, where)
            self._numbers(item, where)
            self._flags(item, where)
            self._polygons(item, where)
            self._geometry(item, images[item["image_id"]], where)
            kept.append(item)
        with_mask = sum(bool(item.get("segmentation")) for item in kept)
        if self.masks and with_mask * 2 >= len(kept):
            for item in kept:
                if not item.get("segmentation"):
                    where = f"annotation {item.get('id')} (image {item.get('image_id')})"
                    self._say(where, "has no mask", f"{GONE} (--no-masks keeps its box)")
            kept = [item for item in kept if item.get("segmentation")]
        self._number_anew(kept)
        self.tree["annotations"] = kept

    def _number_anew(self, items: list[dict[str, Any]]) -> None:
        seen: set[Any] = set()
        numbers = [item["id"] for item in items if type(item.get("id")) is int]
        unused = max([0, *numbers]) + 1
        for item in items:
            key = item.get("id")
            if not is_id(key) or key in seen or key == 0:
                self._say(f"annotation {key}", "id is missing, 0 or used twice", "given anew")
                item["id"] = key = unused
                unused += 1
            seen.add(key)

    def _objects(self, item: dict[str, Any], where: str) -> None:
        """What stands as an object in a list where COCO has none: an RLE, points {x, y}."""
        value = item.get("segmentation")
        if not isinstance(value, list):
            return
        if len(value) == 1 and isinstance(value[0], dict) and {"size", "counts"} <= value[0].keys():
            item["segmentation"] = value[0]
            self._say(where, "its RLE is in a list", "taken out")
        elif (pairs := as_pairs(value)) != value:
            item["segmentation"] = pairs
            self._say(where, "points are objects of x and y", "rewritten as numbers")

    def _numbers(self, item: dict[str, Any], where: str) -> None:
        """Numbers that are written as text."""
        if isinstance(item.get("area"), str) and (area := number_of(item["area"])) is not None:
            item["area"] = area
            self._say(where, "area is text", "made a number")
        for name in ("bbox", "segmentation"):
            value = item.get(name)
            parts = list(value.values()) if isinstance(value, dict) else [value]
            lists = [one for one in parts if isinstance(one, list) and not are_finite(one)]
            if any(map(holds_text, lists)):
                item[name] = as_numbers(value)
                self._say(where, f"{name} has numbers that are text", "made numbers")

    def _flags(self, item: dict[str, Any], where: str) -> None:
        crowd = item.get("iscrowd", 0)
        flag = FLAGS.get(str(crowd).lower())
        if flag is not None and type(crowd) is not int:
            item["iscrowd"] = flag
            self._say(where, "iscrowd is not written as 0 or 1", "it is so now")
        if FLAGS.get(str(item.get("ignore")).lower()) == 0 and item["ignore"]:
            item["ignore"] = 0
            self._say(where, "ignore is not written as 0 or 1", "it is so now")
        if item.get("ignore"):
            item["iscrowd"] = 1
            del item["ignore"]
            self._say(where, "has 'ignore'", "made a crowd: neither trained on nor counted")

    def _polygons(self, item: dict[str, Any], where: str) -> None:
        """Polygons as lists of x, y, x, y, ..., without those that are none beside good ones."""
        value = item.get("segmentation")
        if isinstance(value, dict):
            for name in ("size", "counts"):
                numbers: Any = value.get(name)
                is_whole = are_finite(numbers) and all(one == int(one) for one in numbers)
                if is_whole and any(isinstance(one, float) for one in numbers):
                    value[name] = [int(one) for one in numbers]
                    self._say(where, f"RLE {name} are written as 1.0 for 1", "made whole numbers")
            return
        if not isinstance(value, list) or not value:
            return
        if any(one is None for one in value):
            value = item["segmentation"] = [one for one in value if one is not None]
            self._say(where, "has polygons that are null", f"they are {GONE}")
        polygons = list(polygons_of(value))
        lengths = [len(one) if is_numbers(one) else -1 for one in value]
        is_whole = sum(map(len, polygons)) == count_of(value)
        if is_whole and list(map(len, polygons)) != lengths:
            value = item["segmentation"] = [array("d", polygon) for polygon in polygons]
            self._say(where, "polygons are not lists of x, y, x, y, ...", "rewritten so")
        good = [one for one in value if is_numbers(one) and len(one) >= 6 and len(one) % 2 == 0]
        bad = len(value) - len(good)
        if bad and all(map(is_numbers, value)):
            item["segmentation"] = good
            what = "polygons of fewer than 3 points or an odd count of numbers"
            self._say(where, f"has {what}", f"they are {GONE}")

    def _geometry(self, item: dict[str, Any], image: dict[str, Any], where: str) -> None:
        """Box and area, from the mask where they are missing or where they leave the image."""
        height, width = image.get("height"), image.get("width")
        if type(height) is not int or type(width) is not int or min(height, width) < 1:
            return
        bounds, segmentation = None, item.get("segmentation")
        if segmentation:
            try:
                bounds, _ = mask_bounds(segmentation, height, width)
            except ValueError:
                segmentation = None  # an error that stays
        box: Any = item.get("bbox")
        missing = box is None or (
            isinstance(box, list) and not any(is_finite(one) and one for one in box)
        )  # nothing, or nothing but 0, null and NaN
        if missing and bounds is not None:
            low = [max(0, edge) for edge in bounds[:2]]
            high = [min(side, edge) for side, edge in zip((width, height), bounds[2:], strict=True)]
            item["bbox"] = [*low, high[0] - low[0], high[1] - low[1]]
            self._say(where, "has no box", "the mask's is written")
        elif is_box(box) and (clipped := _clipped(box, bounds, image)):
            item["bbox"] = clipped
            self._say(where, "box leaves its image", "cut to it")
            if segmentation:
                item["area"] = float(mask_util.area(as_rle(segmentation, height, width)))
        area = item.get("area")
        if area is None or not is_finite(area) or area < 0:
            if segmentation:
                item["area"] = float(mask_util.area(as_rle(segmentation, height, width)))
                self._say(where, "has no area", "the mask's is written")
            elif is_box(item.get("bbox")):
                item["area"] = float(item["bbox"][2] * item["bbox"][3])
                self._say(where, "has no area", "the box's is written")

    def _class_0(self) -> None:
        used = {item.get("category_id") for item in self.tree["annotations"]}
        categories = self.tree["categories"]
        unused = [one for one in categories if one.get("id") == 0 and 0 not in used]
        if unused and len(categories) > len(unused):
            self.tree["categories"] = [one for one in categories if one.get("id") != 0]
            for category in unused:
                name = category.get("name")
                self._say(f"category 0 ({name})", "is a class 0 that no object has", GONE)


def _is_listed(item: dict[str, Any], images: dict[Any, dict[str, Any]]) -> bool:
    return is_id(item.get("image_id")) and item["image_id"] in images


def is_box(value: Any) -> bool:
    """Whether it is [x, y, width, height] of no negative size."""
    return are_finite(value) and len(value) == 4 and min(value[2:]) >= 0


def _clipped(box: Any, bounds: list[float] | None, image: dict[str, Any]) -> list[float] | None:
    """The part of a box in its image, None if it does not leave it or has no one remedy."""
    x, y, w, h = box
    width, height = image["width"], image["height"]
    left, top = max(0, x), max(0, y)
    right, bottom = min(width, x + w), min(height, y + h)
    if [left, top, right, bottom] == [x, y, x + w, y + h] or right <= left or bottom <= top:
        return None
    by = max(-x, -y, x + w - width, y + h - height)
    if by > BOX_TOLERANCE and (bounds is None or boxes_differ(box, bounds, image)):
        return None
    return [left, top, right - left, bottom - top]
