"""Finds the images of a folder, by the same rule for every task, and counts all other files.

A file is an image by the ending of its name (:func:`images.formats.image_endings`), in upper or
lower case. Names that begin with a dot (hidden files, macOS's ``._`` files, ``.ipynb_checkpoints``)
and ``__MACOSX`` are skipped, with everything in them. Links to folders are followed, but no folder
is searched twice, even if it is linked into itself. Names need not be UTF-8.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from timm.utils.misc import natural_key

from images.formats import OPTIONAL, image_endings

logger = logging.getLogger(__name__)

NOT_SEARCHED = "__MACOSX"
HIDDEN, SEEN = "hidden files", "folders linked twice"
SHOWN = 12  # most endings in a message


def is_passed_over(name: str) -> bool:
    """Whether a path is skipped: one of its parts is hidden or is ``__MACOSX``."""
    parts = name.replace("\\", "/").split("/")
    return any(p == NOT_SEARCHED or (p.startswith(".") and p not in (".", "..")) for p in parts)


def ending_of(name: str) -> str:
    """``.jpg`` for ``a.JPG``; "" without an ending."""
    return os.path.splitext(name)[1].lower()


@dataclass
class FolderFiles:
    """The files of a folder and of the folders in it.

    Attributes:
        images: the image files, in the natural order of their paths.
        left_out: number of other files, by ending, and of skipped ones, by reason.
    """

    images: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def words(self) -> str:
        """The counts of ``left_out`` in words; "" if nothing was left out."""
        return words_of(self.left_out)


def words_of(left_out: Counter[str]) -> str:
    """ "3 .txt, 1 without an ending", most frequent first; says what would read them, if known."""
    listed = [
        f"{count} {name or 'without an ending'}"
        + (f" ({OPTIONAL[name]} reads them)" if name in OPTIONAL else "")
        for name, count in left_out.most_common(SHOWN)
    ]
    if more := sum(left_out.values()) - sum(n for _, n in left_out.most_common(SHOWN)):
        listed.append(f"{more} more")
    return ", ".join(listed)


def files_of_folder(folder: Path, also: Iterable[str] = ()) -> FolderFiles:
    """The images of a folder at any depth, by this module's rule.

    Args:
        also: further endings, such as those of videos.
    """
    wanted, found, seen = image_endings() | set(also), FolderFiles(), set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            found.left_out[SEEN] += 1
            folders.clear()
            continue
        seen.add(real)
        for name in [name for name in folders if is_passed_over(name)]:
            inside = os.walk(os.path.join(parent, name))
            found.left_out[HIDDEN] += sum(len(hidden) for _, _, hidden in inside)
            folders.remove(name)
        folders.sort()
        for name in files:
            ending = ending_of(name)
            if is_passed_over(name):
                found.left_out[HIDDEN] += 1
            elif ending in wanted:
                found.images.append(Path(parent, name))
            else:
                found.left_out[ending] += 1
    found.images.sort(key=lambda path: natural_key(str(path)))
    return found
