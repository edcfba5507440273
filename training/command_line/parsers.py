"""Parsers of command lines, which report all errors at once; a training's options as flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from training.command_line.commands import PROGRAM, as_called, closest, own_program


class ToolParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that reports all errors at once, and for unknown flags the closest one.

    argparse itself stops at the first bad value, and does not suggest flags.
    """

    def __init__(
        self, description: str | None = None, epilog: str | None = None, **options: Any
    ) -> None:
        """Both texts are shown as they are written; ``options`` are argparse's."""
        if (program := own_program()).startswith(f"{PROGRAM} "):
            options.setdefault("prog", program)
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
            # unknown flags are reported already; only the other words are left
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
                self._unknown.add(flag)
                self._wrong.append(f"unknown flag {flag}{closest(flag, known)}")
        parsed = parse(given, namespace)
        if self._wrong:
            self.error("")
        return parsed

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        return self._noted(action, super()._get_value, arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        self._noted(action, super()._check_value, value)

    def _noted(self, action: argparse.Action, check: Callable[..., Any], value: Any) -> Any:
        """What ``check`` returns. Its error is noted, so that later errors are found, too."""
        if value is _BAD:
            return None
        try:
            return check(action, value)
        except argparse.ArgumentError as error:
            self._wrong.append(str(error))
            return _BAD


_BAD = object()  # stands for a value whose error is noted already


def at_least(low: int) -> Callable[[str], int]:
    """An ``add_argument`` type: an integer from ``low`` on."""

    def integer(text: str) -> int:
        if (value := int(text)) < low:
            raise argparse.ArgumentTypeError(f"{value} is not at least {low}")
        return value

    return integer


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows the examples as they are written, and every flag's default."""


class OptionsParser(ToolParser):
    """Makes a flag of each field of a training's options, and adds ``--resume`` and ``--wandb``.

    Flags that are not given have their default, or are left out if that is None or False.

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
        run = self.add_argument_group("options of every training")
        for each in [*required, *(f for f in flags if f not in required)]:
            group = self if each in required or each.name in own else run
            _add_flag(group, each, types[each.name])
        run.add_argument(
            "--wandb", help="log to Weights & Biases, too (extra: wandb)", action="store_true"
        )
        run.add_argument("--resume", help="continue the run in --output-dir", action="store_true")

    def parse_options(self) -> tuple[dict[str, Any], bool]:
        """The values that were given, by the names of options and other flags, and ``--resume``."""
        given = vars(self.parse_args())
        resume = given.pop("resume", False)
        if given.pop("wandb", False):
            given["trackers"] = ("tensorboard", "wandb")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return values, resume


NUMBERS: dict[Any, str] = {int: "N", float: "X"}  # the metavars of numbers in the help


def _is_required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _add_flag(group: Any, field: Field, kind: Any) -> None:
    """Add a field as a flag. A Literal gives choices, a tuple takes several values, a bool none."""
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
    """Whether the help shows the default: not if it is None or False."""
    return field.default is not MISSING and field.default is not None and kind is not bool
