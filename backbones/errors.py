"""The error for a user's mistakes, which commands show as one message."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """What the user gave cannot be used: a value, a file, a setting.

    The message names the value, the cause and the remedy, all problems at once. Commands print it
    as one message without a traceback and exit with 1 (:func:`training.cli.run_tool`). Any other
    exception is this project's own mistake and keeps its traceback.
    """


def listed(problems: Sequence[str], where: str) -> str:
    """``2 problems in WHERE:``, and under it a line for each."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n  ".join([f"{count} in {where}:", *problems])


def counted(number: int, one: str, many: str = "") -> str:
    """A number with the thing that it counts: 1 image, 2 images."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def printable(text: str) -> str:
    """Text from a file without what would steer a terminal or break a line: it is escaped."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )
