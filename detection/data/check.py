"""Find all problems of a COCO-format data set at once, before any training starts.

Errors stop a training; warnings do not, but a reader of the results should know of them. The rules:

  * other spellings of what COCO says are read as they are meant, with a warning
    (``detection.data.coco_file``), and so are file names with back-slashes, percent signs or a path
    that leads into the image folder (``detection.data.checks.file_names``);
  * what has one remedy but changes the data is an error that ``--repair`` mends
    (``detection.data.repair``);
  * a box may reach 1 pixel beyond its image (rounding in annotation tools), not more;
  * a negative width or height is an error; a box of zero area is a warning, since official COCO
    has two: training drops it, as detectron2 does, and evaluation keeps it;
  * a polygon needs 3 points; one that has fewer is dropped with a warning where the same object has
    others, and is an error where it has not;
  * a run-length encoding must have its image's size and exactly its number of pixels (pycocotools
    fills what is missing from uninitialised memory);
  * box and area of an object should be its mask's, as its points or as its pixels have it: an edge
    of the box within 2 pixels or 10%, the area within 10 pixels or 10%. What is cut by the image's
    border is compared within it. Crowds are not compared: COCO's own are up to 45% off;
  * crowds are not trained on, and images without objects are left out: warnings say how many;
  * an image's header must give the size that the annotations give, EXIF rotation applied, since
    that is how both engines read it; a rotation that leaves the size as it is is a warning;
  * images are read by ``images.files``: any depth, and one number of channels in a set, where a
    config says how many that number; other depths than most images have are a warning, and so are
    16 bits of which a 12-bit camera uses the lower part; NaN and values beyond a stated range are
    errors.

Images are decoded in full where asked; otherwise only their headers are read.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from backbones.errors import counted
from detection.data.checks.annotations import REPAIR, Demands, check_annotations, index_by_id, is_id
from detection.data.checks.file_names import find_file, leaves_folder, only_file_of_name
from detection.data.checks.images import (
    ANY,
    FileState,
    file_state,
)
from detection.data.checks.problems import Findings, Problem, is_text
from detection.data.coco_file import read_coco
from images.files import Reading
from images.size_limit import MAX_PIXELS_IN_PARTS, size_fault
from images.threads import in_threads
from training.progress import progress

DECODED_UP_TO = 2000


def check_coco(
    annotations: Path,
    image_folder: Path | None,
    masks: bool = True,
    check_images: bool = True,
    decode: bool | None = None,
    reading: Reading = ANY,
) -> tuple[dict[str, Any], list[Problem]]:
    """Read a COCO annotation file and find everything that is wrong with it and its images.

    Args:
        image_folder: what its file names are relative to; None where they do not matter.
        masks: whether every object must have a segmentation.
        decode: decode each image in full; ``None`` decodes if there are at most 2000.

    Returns:
        The parsed file (empty if it could not be read), and the problems, errors first.
    """
    findings = Findings(annotations)
    tree, _ = read_coco(annotations, findings)
    if tree:
        check_tree(tree, image_folder, findings, masks, check_images, decode, reading=reading)
    return tree, findings.problems()


def check_tree(
    tree: dict[str, Any],
    image_folder: Path | None,
    findings: Findings,
    masks: bool = True,
    check_images: bool = True,
    decode: bool | None = None,
    for_training: bool = True,
    reading: Reading = ANY,
) -> None:
    """Find what is wrong in a file that :func:`read_coco` read; see :func:`check_coco`.

    File names that are found under another spelling get the one that the folder has.

    Args:
        reading: how images become arrays.
        for_training: False for what only is evaluated: boxes are taken as they stand, wherever they
            reach, and nothing is said of what a training leaves out.
    """
    images = _check_images(tree["images"], image_folder, findings)
    categories = _check_categories(tree["categories"], findings)
    check_annotations(
        tree["annotations"], images, categories, Demands(masks, for_training), findings
    )
    if check_images and image_folder is not None:
        decode = len(images) <= DECODED_UP_TO if decode is None else decode
        usable = [image for image in images.values() if image]
        _check_image_files(usable, image_folder, decode, findings, reading)


def _check_images(
    images: list[dict], folder: Path | None, findings: Findings
) -> dict[Any, dict | None]:
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
        elif fault := size_fault(*size, most=MAX_PIXELS_IN_PARTS):
            findings.error(
                f"image {key}", f"height and width are {fault}", "correct them, or cut the image"
            )
        elif folder is None or _has_file_name(image, folder, findings):
            checked[key] = image
    if len({type(key) for key in checked}) > 1:
        findings.error("images", "ids are numbers and strings mixed", "use numbers")
    names = Counter(image.get("file_name") for image in checked.values() if image)
    for name in (name for name, count in names.items() if count > 1 and name):
        findings.warn(name, "is listed as several images", "list each file once")
    return checked


def _has_file_name(image: dict, folder: Path, findings: Findings) -> bool:
    """Whether an entry names a file in the folder; it gets the name that the file has there."""
    where, name = f"image {image['id']}", image.get("file_name")
    if not is_text(name) or not name:
        findings.error(where, f"file_name is {name!r}", "give the file's name")
        return False
    found = find_file(folder, name)
    if found is not None:
        if found.how:
            image["file_name"] = found.name
            findings.warn(f"{where} ({name})", found.how, "the file that is there is read")
        return True
    if leaves_folder(name):
        remedy = "give file_name relative to the image folder"
        if only_file_of_name(folder, name):
            remedy += f": {REPAIR} finds the file by its name"
        findings.error(where, f"file_name {name!r} lies outside the image folder", remedy)
        return False
    return True


def _check_categories(categories: list[dict], findings: Findings) -> set[Any]:
    if not categories:
        findings.error("", "has no categories", "list the classes in 'categories'")
    by_id = index_by_id(categories, "categories", findings)
    for key, category in by_id.items():
        if not is_text(category.get("name"), null=True):
            findings.error(
                f"category {key}", f"name is {category.get('name')!r}", "give the class a name"
            )
    if len({type(key) for key in by_id}) > 1:
        findings.error("categories", "ids are numbers and strings mixed", "use numbers")
    names = Counter(str(category.get("name")) for category in by_id.values())
    for name in (name for name, count in names.items() if count > 1):
        findings.warn(f"category {name!r}", "is the name of several ids", "merge or rename them")
    return set(by_id)


def _check_image_files(
    images: list[dict], folder: Path, decode: bool, findings: Findings, reading: Reading
) -> None:
    if not folder.is_dir():
        findings.error("", "is not a folder", "give the folder of the images", file=str(folder))
        return
    if len(images) > 1 and not any(os.path.isfile(folder / image["file_name"]) for image in images):
        remedy = "give the folder that the file names are relative to"
        if len(_led_by_name(images, folder)) == len(images):
            remedy += f", or find them by their names: {REPAIR}"
        findings.error(
            f"images {images[0]['file_name']} ... {images[-1]['file_name']}",
            f"none of the {counted(len(images), 'image')} is there",
            remedy,
            file=str(folder),
        )
        return
    by_name = _led_by_name(images, folder)
    bar = progress(text=f"checking {folder.name}", total=len(images), unit="image")
    states: list[tuple[str, FileState]] = []
    with bar:
        found = in_threads(lambda image: file_state(image, folder, decode, reading), images)
        for image, state in zip(images, found, strict=True):
            bar.update()
            where = f"image {image['id']} ({image['file_name']})"
            for fault in state.faults:
                if fault.severity == "error":
                    path, remedy = os.path.join(folder, image["file_name"]), fault.remedy
                    if image["file_name"] in by_name:
                        remedy += f"; {REPAIR} finds it by its name"
                    findings.error(f"image {image['id']}", fault.message, remedy, file=path)
                else:
                    findings.warn(where, fault.message, fault.remedy)
            states.append((where, state))
    _compare_images(states, findings)


def _led_by_name(images: list[dict], folder: Path) -> set[str]:
    """The file names that lead nowhere, but for their last part to one file of no other image."""
    paths = {image["file_name"]: os.path.join(folder, image["file_name"]) for image in images}
    lost = [name for name, path in paths.items() if not os.path.isfile(path)]
    led = {name: only_file_of_name(folder, name) for name in lost}
    counts = Counter(led.values())
    return {name for name, file in led.items() if file and counts[file] == 1 and file not in paths}


def _compare_images(states: list[tuple[str, FileState]], findings: Findings) -> None:
    """Report images whose number of channels or depth differs from most of the set."""
    readable = [(where, state) for where, state in states if state.depth]
    depths = Counter(state.depth for _, state in readable)
    colours = Counter(state.colours for _, state in readable)
    for where, state in readable:
        usual, count = depths.most_common(1)[0]
        if state.depth != usual:
            findings.warn(
                where,
                f"has {state.depth} a channel, but {count} other images have {usual}",
                "levels are kept, and the largest value of each depth counts as white: make sure "
                "that it is, or state INPUT.VALUE_RANGE",
            )
        number, count = colours.most_common(1)[0]
        if state.colours != number and not set(colours) <= {1, 3}:
            findings.error(
                where,
                f"has {state.colours} channel(s), but {count} other images have {number}",
                "a set has one number of channels (grey beside RGB is converted): repair or remove "
                "it",
            )


def training_sentence(tree: dict[str, Any]) -> str:
    """A sentence: how many objects and images a training uses, and what it leaves out."""
    objects = tree["annotations"]
    shown = [item for item in objects if not item.get("iscrowd", 0)]
    images = {item["image_id"] for item in shown if is_id(item.get("image_id"))}
    flat = sum(min(item["bbox"][2:]) <= 0 for item in shown)
    boxes = f", {counted(flat, 'box')} without area" if flat else ""
    return (
        f"training uses {len(shown) - flat} of {counted(len(objects), 'object')} on {len(images)} "
        f"of {counted(len(tree['images']), 'image')}; it leaves out "
        f"{counted(len(objects) - len(shown), 'crowd')}{boxes} and "
        f"{counted(len(tree['images']) - len(images), 'image')} without an object "
        "(DATALOADER.FILTER_EMPTY_ANNOTATIONS)"
    )
