"""What every command line of this project shares: parsers, exit codes, logging."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from backbones.errors import InputError
from backbones.whole_files import REMEDIES, system_error, what_to_do
from training.command_line.commands import as_called
from training.command_line.parsers import (
    NUMBERS,
    HelpFormatter,
    OptionsParser,
    ToolParser,
    at_least,
)
from training.guards.endings import EndedError, end_soon, end_with_parent, ended_by_signals
from training.guards.workers import hush_half_made_loaders, loader_problem

__all__ = [
    "NUMBERS", "HelpFormatter", "OptionsParser", "ToolParser", "at_least", "is_main_process",
    "log_to", "process_count", "run_tool", "say",
]  # fmt: skip

# Problems of the user's input or machine; any other exception is a mistake of this project.
USER_ERRORS = (InputError, OSError)
REPORT = (
    "error: this is a mistake in this program, not in your input. Please report it with the lines "
    "above, the command and the first lines of its log."
)

NO_MEMORY = (
    r"OutOfMemoryError|can't allocate memory|Cannot allocate memory|not enough memory"
    r"|failed to map segment|can't start new thread"
)
MEMORY = (
    "memory is used up: take a smaller batch (--batch-size, SOLVER.IMS_PER_BATCH), micro-batches "
    "(--accumulate, SOLVER.ACCUMULATE), smaller images, or fewer loader workers"
)

HANDLER_NAME = "log_to"
PACKAGES = ("backbones", "images", "training", "reporting", "fcmae", "detection", "segmentation")


def run_tool(main: Callable[[], int | None]) -> int:
    """Run a command line's ``main`` and turn its outcome into an exit code.

    Returns:
        0 or what ``main`` returns; 1 with one message on stderr for a problem with the user's
        input (``USER_ERRORS``); 130, 143 or 129 after SIGINT (Ctrl-C), SIGTERM or SIGHUP. Wrong
        usage ends with 2 inside argparse. Other
        exceptions are this project's mistakes: 1, with their traceback and a request to report it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are not UTF-8
    try:
        with ended_by_signals():
            end_with_parent()
            return main() or 0
    except USER_ERRORS as error:
        hush_half_made_loaders()
        if not isinstance(error, InputError) and (problem := loader_problem(error)):
            message = problem
        elif isinstance(error, OSError) and error.errno:
            message = what_to_do(error)
        else:
            message = _of_worker(str(error))
        print(f"error: {as_called(message)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except EndedError as error:
        print(error, file=sys.stderr)
        end_soon(error.number)
        return 128 + error.number
    except Exception as error:
        hush_half_made_loaders()
        if problem := loader_problem(error):
            print(f"error: {problem}", file=sys.stderr)
            return 1
        if number := system_error(error):  # a library's own class of error
            cause = os.strerror(number)
            lines = str(error).splitlines()  # of Python itself: "Symlink loop from PATH"
            known = (line for line in lines if cause in line or "Symlink loop" in line)
            said = next(known, cause).strip()
            print(f"error: {said}; {REMEDIES.get(number, '')}", file=sys.stderr)
            return 1
        if isinstance(error, MemoryError) or re.search(NO_MEMORY, f"{type(error)} {error}"):
            print(f"error: {MEMORY}", file=sys.stderr)
            return 1
        traceback.print_exc()
        print(REPORT, file=sys.stderr)
        return 1


def _of_worker(message: str) -> str:
    """An error's own message, without the traceback of the loader worker that torch adds."""
    wrapped = re.match(
        r"Caught \w+ in DataLoader worker process .*\n[\w.]+: (.*)", message, re.DOTALL
    )
    return wrapped.group(1).strip() if wrapped else message


def _process_group() -> Any:
    """``torch.distributed`` if its process group exists, else None."""
    distributed = sys.modules.get("torch.distributed")
    met = distributed and distributed.is_available() and distributed.is_initialized()
    return distributed if met else None


def process_count() -> int:
    """How many processes train together, also before their process group exists."""
    group = _process_group()
    return group.get_world_size() if group else int(os.environ.get("WORLD_SIZE", 1))


def is_main_process() -> bool:
    """Whether this is the first of several processes: the one that writes the run's files.

    They may be started by torchrun or by detectron2's launcher, which sets no environment
    variables.
    """
    group = _process_group()
    return (group.get_rank() if group else int(os.environ.get("RANK", 0))) == 0


def say(text: str) -> None:
    """Print a line in which commands have the names by which the user calls them."""
    print(as_called(text))


class _AsCalled(logging.Formatter):
    """Log lines that name commands as the user calls them."""

    def format(self, record: logging.LogRecord) -> str:
        return as_called(super().format(record))


class _LogAboveBars(logging.StreamHandler):
    """A handler to stderr whose lines do not break the progress bars there."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


class _LogFile(logging.FileHandler):
    """A log file that is created, with its folder, at its first line: a refused run leaves nothing.

    Lines that cannot be written (a full disk) are lost, and the run goes on.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)

    def _open(self) -> Any:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def log_to(output_dir: Path | None = None, level: int = logging.INFO) -> None:
    """Send this project's log lines to stderr and, where given, to ``output_dir/log.txt``.

    Of several processes, the first logs everything, the others only warnings and errors.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if h.get_name() == HANDLER_NAME]:
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [_LogAboveBars()]
    if output_dir is not None:
        handlers.append(_LogFile(output_dir / "log.txt"))
    for handler in handlers:
        handler.set_name(HANDLER_NAME)
        handler.setFormatter(_AsCalled("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(level if is_main_process() else logging.WARNING)
