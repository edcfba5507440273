"""Reconstruction panels: image | masked | reconstruction, two such triples in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fcmae.masking import PATCH, upsample_mask
from fcmae.model import FCMAE
from images.display import PERCENTILES
from images.statistics import Statistics

GAP, HEADER, REMOVED_GREY = 6, 22, 0.5
IN_A_ROW = 2
TITLES = ("image", "masked", "reconstruction")


def to_pixels(
    images: Tensor, mean: Sequence[float], std: Sequence[float], bands: Sequence[int] = ()
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


class Panel(NamedTuple):
    """An RGB picture of reconstructions, and the loss of its images."""

    picture: Image.Image
    loss: float


@torch.no_grad()
def reconstruction_panel(
    model: FCMAE, images: Tensor, mask: Tensor, statistics: Statistics, bands: Sequence[int] = ()
) -> Panel:
    """Draw rows of image | masked | reconstruction, two images in a row.

    Deep images are shown from each band's 1st to its 99th percentile over the images.

    Args:
        model: in any mode; it is put into evaluation mode and back.
        images: uint8, or of deep images float32 in 0..1, ``[B, C, H, W]``.
        mask: bool ``[B, H/32, W/32]``, True = removed.
        bands: see :func:`to_pixels`.
    """
    device = model.pred.weight.device
    is_deep, mask = images.is_floating_point(), mask.to(device)
    seen = (statistics.mean, statistics.std) if is_deep else statistics.shown()
    images = statistics.normalise(images.to(device))
    was_training = model.training
    model.eval()
    output = model(images, mask)
    model.train(was_training)
    pixels = to_pixels(images, *seen, bands)
    made = to_pixels(model.reconstruct(images, mask, output.prediction), *seen, bands)
    if is_deep:
        of_bands = pixels.transpose(0, 1).flatten(1).cpu().numpy()
        ends = np.percentile(of_bands, PERCENTILES, axis=1).reshape(2, 1, 3, 1, 1)
        low, high = (pixels.new_tensor(end) for end in ends)
        pixels, made = ((p - low) / (high - low).clamp(min=1e-12) for p in (pixels, made))
    pixels, made = pixels.clamp(0, 1), made.clamp(0, 1)
    removed = upsample_mask(mask, PATCH).unsqueeze(1)
    columns = (pixels, torch.where(removed, torch.full_like(pixels, REMOVED_GREY), pixels), made)
    picture = _grid([(c * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy() for c in columns])
    return Panel(picture, float(output.loss))


def _grid(columns: list[np.ndarray]) -> Image.Image:
    """Columns of pictures ``[B, H, W, 3]`` -> one picture, ``IN_A_ROW`` of the B in a row.

    Small pictures are enlarged by a whole number, so that the titles fit above them.
    """
    font = ImageFont.load_default(size=13)
    widest = max(font.getlength(title) for title in TITLES) + 2
    times = -(-int(widest) // columns[0].shape[2])
    columns = [c.repeat(times, axis=1).repeat(times, axis=2) for c in columns]
    images, height, width, _ = columns[0].shape
    across = min(IN_A_ROW, images)
    triple = len(columns) * (width + GAP) + GAP
    rows = -(-images // across)
    size = (across * triple - 2 * GAP, HEADER + rows * (height + GAP) - GAP)
    panel = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(panel)
    for column, (title, pictures) in enumerate(zip(TITLES, columns, strict=True)):
        for number, picture in enumerate(pictures):
            left = number % across * triple + column * (width + GAP)
            if number < across:
                draw.text((left + 2, 3), title, fill="black", font=font)
            place = (left, HEADER + number // across * (height + GAP))
            panel.paste(Image.fromarray(picture), place)
    return panel
