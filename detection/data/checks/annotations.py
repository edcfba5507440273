"""Check the objects of a COCO annotation file by the rules that ``check`` lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from backbones.errors import counted
from detection.data.checks.problems import Findings, shorten
from detection.data.checks.segmentations import (
    are_finite,
    is_finite,
    mask_areas,
    mask_bounds,
    pixel_bounds,
)
from training.progress import progress

BOX_TOLERANCE = 1.0
MANY_CROWDS = 0.25  # of the objects; COCO has 1%
REPAIR = "tools/check_dataset.py --repair FIXED.json"
MASK_BOX_TOLERANCE = 0.1
AREA_TOLERANCE = 0.1

Fault = tuple[str, str]  # what is wrong, remedy


class Demands(NamedTuple):
    """``masks``: each object must have one; ``training``: the set is not only evaluated."""

    masks: bool = True
    training: bool = True


def is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def index_by_id(items: list[dict], kind: str, findings: Findings) -> dict[Any, dict]:
    """The objects by id; those without a usable id are errors and left out."""
    by_id: dict[Any, dict] = {}
    for index, item in enumerate(items):
        key = item.get("id")
        if not is_id(key):
            findings.error(f"{kind}[{index}]", f"id is {key!r}", "give it a number of its own")
        elif key in by_id:
            findings.error(f"{kind}[{index}]", f"id {key} is used twice", "make the ids unique")
        else:
            by_id[key] = item
    return by_id


def check_annotations(
    annotations: list[dict], images: dict, categories: set, demands: Demands, findings: Findings
) -> None:
    """Report every fault of every object, and the categories and images that have none.

    Args:
        images: image id -> entry, or None for an entry that cannot be used.
        categories: the ids of the categories.
    """
    by_id = index_by_id(annotations, "annotations", findings)
    for annotation in progress(by_id.values(), "checking annotations", unit="object"):
        where = f"annotation {annotation['id']} (image {annotation.get('image_id')})"
        for fault in _faults(annotation, images, categories, demands, where, findings):
            findings.error(where, *fault)
    if demands.training:
        _warn_of_unused(annotations, images, categories, findings)


def _warn_of_unused(
    annotations: list[dict], images: dict, categories: set, findings: Findings
) -> None:
    """Warn of what a training does not use: crowds, classes and images without objects."""
    crowds = [item for item in annotations if item.get("iscrowd", 0)]
    objects = [item for item in annotations if not item.get("iscrowd", 0)]
    if len(crowds) > MANY_CROWDS * len(annotations):
        findings.warn(
            "annotations",
            f"{len(crowds)} of {counted(len(annotations), 'object')} are crowds (iscrowd 1) and "
            "are not trained on",
            "set iscrowd 0 for objects that were drawn one by one (CVAT writes brush masks as 1)",
        )
    for name, kind, every, for_crowds, for_none in (
        (
            *("category_id", "category", categories),
            "it is trained on nothing: expect no AP for it",
            f"remove it ({REPAIR} does so for the class 0 of Roboflow), or expect no AP for it",
        ),
        (
            *("image_id", "image", set(images)),
            "training leaves it out (FILTER_EMPTY_ANNOTATIONS)",
            "nothing if it shows no object; training leaves it out (FILTER_EMPTY_ANNOTATIONS)",
        ),
    ):
        shown, in_crowds = (
            {item[name] for item in items if is_id(item.get(name))} for items in (objects, crowds)
        )
        for key in sorted((every & in_crowds) - shown, key=str):
            findings.warn(f"{kind} {key}", "has crowds only", for_crowds)
        for key in sorted(every - shown - in_crowds, key=str):
            findings.warn(f"{kind} {key}", "has no annotation", for_none)


def _faults(
    annotation: dict,
    images: dict,
    categories: set,
    demands: Demands,
    where: str,
    findings: Findings,
) -> Iterator[Fault]:
    """Yield the errors of one annotation; warnings go to the findings."""
    if annotation["id"] == 0:
        findings.warn(where, "id 0 means 'no match' to pycocotools", "number from 1")
    category, is_crowd = annotation.get("category_id"), annotation.get("iscrowd", 0)
    if not is_id(category) or category not in categories:
        yield (
            f"category_id {category!r} is not in 'categories'",
            f"add it there, or use one of {shorten(sorted(map(str, categories)))}",
        )
    if is_crowd not in (0, 1):
        yield f"iscrowd is {is_crowd!r}", "it is 1 for a crowd region and 0 else"
    if annotation.get("ignore", 0) and demands.training:
        yield "'ignore' is not supported", f"remove the object, or set iscrowd 1, as {REPAIR} does"
    area = annotation.get("area")
    if area is not None and not (is_finite(area) and area >= 0):
        yield f"area is {area!r}", "it is the number of pixels of the mask"
    image_id = annotation.get("image_id")
    if not is_id(image_id) or image_id not in images:
        yield (
            f"image_id {image_id!r} is not in 'images'",
            f"add the image, or correct the id; {REPAIR} leaves the object out",
        )
        return
    if not (image := images[image_id]):
        return
    box: Any = annotation.get("bbox")
    has_box = are_finite(box) and len(box) == 4
    if has_box:
        yield from _box_faults(box, image, demands, where, findings)
    else:
        yield f"bbox is {box!r}", "it is [x, y, width, height] in pixels"
    segmentation = annotation.get("segmentation")
    if segmentation:
        try:
            bounds, dropped = mask_bounds(segmentation, image["height"], image["width"])
        except ValueError as error:
            yield f"segmentation {error}", f"correct or remove it; {REPAIR} mends what it can"
            return
        if dropped:
            findings.warn(where, "has polygons of fewer than 3 points", "they are dropped")
        if has_box and not is_crowd:
            _compare(annotation, bounds, image, where, findings)
    elif demands.masks:
        yield (
            f"segmentation is {segmentation!r}",
            "add a polygon or RLE, train without masks (MODEL.MASK_ON False), or leave out the "
            f"objects that have none: {REPAIR}",
        )


def _box_faults(
    box: list[float], image: dict, demands: Demands, where: str, findings: Findings
) -> Iterator[Fault]:
    x, y, width, height = box
    if width < 0 or height < 0:
        yield f"bbox {box} has a negative size", "it is [x, y, width, height] in pixels"
    elif width == 0 or height == 0:
        findings.warn(where, "box has no area", "training drops it; correct or remove it")
    if demands.training and (
        min(x, y) < -BOX_TOLERANCE
        or x + width > image["width"] + BOX_TOLERANCE
        or y + height > image["height"] + BOX_TOLERANCE
    ):
        yield (
            f"bbox {box} reaches outside its image of {image['width']} x {image['height']}",
            "it is [x, y, width, height] in pixels; clip it to the image "
            f"({REPAIR} does, where the mask agrees)",
        )


def _compare(
    annotation: dict, bounds: list[float], image: dict, where: str, findings: Findings
) -> None:
    """Warn where a mask contradicts the box or the area that are written beside it."""
    if boxes_differ(annotation["bbox"], bounds, image) and boxes_differ(
        annotation["bbox"],
        pixel_bounds(annotation["segmentation"], image["height"], image["width"]),
        image,
    ):
        findings.warn(where, "box and mask are of different places", "correct one of them")
    area = annotation.get("area")
    if area is None:
        findings.warn(where, "has no area", "evaluation takes the mask's number of pixels")
        return
    if not (is_finite(area) and area >= 0):
        return  # an error already
    found = []
    for mask_area in mask_areas(annotation["segmentation"], image["height"], image["width"]):
        if not _is_other_area(area, mask_area):
            return
        found.append(mask_area)
    _, _, width, height = annotation["bbox"]
    whose = "the box's, not" if not _is_other_area(area, width * height) else "not"
    findings.warn(
        f"{where}: {area:g} for {found[-1]:g}",
        f"area is {whose} the mask's",
        "write the mask's number of pixels: APs, APm and APl sort objects by it",
    )


def boxes_differ(box: list[float], bounds: list[float], image: dict) -> bool:
    """Whether an edge of the mask is off the box's by over 2 pixels and over 10% of its size.

    Both are clipped to the image first: some tools write what lies outside, others do not.
    """
    x, y, width, height = box
    tolerances = 2 * [max(2.0, MASK_BOX_TOLERANCE * width), max(2.0, MASK_BOX_TOLERANCE * height)]
    sides = 2 * [image["width"], image["height"]]
    return any(
        abs(min(max(edge, 0), side) - min(max(other, 0), side)) > tolerance
        for edge, other, side, tolerance in zip(
            (x, y, x + width, y + height), bounds, sides, tolerances, strict=True
        )
    )


def _is_other_area(first: float, second: float) -> bool:
    """Whether two areas differ by over 10 pixels and over 10%."""
    return abs(first - second) > max(10.0, AREA_TOLERANCE * max(first, second))
