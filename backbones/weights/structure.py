"""Finds by the tensors the size of an encoder, whether it is a ConvNeXt like ours, and its head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from backbones.convnext import SIZES, Size
from backbones.errors import InputError

ENCODER = ("downsample_layers.", "stages.")
OUT_NORMS = ("out_norms.",)
HEAD = ("norm.", "head.")

WHOLE_HEAD = {"norm.weight", "norm.bias", "head.weight", "head.bias"}
_LAYER_SCALE = re.compile(r"stages\.\d+\.\d+\.gamma")
XXLARGE = Size((384, 768, 1536, 3072), (3, 4, 30, 3), 1)


def guess_size(tensors: Mapping[str, Tensor]) -> Size | None:
    """The size of an encoder from its tensors (our names); None if it misses whole stages."""
    blocks = [re.match(r"stages\.(\d+)\.(\d+)\.", name) for name in tensors]
    numbers = {(int(match[1]), int(match[2])) for match in blocks if match}
    depths = tuple(len({b for s, b in numbers if s == stage}) for stage in range(4))
    norms = [tensors.get(f"stages.{stage}.0.norm.weight") for stage in range(4)]
    dims = tuple(norm.shape[0] for norm in norms if norm is not None and norm.ndim == 1)
    if len(dims) != 4:
        return None
    return Size(dims, depths, version_of(tensors))  # type: ignore[arg-type]


def version_of(tensors: Mapping[str, Tensor]) -> Literal[1, 2]:
    """1 if there is layer scale; otherwise 2, with GRN or another layer or none in its place."""
    if any(".grn." in name for name in tensors):
        return 2
    return 1 if any(_LAYER_SCALE.fullmatch(name) for name in tensors) else 2


def size_name(size: Size | None) -> str:
    """``"convnextv2_atto"``, or a description of an encoder that is not in the table."""
    for name, row in SIZES.items():
        if row == size:
            return name
    if size is None:
        return "an incomplete encoder"
    return f"a ConvNeXt V{size.version} of channels {size.dims} and depths {size.depths}"


def of_stages(tensors: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Tensors with our names, without those of the stages after the first ``count``."""
    number = re.compile(r"(?:downsample_layers|stages)\.(\d+)\.")
    return {
        name: tensor
        for name, tensor in tensors.items()
        if (match := number.match(name)) is None or int(match[1]) < count
    }


def check_structure(tensors: Mapping[str, Tensor]) -> None:
    """Refuse ConvNeXts that compute something else than ours.

    Raises:
        InputError: with the difference.
    """
    kernel = tuple(tensors["downsample_layers.0.0.weight"].shape[2:])
    problem = None
    if len(kernel) == 2 and kernel != (4, 4):
        problem = (
            f"its stem's convolution is of {kernel[0]}x{kernel[1]} pixels, not 4x4 (timm's *_ols)"
        )
    elif "downsample_layers.1.0.weight" in tensors and not any(
        name.endswith(".norm.bias") for name in tensors
    ):
        problem = "its norms have no bias (RMSNorm, timm's *_rms), and ours are LayerNorms"
    elif guess_size(tensors) == XXLARGE:
        problem = "it is an xxlarge, whose LayerNorms add 1e-5 to the variance, and ours 1e-6"
    if problem is not None:
        raise InputError(f"a ConvNeXt of another kind: {problem}")


def head_of_another_kind(tensors: Mapping[str, Tensor], others: list[str]) -> str | None:
    """Why a classifier's head differs from ours (pool, norm, linear); None if it does not."""
    if any(name.startswith("head.pre_logits.") for name in tensors):
        return "its head has a hidden layer (timm's *_mlp)"
    if any(name.split(".")[-2:-1] == ["norm_pre"] for name in others):
        return "its head normalises before it pools (timm's *_hnf)"
    return None


def check_head(tensors: Mapping[str, Tensor], source: str) -> int:
    """The number of rows of the classifier among tensors with our names; 0 without one.

    Raises:
        InputError: naming every tensor that is missing, unknown, of a wrong shape or not finite.
    """
    if "head.weight" not in tensors and "head.bias" not in tensors:
        return 0
    head = {name: tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    problems = [
        f"{word}: {', '.join(sorted(names))}"
        for word, names in (
            ("missing", WHOLE_HEAD - head.keys()),
            ("unexpected", head.keys() - WHOLE_HEAD),
            ("with NaN or infinite values", {n for n, t in head.items() if not t.isfinite().all()}),
        )
        if names
    ]
    size = guess_size(tensors)
    rows = len(head.get("head.weight", head.get("head.bias", ())))
    channels = size.dims[-1] if size else -1
    shapes = {"head.weight": (rows, channels), "head.bias": (rows,)} | dict.fromkeys(
        ("norm.weight", "norm.bias"), (channels,)
    )
    problems += [
        f"{name} is {tuple(tensor.shape)}, not {shapes[name]}"
        for name, tensor in head.items()
        if name in shapes and tuple(tensor.shape) != shapes[name] and size
    ]
    if problems:
        raise InputError(
            f"{source}: its classifier is not complete: {'; '.join(problems)}. Repair the file, or "
            "use only its encoder (tools/convert_checkpoint.py --no-head)"
        )
    return rows
