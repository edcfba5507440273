"""Loads weights of whole segmentation models: this project's, transformers', mmsegmentation's.

:mod:`backbones.key_adapters` recognises the encoder; this file has the names of the heads and of
the output norms.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from backbones.errors import InputError
from backbones.key_adapters import to_ours
from backbones.weight_files import read_metadata, read_state_dict
from backbones.weights.fitting import differences
from backbones.weights.layouts import adapt_stem
from segmentation.model import UPerNet
from training.command_line.tasks import read_facts

logger = logging.getLogger(__name__)

# (pattern of a name in the file, our name); applied in order to names outside the encoder
RENAMED = (
    (r"^(?:model\.)?(?:decode_head|sem_seg_head\.decode_head)\.", "sem_seg_head.decode_head."),
    (
        r"^(?:model\.)?(?:auxiliary_head|sem_seg_head\.auxiliary_head)\.",
        "sem_seg_head.auxiliary_head.",
    ),
    (r"\.batch_norm\.", ".bn."),  # transformers
    (r"_head\.classifier\.", "_head.conv_seg."),
    (r"^backbone\.norm(\d)\.", lambda match: f"backbone.out_norms.stage{int(match[1]) + 1}."),
)
STEM = "backbone.downsample_layers.0.0.weight"
ROWS = re.compile(r"_head\.conv_seg\.(weight|bias)$")  # one row for each class
COUNTERS = ".num_batches_tracked"  # of batch norms; not in every file, and not needed


def to_our_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a whole segmentation model's tensors to the names of :class:`UPerNet`.

    Raises:
        InputError: if it has no ConvNeXt encoder.
    """
    recognised = to_ours(state_dict)
    tensors = {f"backbone.{name}": tensor for name, tensor in recognised.tensors.items()}
    for name in recognised.others:
        ours = name
        for pattern, replacement in RENAMED:
            ours = re.sub(pattern, replacement, ours)
        tensors[ours] = state_dict[name]
    return tensors


def trained_names(weights: str) -> list[str]:
    """The classes of a model, in the order of its outputs, from its file or its run."""
    if not weights or not Path(weights).is_file():
        return []
    if names := read_metadata(weights).get("class_names"):
        return json.loads(names)
    folders = [*Path(weights).absolute().parents][:3]  # a checkpoint: RUN/checkpoints/STEP/FILE
    return next((facts["classes"] for f in folders if "classes" in (facts := read_facts(f))), [])


def load_segmenter(
    source: str | Path,
    model: UPerNet,
    adapt_channels: bool = False,
    class_names: Sequence[str] | None = None,
) -> None:
    """Load a whole model, completely or not at all.

    Args:
        adapt_channels: convert a stem with another number of channels, by
            :func:`backbones.weights.layouts.adapt_stem`.
        class_names: the model's classes. If the file names the same classes in another order, its
            rows are reordered by name. None: the model has the file's classes.

    Raises:
        FileNotFoundError: if the file does not exist.
        InputError: naming every tensor that is missing, unexpected or of another shape.
    """
    found = to_our_names(read_state_dict(source))
    wanted = model.state_dict()
    found = {n: t for n, t in found.items() if n in wanted or not n.endswith(COUNTERS)}
    found |= {n: t for n, t in wanted.items() if n.endswith(COUNTERS) and n not in found}
    if class_names is not None:
        found = _by_name(source, found, class_names)
    stem, channels = found.get(STEM), model.backbone.in_chans
    if stem is not None and stem.ndim == 4 and stem.shape[1] != channels:
        if not adapt_channels:
            raise InputError(
                f"{source} takes images of {stem.shape[1]} channels, MODEL.CONVNEXT.IN_CHANS is "
                f"{channels}: change that, or let its stem be adapted "
                "(MODEL.CONVNEXT.ADAPT_CHANNELS True)"
            )
        logger.warning(
            "%s: its stem's %d channels are turned into %d by timm's rule",
            *(source, stem.shape[1], channels),
        )
        found[STEM] = adapt_stem(stem, channels)
    if problems := differences(found, wanted):
        raise InputError("\n  ".join([f"{source} is not this segmentation model:", *problems]))
    model.load_state_dict(found)
    logger.info("%d/%d tensors loaded from %s", len(wanted), len(wanted), source)


def _by_name(
    source: str | Path, tensors: dict[str, Tensor], class_names: Sequence[str]
) -> dict[str, Tensor]:
    theirs = trained_names(str(source))
    if theirs == list(class_names) or len(theirs) != len(class_names):
        return tensors
    if sorted(theirs) != sorted(class_names):
        logger.warning(
            "%s is of the classes %s: their rows begin for these classes by number",
            *(source, ", ".join(theirs)),
        )
        return tensors
    rows = torch.tensor([theirs.index(name) for name in class_names])
    logger.info("%s has the classes in another order; their rows are taken by name", source)
    return {
        name: tensor[rows] if ROWS.search(name) and len(tensor) == len(rows) else tensor
        for name, tensor in tensors.items()
    }
