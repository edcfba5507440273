"""Converts ConvNeXt weights between our names and layouts and those of other formats.

"Our" names are those of :class:`backbones.convnext.ConvNeXt`, which are also those of the authors'
ConvNeXt and ConvNeXt V2 repositories. Every other format is a row of ``FORMATS``. The same table of
names serves to write the format and to read it, so the two directions cannot disagree. Besides
names there are these differences:

  * timm has GRN's gamma and beta as ``[4C]`` (ours ``[1, 1, 1, 4C]``) and, in its sizes of two
    blocks in the first stage (atto to nano), the Linear layers as 1x1 convolutions.
  * the authors' sparse pretraining model has MinkowskiEngine's kernels, ``[k*k, C_in, C_out]`` or
    ``[k*k, C]`` (depthwise), which list the kernel's sites column by column, and biases ``[1, C]``.

References:
    the weights' layouts: facebookresearch/ConvNeXt-V2, timm.models.convnext and transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from backbones.errors import InputError, counted
from backbones.weights.layouts import to_our_layout, to_sparse_layout, to_timm_layout
from backbones.weights.structure import (
    ENCODER,
    HEAD,
    OUT_NORMS,
    check_structure,
    guess_size,
    head_of_another_kind,
    version_of,
)

StateDict = dict[str, Tensor]

# (our name, the format's name); {x} is a number; the first row that a name begins with renames it.
TIMM_NAMES = (
    ("downsample_layers.0.{i}.", "stem.{i}."),
    ("downsample_layers.{s}.{i}.", "stages.{s}.downsample.{i}."),
    ("stages.{s}.{b}.dwconv.", "stages.{s}.blocks.{b}.conv_dw."),
    ("stages.{s}.{b}.pwconv{p}.", "stages.{s}.blocks.{b}.mlp.fc{p}."),
    ("stages.{s}.{b}.grn.gamma", "stages.{s}.blocks.{b}.mlp.grn.weight"),
    ("stages.{s}.{b}.grn.beta", "stages.{s}.blocks.{b}.mlp.grn.bias"),
    ("stages.{s}.{b}.", "stages.{s}.blocks.{b}."),
    ("norm.", "head.norm."),
    ("head.", "head.fc."),
)
TIMM_FEATURES_NAMES = tuple(
    (ours, theirs.replace("stem.", "stem_").replace("stages.", "stages_"))
    for ours, theirs in TIMM_NAMES
)
HUGGINGFACE_NAMES = (
    ("downsample_layers.0.0.", "embeddings.patch_embeddings."),
    ("downsample_layers.0.1.", "embeddings.layernorm."),
    ("downsample_layers.{s}.{i}.", "encoder.stages.{s}.downsampling_layer.{i}."),
    ("stages.{s}.{b}.norm.", "encoder.stages.{s}.layers.{b}.layernorm."),
    ("stages.{s}.{b}.gamma", "encoder.stages.{s}.layers.{b}.layer_scale_parameter"),
    ("stages.{s}.{b}.grn.gamma", "encoder.stages.{s}.layers.{b}.grn.weight"),
    ("stages.{s}.{b}.grn.beta", "encoder.stages.{s}.layers.{b}.grn.bias"),
    ("stages.{s}.{b}.", "encoder.stages.{s}.layers.{b}."),
    ("stages.{s}.", "encoder.stages.{s}."),
    ("out_norms.", "hidden_states_norms."),
    ("norm.", "layernorm."),
    ("head.", "classifier."),
)
# OpenMMLab's; and the authors' detectors, which have our names inside a block.
MMPRETRAIN_NAMES = (
    ("stages.{s}.{b}.dwconv.", "stages.{s}.{b}.depthwise_conv."),
    ("stages.{s}.{b}.pwconv{p}.", "stages.{s}.{b}.pointwise_conv{p}."),
    ("out_norms.stage1.", "norm0."),
    ("out_norms.stage2.", "norm1."),
    ("out_norms.stage3.", "norm2."),
    ("out_norms.stage4.", "norm3."),
    ("norm.", "norm3."),  # of a classifier, which has no other
    ("head.", "head.fc."),
)
SPARSE_NAMES = (
    ("downsample_layers.0.", "downsample_layers.0."),
    ("downsample_layers.{s}.0.", "downsample_layers.{s}.0.ln."),
    ("downsample_layers.{s}.1.weight", "downsample_layers.{s}.1.kernel"),
    ("stages.{s}.{b}.dwconv.weight", "stages.{s}.{b}.dwconv.kernel"),
    ("stages.{s}.{b}.norm.", "stages.{s}.{b}.norm.ln."),
    ("stages.{s}.{b}.pwconv{p}.", "stages.{s}.{b}.pwconv{p}.linear."),
)


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        stem: name of the stem's convolution, by which the format is recognised.
        prefix: the prefix of every name of the encoder.
        names: the table of names; empty if they are ours.
        parts: beginnings of our names of the tensors that the format can store.
        head: beginning of the classifier's names, if they do not have the encoder's prefix.
    """

    stem: str
    prefix: str = ""
    names: tuple[tuple[str, str], ...] = ()
    parts: tuple[str, ...] = ENCODER + HEAD
    head: str = ""


_OUR_STEM = "downsample_layers.0.0.weight"
FORMATS = {
    "ours": Format(_OUR_STEM, parts=ENCODER + OUT_NORMS + HEAD),
    "official": Format(_OUR_STEM),
    "official-sparse": Format(_OUR_STEM, "encoder.", SPARSE_NAMES, ENCODER),
    "fcmae": Format(_OUR_STEM, "encoder.", parts=ENCODER),
    "detectron2": Format(_OUR_STEM, "backbone.bottom_up.", parts=ENCODER + OUT_NORMS),
    "torchvision": Format(_OUR_STEM, "backbone.body.", parts=ENCODER + OUT_NORMS),
    "timm": Format("stem.0.weight", names=TIMM_NAMES),
    "timm-features": Format("stem_0.weight", names=TIMM_FEATURES_NAMES, parts=ENCODER),
    "huggingface": Format(
        "embeddings.patch_embeddings.weight",
        names=HUGGINGFACE_NAMES,
        parts=ENCODER + OUT_NORMS + HEAD,
        head="classifier.",
    ),
    "mmpretrain": Format(
        _OUR_STEM, "backbone.", MMPRETRAIN_NAMES, ENCODER + OUT_NORMS + HEAD, "head.fc."
    ),
}
# what wrappers put into names, anywhere: torch.compile, checkpointing, FSDP, DeepSpeed
WRAPPERS = re.compile(
    r"(?<![^.])(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_forward_module)\."
)
OWN_PREFIX = re.compile(r"(convnextv2|convnext|backbone)\.$")  # what a head lies beside

# formats that store our names as they are, with any layer in GRN's place
HAS_ANY_NORM = ("ours", "fcmae", "detectron2", "torchvision")


@dataclass(frozen=True)
class Recognised:
    """A state dict whose format was recognised.

    Args:
        format: its name in ``FORMATS``; "official" if the names are ours.
        tensors: the encoder, its output norms and its head, in our names and layouts.
        others: the file's names of all other tensors (decoder, detection heads, ...).
        head_problem: why its classifier cannot be used; it is then among the others. None if it
            can, or if there is none.
    """

    format: str
    tensors: StateDict
    others: list[str]
    head_problem: str | None = None


def recognise(names: Iterable[str]) -> tuple[str, str]:
    """Find the format and the encoder's prefix by the names of a state dict's tensors.

    Raises:
        InputError: if there is no encoder of a known format, or more than one.
    """
    names = list(names)
    found = {
        (name.removesuffix(stem), stem)
        for stem in {row.stem for row in FORMATS.values()}
        for name in names
        if name == stem or name.endswith("." + stem)
    }
    if not found:
        raise InputError(
            "no ConvNeXt encoder in it: no stem convolution under any known name; it holds "
            f"{counted(len(names), 'tensor')}: "
            f"{', '.join(sorted(names)[:5])}{', ...' * (len(names) > 5)}; give weights of a "
            "ConvNeXt (docs/weights.md lists what is read)"
        )
    if len(found) > 1:
        places = ", ".join(sorted(repr(prefix) for prefix, _ in found))
        raise InputError(
            f"more than one encoder in it, under the prefixes {places}: keep one; "
            "FILE#KEY takes one, and tools/convert_checkpoint.py the one that --key names"
        )
    ((prefix, stem),) = found
    if stem != _OUR_STEM:
        return next(name for name, row in FORMATS.items() if row.stem == stem), prefix
    if any(name.startswith(prefix) and name.endswith(".kernel") for name in names):
        return "official-sparse", prefix
    signs = [f"{prefix}stages.0.0.depthwise_conv."]
    if ("." + prefix).endswith(".backbone."):
        signs.append(f"{prefix}norm")
    if any(name.startswith(tuple(signs)) for name in names):
        return "mmpretrain", prefix
    for name in ("fcmae", "detectron2", "torchvision"):
        if ("." + prefix).endswith("." + FORMATS[name].prefix):
            return name, prefix
    return "official", prefix


def to_ours(state_dict: Mapping[str, Tensor]) -> Recognised:
    """Convert a state dict of any format to our names and layouts; see :class:`Recognised`.

    Raises:
        InputError: as :func:`recognise`, or if two tensors would get the same name.
    """
    state_dict = {WRAPPERS.sub("", name): tensor for name, tensor in state_dict.items()}
    format_name, prefix = recognise(state_dict)
    row = FORMATS[format_name]
    renamed = [(theirs, ours) for ours, theirs in row.names]
    if format_name == "mmpretrain" and f"{prefix}norm0.weight" not in state_dict:
        renamed.insert(0, ("norm3.", "norm."))
    # a head may lie beside the encoder: Hugging Face's "classifier." outside of "convnextv2."
    beside = OWN_PREFIX.sub("", prefix) + row.head if row.head else None
    tensors: StateDict = {}
    others = []
    for name, tensor in state_dict.items():
        outside = beside is not None and name.startswith(beside)
        inner = row.head + name[len(beside or "") :] if outside else name.removeprefix(prefix)
        ours = _rename(inner, tuple(renamed))
        if not (outside or name.startswith(prefix)) or not ours.startswith(FORMATS["ours"].parts):
            others.append(name)
            continue
        if ours in tensors:
            raise InputError(f"two of its tensors are our {ours}; one of them is {name}")
        tensors[ours] = to_our_layout(ours, tensor)
    check_structure(tensors)
    problem = head_of_another_kind(tensors, others)
    if problem is not None:
        others += [name for name in tensors if name.startswith(HEAD)]
        tensors = {n: t for n, t in tensors.items() if not n.startswith(HEAD)}
    return Recognised(format_name, tensors, others, problem)


def from_ours(tensors: Mapping[str, Tensor], target: str) -> tuple[StateDict, list[str]]:
    """Convert tensors with our names to another format.

    Hugging Face has three models: with a head it is ``...ForImageClassification``, else with
    output norms ``...Backbone``, else ``...Model``.

    Args:
        tensors: encoder, output norms and head, as far as they exist.
        target: a name in ``FORMATS``.

    Returns:
        The state dict, and our names of the tensors that the format cannot store.

    Raises:
        InputError: if the target cannot store this encoder (V1 in the sparse format; another layer
            in GRN's place).
    """
    row = FORMATS[target]
    prefix, parts = row.prefix, row.parts
    size = guess_size(tensors)
    is_v2 = version_of(tensors) == 2
    if is_v2 and "stages.0.0.grn.gamma" not in tensors and target not in HAS_ANY_NORM:
        raise InputError(f"another layer stands in GRN's place, which {target} cannot store")
    if target == "mmpretrain" and any(name.startswith(OUT_NORMS) for name in tensors):
        parts = ENCODER + OUT_NORMS  # whose last one is the classifier's norm otherwise
    if target == "official-sparse" and not is_v2:
        raise InputError("this is a ConvNeXt V1; the sparse format exists only for V2")
    if target == "huggingface" and "head.weight" in tensors:
        prefix, parts = ("convnextv2." if is_v2 else "convnext."), ENCODER + HEAD
    elif target == "huggingface" and any(name.startswith(OUT_NORMS) for name in tensors):
        parts = ENCODER + OUT_NORMS
    convolutional = size is not None and size.depths[0] == 2
    written, dropped = {}, []
    for name, tensor in tensors.items():
        if not name.startswith(parts):
            dropped.append(name)
            continue
        theirs = _rename(name, row.names)
        if not (row.head and theirs.startswith(row.head)):
            theirs = prefix + theirs
        if target.startswith("timm"):
            tensor = to_timm_layout(name, tensor, convolutional)
        elif target == "official-sparse":
            tensor = to_sparse_layout(name, tensor)
        elif target == "mmpretrain" and ".grn." in name:
            tensor = tensor.flatten()
        written[theirs] = tensor
    return written, dropped


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(template)))


def _rename(name: str, names: tuple[tuple[str, str], ...]) -> str:
    """Rename the beginning of ``name`` by the first row that matches it; keep the rest."""
    for source, target in names:
        if match := _pattern(source).match(name):
            return target.format(**match.groupdict()) + name[match.end() :]
    return name
