"""Image files of a data set: whether they can be read, and which two data sets share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

READERS = 8
EXIF_ORIENTATION = 0x0112


def file_fault(image: dict, folder: Path, decode: bool) -> tuple[str, str] | None:
    """What is wrong with the file of one image entry, and the remedy; ``None`` if nothing is."""
    name = image["file_name"]
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        return "lies outside the image folder", "give file_name relative to the image folder"
    path = folder / name
    if not path.is_file():
        return "is missing", "add the image, or correct file_name or the image folder"
    try:
        with Image.open(path) as file:
            width, height = file.size
            if decode:
                file.load()
            # Pillow decodes a whole PNG to look for EXIF data behind its pixels.
            in_header = decode or file.format != "PNG" or "exif" in file.info
            orientation = file.getexif().get(EXIF_ORIENTATION, 1) if in_header else 1
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        return f"does not decode ({type(error).__name__}: {error})", "replace or remove the image"
    given = image["width"], image["height"]
    rotated = orientation in (5, 6, 7, 8)
    if (width, height)[:: -1 if rotated else 1] == given:
        return None
    why = ", rotated by its EXIF orientation" if rotated else ""
    return (
        f"is {width} x {height} pixels{why}, but the annotations say {given[0]} x {given[1]}",
        "correct width and height (and the objects) in the annotations, or replace the image",
    )


def shared_images(
    names: Iterable[str], folder: Path, other_names: Iterable[str], other_folder: Path
) -> list[tuple[str, str]]:
    """(name, other's name) of each image whose decoded pixels the other folder has too.

    Names and formats do not matter. Files that do not decode are passed over: checking the data
    set itself reports them.
    """
    others = {digest: name for name, digest in _pixel_digests(other_names, other_folder)}
    return [
        (name, others[digest]) for name, digest in _pixel_digests(names, folder) if digest in others
    ]


def _pixel_digests(names: Iterable[str], folder: Path) -> list[tuple[str, str]]:
    """(file name, digest of size and RGB pixels) of the images that can be read."""

    def digest(name: str) -> tuple[str, str] | None:
        try:
            with Image.open(folder / name) as file:
                pixels = file.convert("RGB")
        except Exception:
            return None
        return name, hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()

    with ThreadPoolExecutor(READERS) as readers:
        return [item for item in readers.map(digest, names) if item]
