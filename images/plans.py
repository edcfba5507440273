"""What image files and an encoder tell a plan, whatever its task, and the rules that follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backbones.checkpoint import open_encoder
from backbones.convnext import SIZES
from backbones.errors import InputError
from images.files import ImageError, open_picture
from training.data import evenly_spread
from training.plans import Plan

HEADERS = 200  # image files whose channels and depth are looked at


@dataclass(frozen=True)
class Encoder:
    """What an encoder's file tells."""

    path: str
    size: str
    in_chans: int
    has_statistics: bool


def read_encoder(path: str) -> Encoder:
    """Raises FileNotFoundError or InputError if there is no such encoder."""
    found = open_encoder(path)
    name = next((name for name, size in SIZES.items() if size == found.size), None)
    if name is None:
        raise InputError(f"{path} holds an encoder of a size that has no name: {found.size}")
    return Encoder(path, name, found.in_chans, found.statistics is not None)


def channels_and_depth(paths: Sequence[str]) -> tuple[int, str]:
    """Those that most of the images have, by the headers of up to ``HEADERS`` files.

    Where grey files stand among RGB ones, 3: grey becomes RGB.

    Raises:
        InputError: if none can be read.
    """
    found: Counter[tuple[int, str]] = Counter()
    for index in evenly_spread(paths, HEADERS):
        try:
            with Path(paths[index]).open("rb") as file:
                picture = open_picture(file)
        except (ImageError, OSError):
            continue  # the check has said it
        found[picture.colours, picture.depth] += 1
    if not found:
        raise InputError(f"none of the images can be read, such as {paths[0]}")
    channels, depth = found.most_common(1)[0][0]
    if {key[0] for key in found} == {1, 3}:
        channels = 3
    return channels, depth


def plan_channels(plan: Plan, channels: int, depth: str, encoder: Encoder | None) -> None:
    """Channels and depth of the files; mean and deviation as a training finds them."""
    files = f"the files have {channels} channel{'s' * (channels > 1)} of {depth}"
    if channels == 1 and encoder is not None and encoder.in_chans == 3:
        channels, files = 3, f"{files}, the encoder takes 3: grey is repeated"
    plan.set("INPUT.FORMAT", {3: "RGB", 1: "L"}.get(channels, "raw"), files)
    plan.set("MODEL.CONVNEXT.IN_CHANS", channels, "as INPUT.FORMAT has")
    if encoder is not None and encoder.has_statistics and encoder.in_chans == channels:
        source = "empty: the encoder's file has its own"
    elif channels == 3 and depth == "8 bits":
        source = "empty: ImageNet's, as for all RGB of 8 bits"
    else:
        source = f"empty: measured by the training; ImageNet's are for RGB of 8 bits, not {files}"
    plan.set("MODEL.PIXEL_MEAN", [], source)
    plan.set("MODEL.PIXEL_STD", [], "as MODEL.PIXEL_MEAN")
    if encoder is not None and encoder.in_chans != channels:
        why = f"the encoder has {encoder.in_chans} channels: timm's rule (docs/transfer.md)"
        plan.set("MODEL.CONVNEXT.ADAPT_CHANNELS", True, why)


def plan_weights(plan: Plan, encoder: Encoder | None) -> None:
    """The encoder that was given, or random weights of the smallest; no stage is frozen.

    All of the paper's fine-tunings train every stage (arXiv 2301.00808, A.3).
    """
    if encoder is None:
        why = "random: no --encoder; FCMAE on such images brought 5 to 15 AP (docs/reproduction.md)"
        plan.set("MODEL.CONVNEXT.WEIGHTS", "", why)
    else:
        plan.set("MODEL.CONVNEXT.SIZE", encoder.size, "of the encoder's file")
        plan.set("MODEL.CONVNEXT.WEIGHTS", encoder.path, "--encoder")
    plan.set("MODEL.BACKBONE.FREEZE_AT", 0, "none is frozen, as in the paper's fine-tunings")
