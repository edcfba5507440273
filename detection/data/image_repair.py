"""Repairs of a COCO file's images: sizes, file names, and the ids by which objects name them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from detection.data.checks.file_names import find_file, only_file_of_name
from detection.data.checks.images import shown_size
from detection.data.checks.problems import is_text
from detection.data.checks.spellings import number_of
from training.progress import progress

Say = Callable[[str, str, str], None]  # where, what, what is done


def repair_images(images: list[dict[str, Any]], folder: Path, say: Say) -> None:
    """Write sizes as numbers or as the files have them, and the names of the files that fit."""
    named = Counter(_only_file(image, folder) for image in images)
    for image in progress(images, "repairing images", unit="image"):
        _repair_image(image, folder, named, say)


def _only_file(image: dict[str, Any], folder: Path) -> str | None:
    """The file that an image's name leads to, by its last part alone at worst."""
    name = image.get("file_name")
    if not is_text(name) or not name:
        return None
    found = find_file(folder, name)
    return found.name if found else only_file_of_name(folder, name)


def _repair_image(
    image: dict[str, Any], folder: Path, named: Counter[str | None], say: Say
) -> None:
    where = f"image {image.get('id')}"
    for side in ("height", "width"):
        number = number_of(image.get(side))
        if number is not None and isinstance(image[side], str) and number == int(number):
            image[side] = int(number)
            say(where, f"{side} is text", "made a number")
    name = image.get("file_name")
    if not is_text(name) or not name:
        return
    found = find_file(folder, name)
    if found is not None and found.how:
        image["file_name"] = found.name
        say(f"{where} ({name})", found.how, "the name in the folder is written")
    elif found is None and (other := only_file_of_name(folder, name)):
        if named[other] > 1:
            return  # an error that stays: the file is that of another image, or of either
        image["file_name"] = other
        say(f"{where} ({name})", "file_name leads to no file", "the one of this name is")
    lacks_size = any(image.get(side) in (None, 0, -1) for side in ("height", "width"))
    if lacks_size and (size := shown_size(folder / image["file_name"])):
        image["height"], image["width"] = size
        say(where, "has no height or width", "its file's are written")


def repair_image_ids(
    annotations: list[dict[str, Any]], images: dict[Any, dict[str, Any]], say: Say
) -> None:
    """Ids of images that are numbers with zeros before them, or the names of one image each."""
    names: dict[str, set[Any]] = {}
    for key, image in images.items():
        path = PurePosixPath(str(image.get("file_name")).replace("\\", "/"))
        for name in {str(image.get("file_name")), path.name, path.stem}:
            names.setdefault(name, set()).add(key)
    for item in annotations:
        value = item.get("image_id")
        if not isinstance(value, str) or value in images:
            continue
        number = int(value) if value.isdecimal() and len(value) < 20 else None
        meant = names.get(value, set()) or {number} & images.keys()
        if len(meant) == 1:
            (item["image_id"],) = meant
            where = f"annotation {item.get('id')} (image {value!r})"
            what = "image_id is a file name, or has zeros before it"
            say(where, what, "the id of that image is written")
