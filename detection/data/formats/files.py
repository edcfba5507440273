"""Read the files of label formats (text of any encoding, XML, JSON), and find their images."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote
from xml.etree import ElementTree

from detection.data.checks.file_names import folded_name
from detection.data.coco_file import decode_json
from images.folders import ending_of, files_of_folder
from images.formats import image_endings

VOC_MASKS = {"SegmentationObject", "SegmentationClass"}  # folders of masks, not of images


def read_text(file: Path) -> str:
    """A text file in any Unicode, with or without a byte order mark; else read as Windows-1252."""
    data = file.read_bytes()
    try:
        return decode_json(data)
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def read_xml(file: Path, tag: str) -> ElementTree.Element | None:
    """The root of an XML file; None if it is not XML, or its root has another tag."""
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
    """The content of a JSON file; None if it is not JSON."""
    try:
        return json.loads(decode_json(file.read_bytes()))
    except (ValueError, RecursionError):
        return None


def image_files(folder: Path) -> list[Path]:
    """The images of a folder and its folders, in natural order."""
    return files_of_folder(folder).images


class Found(NamedTuple):
    """An image; ``by_path``: found by the path in its labels, not only by its name."""

    path: Path
    by_path: bool


class ImageFinder:
    """Finds images in a folder by the paths or names in label files."""

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
            self.by_name.setdefault(folded_name(path.name), []).append(path)
            self.by_stem.setdefault(folded_name(path.stem), []).append(path)

    def find(self, *names: str) -> Found | None:
        """The image that one of these paths or names fits; None if there is none or more than one.

        The first of the names is the whole path, as far as the labels have one.

        Tried in this order: the path, in the folder or as it stands; the end of the path (for a
        path of another machine); the one image of that name, or of several the one whose folders
        agree most; the one whose name differs only in its ending. A name without an image's ending
        is that of a label file.
        """
        spelt = [name.replace("\\", "/") for name in names if name and "\0" not in name]
        spelt += [unquote(name) for name in spelt if "%" in name]
        for name in spelt:
            if found := self._at(name):
                is_path = name == spelt[0] or "/" in name
                return Found(found.path, found.by_path and is_path)
        wanted = [PurePosixPath(name) for name in spelt]
        images = [one for one in wanted if ending_of(one.name) in image_endings()]
        tries = [(one, self.by_name if one in images else self.by_stem, one.name) for one in wanted]
        tries += [(one, self.by_stem, one.stem) for one in images]
        for one, index, key in tries:
            if path := self._most_alike(one, index.get(folded_name(key), []), key):
                return Found(path, False)
        return None

    def _at(self, name: str) -> Found | None:
        """The image to which a path, or the end of one with a folder at least, leads."""
        parts = PurePosixPath(name).parts
        tails = [name, *("/".join(parts[start:]) for start in range(1, len(parts) - 1))]
        for tail in tails:
            path = Path(os.path.normpath(self.folder / tail))
            if ending_of(path.name) in image_endings():
                if os.path.isfile(path):  # Path.is_file raises for long names
                    return Found(path, tail == name)
                continue
            alike = self.by_stem.get(folded_name(path.name), [])
            if len(found := [one for one in alike if one.with_suffix("") == path]) == 1:
                return Found(found[0], tail == name)
        return None

    def _most_alike(self, wanted: PurePosixPath, images: list[Path], name: str) -> Path | None:
        """Of images of one name that whose folders end as the wanted path's; None for several."""
        images = [one for one in images if name in (one.name, one.stem)] or images
        folders = wanted.parts[-2::-1]
        scores = [common_start(folders, one.parts[-2::-1]) for one in images]
        best = [one for one, score in zip(images, scores, strict=True) if score == max(scores)]
        return best[0] if len(best) == 1 else None


def common_start(first: Sequence[str], second: Sequence[str]) -> int:
    """How many items two sequences have in common from their beginning on."""
    pairs = zip(first, second, strict=False)
    return next(
        (place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second))
    )
