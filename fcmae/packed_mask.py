"""Index tables that say where the sites of visible patches belong, made once per batch.

The data loader's workers make them together with the masks (:func:`fcmae.data.collate`). So
training steps need not, and on a GPU they need not wait for the number of visible patches. The
tables are one tensor, because receiving a second tensor from a worker would take as long as making
the tables.

Shape suffixes as in :mod:`fcmae.packed`: b image, v visible patch of an image, p side of a patch in
sites, c channels, n = b*v.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from backbones.convnext import STRIDES
from backbones.normalization import convolve_map
from fcmae.masking import PATCH, visible_patches

SIDES = tuple(PATCH // stride for stride in STRIDES.values())  # 8, 4, 2 and 1 sites


class Places(NamedTuple):
    """Where packed sites belong in the map of a stage.

    Attributes:
        shape: images, rows and columns of patches.
        patches: flat indices of the visible patches, ``[n]``.
        rows: ``[n * p]``: for each of the p rows of each patch, its index in the map viewed as
            ``[B*H*columns, p*C]``. Row r of patch (b, i, j) has the index
            ``((b*rows + i)*p + r)*columns + j``.
    """

    shape: tuple[int, int, int]
    patches: Tensor
    rows: Tensor

    @classmethod
    def of_stage(cls, mask: Tensor, patches_n: Tensor, p: int) -> Places:
        columns = mask.shape[2]
        above, j = patches_n // columns, patches_n % columns
        r = torch.arange(p, device=patches_n.device)
        rows = ((above.unsqueeze(1) * p + r) * columns + j.unsqueeze(1)).flatten()
        return cls((mask.shape[0], mask.shape[1], columns), patches_n, rows)

    def scatter(self, x_nppc: Tensor) -> Tensor:
        """Packed sites -> map ``[B, H, W, C]``, 0 where nothing is visible."""
        (b, h, w), (n, p, _, c) = self.shape, x_nppc.shape
        dense = x_nppc.new_zeros(b * h * p * w, p * c)
        dense.index_copy_(0, self.rows, x_nppc.reshape(n * p, p * c))
        return dense.view(b, h * p, w * p, c)

    def gather(self, x_bhwc: Tensor) -> Tensor:
        """Map ``[B, H, W, C]`` -> its visible sites, packed."""
        n, c = len(self.patches), x_bhwc.shape[-1]
        p = len(self.rows) // n
        return x_bhwc.reshape(-1, p * c).index_select(0, self.rows).view(n, p, p, c)

    def convolve(self, conv: nn.Conv2d, x_bvppc: Tensor) -> Tensor:
        """Submanifold convolution of packed sites, for few channels."""
        x_bhwc = self.scatter(x_bvppc.flatten(0, 1))
        return self.gather(convolve_map(conv, x_bhwc)).view(*x_bvppc.shape[:-1], -1)


class PackedMask(NamedTuple):
    """A mask with the index tables for the packed encoder."""

    mask: Tensor  # bool ``[B, H/32, W/32]``, True = removed
    rows: Tensor  # :attr:`Places.rows` of the four stages, one after the other, ``[15 * n]``

    @classmethod
    def of(cls, mask: Tensor) -> PackedMask:
        """The tables of a mask.

        Raises:
            ValueError: if images differ in their number of visible patches, or have none.
        """
        patches_n = visible_patches(mask)
        return cls(mask, torch.cat([Places.of_stage(mask, patches_n, p).rows for p in SIDES]))

    def places(self) -> list[Places]:
        """The places of the four stages; they are views, nothing is computed."""
        b, h, w = self.mask.shape
        n = len(self.rows) // sum(SIDES)
        rows = self.rows.split([n * p for p in SIDES])
        # for a patch of one site, the row's index is the patch's
        return [Places((b, h, w), rows[-1], of_stage) for of_stage in rows]


def plain_mask(mask: Tensor | PackedMask) -> Tensor:
    """The mask alone."""
    return mask.mask if isinstance(mask, PackedMask) else mask
