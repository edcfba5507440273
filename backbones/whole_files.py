"""Writes files so that they are complete or absent: under a temporary name, then renamed.

Every output of every command is written so. If the run is killed, the disk is full or an error
occurs, the earlier file stays. Errors name the path and the remedy.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

REMEDIES = {
    errno.ENOSPC: "make room there, or choose a place on another disk",
    errno.EDQUOT: "your quota there is used up: make room, or choose a place on another disk",
    errno.EFBIG: "the file system or `ulimit -f` allows no file of this size",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "change the rights of the file or folder, or choose another place",
    errno.EPERM: "change the rights of the file or folder, or choose another place",
    errno.EEXIST: "a file stands where a folder is to be, or the other way round: choose another",
    errno.ENOTDIR: "a part of this path is a file, not a folder: choose another",
    errno.EISDIR: "this is a folder where a file is to be: choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "these links lead to each other: remove them, or choose another place",
    errno.EMFILE: "this process may open no more files: raise `ulimit -n`, or take fewer --workers",
    errno.ENFILE: "the system has no more open files to give: end other programs, or ask its owner",
    errno.EIO: "the disk or the network behind it fails: look at the system's log",
    errno.ENOMEM: "memory is used up: take fewer --workers or a smaller batch",
    errno.ESTALE: "the network folder has gone away: mount it again",
}
LONGEST_ENDING = 32
FULL = 2**20  # bytes; a disk with less space left counts as full
_numbers = itertools.count()
_unfinished: set[Path] = set()  # this process's temporary files
TORCHS_STREAM = r"inline_container|PytorchStreamWriter|unexpected pos"  # torch failed to write
UNFINISHED = ".[0-9]*-[0-9]*.partial*"  # temporary files of any process


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    The temporary file is hidden and has the ending of ``path``, because the ending may choose the
    format. The file gets the permissions of the umask, whatever ``write`` does. Links are followed;
    a device, such as ``/dev/stdout``, is written directly.

    Raises:
        OSError: naming ``path``, if it cannot be written; the earlier file stays.
    """
    write_all({Path(path): write})


def write_all(files: Mapping[Path, Callable[[Path], None]]) -> None:
    """Write several files, all or none: all are written before the first is renamed.

    Raises:
        OSError: naming the path of one that cannot be written; all earlier files stay.
    """
    path = Path()
    with _removed_at_the_end() as ready:
        try:
            for path, write in files.items():
                target = Path(os.path.realpath(path)) if path.is_symlink() else path
                _prepare(target, write, ready)
            for written, path in ready:
                os.replace(written, path)
        except Exception as error:  # while a full disk is still full
            if (number := system_error(error, path.parent)) is None:
                raise
            raise OSError(number, os.strerror(number), str(path)) from error


def try_writing(path: Path) -> None:
    """Raise the error that writing there would raise; to be called before long work.

    Raises:
        OSError: with ``path``; what was there is as it was.
    """
    try:
        with _removed_at_the_end() as ready:
            # a device, such as /dev/stdout, is left alone
            _prepare(path, lambda file: None if file == path else _fill(bytes(4096), file), ready)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def _removed_at_the_end() -> Iterator[list[tuple[Path, Path]]]:
    """A list of (temporary file, final name); remaining temporary files are removed at the end."""
    ready: list[tuple[Path, Path]] = []
    try:
        yield ready
    finally:
        for written, _ in ready:
            written.unlink(missing_ok=True)
            _unfinished.discard(written)


def _prepare(path: Path, write: Callable[[Path], None], ready: list[tuple[Path, Path]]) -> None:
    """Write a file beside its name, and add the two names to ``ready``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        kind = path.stat().st_mode  # also tells of a loop of links, and of a name too long
    except FileNotFoundError:
        kind = stat.S_IFREG
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(kind):
        write(path)
        return
    ending = path.suffix if len(path.suffix) < LONGEST_ENDING else ""
    beside = path.with_name(f".{os.getpid()}-{next(_numbers)}.partial{ending}")
    ready.append((beside, path))
    _unfinished.add(beside)
    beside.touch()
    mode = stat.S_IMODE(beside.stat().st_mode)
    write(beside)
    flush(beside)
    os.chmod(beside, mode)


def remove_unfinished(folder: Path | None = None) -> None:
    """Remove this process's temporary files, or those of all processes in a folder.

    Args:
        folder: a folder that no other process writes to; folders in it are included.
    """
    found = set(_unfinished)
    if folder is not None:
        found = {path for place in ("", "*/") for path in folder.glob(place + UNFINISHED)}
    for path in found:
        path.unlink(missing_ok=True)


def write_files(files: Mapping[Path, bytes | str]) -> None:
    """Write bytes or texts to several files, all or none.

    Texts are written as UTF-8; file names in them that are not UTF-8 keep their bytes.
    """
    write_all({path: partial(_fill, data) for path, data in files.items()})


def _fill(data: bytes | str, path: Path) -> None:
    text = data.encode(errors="surrogateescape") if isinstance(data, str) else data
    path.write_bytes(text)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    write_files({Path(path): text})


def write_json(path: str | Path, tree: Any, **settings: Any) -> None:
    """Write a JSON file, atomically; further settings are ``json.dumps``'s."""
    write_text(path, json.dumps(tree, **settings) + "\n")


def linked_folder(folder: Path, files: Mapping[str, Path]) -> Path:
    """Make a folder of hard links to files, or of copies if links are not possible.

    Args:
        folder: the folder to make, completely or not at all; an existing one is left as it is.
        files: path within the folder -> the existing file.
    """
    if folder.is_dir():
        return folder
    beside = folder.with_name(f".{os.getpid()}-{next(_numbers)}.partial")
    for name, source in files.items():
        target = beside / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(os.path.realpath(source), target)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(source, target)
    beside.mkdir(parents=True, exist_ok=True)
    os.replace(beside, folder)
    return folder


def flush(path: Path) -> None:
    """Wait until a file, or the list of a folder's entries, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # not possible for folders on Windows
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def system_error(error: BaseException, folder: Path | None = None) -> int | None:
    """The system's error number of an exception of any library; None for other errors.

    Args:
        folder: the folder written to; some libraries do not say that its disk is full.
    """
    if isinstance(error, OSError):
        return error.errno
    if found := re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", str(error)):
        return int(found[1] or found[2])
    for text, number in (("Too many open files", errno.EMFILE), ("Symlink loop", errno.ELOOP)):
        if text in str(error):
            return number
    if folder is not None and re.search(TORCHS_STREAM, str(error)) and _is_full(folder):
        return errno.ENOSPC
    return None


def what_to_do(error: OSError) -> str:
    """A message for an error of the system: cause, path, remedy, in one line."""
    cause = (error.strerror or str(error)).strip()
    place = f": {error.filename}" if error.filename else ""
    remedy = REMEDIES.get(error.errno or 0)
    return f"{cause}{place}" + (f"; {remedy}" if remedy else "")


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < FULL
    except OSError:
        return False


def what_stands_there(start: bytes) -> str:
    """What is in the place of a file that was never fetched, with the remedy; "" for other files.

    Args:
        start: the file's first 132 bytes or more.
    """
    if not start:
        return "is empty: its writing was cut off; copy or fetch it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself: run `git lfs pull` in its clone"
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|\?xml|head)", start, re.IGNORECASE):
        return "is a web page, not the file itself: fetch it again, by the link that downloads it"
    return ""
