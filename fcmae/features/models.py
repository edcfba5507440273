"""Models by a name, to analyse: ours from any checkpoint, and any of timm's."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from backbones.checkpoint import EncoderFile, build_encoder, open_encoder
from backbones.convnext import SIZES, ConvNeXt, build_convnext
from backbones.errors import InputError, counted
from backbones.weight_files import read_state_dict
from backbones.weights.sources import timm_evaluation
from fcmae.features.images import View, told_view
from images.files import as_range
from images.statistics import IMAGENET, Statistics

logger = logging.getLogger(__name__)

SOURCES = (
    "a checkpoint of a ConvNeXt (ours, of any step of a run too; official, Hugging Face, timm), "
    "timm:NAME, timm:NAME@FILE, or random:NAME (ours or timm's, untrained)"
)


@dataclass(frozen=True)
class AnalysedModel:
    """A model, and how its images are prepared."""

    name: str  # for tables and plots
    source: str  # where it came from
    model: nn.Module  # in evaluation mode
    in_chans: int  # channels of its images
    statistics: Statistics  # normalise them
    # the values that count as 0 and 1, see ``images.files``
    value_range: tuple[float, float] | None = None
    show_bands: tuple[int, ...] = ()  # the channels that pictures show, likewise
    # how images are resized and cropped, as recorded by the source; None if it is not
    view: View | None = None


def load_model(
    name: str, source: str, image_size: tuple[int, int] | None = None, seed: int = 0
) -> AnalysedModel:
    """Load a model.

    Args:
        source: one of ``SOURCES``.
        image_size: height and width that models of a fixed size (ViT) are built for; None: 224.
        seed: of untrained weights.

    Raises:
        FileNotFoundError: if a file does not exist.
        InputError: if it holds no such model, or timm has none of the name or cannot load it.
    """
    kind, _, rest = source.partition(":")
    torch.manual_seed(seed)
    if kind == "random" and rest in SIZES:
        return AnalysedModel(name, source, build_convnext(rest).eval(), 3, IMAGENET)
    if kind in ("random", "timm"):
        return _timm_model(name, source, image_size)
    return _own_model(name, source)


def load_convnext(source: str) -> tuple[ConvNeXt, AnalysedModel]:
    """An encoder of ours: a file of any format, ``timm:NAME`` or ``random:NAME``.

    Raises:
        FileNotFoundError, InputError: as :func:`load_model`.
    """
    if source.startswith("random:"):
        found = load_model("encoder", source)
    else:
        found = _own_model("encoder", source)
    if not isinstance(found.model, ConvNeXt):
        raise InputError(f"{source} is none of our encoders: {', '.join(SIZES)}")
    return found.model, found


def _timm_model(name: str, source: str, image_size: tuple[int, int] | None) -> AnalysedModel:
    kind, _, rest = source.partition(":")
    architecture, _, file = rest.partition("@")
    if not timm.is_model(architecture.partition(".")[0]):
        raise InputError(f"{source}: timm has no model {architecture!r}; the sources are {SOURCES}")
    options: dict[str, Any] = {"pretrained": kind == "timm"}
    configuration = timm.get_pretrained_cfg(architecture)
    fixed = configuration is not None and configuration.fixed_input_size
    if fixed:
        options["img_size"] = image_size or View().image_size
    if file:
        options["pretrained_cfg_overlay"] = {"state_dict": read_state_dict(file)}
    try:
        model = timm.create_model(architecture, **options)
    except Exception as error:  # of the hub, the network or timm: many types, one meaning
        raise InputError(
            f"{source}: timm could not make this model ({type(error).__name__}: {error}); without "
            "network, fetch its weights elsewhere and give timm:NAME@FILE"
        ) from error
    cfg: Any = model.pretrained_cfg
    if options["pretrained"]:
        logger.info("licence of %s: %s", source, cfg.get("license") or "unknown")
    statistics = Statistics(tuple(cfg["mean"]), tuple(cfg["std"]), f"timm's of {architecture}")
    view = told_view(timm_evaluation(cfg)) if kind == "timm" and not fixed else None
    return AnalysedModel(name, source, model.eval(), 3, statistics, view=view)


def _own_model(name: str, source: str) -> AnalysedModel:
    file = open_encoder(source)
    model, _ = build_encoder(file, out_norms=())
    stated = as_range(file.numbers("value_range"))
    bands = tuple(int(band) for band in file.numbers("show_bands") or ())
    return AnalysedModel(
        *(name, source, model.eval(), file.in_chans, _statistics(file), stated, bands),
        view=told_view(file.metadata),
    )


def _statistics(file: EncoderFile) -> Statistics:
    mean, std = file.numbers("mean"), file.numbers("std")
    if mean and std:
        return Statistics(mean, std, "the checkpoint")
    if file.in_chans == 3:
        return IMAGENET
    raise InputError(
        f"{file.source} takes {counted(file.in_chans, 'channel')} and does not tell their mean "
        "and std; give the encoder.safetensors that pretraining wrote, which does"
    )
