"""Check a data set's image files, and find images that two data sets share."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from backbones.errors import InputError
from images.files import ImageError, Picture, Reading, open_picture, pixel_digest, read_image
from images.picture import SIXTEEN_BITS
from images.size_limit import refuse_absurd_size
from images.threads import in_threads
from images.windows import Windows
from training.guards.checkpoints import sha256_of
from training.progress import progress

BLOCK = 2**20  # bytes
DIM = 4095  # highest value of a 12-bit camera in a file of 16 bits
ANY = Reading(None, by_parts=True)
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


class FileState(NamedTuple):
    """What is wrong with an image file, and what it holds ("" and 0 if it cannot be read)."""

    faults: list[FileFault]
    depth: str = ""
    colours: int = 0


def shown_size(path: str | Path) -> tuple[int, int] | None:
    """Height and width of an image as it is shown, by its header; None for no image."""
    try:
        with open(path, "rb") as file:
            picture = open_picture(file)
    except (ImageError, OSError):
        return None
    return picture.height, picture.width


def file_state(image: dict, folder: Path, decode: bool, reading: Reading = ANY) -> FileState:
    """Look at the file of one image entry: at its header, or at its pixels too."""
    name = image["file_name"]
    path = folder / name
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        remedy = "add the image, or correct file_name or the image folder"
        return FileState([FileFault("error", "is missing", remedy)])
    try:
        with open(path, "rb") as file:
            picture = open_picture(file)
            reading.check(picture)
            pixels = Windows(picture, reading)
            if pixels.too_large and not reading.by_parts:
                refuse_absurd_size(picture.height, picture.width, picture.channels, by_parts=True)
            highest = pixels.check_pixels() if decode else 1.0
    except (InputError, OSError) as error:
        message, _, remedy = str(error).partition("; ")
        return FileState([FileFault("error", message, remedy or "replace or remove the image")])
    faults = []
    if fault := _size_fault(picture, (image["width"], image["height"])):
        faults.append(fault)
    if pixels.too_large and reading is ANY:
        remedy = "train and predict with INPUT.TILES.ENABLED True"
        size = f"{picture.width} x {picture.height} pixels"
        message = f"is {size}, too large for anything but tiles"
        faults.append(FileFault("warning", message, remedy))
    is_stated = reading.value_range is not None or picture.white != SIXTEEN_BITS
    if highest * SIXTEEN_BITS < DIM + 0.5 and not is_stated:
        remedy = (
            f"its levels are kept, but it is dark beside others: if {DIM} is white, say so by "
            f"INPUT.VALUE_RANGE [0, {DIM}]"
        )
        faults.append(FileFault("warning", f"has 16 bits, but no value above {DIM}", remedy))
    return FileState(faults, picture.depth, picture.colours)


def _size_fault(picture: Picture, given: tuple[int, int]) -> FileFault | None:
    """Whether a file's width, height and EXIF orientation contradict the annotations."""
    orientation, shown = picture.orientation, (picture.width, picture.height)
    how = ORIENTATIONS.get(orientation)
    size = shown[::-1] if orientation in (5, 6, 7, 8) else shown
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


def same_files(files: Sequence[ImageFile]) -> list[SharedImage]:
    """Files of one data set that have the bytes of an earlier one, but for entries of one path."""
    paths = list(dict.fromkeys(file.path for file in files))
    by_length: dict[int, list[ImageFile]] = defaultdict(list)
    for path in paths:
        file = ImageFile(path, (0, 0))
        by_length[_length(file)].append(file)
    alike = [file for group in by_length.values() if len(group) > 1 for file in group]
    first: dict[str, str] = {}
    found = []
    for file, digest in zip(alike, in_threads(_digest_bytes, alike), strict=True):
        if digest is not None and first.setdefault(digest, file.path) != file.path:
            found.append(SharedImage(file.path, first[digest], "bytes"))
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
    bar = progress(text=title, total=sum(map(len, candidates)), unit="image")

    def digests(side: list[ImageFile]) -> Iterator[tuple[str, str]]:
        for file, found in zip(side, in_threads(digest, side), strict=True):
            bar.update()
            if found is not None:
                yield found, file.path

    with bar:
        known = dict(digests(candidates[1]))
        return {path: known[found] for found, path in digests(candidates[0]) if found in known}


def _length(file: ImageFile) -> int:
    try:
        return os.path.getsize(file.path)
    except OSError:
        return -1


def _digest_bytes(file: ImageFile) -> str | None:
    try:
        return sha256_of(Path(file.path))
    except OSError:
        return None


def _digest_pixels(file: ImageFile) -> str | None:
    """Of the size and the RGB pixels, EXIF rotation applied."""
    try:
        pixels = read_image(file.path, ANY)
    except (InputError, FileNotFoundError):
        return None
    return pixel_digest(pixels)
