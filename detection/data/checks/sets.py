"""Compare two data sets: they must share no images, and they need common classes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from detection.data.checks.annotations import is_id
from detection.data.checks.file_names import leaves_folder
from detection.data.checks.images import ImageFile, same_files, shared_images
from detection.data.checks.problems import Findings, Problem, is_text


def image_files(tree: dict[str, Any], folder: Path) -> list[ImageFile]:
    """The images that a COCO file lists, without the entries that :func:`check_coco` refuses."""
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
    """An error for each image that two data sets share, as :func:`shared_images` finds them."""
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


def duplicate_images(files: list[ImageFile], name: str | Path) -> list[Problem]:
    """A warning for the files of one data set that are the same byte for byte."""
    findings = Findings(name)
    for path, other, _ in same_files(files):
        findings.warn(f"{path} = {other}", "are one picture", "keep one of them")
    return findings.problems()


def _labelled(tree: dict[str, Any]) -> set[str]:
    """The names of the classes that have an object which is no crowd."""
    names = {one["id"]: str(one.get("name")) for one in tree["categories"] if is_id(one.get("id"))}
    shown = [item.get("category_id") for item in tree["annotations"] if not item.get("iscrowd", 0)]
    return {names[key] for key in shown if is_id(key) and key in names}


def compare_classes(
    tree: dict[str, Any], other: dict[str, Any], name: str, other_name: str
) -> list[Problem]:
    """Problems between the classes of two data sets; classes are matched by name."""
    findings = Findings(name)
    if not tree or not other:
        return []
    ids = [
        {str(one.get("name")): one.get("id") for one in each["categories"]}
        for each in (tree, other)
    ]
    for place, has, lacks in ((0, name, other_name), (1, other_name, name)):
        for key in sorted(ids[place].keys() - ids[1 - place].keys()):
            findings.warn(
                f"category {key!r}",
                f"is in {has} alone, not in {lacks}",
                "one that is not trained on is never found; one that is not tested has no AP",
            )
    both = ids[0].keys() & ids[1].keys()
    labelled = [_labelled(each) & both for each in (tree, other)]
    for place, has, lacks in ((0, name, other_name), (1, other_name, name)):
        for key in sorted(labelled[place] - labelled[1 - place]):
            findings.warn(
                f"category {key!r}",
                f"has objects in {has} alone, none in {lacks}",
                "one that is not trained on is never found; one that is not tested has no AP",
            )
    for key in sorted(both):
        if ids[0][key] != ids[1][key]:
            findings.warn(
                f"category {key!r} ({ids[0][key]} and {ids[1][key]})",
                f"has another id in {other_name}",
                "nothing: classes are joined by their names",
            )
    return findings.problems()
