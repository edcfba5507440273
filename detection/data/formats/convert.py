"""Labels of other tools to COCO and back: which format a path is, its reader and its writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from detection.data.coco_file import other_format
from detection.data.formats.cvat import read_cvat, write_cvat
from detection.data.formats.label_studio import read_label_studio
from detection.data.formats.labelme import read_labelme, write_labelme
from detection.data.formats.labels import Builder, read_json
from detection.data.formats.masks import MASK_FILES, read_masks, write_masks
from detection.data.formats.voc import read_voc
from detection.data.formats.yolo import read_yolo, write_yolo
from detection.data.repair import write_coco

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
    source: Path, kind: str = "auto", images: Path | None = None, class_name: str = "object"
) -> dict[str, Builder]:
    """Read labels of another format.

    Args:
        source: their file or folder.
        kind: a name of READERS, or ``auto``.
        images: the folder of the images, where it is another.
        class_name: of the objects in masks, which have no classes.

    Returns:
        Split -> what was read and what was changed.

    Raises:
        FileNotFoundError: if ``source`` or ``images`` is not there.
        InputError: if it is of no format that is known, or holds no labels.
    """
    for path in (source, images):
        if path is not None and not path.exists():
            raise FileNotFoundError(2, "there is no such file or folder", str(path))
    kind = guess(source) if kind == "auto" else kind
    if kind == "masks":
        return read_masks(source, images, class_name)
    return READERS[kind](source, images)


def guess(source: Path) -> str:
    """The format of a file or folder, by what it holds.

    Raises:
        InputError: if that is not known.
    """
    if source.is_file():
        if source.suffix.lower() in (".yaml", ".yml"):
            return "yolo"
        if found := _of_file(source):
            return found
    elif (source / "data.yaml").is_file() or any(source.rglob("labels/**/*.txt")):
        return "yolo"
    else:
        for pattern in ("*.xml", "*.json", "*.txt"):
            for file in sorted(source.rglob(pattern))[:5]:
                if found := _of_file(file):
                    return found
        if any(path.suffix.lower() in MASK_FILES for path in source.rglob("*")):
            return "masks"
    known = ", ".join(READERS)
    raise InputError(f"{source}: its format is not known; say it by --from: {known}")


def _of_file(file: Path) -> str | None:
    if file.suffix.lower() == ".txt":
        words = file.read_text(encoding="utf-8", errors="replace").split("\n")[0].split()
        numbers = all(word.replace(".", "", 1).isdigit() for word in words)
        return "yolo" if len(words) >= 5 and numbers else None
    if file.suffix.lower() == ".xml":
        start = file.read_bytes()[:4000]
        return "cvat" if b"<annotations" in start else "voc" if b"<annotation" in start else None
    found = other_format(read_json(file))
    if not found or "--from" not in found[1]:
        return None
    return found[1].rsplit("--from ", 1)[1]
