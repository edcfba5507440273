"""The inputs of a prediction: image files, folders, glob patterns and videos, checked at the start.

Images are read by :mod:`images.files`, videos by :mod:`images.video`, one frame at a time, so
that a folder or a film of any length takes no more memory than its largest image.
"""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from backbones.errors import InputError, counted, listed
from images.files import ImageError, Reading, read_image
from images.folders import files_of_folder, words_of
from images.formats import image_endings
from images.picture import picture_of
from images.threads import in_threads
from images.video import VIDEOS, Frame, is_video, refuse_live, video_frames
from images.windows import Windows, open_windows
from training.guards.journal import JOURNAL, Journal
from training.progress import progress

logger = logging.getLogger(__name__)

RGB = Reading(3)
EARLIER = "of earlier predictions"
# a folder of drawn pictures -> the file beside it by which it is recognised
DRAWN = {"overlays", "maps", "pictures"}
PREDICTED = ("predictions.json", JOURNAL, "areas.csv")


def find_files(inputs: Sequence[str], skip_bad: bool = False, reading: Reading = RGB) -> list[Path]:
    """The files of :func:`list_files`, checked by :func:`readable_files`."""
    return readable_files(list_files(inputs, reading), skip_bad, reading)


def files_to_predict(
    inputs: Sequence[str],
    journal: Journal,
    skip_bad: bool = False,
    reading: Reading = RGB,
    videos: bool = True,
) -> list[Path]:
    """The files of :func:`list_files` that a prediction has not done yet; none if it is finished.

    Args:
        videos: whether videos are predicted on, too; otherwise they are left out and counted.

    Raises:
        InputError: as :func:`list_files` and :func:`readable_files`; and for files that a finished
            prediction does not include.
    """
    files = list_files(inputs, reading)
    if not videos:
        found, files = files, [file for file in files if not is_video(file)]
        if not files:
            raise InputError("there is no image among the inputs, and videos are not predicted on")
        if len(files) < len(found):
            logger.warning("left out: %s", counted(len(found) - len(files), "video"))
    left = journal.left(files)
    if not journal.is_finished:
        return readable_files(left, skip_bad, reading, at_least=not journal.done)
    if skip_bad:
        left = readable_files(left, True, reading, at_least=0)
    if left:
        raise InputError(
            f"{journal.folder} holds finished predictions, and {len(left)} of "
            f"{counted(len(files), 'file')} are not among them, such as {left[0]}: choose another "
            "folder for these"
        )
    return []


def list_files(inputs: Sequence[str], reading: Reading = RGB) -> list[Path]:
    """The image and video files of files, folders (with folders inside) and glob patterns.

    They come in the order given, those of folders by name, each file once. Pictures that an earlier
    prediction drew are left out of folders and patterns, and counted.

    Raises:
        InputError: naming every input that does not exist or holds no image, and every file that
            does not decode.
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
    if problems:
        problems += _unreadable(list(files), reading).values()  # to report all problems at once
        raise InputError(listed(problems, "the inputs"))
    return list(files)


def readable_files(
    files: Sequence[Path], skip_bad: bool = False, reading: Reading = RGB, at_least: int = 1
) -> list[Path]:
    """The files among these that decode.

    Args:
        skip_bad: leave out files that do not decode, each with a warning.
        reading: how images become arrays; a file that it refuses counts as not decoding.
        at_least: how many must decode if ``skip_bad``.

    Raises:
        InputError: naming every file that does not decode; with ``skip_bad``, only if too few do.
    """
    bad = _unreadable(files, reading)
    if bad and not (skip_bad and len(files) - len(bad) >= at_least):
        raise InputError(listed(list(bad.values()), "the inputs"))
    for fault in bad.values():
        logger.warning("left out: %s", fault)
    if bad:
        logger.warning(
            "%d of %s do not decode and are left out", len(bad), counted(len(files), "file")
        )
    return [file for file in files if file not in bad]


def _expand(path: Path, problems: list[str]) -> list[Path]:
    if path.is_file():
        return [path]
    is_folder, also = path.is_dir(), Counter[str]()
    if is_folder:
        files = files_of_folder(path, also=VIDEOS)
        found, also = sorted(files.images), files.left_out
    else:
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        found = [file for file in found if file.is_file()]
    kept = [file for file in found if not _is_drawn(file.parent)]
    if len(kept) < len(found):
        also[EARLIER] += len(found) - len(kept)
    if kept:
        if also:
            logger.warning("%s: left out: %s", path, words_of(also))
        return kept
    there = f"; it holds {words_of(also)}" if also else ""
    if is_folder:
        known = ", ".join(sorted(image_endings() | VIDEOS))
        problems.append(f"{path} holds no image and no video{there} (known: {known})")
    else:
        is_pattern = glob.has_magic(str(path))
        problems.append(f"{path} {'matches no file' if is_pattern else 'is not there'}{there}")
    return []


def _is_drawn(folder: Path) -> bool:
    """Whether a folder holds the pictures of an earlier prediction."""
    return any(
        parent.name in DRAWN and any((parent.parent / name).is_file() for name in PREDICTED)
        for parent in (folder, *folder.parents)
    )


def _unreadable(files: Sequence[Path], reading: Reading) -> dict[Path, str]:
    """A message for each file that cannot be read; decodes all images."""
    reading = replace(reading, all_channels="")  # a finished model's channels cannot change
    results = in_threads(lambda file: _fault(file, reading), files)
    faults = progress(results, "checking", len(files), "file")
    return {file: fault for file, fault in zip(files, faults, strict=True) if fault}


def _fault(path: Path, reading: Reading) -> str:
    try:
        if not is_video(path):
            with open_windows(path, reading) as image:
                image.check_pixels()
        else:
            next(read_frames(path, reading=reading))
    except ValueError as error:
        return f"{error}; replace it or leave it out"
    return ""


def read_frames(path: Path, every: int = 1, reading: Reading = RGB) -> Iterator[Frame]:
    """The image of a file, or each ``every``-th frame of a video, rotation applied.

    Args:
        reading: how images become arrays; frames of videos are RGB of 8 bits.

    Raises:
        InputError: if it does not decode; a video, if its first frame does not.
    """
    if not is_video(path):
        yield Frame(read_image(path, reading))
        return
    for frame in video_frames(path, every):
        with _of_a_frame(path):
            pixels = reading.read(picture_of(frame.pixels))
        yield frame._replace(pixels=pixels)


@contextmanager
def _of_a_frame(path: Path) -> Iterator[None]:
    """Add the video's name to errors about one of its frames."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{path}: a frame {error}") from error


def read_windows(
    path: Path, every: int = 1, reading: Reading = RGB
) -> Iterator[tuple[Frame, Windows]]:
    """As :func:`read_frames`, but each to be read part by part; a frame of an image has no pixels.

    Raises:
        InputError: as :func:`read_frames`.
    """
    if not is_video(path):
        with open_windows(path, reading) as image:
            yield Frame(np.zeros((0, 0, 3), np.uint8)), image
        return
    for frame in video_frames(path, every):
        with _of_a_frame(path):
            yield frame, Windows(picture_of(frame.pixels), reading, str(path))


def output_names(files: Sequence[Path], taken_before: Iterable[str] = ()) -> list[str]:
    """A name without suffix for each file: its own, unless another file has it."""
    taken = {name.casefold() for name in taken_before}
    names = []
    for file in files:
        name, number = file.stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{file.stem}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names
