"""Load whole-detector weights into a model of either engine, strictly; freeze parts of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from backbones.checkpoint import OWN_WEIGHTS, LoadResult
from backbones.convnext import ConvNeXt
from backbones.errors import InputError, counted
from backbones.weights.fitting import differences
from backbones.weights.layouts import adapt_stem
from backbones.weights.sources import read_source
from detection.engines.mmdetection import is_mmdetection, mmdetection_to_detectron2
from detection.engines.renaming import (
    StateDict,
    detectron2_to_torchvision,
    is_detectron2,
    torchvision_to_detectron2,
)
from detection.engines.transfer import Classes, names_in, parse_aliases, select_classes
from training.command_line.tasks import read_facts
from training.configured import newest_weights

logger = logging.getLogger(__name__)

AVERAGE_FOLDER = "inference_EMA"  # results of the averaged weights, in OUTPUT_DIR
STEM = "downsample_layers.0.0.weight"
PARTS_OF_DETECTOR = {  # what their names begin with, in both engines
    "encoder": ("backbone.bottom_up.", "backbone.body."),
    "pyramid": ("backbone.fpn",),
    "heads": ("proposal_generator.", "rpn.", "roi_heads."),
}


def read_detector(
    path: str | Path,
    model: nn.Module,
    classes: Classes | None = None,
    adapt_channels: bool = False,
) -> None:
    """Load a whole detector of any known layout into a model of either engine, strictly.

    Args:
        path: safetensors or a PyTorch checkpoint (read without running code in it).
        model: untouched if an error is raised.
        classes: those that the model is to have: rows of the file's classes of these names are
            kept, the others are new. None where the file's must be the model's.
        adapt_channels: adapt a stem of another number of channels to the model's.

    Raises:
        FileNotFoundError: if the file does not exist.
        InputError: if the file is unreadable or not exactly this detector; every tensor that does
            not fit is named.
    """
    (tensors, metadata), wanted = read_source(path), model.state_dict()
    remedy = (
        "MODEL.WEIGHTS takes a whole detector of this config; "
        "an encoder goes into MODEL.CONVNEXT.WEIGHTS"
    )
    if not any(STEM in name for name in tensors):
        raise InputError(
            f"{path} is of another architecture: it has no ConvNeXt, but "
            f"{counted(len(tensors), 'tensor')} such as {', '.join(list(tensors)[:3])}. {remedy}"
        )
    try:
        if is_mmdetection(tensors):
            tensors = mmdetection_to_detectron2(tensors)
        if classes is not None:
            tensors = _with_classes(tensors, metadata, classes, str(path))
        if is_detectron2(tensors) != is_detectron2(wanted):
            to_torchvision = is_detectron2(tensors)
            rename = detectron2_to_torchvision if to_torchvision else torchvision_to_detectron2
            tensors = rename(tensors)
    except InputError as error:
        raise InputError(f"{path} is not this detector: {error}. {remedy}") from None
    for name in (name for name in tensors if adapt_channels and STEM in name and name in wanted):
        if tensors[name].shape[1] != (channels := wanted[name].shape[1]):
            logger.warning("%s: its stem is turned into one of %d channels", path, channels)
            tensors[name] = adapt_stem(tensors[name], channels)
    tensors = _without_idle(path, tensors, wanted)
    problems = differences(tensors, wanted)
    theirs = metadata.get("grn")
    for ours in (module.grn for module in model.modules() if isinstance(module, ConvNeXt)):
        if None not in (ours, theirs) and str(ours) != theirs:
            problems.append(f"trained with {theirs}; MODEL.CONVNEXT.GRN is {ours}")
    if problems:
        raise InputError("\n  ".join([f"{path} is not this detector. {remedy}", *problems]))
    model.load_state_dict(tensors)
    logger.info("%d of %d tensors from the detector %s", len(wanted), len(wanted), path)


def _with_classes(
    tensors: StateDict, metadata: Mapping[str, str], classes: Classes, source: str
) -> StateDict:
    """The tensors with the rows for ``classes``, in the same layout; unchanged rows are kept as is.

    Rows are chosen in detectron2's layout, which both engines' detectors have.
    """
    ours = is_detectron2(tensors)
    d2 = tensors if ours else torchvision_to_detectron2(tensors)
    chosen = select_classes(d2, names_in(metadata, d2), classes, source)
    if all(chosen[name] is d2[name] for name in d2):
        return tensors
    return chosen if ours else detectron2_to_torchvision(chosen)


def wanted_classes(config: Any, class_names: Sequence[str] | None) -> Classes | None:
    """The classes of the data for :func:`read_detector`, from either engine's config."""
    if class_names is None:
        return None
    return Classes(class_names, parse_aliases(config.MODEL.CLASS_ALIASES), max(config.SEED, 0))


def log_origin(model: nn.Module, encoder: LoadResult | None, prefix: str) -> None:
    """Log which tensors came from the encoder's file and which parts are new.

    Args:
        model: of either engine; ``prefix`` is what its encoder's names begin with.
        encoder: None where no file was given.
    """
    names = list(model.state_dict())
    if encoder is None:
        logger.info("no weights given: all %d tensors start from scratch", len(names))
        return
    of_encoder = {prefix + name for name in [*encoder.new, *encoder.grn_new]}
    new = [name for name in names if not name.startswith(prefix) or name in of_encoder]
    parts = [*["grn"] * bool(encoder.grn_new), *["out_norms"] * bool(encoder.new)]
    logger.info(
        "%d of %d encoder tensors from %s; %d new: %s",
        *(encoder.loaded, encoder.total, encoder.source, len(new)),
        ", ".join([*parts, "fpn", "rpn", "roi_heads"]),
    )


def freeze_parts(model: nn.Module, parts: Sequence[str]) -> None:
    """Stop parts of a detector of either engine from learning (``MODEL.FREEZE``).

    Raises:
        InputError: if nothing is left that learns.
    """
    for part in parts:
        names = [n for n, _ in model.named_parameters() if n.startswith(PARTS_OF_DETECTOR[part])]
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.requires_grad_(False)
        logger.info("MODEL.FREEZE: %s does not learn, %d tensors", part, len(names))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"MODEL.FREEZE is {list(parts)}: nothing is left that learns")


def _without_idle(path: str | Path, tensors: StateDict, wanted: StateDict) -> StateDict:
    """The tensors without output norms and stages that no head reads; older files have them."""
    part = re.compile(r"backbone\.(?:body|bottom_up)\.(out_norms|downsample_layers|stages)\.(\d*)")

    def stage(name: str) -> int:
        found = part.match(name)
        return int(found[2]) if found and found[2] else -1

    built = max(map(stage, wanted), default=3)
    idle = [
        name
        for name in tensors
        if name not in wanted
        and (found := part.match(name))
        and (found[1] == "out_norms" or stage(name) > built)
    ]
    if idle:
        logger.info("%d tensors of %s that no head reads are left out", len(idle), path)
    return {name: tensor for name, tensor in tensors.items() if name not in idle}


def encoder_licence(output_dir: Path) -> str | None:
    """The licence of the encoder that a run began with, if ``run.json`` records it."""
    facts = read_facts(output_dir)
    if "encoder" not in facts:
        return None
    return facts["encoder"]["licence"] if facts["encoder"] else OWN_WEIGHTS


def averaged_weights(output_dir: Path) -> Path | None:
    """The average (``SOLVER.EMA``) of the weights of a finished run, if it has one."""
    final = newest_weights(output_dir)
    path = final.with_name(f"{final.stem}_ema{final.suffix}")
    return path if path.is_file() else None
