"""Reconstruction panels: image | masked | reconstruction, two such triples in a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from backbones.whole_files import write_atomically
from fcmae.masking import PATCH, upsample_mask
from fcmae.model import FCMAE
from images.display import PERCENTILES

GAP, HEADER, REMOVED_GREY = 6, 22, 0.5
IN_A_ROW = 2
TITLES = ("image", "masked", "reconstruction")


def to_pixels(
    images: Tensor,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    bands: Sequence[int] = (),
) -> Tensor:
    """Undo the normalisation: ``[B, C, H, W]`` -> ``[B, 3, H, W]``, float.

    Args:
        bands: numbers of one or three channels, from 1; by default the first three, or the first as
            grey where there are fewer.
    """
    shape = (1, -1, 1, 1)
    mean_t, std_t = images.new_tensor(mean).view(shape), images.new_tensor(std).view(shape)
    pixels = images * std_t + mean_t
    chosen = [band - 1 for band in bands] or list(range(3 if pixels.shape[1] >= 3 else 1))
    return pixels[:, chosen].expand(-1, 3, -1, -1)


@torch.no_grad()
def reconstruction_panel(
    model: FCMAE,
    images: Tensor,
    mask: Tensor,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    bands: Sequence[int] = (),
    stretch: bool = False,
) -> Image.Image:
    """Draw a panel of the model's reconstructions.

    Args:
        model: in any mode; it is put into evaluation mode and back.
        images: normalised ``[B, C, H, W]``, on the model's device.
        mask: bool ``[B, H/32, W/32]``, True = removed.
        mean, std, bands: see :func:`to_pixels`.
        stretch: show each band from its 1st to its 99th percentile over the images, and not from
            0 to 1.

    Returns:
        An RGB picture of rows of image | masked | reconstruction, two images in a row.
    """
    was_training = model.training
    model.eval()
    prediction = model(images, mask).prediction
    model.train(was_training)
    pixels = to_pixels(images.float(), mean, std, bands)
    made = to_pixels(model.reconstruct(images.float(), mask, prediction), mean, std, bands)
    if stretch:
        of_bands = pixels.transpose(0, 1).flatten(1).cpu().numpy()
        ends = np.percentile(of_bands, PERCENTILES, axis=1).reshape(2, 1, 3, 1, 1)
        low, high = (pixels.new_tensor(end) for end in ends)
        pixels, made = ((p - low) / (high - low).clamp(min=1e-12) for p in (pixels, made))
    pixels, made = pixels.clamp(0, 1), made.clamp(0, 1)
    removed = upsample_mask(mask, PATCH).unsqueeze(1)
    columns = (pixels, torch.where(removed, torch.full_like(pixels, REMOVED_GREY), pixels), made)
    return _grid([(c * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy() for c in columns])


def _grid(columns: list[np.ndarray]) -> Image.Image:
    """Columns of pictures ``[B, H, W, 3]`` -> one picture, ``IN_A_ROW`` of the B in a row."""
    images, height, width, _ = columns[0].shape
    across = min(IN_A_ROW, images)
    triple = len(columns) * (width + GAP) + GAP
    rows = -(-images // across)
    size = (across * triple - 2 * GAP, HEADER + rows * (height + GAP) - GAP)
    panel = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(size=13)
    for column, (title, pictures) in enumerate(zip(TITLES, columns, strict=True)):
        for number, picture in enumerate(pictures):
            left = number % across * triple + column * (width + GAP)
            if number < across:
                draw.text((left + 2, 3), title, fill="black", font=font)
            place = (left, HEADER + number // across * (height + GAP))
            panel.paste(Image.fromarray(picture), place)
    return panel


def save_panel(panel: Image.Image, path: Path) -> None:
    """Write a panel as PNG, making its folder."""
    write_atomically(path, panel.save)
