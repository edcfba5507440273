"""Config files and grids that come with this project, found by name from any folder."""

from __future__ import annotations

from pathlib import Path

from training.command_line.commands import HOME, closest, shipped_folder

DET_CONFIGS = HOME / "det_configs"
ABLATIONS = shipped_folder("fcmae_ablations", "ablations")


def find_shipped(path: str | Path, folder: Path, kind: str) -> Path:
    """Find a user's file, or else the file of that name that comes with this project.

    Args:
        path: a path, or a name within ``folder``: ``det_configs/quick/x.yaml``, ``quick/x.yaml``
            and ``x.yaml`` are the same.
        folder: ``DET_CONFIGS`` or ``ABLATIONS``.
        kind: its name in the error, such as "config file".

    Raises:
        FileNotFoundError: with the closest name, if there is no such file.
    """
    path = Path(path).expanduser()
    if path.exists():
        return path
    same = shipped_of_name(path, folder)
    if len(same) == 1:
        return same[0]
    names = _names(folder)
    if same:
        several = ", ".join(name for name, file in names.items() if file in same)
        raise FileNotFoundError(f"there are several {kind}s {path}: name one of {several}")
    by_ending = {name.rpartition("/")[2]: name for name in names}
    hint = closest(_within(path, folder), names)
    if not hint and (near := closest(path.name, by_ending)):
        hint = f"; the closest is {by_ending[near.rpartition(' ')[2]]}"
    raise FileNotFoundError(f"there is no {kind} {path}{hint}")


def shipped_of_name(path: str | Path, folder: Path) -> list[Path]:
    """The files of this project that a path may stand for, as in ``find_shipped``.

    Files of the user at this path do not matter here.
    """
    names, wanted = _names(folder), _within(path, folder)
    if wanted in names:
        return [names[wanted]]
    return [file for name, file in names.items() if name.rpartition("/")[2] == wanted]


def _names(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*.yaml"))}


def _within(path: str | Path, folder: Path) -> str:
    """A path without the folder's own name before it."""
    wanted = Path(path).as_posix()
    for own in {folder.name, folder.name.removeprefix("fcmae_")}:
        wanted = wanted.removeprefix(f"{own}/")
    return wanted
