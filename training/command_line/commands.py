"""The commands of this project: the files of ``tools/``, which are subcommands of ``fcmae``.

In the wheel the folder is the package ``fcmae_commands``, because detectron2's wheel installs a
package ``tools``, and ``ablations/`` is ``fcmae_ablations``. Both lie beside this package.
"""

from __future__ import annotations

import ast
import difflib
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]


def shipped_folder(in_wheel: str, in_clone: str) -> Path:
    """A folder of this project, under its name in the wheel or in a clone."""
    folder = HOME / in_wheel
    return folder if folder.is_dir() else HOME / in_clone


TOOLS = shipped_folder("fcmae_commands", "tools")
PROGRAM = "fcmae"
OTHER_NAMES = {"make_report": "report", "train_segmentation": "segment"}


def command_name(tool: str) -> str:
    """``fcmae``'s subcommand for ``tools/TOOL.py``: the first word of the file's name."""
    return OTHER_NAMES.get(tool, tool.partition("_")[0])


def commands() -> dict[str, Path]:
    """Every subcommand's file."""
    files = {command_name(file.stem): file for file in TOOLS.glob("[a-z]*.py")}
    return dict(sorted(files.items()))


def summary(file: Path) -> str:
    """The first line of a command's docstring, read without importing it."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def child_command(name: str) -> list[str]:
    """The command line that starts a command in another process, with this Python."""
    return [sys.executable, str(commands()[name])]


def is_console() -> bool:
    """Whether this process was started as ``fcmae NAME``, not as a file."""
    return TOOLS.name != "tools" or sys.argv[0].startswith(f"{PROGRAM} ")


def as_called(text: str) -> str:
    """A text, its names of files in ``tools/`` replaced as the user calls them (``fcmae NAME``)."""
    if "tools/" not in text or not is_console():
        return text
    for name, file in commands().items():
        path = re.escape(f"tools/{file.name}")
        text = re.sub(rf"\bpython {path}", f"{PROGRAM} {name}", text)
        # what follows torchrun's or accelerate's own flags is started as a module
        text = re.sub(rf"((?:torchrun|accelerate launch)\b[^\n]*? ){path}",
                      rf"\g<1>-m {PROGRAM} {name}", text)  # fmt: skip
        text = re.sub(rf"(?<![\w./-]){path}", f"{PROGRAM} {name}", text)  # no part of a path
    return text


def shown_command(arguments: Sequence[str]) -> str:
    """A command line as a user would type it: ``python tools/X.py ...`` or ``fcmae X ...``."""
    program, *rest = arguments
    if program == sys.executable and rest and Path(rest[0]).parent == TOOLS:
        name = Path(rest[0]).name
        return as_called(f"python tools/{name} ") + shlex.join(rest[1:])
    return shlex.join(arguments)


def own_program() -> str:
    """The program of this process: ``fcmae X`` or a file."""
    file = Path(sys.argv[0])
    in_wheel = TOOLS.name != "tools" and file.parent == TOOLS
    return f"{PROGRAM} {command_name(file.stem)}" if in_wheel else sys.argv[0]


def own_command() -> str:
    """This process's command line, for the record of a run."""
    program = own_program()
    program = program if program.startswith(f"{PROGRAM} ") else shlex.quote(program)
    return f"{program} {shlex.join(sys.argv[1:])}".rstrip()


def closest(name: str, known: Iterable[str]) -> str:
    """``; the closest is NAME``, or nothing where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; the closest is {close[0]}" if close else ""
