"""Recognize label files of other formats than COCO instances, and name the remedy."""

from __future__ import annotations

import re
from typing import Any

FORM = "a COCO file is {'images': [...], 'annotations': [...], 'categories': [...]}"
IMPORT = "make COCO of it: python tools/import_dataset.py"
NUMBER = re.compile(r"-?\d*\.?\d+(e-?\d+)?", re.IGNORECASE)


def other_format(tree: Any) -> tuple[str, str] | None:
    """The format of a JSON file that is not COCO instances, in words, and the remedy; else None."""
    first = tree[0] if isinstance(tree, list) and tree else None
    if isinstance(first, dict):
        if "score" in first:
            what = "is not COCO: it holds a list (it looks like COCO results, not annotations)"
            return what, "give the annotations that the detections were made for"
        if "data" in first and {"annotations", "completions", "predictions"} & first.keys():
            what = "is not COCO: it is an export of Label Studio"
            return what, f"{IMPORT} FILE --from labelstudio"
        keys_of = {
            "CreateML": {"annotations", "image"},
            "Labelbox": {"data_row", "projects"},
            "BDD100K or Scalabel": {"name", "labels"},
        }
        if name := next((name for name, keys in keys_of.items() if keys <= first.keys()), None):
            return f"is not COCO: it looks like {name}", f"export COCO instead; {FORM}"
    if not isinstance(tree, dict):
        return None
    if "shapes" in tree and "imagePath" in tree:
        return "is not COCO: it is a file of LabelMe", f"{IMPORT} FOLDER --from labelme"
    objects = tree.get("annotations")
    if isinstance(objects, list) and any(
        isinstance(item, dict) and "segments_info" in item for item in objects[:1]
    ):
        what = "is COCO panoptic, whose masks are PNG files, not COCO instances"
        return what, "give the instances file of the same images"
    images = tree.get("_via_img_metadata", tree)
    if isinstance(images, dict) and any(
        isinstance(item, dict) and {"regions", "filename"} <= item.keys()
        for item in list(images.values())[:1]
    ):
        return "is not COCO: it is of the VGG Image Annotator", f"export COCO there; {FORM}"
    others = {
        "GeoJSON": tree.get("type") == "FeatureCollection",
        "Supervisely": {"objects", "size"} <= tree.keys(),
        "VoTT": "assets" in tree or {"asset", "regions"} <= tree.keys(),
        "Labelbox": {"data_row", "projects"} <= tree.keys(),
        "datumaro": {"categories", "items"} <= tree.keys(),
        "Cityscapes' polygons": {"imgHeight", "objects"} <= tree.keys(),
        "Segment Anything (SA-1B)": {"image", "annotations"} <= tree.keys(),
        "ISAT": "objects" in tree and "info" in tree,
    }
    if name := next((name for name, is_so in others.items() if is_so), None):
        return f"is not COCO: it is of {name}", f"export COCO there; {FORM}"
    return None


# words of the first line of a table of boxes -> who writes it
TABLES = {
    "the VGG Image Annotator": ("filename", "region_shape_attributes"),
    "VoTT": ("image", "xmin", "ymin", "xmax", "ymax", "label"),
    "TensorFlow (Roboflow, labelImg)": ("filename", "xmin", "ymin", "class"),
    "Open Images": ("ImageID", "XMin", "LabelName"),
}


def other_text(first_line: str, ending: str) -> tuple[str, str] | None:
    """The format of a text file of labels that no reader here reads, and the remedy; else None.

    Args:
        ending: ".csv" or ".txt".
    """
    words = first_line.strip().lstrip("\ufeff").replace('"', "").replace("#", "")
    if ending == ".csv":
        columns = [word.strip() for word in words.split(",")]
        for name, wanted in TABLES.items():
            if set(wanted) <= set(columns):
                return f"is a table of {name}", "export COCO or Pascal VOC there"
        return None
    parts = words.split()
    corners, rest = parts[:8], parts[8:]
    is_dota = len(corners) == 8 and len(rest) == 2 and not NUMBER.fullmatch(rest[0])
    if words.startswith(("imagesource:", "gsd:")) or (
        is_dota and all(map(NUMBER.fullmatch, corners))
    ):
        remedy = "convert them to YOLO OBB (ultralytics: convert_dota_to_yolo_obb), and import that"
        return "are oriented boxes of DOTA, in pixels", remedy
    are_numbers = [bool(NUMBER.fullmatch(word)) for word in parts]
    if len(parts) in (15, 16) and are_numbers == [False] + [True] * (len(parts) - 1):
        return "is of KITTI", "export COCO or Pascal VOC instead"
    return None
