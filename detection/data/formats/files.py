"""The files that readers of labels meet: text of any encoding, XML, JSON, and the images."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from detection.data.coco_file import decode_json
from images.folders import ending_of, files_of_folder
from images.formats import image_endings

VOC_MASKS = {"SegmentationObject", "SegmentationClass"}  # folders of pictures that are no images


def read_text(file: Path) -> str:
    """A text file in any Unicode, with or without a byte order mark; else read as Windows-1252."""
    data = file.read_bytes()
    try:
        return decode_json(data)
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def read_xml(file: Path, tag: str) -> ElementTree.Element | None:
    """The root of an XML file; None if it is no XML, or its root has another tag."""
    data = file.read_bytes()
    declared = re.match(rb"<\?xml[^>]*encoding=[\"']([\w.:-]+)[\"'][^>]*\?>", data)
    try:
        if declared:  # the parser knows few encodings, and not GBK
            data = data[declared.end() :].decode(declared.group(1).decode()).encode()
        tree = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError):
        return None
    return tree if tree.tag == tag else None


def read_json(file: Path) -> Any:
    """What a JSON file holds; None if it is none."""
    try:
        return json.loads(decode_json(file.read_bytes()))
    except (ValueError, RecursionError):
        return None


def image_files(folder: Path) -> list[Path]:
    """The images of a folder and its folders, in natural order."""
    return files_of_folder(folder).images


class ImageFinder:
    """Finds images in a folder by what a label file calls them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_name: dict[str, list[Path]] = {}
        self.by_stem: dict[str, list[Path]] = {}
        self.images = [
            path
            for path in image_files(folder)
            if not VOC_MASKS & set(path.relative_to(folder).parts)
        ]
        for path in self.images:
            self.by_name.setdefault(path.name, []).append(path)
            self.by_stem.setdefault(path.stem, []).append(path)

    def find(self, *names: str) -> Path | None:
        """The first of these paths or names that one image fits, its ending aside at last."""
        for name in names:
            path = self.folder / name.replace("\\", "/")
            is_image = ending_of(path.name) in image_endings() and "\0" not in name
            if name and is_image and os.path.isfile(path):  # Path.is_file raises for long names
                return path
        for index, part in ((self.by_name, "name"), (self.by_stem, "stem")):
            for name in names:
                found = index.get(getattr(Path(name.replace("\\", "/")), part), [])
                if len(found) == 1:
                    return found[0]
        return None
