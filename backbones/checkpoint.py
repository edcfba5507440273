"""Read and write encoder weights: one strict loader for every format.

Formats are recognised by the tensors' names (``backbones.key_adapters``); files are read by
``backbones.weight_files``, which runs no code in them. Our own files are safetensors; their
metadata hold ``layout``, ``format_version``, ``size``, ``in_chans``, ``grn``, ``fingerprint``, the
versions of torch and timm, and further entries of the caller (``config``, ``dataset_fingerprint``,
``git_commit``, ``licence``).

Weights have licences of their own: Meta's ConvNeXt V2 weights, and timm's copies of them, are
CC BY-NC 4.0. What is known of the licence is logged at every load.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from backbones.convnext import ConvNeXt, Size
from backbones.errors import InputError
from backbones.key_adapters import Recognised, StateDict, from_ours, to_ours
from backbones.normalization import GRNOptions
from backbones.weight_files import save_safetensors
from backbones.weights.fitting import headline, misfits, unlike_grn
from backbones.weights.layouts import adapt_stem
from backbones.weights.sources import numbers, read_source
from backbones.weights.structure import ENCODER, OUT_NORMS, guess_size, of_stages, size_name

logger = logging.getLogger(__name__)

FORMAT_VERSION = "1"
LAYOUT = "backbones.convnext"
# formats of published encoders, all trained on RGB images normalised by ImageNet's statistics
PUBLISHED = ("official", "official-sparse", "timm", "timm-features", "huggingface", "mmpretrain")
OWN_WEIGHTS = "your own: trained from random weights"  # the licence of such weights


@dataclass(frozen=True)
class EncoderFile:
    """The content of a file that holds an encoder.

    Args:
        source: a path or ``timm:NAME``.
        recognised: its tensors in our names; the format is "ours" if this project wrote the file.
        metadata: everything else that it says, see :mod:`backbones.weights.sources`.
    """

    source: str
    recognised: Recognised
    metadata: dict[str, str]

    @property
    def tensors(self) -> StateDict:
        return self.recognised.tensors

    @property
    def size(self) -> Size:
        """The encoder's size. Raises InputError if whole stages are missing."""
        if (size := guess_size(self.tensors)) is None:
            raise InputError(f"{self.source}: its encoder is incomplete: whole stages are missing")
        return size

    @property
    def in_chans(self) -> int:
        return self.tensors["downsample_layers.0.0.weight"].shape[1]

    def with_channels(self, in_chans: int) -> EncoderFile:
        """The same encoder for images with another number of channels, by :func:`adapt_stem`.

        Mean, standard deviation and shown bands are dropped, because they do not fit other
        channels.
        """
        name = "downsample_layers.0.0.weight"
        stem = adapt_stem(self.tensors[name], in_chans)
        logger.warning(
            "%s: its stem's %d channels are turned into %d by timm's rule; mean and std are not",
            *(self.source, self.in_chans, in_chans),
        )
        recognised = replace(self.recognised, tensors={**self.tensors, name: stem})
        of_channels = ("mean", "std", "show_bands", "in_chans", "fingerprint")
        metadata = {k: v for k, v in self.metadata.items() if k not in of_channels}
        return replace(self, recognised=recognised, metadata=metadata)

    @property
    def out_norms(self) -> tuple[str, ...]:
        """The stages whose output has a norm."""
        return tuple(sorted({n.split(".")[1] for n in self.tensors if n.startswith(OUT_NORMS)}))

    @property
    def grn(self) -> GRNOptions | None:
        """The form of GRN, or the layer in its place; None if the file does not say."""
        text = self.metadata.get("grn")
        return None if text is None else GRNOptions.of_text(text)

    @property
    def statistics(self) -> tuple[list[float], list[float]] | None:
        """Mean and standard deviation of each channel, by which the images were normalised.

        For values scaled to 0..1, three channels as RGB. ImageNet's if a published encoder does not
        say; None if unknown.
        """
        if "mean" in self.metadata and "std" in self.metadata:
            return json.loads(self.metadata["mean"]), json.loads(self.metadata["std"])
        if self.recognised.format in PUBLISHED and self.in_chans == 3:
            return list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
        return None

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """A list in the metadata, such as ``mean``, ``std`` or ``image_size``."""
        return numbers(self.metadata, key)


@dataclass(frozen=True)
class LoadResult:
    """What :func:`load_encoder` did; ``str()`` is the line to log.

    Args:
        source: path or ``timm:NAME``.
        format: a name in ``key_adapters.FORMATS``.
        loaded, total: encoder tensors (stem, downsampling, stages) loaded, and in the model.
        missing: the model's names that got no weights; empty unless partial loading was allowed.
        unexpected: encoder tensors of the source (our names) that the model lacks.
        ignored: the source's tensors that do not belong to the encoder (head, decoder, detector),
            and those of stages that the model was built without.
        new: output norms of the model that the source does not have: they stay as initialised.
        grn_left_out, grn_new: if another form of GRN was allowed, the source's tensors of it that
            were not used, and the model's that stay as initialised.
        fingerprint: see :func:`fingerprint`.
        licence: of the weights; None if the source does not say.
        statistics: see :attr:`EncoderFile.statistics`.
    """

    source: str
    format: str
    loaded: int
    total: int
    missing: list[str]
    unexpected: list[str]
    ignored: list[str]
    new: list[str]
    fingerprint: str
    licence: str | None
    statistics: tuple[list[float], list[float]] | None = None
    grn_left_out: list[str] = field(default_factory=list)
    grn_new: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.loaded}/{self.total} encoder tensors loaded from {self.source} "
            f"({self.format} format)"
        )


def load_encoder(
    source: str | Path | EncoderFile,
    model: ConvNeXt,
    *,
    allow_partial: bool = False,
    allow_other_grn: bool = False,
    adapt_channels: bool = False,
    log: logging.Logger = logger,
) -> LoadResult:
    """Load encoder weights of any known format into ``model``, completely or not at all.

    Output norms are loaded if the source has them and stay as initialised otherwise. A head is not
    loaded.

    Args:
        source: a file, ``timm:NAME`` such as ``"timm:convnextv2_base.fcmae"``, or a file already
            read.
        model: changed in place; untouched if an error is raised.
        allow_partial: accept missing, unexpected and misshapen tensors; all are logged.
        allow_other_grn: accept a source that was trained with another form of GRN, or another layer
            in its place. Tensors that both have are loaded, gamma and beta included; others are
            left out or stay as initialised, and the log names them.
        adapt_channels: convert a stem with another number of channels, by
            :func:`backbones.weights.layouts.adapt_stem`.
        log: the logger that says what was loaded, and under which licence.

    Raises:
        FileNotFoundError: if the file does not exist.
        InputError: if the source is unreadable, unsafe, no ConvNeXt, of another size, was trained
            with another GRN, or misses a tensor; every one that does not fit is named.
    """
    file = source if isinstance(source, EncoderFile) else open_encoder(source, model.in_chans)
    if adapt_channels and file.in_chans != model.in_chans:
        file = file.with_channels(model.in_chans)
    source, recognised, metadata = file.source, file.recognised, file.metadata
    wanted = {n: t for n, t in model.state_dict().items() if n.startswith(ENCODER + OUT_NORMS)}
    found = {n: t for n, t in recognised.tensors.items() if n.startswith(ENCODER + OUT_NORMS)}
    theirs = guess_size(found)
    if theirs in (None, model.size):
        found = of_stages(found, len(model.stages))
    grn_left_out, grn_new = unlike_grn(source, found, metadata, model, allow_other_grn)
    found = {name: tensor for name, tensor in found.items() if name not in grn_left_out}
    expected = [name for name in wanted if name.startswith(ENCODER) and name not in grn_new]
    misshapen = [n for n in wanted if n in found and found[n].shape != wanted[n].shape]
    missing = [name for name in expected if name not in found]
    unexpected = [n for n in found if n.startswith(ENCODER) and n not in wanted]
    problems = misfits(wanted, found, misshapen, missing, unexpected)
    fitting = {n: t for n, t in found.items() if n in wanted and n not in misshapen}
    loaded = sum(name.startswith(ENCODER) for name in fitting)
    if problems:
        first = f"{source} ({recognised.format} format) {headline(model, found, theirs)}"
        text = "\n  ".join([first, *problems])
        if not allow_partial or not loaded:
            raise InputError(text)
        logger.warning("loaded in part, as allowed: %s", text)
    model.load_state_dict(fitting, strict=False)
    result = LoadResult(
        source=str(source),
        format=recognised.format,
        loaded=loaded,
        total=len(expected) + len(grn_new),
        missing=missing + misshapen,
        unexpected=unexpected,
        ignored=[n for n in recognised.tensors if n not in {*wanted, *unexpected, *grn_left_out}]
        + recognised.others,
        new=[n for n in wanted if n.startswith(OUT_NORMS) and n not in found],
        fingerprint=fingerprint(recognised.tensors),
        licence=metadata.get("licence"),
        statistics=file.statistics,
        grn_left_out=grn_left_out,
        grn_new=grn_new,
    )
    _log(result, log)
    return result


def _log(result: LoadResult, log: logging.Logger) -> None:
    log.info("%s", result)
    for what, names in (
        ("not for this encoder", result.ignored),
        ("of its GRN left out", result.grn_left_out),
        ("new, not in the file", result.new + result.grn_new),
    ):
        if names:
            log.info("%d tensors %s: %s", len(names), what, ", ".join(names))
    log.info(
        "licence of these weights: %s",
        result.licence or "unknown (the source does not tell; ask where they came from)",
    )


def fingerprint(state_dict: Mapping[str, Tensor]) -> str:
    """The sha256 (hex) of an encoder: names, types, shapes and bytes, sorted by name.

    Args:
        state_dict: in our names; only the encoder's tensors count, so that an encoder has one
            fingerprint with or without head and output norms.

    Raises:
        InputError: if no tensor is an encoder's.
    """
    names = sorted(name for name in state_dict if name.startswith(ENCODER))
    if not names:
        raise InputError("no encoder tensors (downsample_layers.*, stages.*) to fingerprint")
    digest = hashlib.sha256()
    for name in names:
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def open_encoder(source: str | Path, in_chans: int = 3, key: str | None = None) -> EncoderFile:
    """Read an encoder's file: its tensors in our names, and its metadata.

    Args:
        source: a file of any format, or ``timm:NAME``.
        in_chans, key: see :func:`backbones.weights.sources.read_source`.

    Raises:
        FileNotFoundError, InputError: as :func:`load_encoder`.
    """
    return recognised_file(source, *read_source(source, in_chans, key))


def recognised_file(
    source: str | Path, state_dict: StateDict, metadata: dict[str, str]
) -> EncoderFile:
    """Recognise the format of tensors that were read, and rename them to our names.

    Raises:
        InputError: if they hold no ConvNeXt, or one of another kind than ours.
    """
    try:
        recognised = to_ours(state_dict)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    if metadata.get("layout") == LAYOUT:
        recognised = replace(recognised, format="ours")
    return EncoderFile(str(source), recognised, metadata)


def build_encoder(source: str | Path | EncoderFile, **options: Any) -> tuple[ConvNeXt, LoadResult]:
    """Build the encoder of a file, with its size, channels, form of GRN and output norms.

    Args:
        source: a file of any format, ``timm:NAME``, or a file already read.
        **options: of :class:`backbones.convnext.ConvNeXt`; they replace the file's.

    Raises:
        FileNotFoundError, InputError: as :func:`load_encoder`.
    """
    file = source if isinstance(source, EncoderFile) else open_encoder(source)
    found = {"in_chans": file.in_chans, "grn": file.grn, "out_norms": file.out_norms}
    encoder = ConvNeXt(file.size, **{**found, **options})
    return encoder, load_encoder(file, encoder)


def save_encoder(model: ConvNeXt, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write ``model``'s encoder and output norms as our safetensors, atomically.

    Args:
        metadata: further entries: ``config``, ``dataset_fingerprint``, ``git_commit``,
            ``licence``.
    """
    tensors = {n: t for n, t in model.state_dict().items() if n.startswith(ENCODER + OUT_NORMS)}
    grn = {"grn": str(model.grn)} if model.grn is not None else {}
    save_ours(tensors, path, {**metadata, **grn})


def save_ours(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write tensors with our names, with or without a head, in our own format, atomically."""
    own = {
        "layout": LAYOUT,
        "format_version": FORMAT_VERSION,
        "size": size_name(guess_size(tensors)),
        "in_chans": str(tensors["downsample_layers.0.0.weight"].shape[1]),
        "fingerprint": fingerprint(tensors),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    save_safetensors(from_ours(tensors, "ours")[0], path, {**metadata, **own})
