"""All problems of a COCO-format data set at once, before any training starts.

Errors stop a training; warnings do not, but a reader of the results should know of them. The rules:

  * a box may reach 1 pixel beyond its image (rounding in annotation tools), not more;
  * a negative width or height is an error; a box of zero area is a warning, since official COCO
    has two: training drops it, as detectron2 does, and evaluation keeps it;
  * a polygon needs 3 points; one that has fewer is dropped with a warning where the same object has
    others, and is an error where it has not;
  * a run-length encoding must have its image's size and exactly its number of pixels (pycocotools
    fills what is missing from uninitialised memory);
  * an image's header must give the size that the annotations give, EXIF rotation applied, since
    that is how both engines read it.

Images are decoded in full where asked; otherwise only their headers are read.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from detection.image_check import READERS, file_fault, shared_images
from detection.segmentation_check import is_finite, mask_bounds

BOX_TOLERANCE = 1.0
MASK_BOX_TOLERANCE = 0.1
DECODED_UP_TO = 2000


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: in which file, where in it, what, and what to do about it."""

    severity: Literal["error", "warning"]
    file: str
    where: str
    message: str
    remedy: str

    def __str__(self) -> str:
        place = f"{self.file}: {self.where}" if self.where else self.file
        return f"{place}: {self.message}; {self.remedy}"


class _Findings:
    """Errors as they come; warnings of the same words become one that lists where."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)
        self.errors: list[Problem] = []
        self.places: dict[tuple[str, str], list[str]] = {}

    def error(self, where: str, message: str, remedy: str, file: str = "") -> None:
        self.errors.append(Problem("error", file or self.file, where, message, remedy))

    def warn(self, where: str, message: str, remedy: str) -> None:
        self.places.setdefault((message, remedy), []).append(where)

    def problems(self) -> list[Problem]:
        warnings = [
            Problem("warning", self.file, _shorten(places), message, remedy)
            for (message, remedy), places in self.places.items()
        ]
        return self.errors + warnings


def _shorten(places: list[str], shown: int = 5) -> str:
    rest = f" and {len(places) - shown} more" if len(places) > shown else ""
    return ", ".join(places[:shown]) + rest


def check_coco(
    annotations: Path,
    image_folder: Path,
    masks: bool = True,
    check_images: bool = True,
    decode: bool | None = None,
) -> tuple[dict[str, Any], list[Problem]]:
    """Read a COCO annotation file and find everything that is wrong with it and its images.

    Args:
        annotations: the json file.
        image_folder: what its file names are relative to.
        masks: whether every object must have a segmentation.
        check_images: open the image files at all.
        decode: decode each image in full; ``None`` decodes if there are at most 2000.

    Returns:
        The parsed file (empty if there is none to speak of), and the problems, errors first.
    """
    findings = _Findings(annotations)
    tree = _read(annotations, findings)
    if tree:
        images = _check_images(tree["images"], findings)
        categories = _check_categories(tree["categories"], findings)
        _check_annotations(tree["annotations"], images, categories, masks, findings)
        if check_images:
            decode = len(images) <= DECODED_UP_TO if decode is None else decode
            usable = [image for image in images.values() if image]
            _check_image_files(usable, image_folder, decode, findings)
    return tree, findings.problems()


def _read(path: Path, findings: _Findings) -> dict[str, Any]:
    """The parsed file, or {} where it does not even have COCO's three lists of objects."""
    form = "a COCO file is {'images': [...], 'annotations': [...], 'categories': [...]}"
    try:
        tree = json.loads(path.read_bytes())
    except OSError as error:
        findings.error("", f"cannot be read ({error.strerror})", "correct the path")
        return {}
    except ValueError as error:
        findings.error("", f"is not JSON ({error})", form)
        return {}
    if not isinstance(tree, dict):
        hint = " (it looks like COCO results, not annotations)" if _is_results(tree) else ""
        findings.error("", f"is not COCO: it holds a {type(tree).__name__}{hint}", form)
        return {}
    for key in ("images", "annotations", "categories"):
        if key not in tree:
            findings.error("", f"is not COCO: it has no {key!r}", form)
        elif not isinstance(tree[key], list):
            kind = type(tree[key]).__name__
            findings.error("", f"is not COCO: {key!r} is a {kind}, not a list", form)
        elif wrong := [i for i, item in enumerate(tree[key]) if not isinstance(item, dict)]:
            findings.error(
                f"{key}[{wrong[0]}]", f"is not an object, nor are {len(wrong) - 1} others", form
            )
    return {} if findings.errors else tree


def _is_results(tree: Any) -> bool:
    return (
        isinstance(tree, list) and bool(tree) and isinstance(tree[0], dict) and "score" in tree[0]
    )


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _ids(items: list[dict], name: str) -> set[Any]:
    return {item[name] for item in items if _is_id(item.get(name))}


def _unique(items: list[dict], kind: str, findings: _Findings) -> dict[Any, dict]:
    """The objects by id; those without a usable id are errors and left out."""
    by_id: dict[Any, dict] = {}
    for index, item in enumerate(items):
        key = item.get("id")
        if not _is_id(key):
            findings.error(f"{kind}[{index}]", f"id is {key!r}", "give it a number of its own")
        elif key in by_id:
            findings.error(f"{kind}[{index}]", f"id {key} is used twice", "make the ids unique")
        else:
            by_id[key] = item
    return by_id


def _check_images(images: list[dict], findings: _Findings) -> dict[Any, dict | None]:
    """Image id -> entry, or ``None`` for an entry that cannot be used (an error)."""
    if not images:
        findings.error("", "has no images", "list the images in 'images'")
    checked: dict[Any, dict | None] = {}
    for key, image in _unique(images, "images", findings).items():
        checked[key] = None
        size = image.get("height"), image.get("width")
        if not all(type(side) is int and side > 0 for side in size):
            findings.error(
                f"image {key}", f"height and width are {size}", "give positive whole numbers"
            )
        elif not isinstance(image.get("file_name"), str) or not image["file_name"]:
            findings.error(
                f"image {key}", f"file_name is {image.get('file_name')!r}", "give the file's name"
            )
        else:
            checked[key] = image
    names = Counter(image["file_name"] for image in checked.values() if image)
    for name in (name for name, count in names.items() if count > 1):
        findings.warn(name, "is listed as several images", "list each file once")
    return checked


def _check_categories(categories: list[dict], findings: _Findings) -> set[Any]:
    if not categories:
        findings.error("", "has no categories", "list the classes in 'categories'")
    by_id = _unique(categories, "categories", findings)
    for key, category in by_id.items():
        if not isinstance(category.get("name"), str):
            findings.error(
                f"category {key}", f"name is {category.get('name')!r}", "give the class a name"
            )
    if len({type(key) for key in by_id}) > 1:
        findings.error("categories", "ids are numbers and strings mixed", "use numbers")
    names = Counter(str(category.get("name")) for category in by_id.values())
    for name in (name for name, count in names.items() if count > 1):
        findings.warn(f"category {name!r}", "is the name of several ids", "merge or rename them")
    return set(by_id)


def _check_annotations(
    annotations: list[dict], images: dict, categories: set, masks: bool, findings: _Findings
) -> None:
    for annotation in _unique(annotations, "annotations", findings).values():
        where = f"annotation {annotation['id']} (image {annotation.get('image_id')})"
        for fault in _annotation_faults(annotation, images, categories, masks, where, findings):
            findings.error(where, *fault)
    used = _ids(annotations, "category_id")
    for key in sorted(categories - used, key=str):
        findings.warn(f"category {key}", "has no annotation", "remove it, or expect no AP for it")
    for key in sorted(set(images) - _ids(annotations, "image_id"), key=str):
        findings.warn(
            f"image {key}",
            "has no annotation",
            "nothing if it shows no object; training leaves it out (FILTER_EMPTY_ANNOTATIONS)",
        )


def _annotation_faults(
    annotation: dict, images: dict, categories: set, masks: bool, where: str, findings: _Findings
) -> Iterator[tuple[str, str]]:
    """Yield (what is wrong, remedy) of one annotation; warnings go to the findings."""
    if annotation["id"] == 0:
        findings.warn(where, "id 0 means 'no match' to pycocotools", "number from 1")
    category, iscrowd = annotation.get("category_id"), annotation.get("iscrowd", 0)
    if not _is_id(category) or category not in categories:
        yield (
            f"category_id {category!r} is not in 'categories'",
            f"add it there, or use one of {_shorten(sorted(map(str, categories)))}",
        )
    if iscrowd not in (0, 1):
        yield f"iscrowd is {iscrowd!r}", "it is 1 for a crowd region and 0 else"
    if annotation.get("ignore", 0):
        yield "'ignore' is not supported", "remove the object, or set iscrowd 1"
    image_id = annotation.get("image_id")
    if not _is_id(image_id) or image_id not in images:
        yield f"image_id {image_id!r} is not in 'images'", "add the image, or correct the id"
        return
    if not (image := images[image_id]):
        return
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(is_finite(v) for v in box):
        yield f"bbox is {box!r}", "it is [x, y, width, height] in pixels"
        return
    yield from _box_faults(box, image, where, findings)
    segmentation = annotation.get("segmentation")
    if not segmentation:
        if masks:
            yield (
                f"segmentation is {segmentation!r}",
                "add a polygon or RLE, or train without masks: MODEL.MASK_ON False",
            )
        return
    try:
        bounds, dropped = mask_bounds(segmentation, image["height"], image["width"])
    except ValueError as error:
        yield f"segmentation {error}", "correct or remove it"
        return
    if dropped:
        findings.warn(where, "has polygons of fewer than 3 points", "they are dropped")
    if not iscrowd and _differ(box, bounds):
        findings.warn(where, "box and mask are of different places", "correct one of them")


def _box_faults(
    box: list[float], image: dict, where: str, findings: _Findings
) -> Iterator[tuple[str, str]]:
    x, y, width, height = box
    if width < 0 or height < 0:
        yield f"bbox {box} has a negative size", "it is [x, y, width, height] in pixels"
    elif width == 0 or height == 0:
        findings.warn(where, "box has no area", "training drops it; correct or remove it")
    if (
        min(x, y) < -BOX_TOLERANCE
        or x + width > image["width"] + BOX_TOLERANCE
        or y + height > image["height"] + BOX_TOLERANCE
    ):
        yield (
            f"bbox {box} reaches outside its image of {image['width']} x {image['height']}",
            "it is [x, y, width, height] in pixels; clip it to the image",
        )


def _differ(box: list[float], bounds: list[float]) -> bool:
    """Whether an edge of the mask is off the box's by over 2 pixels and over 10% of its size."""
    x, y, width, height = box
    edges = (x, y, x + width, y + height)
    slack = (max(2.0, MASK_BOX_TOLERANCE * width), max(2.0, MASK_BOX_TOLERANCE * height)) * 2
    return any(abs(a - b) > limit for a, b, limit in zip(edges, bounds, slack, strict=True))


def _check_image_files(images: list[dict], folder: Path, decode: bool, findings: _Findings) -> None:
    if not folder.is_dir():
        findings.error("", "is not a folder", "give the folder of the images", file=str(folder))
        return
    progress = tqdm(total=len(images), desc=f"checking {folder.name}", unit="image", disable=None)
    with ThreadPoolExecutor(READERS) as readers, progress:
        for image, fault in zip(
            images,
            readers.map(lambda image: file_fault(image, folder, decode), images),
            strict=True,
        ):
            progress.update()
            if fault:
                path = os.path.join(folder, image["file_name"])
                findings.error(f"image {image['id']}", *fault, file=path)


def check_overlap(
    first: tuple[Path, dict[str, Any], Path], second: tuple[Path, dict[str, Any], Path]
) -> list[Problem]:
    """An error for each image of the first data set that the second has too, by its pixels.

    Args:
        first, second: (annotation file, its content, image folder), as :func:`check_coco` takes
            and gives them.
    """
    names = [
        [image["file_name"] for image in tree["images"] if isinstance(image.get("file_name"), str)]
        for _, tree, _ in (first, second)
    ]
    remedy = "leave it out of one of them: what is trained on cannot be evaluated on"
    return [
        Problem("error", str(first[0]), name, f"has the pixels of {other} of {second[0]}", remedy)
        for name, other in shared_images(names[0], first[2], names[1], second[2])
    ]
