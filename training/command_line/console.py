"""The console command ``fcmae``, also ``python -m fcmae``: a subcommand for each tool."""

from __future__ import annotations

import importlib.util
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from training.cli import run_tool
from training.command_line.commands import PROGRAM, closest, commands, summary

DISTRIBUTION = "convnextv2-fcmae-detection"


def usage() -> str:
    """The list of subcommands."""
    found = commands()
    width = max(map(len, found))
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND ...",
            "",
            "Pretrain a ConvNeXt V2 on your own images, train a detector from it, read a report.",
            "",
            *(f"  {name:<{width}}  {summary(file)}" for name, file in found.items()),
            "",
            f"{PROGRAM} COMMAND --help has flags and examples; {PROGRAM} --version the version.",
        ]
    )


def version_line() -> str:
    """This project's version and Python's."""
    try:
        own = version(DISTRIBUTION)
    except PackageNotFoundError:
        own = "(not installed)"
    return f"{PROGRAM} {own}, Python {platform.python_version()}"


def load_command(file: Path) -> ModuleType:
    """Import a command's file, which in a clone belongs to no package."""
    spec = importlib.util.spec_from_file_location(f"fcmae_commands.{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Run ``fcmae COMMAND ARGUMENTS``; returns the exit code."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(usage())
        return 0
    if name == "--version":
        print(version_line())
        return 0
    found = commands()
    if name not in found:
        hint = closest(name, found)
        print(
            f"{PROGRAM}: error: there is no command {name!r}{hint}; {PROGRAM} --help lists all",
            file=sys.stderr,
        )
        return 2
    sys.argv = [f"{PROGRAM} {name}", *arguments]
    return run_tool(lambda: load_command(found[name]).main())


if __name__ == "__main__":
    raise SystemExit(main())
