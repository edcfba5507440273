"""Find the files of a COCO file's ``file_name`` entries, also where they are spelt oddly."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import defaultdict
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit


class Found(NamedTuple):
    """A file: its name relative to the folder, and how the name was spelt if not so ("")."""

    name: str
    how: str


def leaves_folder(file_name: str) -> bool:
    """Whether a ``file_name`` of an annotation file leads out of the image folder."""
    parts = file_name.replace("\\", "/")  # on Windows both separate
    return (
        os.path.isabs(parts)
        or bool(os.path.splitdrive(file_name)[0])
        or os.path.normpath(parts).split(os.sep)[0] == os.pardir
    )


def find_file(folder: Path, name: str) -> Found | None:
    """The file of the folder that a name leads to, or None.

    As it stands; with back-slashes read as slashes; with percent signs read as in a URL; and as a
    path, absolute or not, that leads into the folder or goes through a folder of its name.
    """
    if not leaves_folder(name) and is_file(folder, name):
        return Found(name, "")
    if not {"\\", "%"} & set(name) and "/" not in name:
        return None  # nothing to read otherwise: no file
    slashes = name.replace("\\", "/")
    for spelt, how in (
        (slashes, "file_name has back-slashes"),
        (unquote(name), "file_name is escaped as in a URL"),
        (unquote(slashes), "file_name is escaped as in a URL"),
    ):
        if spelt != name and not leaves_folder(spelt) and is_file(folder, spelt):
            return Found(posixpath.normpath(spelt), how)
        if within := _within(folder, spelt):
            outer = "is absolute" if leaves_folder(spelt) else "repeats the image folder"
            return Found(within, how if spelt != name else f"file_name {outer}")
    return None


def _within(folder: Path, name: str) -> str:
    """The part of a path that lies in the folder and is a file, or ""."""
    real = os.path.realpath(folder)
    if os.path.isabs(name):
        path = os.path.realpath(name)
        if path.startswith(real + os.sep) and os.path.isfile(path):
            return os.path.relpath(path, real).replace(os.sep, "/")
        return ""
    parts = PurePosixPath(name).parts
    for place, part in enumerate(parts[:-1]):
        rest = "/".join(parts[place + 1 :])
        if part == os.path.basename(real) and not leaves_folder(rest) and is_file(folder, rest):
            return rest
    return ""


def is_file(folder: Path, name: str) -> bool:
    """Whether there is such a file; ``Path.is_file`` raises for a name that is too long."""
    return os.path.isfile(os.path.join(folder, name))


def only_file_of_name(folder: Path, name: str) -> str | None:
    """The one file anywhere in the folder that has the last part of a path as its name, or None.

    Where none has, one whose name differs in upper and lower case or in how accents are composed
    (macOS writes them apart).
    """
    spelt = [name, unquote(name)]
    if "://" in name:
        spelt.append(unquote(urlsplit(name).path))
    bases = [one.replace("\\", "/").rsplit("/", 1)[-1] for one in spelt]
    for files, keys in (
        (files_by_name(str(folder)), bases),
        (files_by_name(str(folder), folded=True), [folded_name(base) for base in bases]),
    ):
        for key in keys:
            if len(found := files.get(key, [])) == 1:
                return found[0]
    return None


def folded_name(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@lru_cache(maxsize=4)
def files_by_name(folder: str, folded: bool = False) -> dict[str, list[str]]:
    """The files of a folder and its folders by their last name: paths relative to it."""
    found = defaultdict(list)
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.relpath(os.path.join(root, name), folder)
            found[folded_name(name) if folded else name].append(path.replace(os.sep, "/"))
    return dict(found)
