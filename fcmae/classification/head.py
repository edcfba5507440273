"""Builds classifiers from checkpoints: the encoder, and the head's rows for the data's classes.

Rows of a head are matched by the names of the classes. So a head of ImageNet-22K becomes one of
ImageNet-1K by selecting and reordering rows. Names come from our files' metadata. For other files
they are the WordNet synsets of ImageNet's subset with that many classes (timm's lists).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from backbones.checkpoint import OWN_WEIGHTS, EncoderFile, load_encoder, open_encoder
from backbones.convnext import SIZES, ConvNeXt, GRNOptions, build_convnext
from backbones.errors import InputError, counted
from backbones.weights.sources import numbers
from backbones.weights.structure import HEAD, check_head

logger = logging.getLogger(__name__)

SHOWN = 10


@dataclass(frozen=True)
class Source:
    """The parts of a checkpoint besides its encoder."""

    name: str  # a path or ``timm:NAME``
    head: dict[str, Tensor]  # ``norm.*`` and ``head.*`` in our names; empty without a head
    classes: list[str] | None  # names of the head's rows; None if unknown
    metadata: dict[str, str]  # the file's metadata
    file: EncoderFile | None = None  # the file itself; None without a checkpoint

    @property
    def rows(self) -> int:
        """Number of rows of the head; 0 without one."""
        return len(self.head["head.weight"]) if "head.weight" in self.head else 0

    @property
    def head_problem(self) -> str | None:
        """Why the file's head cannot be used; None if it can."""
        return self.file.recognised.head_problem if self.file else None

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """A list in the metadata, such as ``mean`` or ``image_size``."""
        return numbers(self.metadata, key)

    def range_of_values(self) -> tuple[float, float] | None:
        """The values that became 0 and 1 in its training, if they were stated."""
        stated = json.loads(self.metadata.get("value_range", "null"))
        return (stated[0], stated[1]) if stated else None

    def bands(self) -> tuple[int, ...]:
        """The channels that pictures showed in its training, if they were stated."""
        return tuple(int(band) for band in self.numbers("show_bands") or ())

    def grn(self) -> GRNOptions | None:
        """The form of GRN that the encoder was trained with; None if the file does not say."""
        text = self.metadata.get("grn")
        return None if text is None else GRNOptions.of_text(text)


NO_SOURCE = Source("", {}, None, {"licence": OWN_WEIGHTS})


def read_classifier(source: str | None, in_chans: int | None = None) -> Source:
    """Read a checkpoint of any format that :func:`backbones.checkpoint.load_encoder` knows.

    Args:
        source: a path or ``timm:NAME``; None for :data:`NO_SOURCE`.
        in_chans: channels that timm's weights are adapted to; None for 3.

    Raises:
        FileNotFoundError, InputError: as that function, or for an incomplete head.
    """
    if source is None:
        return NO_SOURCE
    file = open_encoder(source, in_chans or 3)
    metadata = file.metadata
    rows = check_head(file.tensors, source)
    head = {n: t for n, t in file.tensors.items() if rows and n.startswith(HEAD)}
    classes = json.loads(metadata["classes"]) if "classes" in metadata else None
    subset = infer_imagenet_subset({"num_classes": rows})
    if classes is None and subset is not None:
        classes = ImageNetInfo(subset).label_names()
    return Source(source, head, classes, metadata, file)


def build_classifier(
    source: Source,
    model: str,
    classes: int,
    rows: Sequence[int] | None,
    drop_path: float,
    in_chans: int,
    grn: GRNOptions | None = None,
    allow_other_grn: bool = False,
    adapt_channels: bool = False,
) -> tuple[ConvNeXt, GRNOptions | None]:
    """Build a classifier and load its weights.

    Args:
        source: the weights; with ``NO_SOURCE`` all weights are random.
        rows: rows of the source's head, one for each class; None for a new head.
        grn: the form of GRN, or the layer in its place; None for the source's.
        allow_other_grn: accept a source with another form of GRN.
        adapt_channels: accept a source with another number of channels.

    Returns:
        The model, and its form of GRN (None for V1).

    Raises:
        InputError: if the encoder does not fit.
    """
    if grn is None and SIZES[model].version == 2:
        grn = source.grn() or GRNOptions()
    built = build_convnext(
        model, in_chans=in_chans, num_classes=classes, drop_path_rate=drop_path, grn=grn
    )
    if source.file is not None:
        load_encoder(
            *(source.file, built), allow_other_grn=allow_other_grn, adapt_channels=adapt_channels
        )
    own = built.state_dict()
    for name, tensor in source.head.items():
        if name.startswith("norm."):
            own[name].copy_(tensor)
        elif rows is not None:
            own[name].copy_(tensor[torch.tensor(rows)])
    return built, built.grn


def choose_rows(
    source: Source, classes: Sequence[str], class_list: str | None, some: bool = False
) -> list[int] | None:
    """The row of the source's head for each class of the data.

    Args:
        class_list: a file with a line for each class of the data: the row's number (from 0) in the
            source's head, or the name of the row's class. Without it the data's names are looked
            up; if all of them are numbers (webdataset's), these are the rows.
        some: accept numbers as rows even if there are fewer classes than rows (for an evaluation).

    Returns:
        Row numbers; None if the head must be new, with the reason in the log.

    Raises:
        InputError: naming every line of a class list that does not fit.
    """
    if class_list is not None:
        return _rows_of_list(source, classes, Path(class_list))
    if not source.rows:
        if source.head_problem:
            logger.warning("the head is new: of %s, %s", source.name, source.head_problem)
        else:
            why = f"{source.name} has none" if source.name else "all is"
            logger.info("the head is new: %s", why)
        return None
    known = {name: row for row, name in enumerate(source.classes or ())}
    unknown = [name for name in classes if name not in known]
    if not unknown:
        logger.info("the head's %d rows are taken by the names of the classes", len(classes))
        return [known[name] for name in classes]
    numbers = all(name.isdecimal() and int(name) < source.rows for name in classes)
    if numbers and (len(classes) == source.rows or some):
        logger.info("the head's %d rows are taken by the numbers of the classes", len(classes))
        return [int(name) for name in classes]
    logger.warning(
        "the head is new: %d of %d classes are not among the %d of %s (%s%s); --class-list can "
        "name rows",
        *(len(unknown), len(classes), source.rows, source.name),
        *(", ".join(unknown[:SHOWN]), ", ..." * (len(unknown) > SHOWN)),
    )
    return None


def _rows_of_list(source: Source, classes: Sequence[str], path: Path) -> list[int]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line]
    if not source.rows:
        raise InputError(
            f"--class-list {path} selects rows of a head, and "
            + (f"{source.name} has none" if source.name else "there is no --init")
            + (f": {source.head_problem}" if source.head_problem else "")
        )
    problems = []
    if len(lines) != len(classes):
        problems.append(
            f"it has {counted(len(lines), 'line')} for {counted(len(classes), 'class')} of the data"
        )
    known = {name: row for row, name in enumerate(source.classes or ())}
    rows = [known.get(line, int(line) if line.isdecimal() else -1) for line in lines]
    wrong = [
        f"line {number}: {line}"
        for number, (line, row) in enumerate(zip(lines, rows, strict=True), 1)
        if not 0 <= row < source.rows
    ]
    if wrong:
        problems.append(
            f"{len(wrong)} line(s) name no row of the head, which has 0 to {source.rows - 1}"
            + ("" if known else " and whose classes have no known names")
            + f": {', '.join(wrong[:SHOWN])}{', ...' * (len(wrong) > SHOWN)}"
        )
    if problems:
        raise InputError(f"--class-list {path} does not fit: {'; '.join(problems)}")
    logger.info("the head's rows are those of %s", path)
    return rows
