"""Config files and grids that come with this project, found by name from any folder."""

from __future__ import annotations

from pathlib import Path

from training.command_line.commands import HOME, closest, shipped_folder

DET_CONFIGS = HOME / "det_configs"
ABLATIONS = shipped_folder("fcmae_ablations", "ablations")


def find_shipped(path: str | Path, folder: Path, kind: str) -> Path:
    """A file of the user's, or else the file of that name that comes with this project.

    Args:
        path: a path, or a name within ``folder``, with or without the folder's own name before it
            and the folders on the way: ``quick/x.yaml``, ``det_configs/quick/x.yaml``, ``x.yaml``.
        folder: ``DET_CONFIGS`` or ``ABLATIONS``.
        kind: what to call it in the error, such as "config file".

    Raises:
        FileNotFoundError: with the closest name, if there is no such file.
    """
    path = Path(path).expanduser()
    if path.exists():
        return path
    names = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*.yaml"))}
    wanted = path.as_posix()
    for own in {folder.name, folder.name.removeprefix("fcmae_")}:
        wanted = wanted.removeprefix(f"{own}/")
    if wanted in names:
        return names[wanted]
    same = [name for name in names if name.rpartition("/")[2] == wanted]
    if len(same) == 1:
        return names[same[0]]
    if same:
        raise FileNotFoundError(f"there are several {kind}s {path}: name one of {', '.join(same)}")
    by_ending = {name.rpartition("/")[2]: name for name in names}
    hint = closest(wanted, names)
    if not hint and (near := closest(path.name, by_ending)):
        hint = f"; the closest is {by_ending[near.rpartition(' ')[2]]}"
    raise FileNotFoundError(f"there is no {kind} {path}{hint}")
