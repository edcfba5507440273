"""What every command line of this project shares: logging set-up and exit codes."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)

HANDLER_NAME = "log_to"


def run_tool(main: Callable[[], int | None]) -> int:
    """Run a command line's ``main`` and turn its outcome into an exit code.

    Returns:
        0 or what ``main`` returns; 1 with one message on stderr for a problem with the user's
        input (``USER_ERRORS``); 130 after Ctrl-C. Wrong usage ends with 2 inside argparse. Other
        exceptions are this project's mistakes and keep their traceback.
    """
    try:
        return main() or 0
    except USER_ERRORS as error:
        message = _of_worker(str(error))
        if isinstance(error, OSError) and error.filename:
            message = f"{error.strerror}: {error.filename}"
        print(f"error: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _of_worker(message: str) -> str:
    """An error's own message, where torch has wrapped it in the traceback of a loader's worker."""
    wrapped = re.match(
        r"Caught \w+ in DataLoader worker process .*\n[\w.]+: (.*)", message, re.DOTALL
    )
    return wrapped.group(1).strip() if wrapped else message


def is_main_process() -> bool:
    """Whether this is the first of several processes: the one that writes the run's files."""
    return int(os.environ.get("RANK", 0)) == 0


def log_to(output_dir: Path | None = None, level: int = logging.INFO) -> None:
    """Send this project's log lines to stderr and, where given, to ``output_dir/log.txt``.

    Of several processes, the first says everything and the others only warnings and errors.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if h.get_name() == HANDLER_NAME]:
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(output_dir / "log.txt", encoding="utf-8"))
    for handler in handlers:
        handler.set_name(HANDLER_NAME)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for package in ("backbones", "fcmae", "detection", "training"):
        logging.getLogger(package).setLevel(level if is_main_process() else logging.WARNING)
