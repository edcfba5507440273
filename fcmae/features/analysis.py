"""Measure a model's features block by block: diversity, dead channels, rank, selectivity.

The measures of ConvNeXt V2's analysis (arXiv 2301.00808, section 3.2 and Figures 3, 4 and 7), all
accumulated in float64 from one pass over the images; no tensor of a pass is kept, and no C x C
matrix is ever made.

  * cosine distance of channels, see :func:`cosine_distance`;
  * dead and saturated channels, see :func:`dead_and_saturated`;
  * effective rank (Roy & Vetterli 2007), see :func:`effective_rank`;
  * class selectivity (Morcos et al. 2018), see :class:`ClassSelectivity`.

Shape suffixes: B images of a batch, I images of all, N sites of an image, C channels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backbones.errors import InputError
from fcmae.features.taps import DEFAULT_TAP, Tap, run_features, tap_points, tapped
from training.devices import to_float64

logger = logging.getLogger(__name__)

DEAD = 0.01  # of the mean response of the block's channels; see dead_and_saturated
SATURATED = 0.1  # deviation over the sites, relative to the response


def cosine_distance(x_bnc: Tensor) -> Tensor:
    """Mean pairwise cosine distance of each image's channels: ``[B, N, C]`` -> ``[B]``, float64.

    (1 / C^2) * sum over i, j of (1 - cos(X_i, X_j)) / 2 (paper, section 3.2): 0 where all channels
    have the same map up to a positive factor, 0.5 where they are unrelated. A channel that is 0
    at every site has no direction: it is left out, and C counts the others; an image with no other
    channel has no distance (NaN). Computed as (1 - ||sum_i X_i / ||X_i|| ||^2 / C^2) / 2.
    """
    x_bnc = to_float64(x_bnc)
    norm_bc = torch.linalg.vector_norm(x_bnc, dim=1)
    alive_bc = norm_bc > 0
    weight_bc = torch.where(alive_bc, 1 / norm_bc, 0)
    direction_bn = (x_bnc @ weight_bc.unsqueeze(-1)).squeeze(-1)
    mean_cosine = direction_bn.square().sum(-1) / alive_bc.sum(-1).square()
    return (1 - mean_cosine) / 2


def dead_and_saturated(x_bnc: Tensor) -> tuple[Tensor, Tensor]:
    """Dead and saturated channels of each image: ``[B, N, C]`` -> two bool ``[B, C]``.

    A channel's response is its root mean square over the sites.

    Returns:
        Dead channels, whose response is at most 1% of the mean response of the block's channels;
        and saturated ones, not dead, that are nearly the same at every site: their standard
        deviation over the sites is at most 10% of their response.
    """
    x_bnc = to_float64(x_bnc)
    square_bc = x_bnc.square().mean(1)
    response_bc = square_bc.sqrt()
    deviation_bc = (square_bc - x_bnc.mean(1).square()).clamp(min=0).sqrt()
    dead_bc = response_bc <= DEAD * response_bc.mean(-1, keepdim=True)
    return dead_bc, (deviation_bc <= SATURATED * response_bc) & ~dead_bc


def effective_rank(features_ic: Tensor) -> float:
    """Number of directions in which the images' features vary: ``[I, C]`` -> 1 to min(I - 1, C).

    exp of the entropy of the singular values, normalised to sum 1, of the features minus their
    mean over the images; 0 where they do not vary at all.

    References:
        Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    features_ic = to_float64(features_ic)
    values = torch.linalg.svdvals(features_ic - features_ic.mean(0))
    if float(values.max()) <= 1e-12 * float(features_ic.abs().max()):
        return 0.0
    p = values / values.sum()
    return float(torch.special.entr(p).sum().exp())


class ClassSelectivity:
    """The class selectivity index of every channel, from images in the order of their classes.

    (m - o) / (m + o), with m the channel's largest mean activation of a class and o the mean of
    those of all other classes (Morcos et al., "On the importance of single directions for
    generalization", ICLR 2018): 1 for a channel that responds to one class only, 0 for one
    that responds to all classes equally. It is defined for activations that are not negative, so
    block outputs are rectified, max(x, 0), before their mean over the sites. A channel that is
    positive for no image has none (NaN). Memory: a few numbers per channel, whatever the number of
    classes.
    """

    def __init__(self) -> None:
        self._label: int | None = None
        self._seen: set[int] = set()
        self._sum = self._highest = self._total = torch.zeros((), dtype=torch.float64)
        self._count = 0

    def update(self, x_bnc: Tensor, labels: Iterable[int]) -> None:
        """Take a batch in; images of one class must follow each other.

        Raises:
            InputError: if a class comes back after another.
        """
        for mean_c, label in zip(to_float64(x_bnc).clamp(min=0).mean(1), labels, strict=True):
            if label != self._label:
                self._finish_class()
                if label in self._seen:
                    raise InputError(f"class {label} comes back: sort the images by their class")
                self._label = label
                self._seen.add(label)
            self._sum, self._count = self._sum + mean_c, self._count + 1

    def _finish_class(self) -> None:
        if self._count:
            mean_c = self._sum / self._count
            self._highest = torch.maximum(self._highest, mean_c)
            self._total = self._total + mean_c
            self._sum, self._count = torch.zeros_like(mean_c), 0

    def index(self) -> Tensor:
        """The index of each channel, ``[C]``, 0 to 1 or NaN.

        Raises:
            InputError: if there were fewer than two classes.
        """
        self._finish_class()
        if len(self._seen) < 2:
            raise InputError(f"class selectivity needs two classes; there are {len(self._seen)}")
        others = (self._total - self._highest) / (len(self._seen) - 1)
        return (self._highest - others) / (self._highest + others)


@dataclass(frozen=True)
class BlockFeatures:
    """The measures of one block."""

    block: str  # its name in the model
    depth: float  # normalised layer index, 0 (first block) to 1 (last)
    channels: int  # of the tap
    cosine_distance: float  # mean over the images that have one
    # dead, saturated: fraction of the channels, mean over the images
    dead: float
    saturated: float
    effective_rank: float  # of the features' means over the sites, one row per image
    # the class selectivity index of each channel of the block's *output*, ``[C]``; None
    # without labels
    selectivity: Tensor | None

    @property
    def class_selectivity(self) -> float:
        """The mean over the channels that have an index; NaN without labels."""
        return float("nan") if self.selectivity is None else float(self.selectivity.nanmean())


class _BlockSums:
    """The sums of one block that :func:`analyze` keeps between batches."""

    def __init__(self, block: str) -> None:
        self.block = block
        self.distances: list[Tensor] = []
        self.dead: list[Tensor] = []
        self.saturated: list[Tensor] = []
        self.means: list[Tensor] = []
        self.selectivity = ClassSelectivity()

    def add(self, x_bnc: Tensor) -> None:
        if not x_bnc.isfinite().all():
            raise InputError(f"the features of block {self.block} are not finite: NaN or infinite")
        for image_1nc in x_bnc.split(1):  # float64 of one image at a time
            x_1nc = to_float64(image_1nc)
            dead, saturated = dead_and_saturated(x_1nc)
            self.distances.append(cosine_distance(x_1nc).cpu())
            self.dead.append(to_float64(dead).mean(-1).cpu())
            self.saturated.append(to_float64(saturated).mean(-1).cpu())
            self.means.append(x_1nc.mean(1).float().cpu())

    def result(self, depth: float, labelled: bool) -> BlockFeatures:
        distances, means = torch.cat(self.distances), torch.cat(self.means)
        if without := int(distances.isnan().sum()):
            logger.warning(
                "block %s: %d of %d images have no cosine distance, as every channel is 0",
                self.block,
                without,
                len(distances),
            )
        return BlockFeatures(
            self.block,
            depth,
            means.shape[1],
            float(distances.nanmean()),
            float(torch.cat(self.dead).mean()),
            float(torch.cat(self.saturated).mean()),
            effective_rank(means),
            self.selectivity.index().cpu() if labelled else None,
        )


@torch.no_grad()
def analyze(
    model: nn.Module, batches: Iterable[tuple[Tensor, list[int] | None]], tap: Tap = DEFAULT_TAP
) -> list[BlockFeatures]:
    """Measure every block of a model on images.

    Memory beside one pass of the model: one float32 per image and channel of the tap, for the
    effective rank (1,000 images of Atto: 31 MB, of Huge: 794 MB), and one image's features of one
    block in float64.

    Args:
        model: see :func:`fcmae.features.taps.tap_points`; its mode (training or evaluation)
            is restored afterwards.
        batches: images as the model takes them, on its device, and their classes in ascending
            order, or None.
        tap: where features are read.

    Raises:
        InputError: for features that are not finite, a tap that the model lacks, no images, or
            one class alone.
    """
    points, outputs = tap_points(model, tap), tap_points(model, "block")
    blocks = [_BlockSums(point.block) for point in points]
    labels: list[int] | None = None
    images = 0

    def receive_output(number: int, x_bnc: Tensor) -> None:
        if labels is not None:
            blocks[number].selectivity.update(x_bnc, labels)

    was_training = model.training
    model.eval()
    with tapped(points, lambda n, x: blocks[n].add(x)), tapped(outputs, receive_output):
        for batch, classes in batches:
            labels = classes
            run_features(model, batch)
            images += len(batch)
    model.train(was_training)
    if not images:
        raise InputError("there are no images to analyse")
    last = max(1, len(blocks) - 1)
    return [b.result(number / last, labels is not None) for number, b in enumerate(blocks)]
