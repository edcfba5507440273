"""What to predict on: image files, folders, glob patterns and videos, checked before the start.

Images are read by :mod:`images.files`, videos by :mod:`images.video`, one frame at a time, so
that a folder or a film of any length takes no more memory than its largest image.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from backbones.errors import InputError
from images.files import ImageError, Picture, Reading, read_image
from images.folders import files_of_folder
from images.formats import image_endings
from images.picture import picture_of
from images.threads import in_threads
from images.video import VIDEOS, Frame, is_video, refuse_live, video_frames
from training.progress import progress

logger = logging.getLogger(__name__)

RGB = Reading(3)


def find_files(inputs: Sequence[str], skip_bad: bool = False, reading: Reading = RGB) -> list[Path]:
    """The image and video files that files, folders (with those inside) and patterns stand for.

    In the order given, folders in the order of their names, each file once.

    Args:
        skip_bad: leave out files that do not decode, each with a warning.
        reading: how images become arrays; one that cannot become one does not decode.

    Raises:
        InputError: naming every input that is not there or holds nothing, and every file that
            does not decode; with ``skip_bad``, only if none decodes.
    """
    files: dict[Path, None] = {}
    problems: list[str] = []
    for item in inputs:
        try:
            refuse_live(item)
        except InputError as error:
            problems.append(str(error))
            continue
        found = _expand(Path(item).expanduser(), problems)
        files |= dict.fromkeys(found)
    bad = _unreadable(list(files), reading)
    if skip_bad and len(bad) < len(files):
        for fault in bad.values():
            logger.warning("left out: %s", fault)
        if bad:
            logger.warning("%d of %d files do not decode and are left out", len(bad), len(files))
        files = {file: None for file in files if file not in bad}
    else:
        problems += bad.values()
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError("\n  ".join([f"{count} in the inputs:", *problems]))
    return list(files)


def _expand(path: Path, problems: list[str]) -> list[Path]:
    if path.is_dir():
        files = files_of_folder(path, also=VIDEOS)
        if not files.images:
            there = f"; it holds {files.words()}" if files.left_out else ""
            known = ", ".join(sorted(image_endings() | VIDEOS))
            problems.append(f"{path} holds no image and no video{there} (known: {known})")
        elif files.left_out:
            logger.warning("%s: left out: %s", path, files.words())
        return sorted(files.images)
    if path.is_file():
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    found = [file for file in found if file.is_file()]
    if not found:
        is_pattern = glob.has_magic(str(path))
        problems.append(f"{path} {'matches no file' if is_pattern else 'is not there'}")
    return found


def _unreadable(files: Sequence[Path], reading: Reading) -> dict[Path, str]:
    """What is wrong with each file that cannot be read; decodes all images."""
    results = in_threads(lambda file: _fault(file, reading), files)
    faults = progress(results, "checking", len(files), "file")
    return {file: fault for file, fault in zip(files, faults, strict=True) if fault}


def _fault(path: Path, reading: Reading) -> str:
    try:
        next(read_frames(path, reading=reading))
    except ValueError as error:
        return f"{error}; replace it or leave it out"
    return ""


def read_frames(path: Path, every: int = 1, reading: Reading = RGB) -> Iterator[Frame]:
    """The image of a file, or each ``every``-th frame of a video, rotation applied.

    Args:
        reading: how images become arrays; frames are RGB of 8 bits before.

    Raises:
        InputError: if it does not decode; a video, if its first frame does not.
    """
    if not is_video(path):
        yield Frame(read_image(path, reading))
        return
    for frame in video_frames(path, every):
        yield frame._replace(pixels=_as_wanted(path, picture_of(frame.pixels), reading))


def _as_wanted(path: Path, frame: Picture, reading: Reading) -> np.ndarray:
    try:
        return reading.read(frame)
    except ImageError as error:
        raise ImageError(f"{path}: a frame {error}") from error


def output_names(files: Sequence[Path]) -> list[str]:
    """A name without suffix for each file, its own where no other file has it."""
    taken: set[str] = set()
    names = []
    for file in files:
        name, number = file.stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{file.stem}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names
