"""What every command line of this project shares: logging set-up and exit codes."""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from tqdm import tqdm

from backbones.errors import InputError
from backbones.whole_files import REMEDIES, system_error, what_to_do
from training.command_line.commands import as_called, is_console, own_program
from training.guards.endings import EndedError, end_soon, end_with_parent, ended_by_signals
from training.guards.workers import hush_half_made_loaders, loader_problem

# Problems of the user's input or machine; anything else is this project's own mistake.
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


class ToolParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that says all that is wrong at once, misspelt flags with the closest.

    argparse itself stops at the first bad value, and names no flag that may have been meant.
    """

    def __init__(
        self, description: str | None = None, epilog: str | None = None, **options: Any
    ) -> None:
        """Both texts are shown as they are written; ``options`` are argparse's."""
        if is_console():
            options.setdefault("prog", own_program())
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(description=description, epilog=epilog, **options)
        self._wrong: list[str] = []
        self._unknown: set[str] = set()

    def format_help(self) -> str:
        return as_called(super().format_help())

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        return self._whole(super().parse_args, args, namespace)

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        return self._whole(super().parse_intermixed_args, args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and every problem that was found so far, ``message`` last."""
        kind, _, rest = message.partition("unrecognized arguments: ")
        if self._unknown and not kind:
            # said already, but for what stands beside the flags
            beside = [item for item in rest.split() if item.partition("=")[0] not in self._unknown]
            message = f"not understood: {' '.join(beside)}" if beside else ""
        lines = [*self._wrong, *filter(None, [message])]
        count = [f"{len(lines)} problems:"] if len(lines) > 1 else []
        super().error("\n  ".join([*count, *lines]))

    def _whole(self, parse: Callable[..., Any], args: Sequence[str] | None, namespace: Any) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        flags = [item.partition("=")[0] for item in given[: [*given, "--"].index("--")]]
        known = list(self._option_string_actions)
        self._wrong, self._unknown = [], set()
        for flag in dict.fromkeys(flags):
            if flag.startswith("--") and not any(name.startswith(flag) for name in known):
                close = difflib.get_close_matches(flag, known, n=1)
                hint = f"; the closest is {close[0]}" if close else ""
                self._unknown.add(flag)
                self._wrong.append(f"unknown flag {flag}{hint}")
        parsed = parse(given, namespace)
        if self._wrong:
            self.error("")
        return parsed

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        return self._noted(action, super()._get_value, arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        self._noted(action, super()._check_value, value)

    def _noted(self, action: argparse.Action, check: Callable[..., Any], value: Any) -> Any:
        """What ``check`` returns; its error is noted and does not keep the others from being."""
        if value is _BAD:
            return None
        try:
            return check(action, value)
        except argparse.ArgumentError as error:
            self._wrong.append(str(error))
            return _BAD


def at_least(low: int) -> Callable[[str], int]:
    """An ``add_argument`` type: an integer from ``low`` on."""

    def integer(text: str) -> int:
        if (value := int(text)) < low:
            raise argparse.ArgumentTypeError(f"{value} is not at least {low}")
        return value

    return integer


_BAD = object()  # a value that is noted as wrong already


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Examples as they are written, and every flag's default."""


class OptionsParser(ToolParser):
    """The flags of a training's options, made from their fields; ``--resume`` and ``--wandb``.

    Flags that are not given have their default, or are left out where that is None or off.

    Args:
        options: a subclass of ``training.options.TrainingOptions``.
        description, epilog: of the help.
    """

    def __init__(self, options: type, description: str | None, epilog: str) -> None:
        super().__init__(
            description, epilog, formatter_class=HelpFormatter, argument_default=argparse.SUPPRESS
        )
        types = get_type_hints(options)
        own = set(vars(options).get("__annotations__", {}))
        flags = [f for f in fields(options) if "help" in f.metadata]
        required = [f for f in flags if _is_required(f)]
        run = self.add_argument_group("how the run goes")
        for each in [*required, *(f for f in flags if f not in required)]:
            group = self if each in required or each.name in own else run
            _add_flag(group, each, types[each.name])
        run.add_argument(
            "--wandb", help="log to Weights & Biases too (extra: wandb)", action="store_true"
        )
        run.add_argument("--resume", help="continue the run in --output-dir", action="store_true")

    def parse_options(self) -> tuple[dict[str, Any], bool]:
        """What was given, by the options' names (of other flags, by theirs), and ``--resume``."""
        given = vars(self.parse_args())
        resume = given.pop("resume", False)
        if given.pop("wandb", False):
            given["trackers"] = ("tensorboard", "wandb")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return values, resume


NUMBERS: dict[Any, str] = {int: "N", float: "X"}  # what the help calls them


def _is_required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _add_flag(group: Any, field: Field, kind: Any) -> None:
    """A field as a flag: a Literal's values are choices, a tuple is several values, a bool none."""
    settings: dict[str, Any] = {}
    parts = [part for part in get_args(kind) if part is not NoneType]
    if get_origin(kind) in (Union, UnionType) and len(parts) == 1:
        kind = parts[0]
    if get_origin(kind) is Literal:
        settings["choices"] = list(get_args(kind))
    elif get_origin(kind) is tuple:
        settings |= {"type": get_args(kind)[0], "nargs": "+"}
    elif kind is bool:
        settings["action"] = "store_true"
    elif kind in (int, float, str):
        settings["type"] = kind
    settings |= {"required": True} if _is_required(field) else {}
    settings |= {"default": field.default} if _is_shown(field, kind) else {}
    settings |= field.metadata["settings"]
    if settings.get("type") in NUMBERS and "choices" not in settings:
        settings = {"metavar": NUMBERS[settings["type"]], **settings}
    flag = "--" + field.name.replace("_", "-")
    group.add_argument(flag, help=field.metadata["help"], **settings)


def _is_shown(field: Field, kind: Any) -> bool:
    """Whether the help shows the default: not where it is None, or off."""
    return field.default is not MISSING and field.default is not None and kind is not bool


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
        if number := system_error(error):  # of a library that has errors of its own
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
    """An error's own message, where torch has wrapped it in the traceback of a loader's worker."""
    wrapped = re.match(
        r"Caught \w+ in DataLoader worker process .*\n[\w.]+: (.*)", message, re.DOTALL
    )
    return wrapped.group(1).strip() if wrapped else message


def _process_group() -> Any:
    """``torch.distributed`` where processes have met; without torch there is no group to ask."""
    distributed = sys.modules.get("torch.distributed")
    met = distributed and distributed.is_available() and distributed.is_initialized()
    return distributed if met else None


def process_count() -> int:
    """How many processes train together, before or after they have met."""
    group = _process_group()
    return group.get_world_size() if group else int(os.environ.get("WORLD_SIZE", 1))


def is_main_process() -> bool:
    """Whether this is the first of several processes: the one that writes the run's files.

    Their launcher may be torchrun, or detectron2's, which tells nothing by the environment.
    """
    group = _process_group()
    return (group.get_rank() if group else int(os.environ.get("RANK", 0))) == 0


def say(text: str) -> None:
    """A line on stdout, with commands by the names that the user calls them by."""
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
    """A log file that is made, with its folder, by its first line: refusals leave nothing there.

    What cannot be written (a full disk) is lost from the log and ends nothing.
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

    Of several processes, the first says everything and the others only warnings and errors.
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
