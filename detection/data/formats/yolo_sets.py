"""Where a data set of YOLO has its images, labels and names: ``data.yaml`` and the folders.

``data.yaml`` names the classes and the folders of train, val and test; images lie in ``images``,
labels in ``labels`` beside it or beside the image (Ultralytics' ``img2label_paths``). Darknet's
``obj.data`` names a file of the classes and lists of the images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from backbones.errors import InputError
from detection.data.formats.files import ImageFinder, image_files, read_text

SPLITS = ("train", "val", "test")
SPELT = {"val": ("val", "valid")}  # Darknet's
DARKNET = "obj.data"
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels/classes.txt")
NO_LABELS = ("classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt")
NOTHING = (None, "", "~", "null", "Null", "None")  # of a data.yaml that is read as text
MOST_CLASSES = 100_000  # a larger number is not a class


def labels_folder(source: Path) -> Path:
    """Where the label files of a ``data.yaml`` or of a folder are, if images lie apart."""
    folder = source.parent if source.is_file() else source
    return folder / "labels" if (folder / "labels").is_dir() else folder


def config_file(source: Path) -> Path | None:
    if source.is_file():
        return source
    tries = [source / "data.yaml", *sorted(source.glob("*.y*ml")), source / DARKNET]
    files = [path for path in tries if path.is_file()]
    named = (path for path in files if re.search("^names *[:=]", read_text(path), re.MULTILINE))
    return next(named, next(iter(files), None))


def read_settings(path: Path) -> dict[str, Any]:
    text = read_text(path)
    if path.suffix.lower() not in (".yaml", ".yml"):
        pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
        return {key.strip(): value.strip() for key, _, value in pairs}
    try:
        tree = yaml.load(text, Loader=yaml.BaseLoader)  # all is text: the class 'no' is not False
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {error}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} is no data.yaml: a mapping with 'names' and 'train' is wanted")
    return tree


def class_names(settings: dict[str, Any], root: Path) -> list[str | None]:
    """The class names by number; None for a number that ``data.yaml`` leaves out."""
    names = settings.get("names")
    if isinstance(names, dict):
        numbered = {str(key): str(name) for key, name in names.items()}
        if wrong := [key for key in numbered if not key.isdecimal() or int(key) > MOST_CLASSES]:
            raise InputError(f"data.yaml: names has the key {wrong[0]!r}; keys are 0, 1, 2, ...")
        highest = max(map(int, numbered), default=-1)
        return [numbered.get(str(index)) for index in range(highest + 1)]
    if isinstance(names, list):
        return list(map(str, names))
    files = [root / name for name in NAME_FILES]
    if isinstance(names, str):  # Darknet's, whose folder is often another than the one of the files
        files = [root / names, root / Path(names).name, *files]
    for file in files:
        if file.is_file():
            lines = read_text(file).rstrip().splitlines()
            return [line.strip() or None for line in lines]  # an empty line counts as a number
    count = str(settings.get("nc") or settings.get("classes") or 0)
    if not count.isdecimal() or int(count) > MOST_CLASSES:
        raise InputError(f"data.yaml: nc is {count}; it is how many classes there are")
    return [str(index) for index in range(int(count))]


def keypoint_numbers(shape: Any) -> int:
    """How many numbers of a line belong to keypoints, by ``kpt_shape``."""
    if shape in (None, ""):
        return 0
    two_numbers = isinstance(shape, list) and len(shape) == 2
    if not (two_numbers and all(map(str.isdecimal, map(str, shape)))):
        raise InputError(f"data.yaml: kpt_shape is {shape}; it is [how many, 2 or 3 numbers each]")
    return int(shape[0]) * int(shape[1])


def parts_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Split -> the folders or lists of its images."""
    parts: dict[str, Any] = {}
    for split in SPLITS:  # some name one folder twice, since a validation set has to be named
        keys = SPELT.get(split, (split,))
        value = next((settings[key] for key in keys if settings.get(key) not in NOTHING), None)
        if value and value not in parts.values():
            parts[split] = value
    return parts


def images_of_part(root: Path, value: Any) -> list[Path] | None:
    """The images of a split: folders, or text files that list images; None if one is not there."""
    found: list[Path] = []
    for one in value if isinstance(value, list) else [value]:
        path = _moved(root, str(one))
        if path is None:
            return None
        if path.is_dir():
            found += image_files(Path(os.path.abspath(path)))  # labels lie beside a link, too
            continue
        finder = ImageFinder(root)
        for line in filter(None, map(str.strip, read_text(path).splitlines())):
            at = path.parent / line if line.startswith("./") else root / line
            hit = None if os.path.isfile(at) else finder.find(line)
            found.append(Path(os.path.abspath(hit.path if hit else at)))
    return list(dict.fromkeys(found))


def _moved(root: Path, name: str) -> Path | None:
    """A file or folder that a ``data.yaml`` names: as it stands, or the end of its path.

    Roboflow writes ../train/images for train/images, CVAT data/train.txt for train.txt, and others
    the whole path on the machine of the training.
    """
    name = name.replace("\\", "/")
    parts = PurePosixPath(name).parts
    least = 1 if name.endswith(".txt") or name.startswith(("./", "../", "data/")) else 2
    if name.startswith("../") and len(parts) > 2:
        least = 2  # no folder of another split
    tails = ["/".join(parts[start:]) for start in range(1, len(parts) - least + 1)]
    return next((root / one for one in (name, *tails) if os.path.exists(root / one)), None)


def folders_of_sets(root: Path, files: Iterable[Path]) -> str:
    """The folders called train, val, ... that the images lie in, where there are several."""
    folders = {part for file in files for part in file.relative_to(root).parts[:-1]}
    found = [name for name in ("train", "valid", "val", "test") if name in folders]
    return ", ".join(found) if len(found) > 1 else ""


def label_file(image: Path, labels: Path | None, images: Path) -> Path | None:
    """The labels of an image; None where there are none.

    Args:
        labels: their folder, in the same folders as the images in ``images``; None if they lie
            where Ultralytics looks for them.
    """
    if labels is not None:
        inside = Path(os.path.relpath(image, images)).with_suffix(".txt")
        tries = [labels / inside, labels / inside.name]
    else:
        parts = list(image.parts)
        tries = []
        if "images" in parts:
            place = len(parts) - 1 - parts[::-1].index("images")
            beside = Path(*parts[:place], "labels", *parts[place + 1 :])
            tries.append(beside.with_suffix(".txt"))
        tries.append(image.with_suffix(".txt"))
    return next((path for path in tries if path.is_file()), None)
