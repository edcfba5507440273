"""Models by a name, to analyse: ours from any checkpoint, and any of timm's."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import nn

from backbones.checkpoint import load_encoder, read_encoder
from backbones.convnext import SIZES, ConvNeXt, build_convnext
from backbones.errors import InputError
from backbones.key_adapters import guess_size
from backbones.normalization import GRNOptions
from backbones.weight_files import read_state_dict
from images.statistics import IMAGENET, Statistics

logger = logging.getLogger(__name__)

SOURCES = (
    "a checkpoint of a ConvNeXt (ours, of any step of a run too; official, Hugging Face, timm), "
    "timm:NAME, timm:NAME@FILE, or random:NAME (ours or timm's, untrained)"
)


@dataclass(frozen=True)
class AnalysedModel:
    """A model with what its images need.

    Args:
        name: for tables and plots.
        source: where it came from.
        model: in evaluation mode.
        in_chans: channels of its images.
        statistics: normalise them.
    """

    name: str
    source: str
    model: nn.Module
    in_chans: int
    statistics: Statistics


def load_model(
    name: str, source: str, image_size: tuple[int, int] = (224, 224), seed: int = 0
) -> AnalysedModel:
    """Load a model.

    Args:
        name: what to call it.
        source: one of ``SOURCES``.
        image_size: height and width that models of a fixed size (ViT) are built for.
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


def _timm_model(name: str, source: str, image_size: tuple[int, int]) -> AnalysedModel:
    kind, _, rest = source.partition(":")
    architecture, _, file = rest.partition("@")
    if not timm.is_model(architecture.partition(".")[0]):
        raise InputError(f"{source}: timm has no model {architecture!r}; the sources are {SOURCES}")
    options: dict[str, Any] = {"pretrained": kind == "timm"}
    configuration = timm.get_pretrained_cfg(architecture)
    if configuration is not None and configuration.fixed_input_size:
        options["img_size"] = image_size
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
    return AnalysedModel(name, source, model.eval(), 3, statistics)


def _own_model(name: str, source: str) -> AnalysedModel:
    recognised, metadata = read_encoder(source)
    size = guess_size(recognised.tensors)
    if size is None:
        raise InputError(f"{source} holds an incomplete encoder: it lacks whole stages")
    in_chans = recognised.tensors["downsample_layers.0.0.weight"].shape[1]
    run = _run_of(Path(source))
    model = ConvNeXt(size, in_chans=in_chans, grn=_grn(metadata.get("grn"), run))
    # a run's checkpoint does not tell its form of GRN, but its config.yaml does
    load_encoder(source, model, allow_other_grn="grn" in run and "grn" not in metadata)
    return AnalysedModel(
        name, source, model.eval(), in_chans, _statistics(source, in_chans, metadata, run)
    )


def _run_of(checkpoint: Path) -> dict[str, Any]:
    """config.yaml of the run that a checkpoint (RUN/checkpoints/STEP/FILE) lies in, if any."""
    config = checkpoint.absolute().parents[2:3]
    path = config[0] / "config.yaml" if config else checkpoint
    if checkpoint.parent.parent.name != "checkpoints" or not path.is_file():
        return {}
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _grn(stored: str | None, run: Mapping[str, Any]) -> GRNOptions | None:
    """What the checkpoint tells, or the run's ``config.yaml``; None where neither does."""
    if stored is not None:
        return GRNOptions.of_text(stored)
    # a fine-tuning's is that of the weights that it started from, unless it was given
    options = run.get("derived", {}).get("grn") or run.get("grn")
    return GRNOptions(**options) if options else None


def _statistics(
    source: str, in_chans: int, metadata: Mapping[str, str], run: Mapping[str, Any]
) -> Statistics:
    if "mean" in metadata:
        mean, std = (tuple(json.loads(metadata[key])) for key in ("mean", "std"))
        return Statistics(mean, std, "the checkpoint")
    if stored := run.get("derived", {}).get("statistics"):
        return Statistics(tuple(stored["mean"]), tuple(stored["std"]), "the run's config.yaml")
    if in_chans == 3:
        return IMAGENET
    raise InputError(
        f"{source} takes {in_chans} channels and does not tell their mean and std; give the "
        "encoder.safetensors that pretraining wrote, which does"
    )
