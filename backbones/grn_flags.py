"""The flags of GRN and of --init, for the commands that train an encoder."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from backbones.normalization import Aggregate, GRNOptions, Kind, Normalize

PREFIX = "grn_"


def add_grn_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--grn``, ``--grn-aggregate``, ``--grn-normalize``, ``--no-grn-residual``,
    ``--allow-other-grn`` and ``--adapt-channels``; the last two concern ``--init``."""
    absent = argparse.SUPPRESS
    add = parser.add_argument_group("Global Response Normalization (ConvNeXt V2)").add_argument
    add("--grn", dest="grn_kind", choices=get_args(Kind), default=absent,
        help="the layer in GRN's place (default: grn)")  # fmt: skip
    add("--grn-aggregate", choices=get_args(Aggregate), default=absent,
        help="the norm of a channel over the image (default: l2)")  # fmt: skip
    add("--grn-normalize", choices=get_args(Normalize), default=absent,
        help="what a channel's norm is divided by, over the channels (default: mean)")  # fmt: skip
    add("--no-grn-residual", dest="grn_residual", action="store_false", default=absent,
        help="do not add GRN's input to its output")  # fmt: skip
    add("--allow-other-grn", action="store_true", default=False,
        help="accept an --init that was trained with another form of GRN: tensors that do not "
        "fit are left out, missing ones are new; the log names them")  # fmt: skip
    parser.add_argument(
        "--adapt-channels", action="store_true", default=False,
        help="accept an --init with another number of channels: its stem is converted by timm's "
        "rule",
    )  # fmt: skip


def pop_grn_options(arguments: dict[str, Any]) -> GRNOptions | None:
    """Take GRN's options out of parsed arguments; None if none of their flags was given.

    Raises:
        ValueError: if they contradict each other.
    """
    names = [name for name in arguments if name.startswith(PREFIX)]
    given = {name.removeprefix(PREFIX): arguments.pop(name) for name in names}
    return GRNOptions(**given) if given else None
