"""Image files of a data set: whether they can be read, and which of them two data sets share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

READERS = 8
EXIF_ORIENTATION = 0x0112
# How such an image is shown; 5 to 8 swap its sides.
ORIENTATIONS = {
    2: "mirrored",
    3: "turned upside down",
    4: "flipped",
    5: "mirrored and turned",
    6: "turned right",
    7: "mirrored and turned",
    8: "turned left",
}

Key = TypeVar("Key", bound=Hashable)


class FileFault(NamedTuple):
    """What is wrong with an image file, and the remedy."""

    severity: Literal["error", "warning"]
    message: str
    remedy: str


class ImageFile(NamedTuple):
    """An image of a data set: its path, and its height and width as the annotations give them."""

    path: str
    size: tuple[int, int]


class SharedImage(NamedTuple):
    """Two paths to one image; ``how`` tells what was compared."""

    path: str
    other: str
    how: Literal["bytes", "pixels"]


def file_fault(image: dict, folder: Path, decode: bool) -> FileFault | None:
    """What is wrong with the file of one image entry; ``None`` if nothing is."""
    name = image["file_name"]
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        remedy = "give file_name relative to the image folder"
        return FileFault("error", "lies outside the image folder", remedy)
    path = folder / name
    if not path.is_file():
        remedy = "add the image, or correct file_name or the image folder"
        return FileFault("error", "is missing", remedy)
    try:
        with Image.open(path) as file:
            width, height = file.size
            if decode:
                file.load()
            # Pillow decodes a whole PNG to look for EXIF data behind its pixels.
            in_header = decode or file.format != "PNG" or "exif" in file.info
            orientation = file.getexif().get(EXIF_ORIENTATION, 1) if in_header else 1
            is_deep = is_deeper_than_8_bits(file)
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        message = f"does not decode ({type(error).__name__}: {error})"
        return FileFault("error", message, "replace or remove the image")
    if is_deep:
        message = "has more than 8 bits a channel, which both engines would cut"
        return FileFault("error", message, "scale its values to 0..255 and save it with 8 bits")
    return _size_fault((width, height), orientation, (image["width"], image["height"]))


def _size_fault(
    size: tuple[int, int], orientation: int, given: tuple[int, int]
) -> FileFault | None:
    """Whether a file's width, height and EXIF orientation contradict the annotations."""
    how = ORIENTATIONS.get(orientation)
    shown = (size[1], size[0]) if orientation in (5, 6, 7, 8) else size
    if shown == given:
        if how and (orientation in (2, 3, 4) or size[0] == size[1]):
            message = f"is {how} by its EXIF orientation, which its size does not tell"
            return FileFault("warning", message, "make sure that the objects lie on it as shown")
        return None
    why = f", {how} by its EXIF orientation" if how else ""
    if how and size == given:
        remedy = (
            "its objects were drawn on the image as stored, but it is read as shown: remove the "
            "orientation from the file, or turn width, height and objects in the annotations"
        )
    else:
        remedy = (
            "correct width and height (and the objects) in the annotations, or replace the image"
        )
    said = f"is {shown[0]} x {shown[1]} pixels{why}"
    return FileFault("error", f"{said}, but the annotations say {given[0]} x {given[1]}", remedy)


def is_deeper_than_8_bits(image: Image.Image) -> bool:
    """Whether pixels of an image would be lost in its conversion to 8 bits; decodes it if so."""
    if image.mode == "F":
        return True
    if not image.mode.startswith("I"):
        return False
    values = np.asarray(image)
    return bool(values.min() < 0 or values.max() > 255)


def shared_images(
    files: Sequence[ImageFile], others: Sequence[ImageFile], pixels: bool
) -> list[SharedImage]:
    """The images of ``files`` that ``others`` have too, whatever their names.

    Files are compared by their bytes, and only those of which another has the same length are
    read. With ``pixels``, images of the same size are decoded as well, so that one that was saved
    again without loss or with its EXIF rotation applied is found. An image that was compressed
    anew or resized is not. Files that cannot be read are passed over: checking the data set itself
    reports them.
    """
    by_bytes = _pairs(files, others, _length, _digest_bytes, "comparing files")
    found = [SharedImage(path, other, "bytes") for path, other in by_bytes.items()]
    if pixels:
        rest = [file for file in files if file.path not in by_bytes]
        by_pixels = _pairs(rest, others, lambda f: f.size, _digest_pixels, "comparing pixels")
        found += [SharedImage(path, other, "pixels") for path, other in by_pixels.items()]
    return found


def _pairs(
    files: Sequence[ImageFile],
    others: Sequence[ImageFile],
    key: Callable[[ImageFile], Key],
    digest: Callable[[ImageFile], str | None],
    title: str,
) -> dict[str, str]:
    """path -> other's path of equal digest; only where another has the same key is it computed."""
    keys = [[key(file) for file in side] for side in (files, others)]
    common = set(keys[0]) & set(keys[1])
    candidates = [
        [file for file, its_key in zip(side, of_side, strict=True) if its_key in common]
        for side, of_side in zip((files, others), keys, strict=True)
    ]
    progress = tqdm(
        total=sum(map(len, candidates)), desc=title, unit="image", disable=None, leave=False
    )

    def digests(side: list[ImageFile]) -> Iterator[tuple[str, str]]:
        for file, found in zip(side, readers.map(digest, side), strict=True):
            progress.update()
            if found is not None:
                yield found, file.path

    with ThreadPoolExecutor(READERS) as readers, progress:
        known = dict(digests(candidates[1]))
        return {path: known[found] for found, path in digests(candidates[0]) if found in known}


def _length(file: ImageFile) -> int:
    try:
        return os.path.getsize(file.path)
    except OSError:
        return -1


def _digest_bytes(file: ImageFile) -> str | None:
    try:
        return hashlib.sha256(Path(file.path).read_bytes()).hexdigest()
    except OSError:
        return None


def _digest_pixels(file: ImageFile) -> str | None:
    """Of the size and the RGB pixels, EXIF rotation applied."""
    try:
        with Image.open(file.path) as image:
            pixels = ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # as in file_fault
        return None
    return hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()
