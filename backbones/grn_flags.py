"""The flags of GRN and of --init, for every command that trains an encoder by itself."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from backbones.normalization import Aggregate, GRNOptions, Kind, Normalize

PREFIX = "grn_"


def add_grn_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--grn``, ``--grn-aggregate``, ``--grn-normalize``, ``--no-grn-residual``,
    ``--allow-other-grn`` and, of ``--init`` as that is, ``--adapt-channels``."""
    absent = argparse.SUPPRESS
    add = parser.add_argument_group("Global Response Normalization (ConvNeXt V2)").add_argument
    add("--grn", dest="grn_kind", choices=get_args(Kind), default=absent,
        help="GRN, or what stands in its place")  # fmt: skip
    add("--grn-aggregate", choices=get_args(Aggregate), default=absent,
        help="a channel's response over an image (default: l2)")  # fmt: skip
    add("--grn-normalize", choices=get_args(Normalize), default=absent,
        help="how responses are set against each other (default: mean)")  # fmt: skip
    add("--no-grn-residual", dest="grn_residual", action="store_false", default=absent,
        help="GRN without its input added")  # fmt: skip
    add("--allow-other-grn", action="store_true", default=False,
        help="--init may have been trained with another: what does not fit is left out or new, "
        "and named in the log")  # fmt: skip
    parser.add_argument(
        "--adapt-channels", action="store_true", default=False,
        help="turn the stem of --init, of other channels, into the model's by timm's rule",
    )  # fmt: skip


def pop_grn_options(arguments: dict[str, Any]) -> GRNOptions | None:
    """GRN's options, taken out of parsed arguments; None if no flag of theirs was given.

    Raises:
        ValueError: if they contradict each other.
    """
    names = [name for name in arguments if name.startswith(PREFIX)]
    given = {name.removeprefix(PREFIX): arguments.pop(name) for name in names}
    return GRNOptions(**given) if given else None
