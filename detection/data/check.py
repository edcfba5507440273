"""All problems of a COCO-format data set at once, before any training starts.

Errors stop a training; warnings do not, but a reader of the results should know of them. The rules:

  * a box may reach 1 pixel beyond its image (rounding in annotation tools), not more;
  * a negative width or height is an error; a box of zero area is a warning, since official COCO
    has two: training drops it, as detectron2 does, and evaluation keeps it;
  * a polygon needs 3 points; one that has fewer is dropped with a warning where the same object has
    others, and is an error where it has not;
  * a run-length encoding must have its image's size and exactly its number of pixels (pycocotools
    fills what is missing from uninitialised memory);
  * box and area of an object should be its mask's: an edge of the box within 2 pixels or 10%, the
    area within 10 pixels or 10%. Crowds are not held to it: COCO's own are up to 45% off;
  * an image's header must give the size that the annotations give, EXIF rotation applied, since
    that is how both engines read it; a rotation that leaves the size as it is is a warning;
  * images have 8 or 16 bits a channel, of which the upper 8 are read (``images.decode``); that
    there are such with 16, and with both, is a warning, and so is one that would be read as black.

Images are decoded in full where asked; otherwise only their headers are read.
"""

from __future__ import annotations

import gc
import json
import os
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

from detection.data.annotation_check import check_annotations, index_by_id
from detection.data.image_check import (
    ImageFile,
    file_state,
    leaves_folder,
    shared_images,
)
from detection.data.problems import Findings, Problem, is_text
from images.size_limit import size_fault
from images.threads import in_threads
from training.progress import progress

DECODED_UP_TO = 2000


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
    findings = Findings(annotations)
    tree = _read(annotations, findings)
    if tree:
        images = _check_images(tree["images"], findings)
        categories = _check_categories(tree["categories"], findings)
        check_annotations(tree["annotations"], images, categories, masks, findings)
        if check_images:
            decode = len(images) <= DECODED_UP_TO if decode is None else decode
            usable = [image for image in images.values() if image]
            _check_image_files(usable, image_folder, decode, findings)
    return tree, findings.problems()


def _read(path: Path, findings: Findings) -> dict[str, Any]:
    """The parsed file, or {} where it does not even have COCO's three lists of objects."""
    form = "a COCO file is {'images': [...], 'annotations': [...], 'categories': [...]}"
    collects_garbage = gc.isenabled()
    gc.disable()  # looking for cycles in millions of new lists doubles the time on COCO
    try:
        tree = _parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        findings.error("", f"cannot be read ({error.strerror})", "correct the path")
        return {}
    except (ValueError, RecursionError) as error:  # of lists in lists in lists ...
        findings.error("", f"is not JSON ({error})", form)
        return {}
    finally:
        if collects_garbage:
            gc.enable()
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


def _parse(text: str) -> Any:
    """What json gives, but polygons are arrays: 8 bytes a number, of which a list takes 32."""

    def compact(entry: dict[str, Any]) -> dict[str, Any]:
        if "image_id" in entry:
            bar.update()
        if isinstance(polygons := entry.get("segmentation"), list):
            entry["segmentation"] = list(map(_as_array, polygons))
        return entry

    with progress(text="reading", total=text.count('"image_id"'), unit="object") as bar:
        return json.loads(text, object_hook=compact)


def _as_array(polygon: Any) -> Any:
    """A list of numbers as an array; anything else as it is."""
    if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
        return polygon
    try:
        return array("d", polygon)
    except OverflowError:  # an integer beyond floating point: json has any
        return polygon


def _is_results(tree: Any) -> bool:
    return (
        isinstance(tree, list) and bool(tree) and isinstance(tree[0], dict) and "score" in tree[0]
    )


def _check_images(images: list[dict], findings: Findings) -> dict[Any, dict | None]:
    """Image id -> entry, or ``None`` for an entry that cannot be used (an error)."""
    if not images:
        findings.error("", "has no images", "list the images in 'images'")
    checked: dict[Any, dict | None] = {}
    for key, image in index_by_id(images, "images", findings).items():
        checked[key] = None
        size: tuple[Any, Any] = image.get("height"), image.get("width")
        if not all(type(side) is int and side > 0 for side in size):
            findings.error(
                f"image {key}", f"height and width are {size}", "give positive whole numbers"
            )
        elif fault := size_fault(*size):
            findings.error(
                f"image {key}", f"height and width are {fault}", "correct them, or cut the image"
            )
        elif not is_text(image.get("file_name")) or not image["file_name"]:
            findings.error(
                f"image {key}", f"file_name is {image.get('file_name')!r}", "give the file's name"
            )
        elif leaves_folder(image["file_name"]):
            findings.error(
                f"image {key}",
                f"file_name {image['file_name']!r} lies outside the image folder",
                "give file_name relative to the image folder",
            )
        else:
            checked[key] = image
    if len({type(key) for key in checked}) > 1:
        findings.error("images", "ids are numbers and strings mixed", "use numbers")
    names = Counter(image["file_name"] for image in checked.values() if image)
    for name in (name for name, count in names.items() if count > 1):
        findings.warn(name, "is listed as several images", "list each file once")
    return checked


def _check_categories(categories: list[dict], findings: Findings) -> set[Any]:
    if not categories:
        findings.error("", "has no categories", "list the classes in 'categories'")
    by_id = index_by_id(categories, "categories", findings)
    for key, category in by_id.items():
        if not is_text(category.get("name")):
            findings.error(
                f"category {key}", f"name is {category.get('name')!r}", "give the class a name"
            )
    if len({type(key) for key in by_id}) > 1:
        findings.error("categories", "ids are numbers and strings mixed", "use numbers")
    names = Counter(str(category.get("name")) for category in by_id.values())
    for name in (name for name, count in names.items() if count > 1):
        findings.warn(f"category {name!r}", "is the name of several ids", "merge or rename them")
    return set(by_id)


def _check_image_files(images: list[dict], folder: Path, decode: bool, findings: Findings) -> None:
    if not folder.is_dir():
        findings.error("", "is not a folder", "give the folder of the images", file=str(folder))
        return
    if len(images) > 1 and not any(os.path.isfile(folder / image["file_name"]) for image in images):
        findings.error(
            f"images {images[0]['file_name']} ... {images[-1]['file_name']}",
            f"none of the {len(images)} images is there",
            "give the folder that the file names are relative to",
            file=str(folder),
        )
        return
    bar = progress(text=f"checking {folder.name}", total=len(images), unit="image")
    depths: dict[int, list[str]] = {8: [], 16: []}
    with bar:
        states = in_threads(lambda image: file_state(image, folder, decode), images)
        for image, state in zip(images, states, strict=True):
            bar.update()
            where = f"image {image['id']} ({image['file_name']})"
            for fault in state.faults:
                if fault.severity == "error":
                    path = os.path.join(folder, image["file_name"])
                    findings.error(f"image {image['id']}", fault.message, fault.remedy, file=path)
                else:
                    findings.warn(where, fault.message, fault.remedy)
            if state.bits:
                depths[state.bits].append(where)
    for where in depths[16]:
        others = f", but {len(depths[8])} other images have 8" if depths[8] else ""
        remedy = "the upper 8 are read, 65535 as 255: make sure that 65535 is white"
        findings.warn(where, f"has 16 bits a channel{others}", remedy)


def image_files(tree: dict[str, Any], folder: Path) -> list[ImageFile]:
    """The image files that a COCO file lists, without the entries that :func:`check_coco` refuses.

    Args:
        tree: the parsed file.
        folder: what its file names are relative to.
    """
    return [
        ImageFile(os.path.join(folder, image["file_name"]), (image["height"], image["width"]))
        for image in tree.get("images", [])
        if is_text(image.get("file_name"))
        and not leaves_folder(image["file_name"])
        and {"height", "width"} <= image.keys()
    ]


def check_overlap(
    files: list[ImageFile], others: list[ImageFile], name: str, other_name: str, pixels: bool
) -> list[Problem]:
    """An error for each image that two data sets share, as :func:`shared_images` finds them.

    Args:
        files, others: the images of either data set.
        name, other_name: what to call the data sets: their annotation files.
        pixels: compare decoded pixels too, and not only the files' bytes.
    """
    remedy = f"leave it out of one of {name} and {other_name}: what is trained on proves nothing"
    return [
        Problem(
            "error",
            path,
            (),
            f"has the {how} of {other}" if path != other else "is in both",
            remedy,
        )
        for path, other, how in shared_images(files, others, pixels)
    ]
