"""Global Response Normalization, and the layers that the paper compared it with.

Each takes GRN's place in a ConvNeXt V2 block: after the GELU, on the expanded channels (arXiv
2301.00808, section 3.3 and Table 2). All are called as ``module(x, visible, convolve)``; only CBAM
needs ``convolve``. They take their statistics over the *visible* sites only, as for a sparse image:

  * of each image: GRN, SE, CBAM;
  * of each site: LRN, LayerNorm; of none: affine;
  * of all images of a batch in one process: BatchNorm, as MinkowskiEngine's does.

Where the paper gives no details, its parameter counts and the methods' own papers are followed: SE
and CBAM reduce channels by 16 (which gives the 109M of Table 2e); LRN has PyTorch's defaults
(AlexNet's, but k = 1 and alpha divided by the size); CBAM's spatial attention is its paper's
formula, without the batch norm of its authors' code.

Shape suffixes: B batch, S sites of an image, C channels; ``x [B, ..., C]`` may have any layout of
sites between, such as ``[B, H, W, C]`` or the packed one of ``fcmae.packed``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.errors import InputError

NORM_EPS = GRN_EPS = 1e-6
REDUCTION = 16  # SE and CBAM: channels / hidden channels

Kind = Literal["grn", "affine", "none", "lrn", "batchnorm", "layernorm", "se", "cbam"]
Aggregate = Literal["l2", "l1", "avg"]
Normalize = Literal["mean", "sum", "standardize"]
# a 7x7 convolution over maps of few channels: (convolution, [B, ..., C]) -> [B, ..., C']
Convolve = Callable[[nn.Conv2d, Tensor], Tensor]


@dataclass(frozen=True)
class GRNOptions:
    """The choices of the paper's GRN ablation (Table 2); the defaults are its final form.

    Args:
        aggregate: the statistic over an image's sites, per channel: "l2", "l1" or "avg".
        normalize: how it is normalised over the channels: "mean" (x / mean), "sum" (x / sum) or
            "standardize" ((x - mean) / std).
        residual: add GRN's input to its output.
        kind: "grn", or the layer in its place, for which the first three have no meaning. "affine"
            is GRN without a statistic, "none" no layer at all.

    Raises:
        InputError: with every value that is not allowed.
    """

    aggregate: Aggregate = "l2"
    normalize: Normalize = "mean"
    residual: bool = True
    kind: Kind = "grn"

    def __post_init__(self) -> None:
        choices = {"aggregate": Aggregate, "normalize": Normalize, "kind": Kind}
        problems = [
            f"GRNOptions.{name} is {getattr(self, name)!r}; allowed: {', '.join(get_args(allowed))}"
            for name, allowed in choices.items()
            if getattr(self, name) not in get_args(allowed)
        ]
        form = (self.aggregate, self.normalize, self.residual)
        if self.kind != "grn" and form != ("l2", "mean", True):
            problems.append(
                f"GRNOptions.kind is {self.kind!r}, which has no aggregate, normalize or residual "
                "to choose: leave them, or use 'grn'"
            )
        if problems:
            raise InputError("; ".join(problems))

    @classmethod
    def of_config(cls, section: Mapping[str, Any]) -> GRNOptions:
        """From a config's section, whose keys are this class's names in capitals."""
        return cls(**{key.lower(): value for key, value in section.items()})

    @classmethod
    def of_text(cls, text: str) -> GRNOptions:
        """The inverse of ``str()``.

        Raises:
            InputError: if the text is not such a string.
        """
        call = re.fullmatch(r"GRNOptions\((.*)\)", text)
        if call is None:
            return cls(kind=text)  # type: ignore[arg-type]
        values = dict(part.partition("=")[::2] for part in call[1].split(", "))
        try:
            return cls(**{name: ast.literal_eval(value) for name, value in values.items()})
        except (TypeError, SyntaxError) as error:
            raise InputError(f"{text!r} is not a form of GRN: {error}") from error

    def __str__(self) -> str:
        """The text that checkpoints store, so that a model with another form is noticed."""
        if self.kind != "grn":
            return self.kind
        return (
            f"GRNOptions(aggregate={self.aggregate!r}, normalize={self.normalize!r}, "
            f"residual={self.residual!r})"
        )


def convolve_map(conv: nn.Conv2d, x_bhwc: Tensor) -> Tensor:
    """``conv`` over a channels-last map."""
    return conv(x_bhwc.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _visible_sites(x: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor | int]:
    """``x [B, S, C]``, 0 where not visible, and the number of visible sites, ``[B, 1]``."""
    x_bsc = x.flatten(1, -2)
    if visible is None:
        return x_bsc, x_bsc.shape[1]
    v_bs1 = visible.flatten(1).unsqueeze(-1).to(x.dtype)
    return x_bsc * v_bs1, v_bs1.sum(1, dtype=torch.promote_types(x.dtype, torch.float32))


def _mean_over_sites(x: Tensor, visible: Tensor | None) -> Tensor:
    """``[B, C]``, accumulated in float32 at least."""
    x_bsc, sites = _visible_sites(x, visible)
    return x_bsc.sum(1, dtype=torch.promote_types(x.dtype, torch.float32)) / sites


def _per_image(values_bc: Tensor, x: Tensor) -> Tensor:
    """``[B, C]`` with shape and type to multiply ``x [B, ..., C]``."""
    return values_bc.view(x.shape[0], *[1] * (x.ndim - 2), -1).to(x.dtype)


class Affine(nn.Module):
    """gamma * X + beta + X: GRN's parameters without its statistic."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor, visible: Tensor | None = None, *_: Convolve) -> Tensor:
        scale = (self.gamma.flatten() + 1).to(x.dtype)
        return torch.addcmul(self.beta.flatten().to(x.dtype), x, scale)


class GRN(Affine):
    """Global Response Normalization (paper, section 3.3, Algorithm 1), channels last.

    Each channel is aggregated over the sites of *one image*. The statistics are accumulated in
    float32 at least, because a sum of squares overflows float16.

    References:
        arXiv 2301.00808, Eq. 1-3.
    """

    def __init__(self, channels: int, options: GRNOptions | None = None) -> None:
        super().__init__(channels)
        self.options = options or GRNOptions()

    def aggregate(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """G(X), Eq. 1: ``[B, ..., C]`` -> ``[B, C]`` over the sites where ``visible`` is 1."""
        if self.options.aggregate == "avg":
            return _mean_over_sites(x, visible)
        order = 2 if self.options.aggregate == "l2" else 1
        x_bsc, _ = _visible_sites(x, visible)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return torch.linalg.vector_norm(x_bsc, ord=order, dim=1, dtype=dtype)

    def normalize(self, g_bc: Tensor) -> Tensor:
        """N(G(X)), Eq. 2: each channel's response relative to the others', ``[B, C]``."""
        if self.options.normalize == "mean":
            return g_bc / (g_bc.mean(-1, keepdim=True) + NORM_EPS)
        if self.options.normalize == "sum":
            return g_bc / (g_bc.sum(-1, keepdim=True) + NORM_EPS)
        mean, std = g_bc.mean(-1, keepdim=True), g_bc.std(-1, keepdim=True)
        return (g_bc - mean) / (std + NORM_EPS)

    def calibrate(self, x: Tensor, n_bc: Tensor) -> Tensor:
        """Eq. 3: gamma * X * N(G(X)) + beta, plus X: ``[B, ..., C]``."""
        scale = self.gamma.flatten() * _per_image(n_bc, x)
        if self.options.residual:
            scale = scale + 1
        return torch.addcmul(self.beta.flatten().to(x.dtype), x, scale.to(x.dtype))

    def forward(self, x: Tensor, visible: Tensor | None = None, *_: Convolve) -> Tensor:
        """``[B, ..., C]`` -> the same; ``visible [B, ...]`` (1 = counted) limits the statistic."""
        return self.calibrate(x, self.normalize(self.aggregate(x, visible)))


class NoResponseNorm(nn.Identity):
    """The block without GRN."""

    def forward(self, x: Tensor, visible: Tensor | None = None, *_: Convolve) -> Tensor:
        return x


class LocalResponseNorm(nn.LocalResponseNorm):
    """Local response normalisation over five neighbouring channels of each site.

    References:
        Krizhevsky et al. 2012, section 3.3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(size=5, alpha=1e-4, beta=0.75, k=1.0)

    def forward(self, x: Tensor, visible: Tensor | None = None, *_: Convolve) -> Tensor:
        return super().forward(x.flatten(0, -2).unsqueeze(-1)).view(x.shape)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the visible sites of all images; 0 is returned elsewhere."""

    def forward(self, x: Tensor, visible: Tensor | None = None, *_: Convolve) -> Tensor:
        if visible is None:
            return super().forward(x.flatten(0, -2)).view(x.shape)
        counted = visible.bool()
        y = super().forward(x[counted])
        return y.new_zeros(x.shape).masked_scatter(counted.unsqueeze(-1), y)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each site."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPS)

    def forward(self, x: Tensor, visible: Tensor | None = None, *_: Convolve) -> Tensor:
        return super().forward(x)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: each channel gated by a small network of all channels' means.

    References:
        arXiv 1709.01507, Eq. 2-4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, max(1, channels // REDUCTION))
        self.fc2 = nn.Linear(max(1, channels // REDUCTION), channels)

    def excite(self, statistic_bc: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(statistic_bc)))

    def forward(
        self, x: Tensor, visible: Tensor | None = None, convolve: Convolve = convolve_map
    ) -> Tensor:
        mean_bc = _mean_over_sites(x, visible).to(self.fc1.weight.dtype)
        return x * _per_image(self.excite(mean_bc).sigmoid(), x)


class CBAM(SqueezeExcite):
    """Convolutional block attention: channels gated by means and maxima, then sites likewise.

    References:
        arXiv 1807.06521, Eq. 1-3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.spatial = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)

    def forward(
        self, x: Tensor, visible: Tensor | None = None, convolve: Convolve = convolve_map
    ) -> Tensor:
        """``convolve`` runs the spatial attention's convolution in the layout of ``x``."""
        mean_bc = _mean_over_sites(x, visible).to(self.fc1.weight.dtype)
        seen = x
        if visible is not None:
            seen = x.masked_fill(~visible.bool().unsqueeze(-1), -torch.inf)
        max_bc = seen.flatten(1, -2).amax(1).to(mean_bc.dtype)
        x = x * _per_image((self.excite(mean_bc) + self.excite(max_bc)).sigmoid(), x)
        maps = torch.stack((x.mean(-1), x.amax(-1)), -1)
        if visible is not None:
            maps = maps * visible.unsqueeze(-1).to(maps.dtype)
        return x * convolve(self.spatial, maps).sigmoid().to(x.dtype)


_MODULES: dict[str, Callable[[int], nn.Module]] = {
    "affine": Affine,
    "none": lambda channels: NoResponseNorm(),
    "lrn": LocalResponseNorm,
    "batchnorm": BatchNorm,
    "layernorm": LayerNorm,
    "se": SqueezeExcite,
    "cbam": CBAM,
}


def build_response_norm(channels: int, options: GRNOptions | None = None) -> nn.Module:
    """GRN, or the layer that the options put in its place."""
    if options is None or options.kind == "grn":
        return GRN(channels, options)
    return _MODULES[options.kind](channels)
