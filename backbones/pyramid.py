"""Finds the stages of an encoder and the levels of a feature pyramid that a detector needs.

Parts that no head reads are not built: stages after the last one in use, output norms, convolutions
of levels. (``DistributedDataParallel`` refuses a model with parameters that get no gradient.) Both
engines, and detectron2's own tools, use this.

Levels are named as in the paper of feature pyramids (arXiv 1612.03144): ``p2`` has stride 4 and
comes from ``stage1``; ``p6`` and ``p7``, where there are any, come from the pyramid's last level
or from its last stage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backbones.convnext import STAGES

# detectron2's META_ARCHITECTURE -> the sections of MODEL whose IN_FEATURES it reads
READERS = {
    "GeneralizedRCNN": ("RPN", "ROI_HEADS"),
    "ProposalNetwork": ("RPN",),
    "PanopticFPN": ("RPN", "ROI_HEADS", "SEM_SEG_HEAD"),
    "RetinaNet": ("RETINANET",),
    "SemanticSegmentor": ("SEM_SEG_HEAD",),
}
# sections that detectron2's defaults fill in, whether they are read or not
STANDARD = {"FPN", *(section for sections in READERS.values() for section in sections)}
# ROI heads that read only MODEL.ROI_HEADS.IN_FEATURES
KNOWN_HEADS = {
    f"{prefix}{name}"
    for name in ("Res5ROIHeads", "StandardROIHeads", "CascadeROIHeads", "RROIHeads")
    for prefix in ("", "SoftNMS")
} | {"PerClassCascadeROIHeads"}
# the levels of a reader in detectron2's defaults: the user has chosen nothing
UNCHOSEN = ["res4"]
Contradiction = tuple[tuple[str, ...], str]  # the keys that are involved, the message


@dataclass(frozen=True)
class Pyramid:
    """The part of a pyramid that is built.

    Args:
        stages: the stages that it takes, ascending.
        levels: the levels that it returns, ascending; each of them is read.
    """

    stages: tuple[str, ...]
    levels: tuple[str, ...]

    @property
    def above(self) -> tuple[str, ...]:
        """The levels that the top block makes."""
        own = {level_of(stage) for stage in self.stages}
        return tuple(level for level in self.levels if level not in own)


def level_of(stage: str) -> str:
    """``stage1`` -> ``p2``, ..."""
    return f"p{STAGES.index(stage) + 2}"


def levels_of(in_features: Sequence[str], extra: int) -> list[str]:
    """The levels of a pyramid on these stages, with ``extra`` levels on top."""
    top = STAGES.index(in_features[-1]) + 2
    return [level_of(stage) for stage in in_features] + [
        f"p{top + step}" for step in range(1, extra + 1)
    ]


def plan_pyramid(
    in_features: Sequence[str], read: Collection[str] | None, extra: int = 1
) -> Pyramid:
    """The part of a pyramid that makes the levels that are read.

    Args:
        in_features: consecutive stages, ascending.
        read: names of levels (others than the pyramid's are ignored); None for all.
        extra: how many levels the top block makes.
    """
    levels = levels_of(in_features, extra)
    wanted = [name for name in levels if read is None or name in read] or levels
    lowest = min(levels.index(wanted[0]), len(in_features) - 1)
    return Pyramid(tuple(in_features[lowest:]), tuple(wanted))


def levels_read(model: Mapping[str, Any]) -> dict[str, list[str]]:
    """The keys by which a config chooses the levels to read, with their values.

    Empty for an architecture that detectron2 itself does not have.

    Args:
        model: ``MODEL`` of this project's config or of detectron2's.
    """
    sections = list(READERS.get(model["META_ARCHITECTURE"], ()))
    if "RPN" in sections and model["PROPOSAL_GENERATOR"]["NAME"] == "PrecomputedProposals":
        sections.remove("RPN")
    return {f"MODEL.{name}.IN_FEATURES": list(model[name]["IN_FEATURES"]) for name in sections}


def all_levels_read(model: Mapping[str, Any]) -> set[str] | None:
    """Every level that some head may read; None if the user's own heads may read any.

    A section that is not detectron2's and has ``IN_FEATURES`` counts as a reader, too.
    """
    known = levels_read(model)
    if (
        not known
        or UNCHOSEN in known.values()
        or (
            "MODEL.ROI_HEADS.IN_FEATURES" in known and model["ROI_HEADS"]["NAME"] not in KNOWN_HEADS
        )
    ):
        return None
    own = [
        section["IN_FEATURES"]
        for name, section in model.items()
        if isinstance(section, Mapping) and "IN_FEATURES" in section and name not in STANDARD
    ]
    return {level for levels in (*known.values(), *own) for level in levels}


def level_contradictions(
    model: Mapping[str, Any], extra: int, roi_extra: bool = True
) -> Iterator[Contradiction]:
    """Errors in the chain stages -> pyramid -> heads and anchors of a detector with a pyramid.

    Args:
        model: ``MODEL`` of a config, as in :func:`levels_read`.
        extra: how many levels the top block makes.
        roi_extra: whether ROI heads may read these, too.
    """
    key, stages = "MODEL.FPN.IN_FEATURES", list(model["FPN"]["IN_FEATURES"])
    if not stages or (unknown := [name for name in stages if name not in STAGES]):
        what = f"names {unknown}" if stages else "is empty"
        yield (key,), f"{key} {what}; the encoder's stages are {', '.join(STAGES)}"
        return
    first = STAGES.index(stages[0])
    if tuple(stages) != STAGES[first : first + len(stages)]:
        yield (key,), f"{key} is {stages}; its stages must be consecutive, from stage1 on upwards"
        return
    given = list(model["CONVNEXT"]["OUT_FEATURES"])
    if missing := [name for name in stages if name not in given]:
        yield (
            (key, "MODEL.CONVNEXT.OUT_FEATURES"),
            f"{key} names {missing}, but MODEL.CONVNEXT.OUT_FEATURES gives {given}",
        )
    stride = model["CONVNEXT"].get("OUTPUT_STRIDE", 32)  # detectron2 alone has the key
    if stride < 4 * 2 ** STAGES.index(stages[-1]):
        yield (
            (key, "MODEL.CONVNEXT.OUTPUT_STRIDE"),
            f"MODEL.CONVNEXT.OUTPUT_STRIDE is {stride}, but a pyramid halves the map from stage "
            f"to stage, up to {stages[-1]}: use 32",
        )
    levels = levels_of(stages, extra)
    for reader, wanted in levels_read(model).items():
        limited = reader == "MODEL.ROI_HEADS.IN_FEATURES" and not roi_extra
        offered = levels[: len(stages)] if limited else levels
        if missing := [name for name in wanted if name not in offered]:
            hint = ""
            if reader == "MODEL.RETINANET.IN_FEATURES" and extra == 1:
                hint = "; build_retinanet_convnext_fpn_backbone makes p6 and p7 of the last stage"
            yield (reader, key), f"{reader} names {missing}, but {key} gives {offered}{hint}"
        elif reader == "MODEL.ROI_HEADS.IN_FEATURES" and wanted != _run(wanted, offered):
            yield (reader,), f"{reader} is {wanted}; the levels of a pooler must be consecutive"
    yield from anchor_contradictions(model)


def _run(wanted: list[str], offered: list[str]) -> list[str]:
    """As many of the offered levels as are wanted, from the first wanted one on."""
    first = offered.index(wanted[0])
    return offered[first : first + len(wanted)]


def anchor_contradictions(model: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Errors in the number of lists of anchors: one for all levels, or one for each."""
    anchors = model["ANCHOR_GENERATOR"]
    for reader, wanted in levels_read(model).items():
        if reader not in ("MODEL.RPN.IN_FEATURES", "MODEL.RETINANET.IN_FEATURES"):
            continue
        for name in ("SIZES", "ASPECT_RATIOS"):
            rows = anchors[name]
            if len(rows) not in (1, len(wanted)) or len({len(row) for row in rows}) > 1:
                yield (
                    (f"MODEL.ANCHOR_GENERATOR.{name}", reader),
                    f"MODEL.ANCHOR_GENERATOR.{name} is {rows}; it must have 1 list or "
                    f"{len(wanted)}, one for each of {reader}, all of one length",
                )
