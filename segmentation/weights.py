"""Weights of whole segmentation models: this project's, transformers', mmsegmentation's.

The encoder's part is recognised as everywhere (:mod:`backbones.key_adapters`); here are the names
of the heads and of the output norms.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from torch import Tensor

from backbones.errors import InputError
from backbones.key_adapters import to_ours
from backbones.weight_files import read_state_dict
from backbones.weights.layouts import adapt_stem
from backbones.weights.structure import misfits
from segmentation.model import UPerNet

logger = logging.getLogger(__name__)

# (pattern of a file's name, ours); applied in order to names outside of the encoder
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
COUNTERS = ".num_batches_tracked"  # of a batch norm; not in every file, and without effect here


def to_our_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A whole segmentation model's tensors under the names of :class:`UPerNet`.

    Raises:
        InputError: if there is no ConvNeXt encoder in it.
    """
    recognised = to_ours(state_dict)
    tensors = {f"backbone.{name}": tensor for name, tensor in recognised.tensors.items()}
    for name in recognised.others:
        ours = name
        for pattern, replacement in RENAMED:
            ours = re.sub(pattern, replacement, ours)
        tensors[ours] = state_dict[name]
    return tensors


def load_segmenter(source: str | Path, model: UPerNet, adapt_channels: bool = False) -> None:
    """Load a whole model, completely or not at all.

    Args:
        adapt_channels: a stem of other channels is turned into the model's, by
            :func:`backbones.weights.layouts.adapt_stem`.

    Raises:
        FileNotFoundError: if the file does not exist.
        InputError: naming every tensor that is missing, left over or of another shape.
    """
    found = to_our_names(read_state_dict(source))
    wanted = model.state_dict()
    found = {n: t for n, t in found.items() if n in wanted or not n.endswith(COUNTERS)}
    found |= {n: t for n, t in wanted.items() if n.endswith(COUNTERS) and n not in found}
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
    if problems := misfits(found, wanted):
        raise InputError("\n  ".join([f"{source} is not this segmentation model:", *problems]))
    model.load_state_dict(found)
    logger.info("%d/%d tensors loaded from %s", len(wanted), len(wanted), source)
