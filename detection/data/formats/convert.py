"""Labels of other tools to COCO and back: find the format of a path, its reader and writer."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from detection.data.coco_file import LISTS, write_coco
from detection.data.formats.cvat import read_cvat, write_cvat
from detection.data.formats.files import read_json, read_text
from detection.data.formats.label_studio import read_label_studio
from detection.data.formats.labelme import read_labelme, write_labelme
from detection.data.formats.labels import Builder
from detection.data.formats.masks import MASK_FILES, read_masks, write_masks
from detection.data.formats.voc import read_voc
from detection.data.formats.yolo import read_yolo, write_yolo
from detection.data.formats.yolo_sets import DARKNET, NO_LABELS
from detection.data.other_formats import NUMBER, other_format, other_text

FILES = 50  # of a folder; read to find its format

READERS: dict[str, Callable[..., dict[str, Builder]]] = {
    "yolo": read_yolo,
    "voc": read_voc,
    "labelme": read_labelme,
    "cvat": read_cvat,
    "labelstudio": read_label_studio,
    "masks": read_masks,
}
WRITERS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "coco": lambda tree, folder: write_coco(tree, folder / "annotations.json"),
    "yolo": write_yolo,
    "labelme": write_labelme,
    "cvat": write_cvat,
    "masks": write_masks,
}


def read_labels(
    source: Path,
    kind: str = "auto",
    images: Path | None = None,
    class_name: str = "object",
    unpacked: Path | None = None,
) -> dict[str, Builder]:
    """Read labels of another format.

    Args:
        kind: a name of READERS, or ``auto``.
        images: the folder of the images, where it is another.
        class_name: of the objects in masks, which have no classes.
        unpacked: a folder for images that are in label files (LabelMe's ``imageData``).

    Returns:
        Split -> a :class:`Builder` with the labels that were read and the changes.

    Raises:
        FileNotFoundError: if ``source`` or ``images`` is not there.
        InputError: if it is of no format that is known, or holds no labels.
    """
    for path in (source, images):
        if path is not None and not path.exists():
            raise FileNotFoundError(2, "there is no such file or folder", str(path))
    if source.is_file() and zipfile.is_zipfile(source):
        raise InputError(f"{source} is a zip archive: unpack it, and give the folder")
    kind = guess(source) if kind == "auto" else kind
    if kind == "masks":
        return read_masks(source, images, class_name)
    if kind == "labelme":
        return read_labelme(source, images, unpacked)
    return READERS[kind](source, images)


def guess(source: Path) -> str:
    """The format of a file or folder, found by its content.

    Raises:
        InputError: if that is not known.
    """
    other: InputError | None = None
    if source.is_file():
        if source.suffix.lower() in (".yaml", ".yml") or source.name == DARKNET:
            return "yolo"
        if found := _of_file(source):
            return found
    elif any((source / name).is_file() for name in ("data.yaml", DARKNET)):
        return "yolo"
    else:
        if any(file.name not in NO_LABELS for file in source.rglob("labels/**/*.txt")):
            return "yolo"
        for pattern in ("*.xml", "*.json", "*.txt", "*.csv"):
            for file in sorted(source.rglob(pattern))[:FILES]:
                try:
                    if found := _of_file(file):
                        return found
                except InputError as error:  # an unreadable file may lie beside a readable one
                    other = other or error
        if other:
            raise other
        if any(path.suffix.lower() in MASK_FILES for path in source.rglob("*")):
            return "masks"
    known = ", ".join(READERS)
    raise InputError(f"{source}: its format is not known; say it by --from: {known}")


def _of_file(file: Path) -> str | None:
    """The format of a file that a reader here takes, else None.

    Raises:
        InputError: for a format that no reader takes; the message names the export to use.
    """
    ending = file.suffix.lower()
    if ending in (".txt", ".csv"):
        line = read_text(file).lstrip().split("\n")[0]
        if found := other_text(line, ending):
            raise InputError(f"{file}: {found[0]}; {found[1]}")
        words = line.split()
        return "yolo" if len(words) >= 5 and all(map(NUMBER.fullmatch, words)) else None
    if ending == ".xml":
        start = file.read_bytes()[:4000]
        return "cvat" if b"<annotations" in start else "voc" if b"<annotation" in start else None
    tree = read_json(file)
    found = other_format(tree)
    if found is None and isinstance(tree, dict) and tree.keys() >= set(LISTS):
        raise InputError(f"{file} is COCO already: python tools/check_dataset.py {file}")
    if found and "--from" in found[1]:
        return found[1].rsplit("--from ", 1)[1]
    if found:
        raise InputError(f"{file} {found[0]}; {found[1]}")
    return None
