"""The error for a user's mistakes, which commands show as one message, and counts in messages."""

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
    return "\n  ".join([f"{counted(len(problems), 'problem')} in {where}:", *problems])


def counted(number: int, one: str, many: str = "") -> str:
    """A number with the thing that it counts: 1 image, 2 images, 0 classes.

    Args:
        many: of a noun whose plural is not made by s, es or ies.
    """
    if number == 1:
        return f"1 {one}"
    if not many and one.endswith(("s", "x", "ch", "sh")):
        many = f"{one}es"
    if not many and one.endswith("y") and one[-2] not in "aeo":
        many = f"{one[:-1]}ies"
    return f"{number} {many or one + 's'}"


def printable(text: str) -> str:
    """Text from a file without what would steer a terminal or break a line: it is escaped."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )
