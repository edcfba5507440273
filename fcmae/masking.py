"""Random patch masks of FCMAE (paper, section 3.1) and the layouts that follow from them.

One polarity everywhere: ``mask`` is bool ``[B, H/32, W/32]``, True = removed.

A site of the encoder's last stage covers 32x32 pixels and is either visible or removed. So patches
are multiples of 32 pixels: with smaller ones, a site could be partly visible. Patches of 64 or 96
pixels remove several sites together; prediction and normalisation still work on cells of 32x32
pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backbones.errors import InputError

PATCH = 32


def grid_size(height: int, width: int, patch: int = PATCH) -> tuple[int, int]:
    """Rows and columns of patches in an image of this size (pixels).

    Raises:
        InputError: if either is not a positive multiple of ``patch``, or ``patch`` not one of 32.
    """
    if patch < PATCH or patch % PATCH:
        raise InputError(
            f"patch size is {patch} pixels; the encoder's last stage sees {PATCH}x{PATCH} pixels "
            f"as one site, so it must be a multiple of {PATCH}"
        )
    for name, value in (("height", height), ("width", width)):
        if value < patch or value % patch:
            below = max(patch, value // patch * patch)
            nearest = f"{below}" if value < patch else f"{below} or {below + patch}"
            raise InputError(
                f"image {name} is {value} pixels; FCMAE masks {patch}x{patch} patches, so it must "
                f"be a multiple of {patch}: use {nearest}"
            )
    return height // patch, width // patch


def visible_count(patches: int, mask_ratio: float) -> int:
    """How many of an image's patches stay visible: ``int(L * (1 - ratio))``, at least 1.

    A small constant avoids rounding errors: in floating point, 10 * (1 - 0.9) is 0.9999999.

    Raises:
        InputError: if the ratio is not in [0, 1).
    """
    if not 0 <= mask_ratio < 1:
        raise InputError(f"mask ratio is {mask_ratio}; it must be in [0, 1)")
    return max(1, int(patches * (1 - mask_ratio) + 1e-6))


def random_mask(
    batch: int,
    grid: tuple[int, int],
    mask_ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """A random mask, each image with the same number of visible patches.

    Args:
        grid: rows and columns of patches, see :func:`grid_size`.
        mask_ratio: fraction of patches to remove, in [0, 1).
        generator: source of randomness (on ``device``); torch's global one by default.

    Returns:
        bool ``[B, rows, columns]``, True = removed.
    """
    rows, columns = grid
    noise = torch.rand(batch, rows * columns, generator=generator, device=device)
    visible = noise.argsort(dim=1)[:, : visible_count(rows * columns, mask_ratio)]
    mask = torch.ones(batch, rows * columns, dtype=torch.bool, device=device)
    return mask.scatter_(1, visible, False).view(batch, rows, columns)


def draw_mask(
    batch: int,
    image_size: tuple[int, int],
    mask_ratio: float,
    patch: int = PATCH,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """A random mask of images, whose patches may be larger than the mask's 32x32 cells.

    Args:
        image_size: height and width in pixels.
        patch: side of the removed patches, in pixels.

    Returns:
        bool ``[B, H/32, W/32]``, True = removed; see :func:`random_mask`.

    Raises:
        InputError: as :func:`grid_size`.
    """
    grid = grid_size(*image_size, patch)
    mask = random_mask(batch, grid, mask_ratio, generator, device)
    return mask if patch == PATCH else upsample_mask(mask, patch // PATCH)


def visible_patches(mask: Tensor) -> Tensor:
    """Indices of the visible patches in the flat batch of patches, ``[B * V]``, ascending.

    Patch ``(b, row, column)`` has index ``(b * rows + row) * columns + column``.

    Raises:
        InputError: if the images differ in their number of visible patches, or have none.
    """
    counts = (~mask).flatten(1).sum(1)
    if mask.shape[0] == 0 or counts.min() != counts.max() or counts[0] == 0:
        raise InputError(
            "every image of a batch needs the same number of visible patches, at least 1; this "
            f"mask has {counts.tolist()}"
        )
    return (~mask).flatten().nonzero().squeeze(1)


def upsample_mask(mask: Tensor, factor: int) -> Tensor:
    """Repeat entries along both axes: ``[B, h, w]`` -> ``[B, h*factor, w*factor]``."""
    return mask.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def check_mask(mask: Tensor, images: Tensor) -> None:
    """Check that a mask fits a batch of images.

    Raises:
        InputError: if the mask is not bool ``[B, H/32, W/32]`` for images ``[B, C, H, W]``.
    """
    expected = (images.shape[0], *grid_size(*images.shape[-2:]))
    if mask.dtype != torch.bool or tuple(mask.shape) != expected:
        raise InputError(
            f"the mask is {mask.dtype} {list(mask.shape)}; for images {list(images.shape)} it must "
            f"be torch.bool {list(expected)}, True = removed"
        )
