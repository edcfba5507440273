"""Checks whether a file's tensors fit a model; messages say what differs and what to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from backbones.convnext import ConvNeXt, Size
from backbones.errors import InputError
from backbones.key_adapters import StateDict
from backbones.normalization import GRNOptions
from backbones.weights.structure import size_name

logger = logging.getLogger("backbones.checkpoint")


def headline(model: ConvNeXt, found: StateDict, theirs: Size | None) -> str:
    """A sentence about what does not fit, with the remedy."""
    ours = model.size
    if theirs != ours:
        return (
            f"is {size_name(theirs)}; the model is {size_name(ours)}: build the model of the "
            "checkpoint's size, or give another checkpoint"
        )
    chans = found["downsample_layers.0.0.weight"].shape[1:2]
    if chans != (model.in_chans,):
        return (
            f"takes images of {chans[0] if chans else '?'} channels; the model's in_chans is "
            f"{model.in_chans}: set it to the checkpoint's (--in-chans, MODEL.CONVNEXT.IN_CHANS "
            "with INPUT.FORMAT raw), or let its stem be turned into one of the model's "
            "(--adapt-channels, MODEL.CONVNEXT.ADAPT_CHANNELS)"
        )
    return f"is {size_name(theirs)} as the model is, but not all of it fits"


def misfits(
    wanted: StateDict,
    found: StateDict,
    misshapen: list[str],
    missing: list[str],
    unexpected: list[str],
) -> list[str]:
    """Messages about tensors that do not fit, one for each kind; none if all fit.

    Args:
        wanted: the model's tensors.
        found: the file's tensors, in our names.
        misshapen, missing, unexpected: names, see :class:`backbones.checkpoint.LoadResult`.
    """
    lines = [
        f"{name} is {tuple(found[name].shape)}; the model's is {tuple(wanted[name].shape)}"
        for name in misshapen
    ]
    if len(lines) > 8:
        lines = [*lines[:8], f"and {len(lines) - 8} more tensors of another shape"]
    others = [  # a counter such as BatchNorm's is an integer in the model too
        f"{n} ({t.dtype})"
        for n, t in found.items()
        if not t.is_floating_point() and (n not in wanted or wanted[n].is_floating_point())
    ]
    broken = [n for n, t in found.items() if t.is_floating_point() and not t.isfinite().all()]
    for kind, names in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("with NaN or infinite values", broken),
        ("of no floating-point numbers", others),
    ):
        if names:
            lines.append(f"{len(names)} {kind}: {', '.join(names)}")
    return lines


def unlike_grn(
    source: str | Path,
    found: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    model: ConvNeXt,
    allow_other_grn: bool,
) -> tuple[list[str], list[str]]:
    """Tensors of GRN, or of the layer in its place, that only the source or only the model has.

    Args:
        found: the source's tensors, in our names; ``metadata`` is the source's.
        allow_other_grn: see :func:`load_encoder`.

    Raises:
        InputError: if the forms of GRN differ and ``allow_other_grn`` is False.
    """
    has_grn = any(name.endswith(".grn.gamma") for name in found)
    theirs = metadata.get("grn", str(GRNOptions()) if has_grn else None)
    if theirs is None or model.grn is None or theirs == str(model.grn):
        return [], []
    if not allow_other_grn:
        raise InputError(
            f"{source} was trained with {theirs}; the model has {model.grn}: choose the same, or "
            "allow another (--allow-other-grn, MODEL.CONVNEXT.ALLOW_OTHER_GRN)"
        )
    logger.warning("%s was trained with %s; the model has %s", source, theirs, model.grn)
    if theirs.startswith("GRNOptions") and model.grn.kind == "grn":
        return [], []  # two forms of GRN have the same parameters
    left_out, new = ([n for n in names if ".grn." in n] for names in (found, model.state_dict()))
    return left_out, new


def differences(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Messages naming every tensor in which a file and a whole model differ; none if they agree."""
    misshapen = [
        f"{name} ({tuple(tensors[name].shape)} in the file, {tuple(wanted[name].shape)} here)"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    return [
        f"{len(names)} {what}: {', '.join(names)}"
        for what, names in (
            ("missing in the file", [name for name in wanted if name not in tensors]),
            ("not in the model", [name for name in tensors if name not in wanted]),
            ("of another size", misshapen),
        )
        if names
    ]
