"""Grids of channel maps that show dead, saturated and duplicate channels (the paper's Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor, nn

from backbones.errors import InputError, counted
from backbones.whole_files import write_atomically
from fcmae.features.analysis import dead_and_saturated
from fcmae.features.taps import DEFAULT_TAP, Tap, run_features, tap_points, tapped
from training.devices import to_float64

SHOWN_CHANNELS = 64
SHOWN_BLOCKS = 4
ACROSS = 8
DUPLICATE = 0.95  # cosine of two channels' maps
FRAMES = {"dead": "#d55e00", "saturated": "#e69f00", "duplicate": "#56b4e9"}


@dataclass(frozen=True)
class ChannelMaps:
    """Some channels of a block, on one image."""

    block: str  # the block's name
    channels: int  # how many it has
    maps: Tensor  # of those shown, ``[K, H, W]``
    kinds: list[str]  # of those shown: "dead", "saturated", "duplicate" or ""


def kinds_of(x_nc: Tensor, shown: Sequence[int]) -> list[str]:
    """The fault of each channel of ``shown`` in one image's features ``[N, C]``; "" for none.

    A duplicate is neither dead nor saturated, and its cosine with another such channel of the block
    is at least 0.95.
    """
    dead, saturated = (kind[0] for kind in dead_and_saturated(x_nc.unsqueeze(0)))
    alive = ~(dead | saturated)
    x_nc = to_float64(x_nc)
    unit_nc = x_nc / torch.linalg.vector_norm(x_nc, dim=0).clamp(min=1e-300)
    cosine_kc = unit_nc[:, list(shown)].T @ unit_nc
    cosine_kc[:, ~alive] = -1
    kinds = []
    for place, channel in enumerate(shown):
        cosine_kc[place, channel] = -1
        if dead[channel]:
            kinds.append("dead")
        elif saturated[channel]:
            kinds.append("saturated")
        else:
            kinds.append("duplicate" if cosine_kc[place].max() >= DUPLICATE else "")
    return kinds


@torch.no_grad()
def channel_maps(model: nn.Module, image: Tensor, tap: Tap = DEFAULT_TAP) -> list[ChannelMaps]:
    """Up to 64 channels, evenly spread, of up to four blocks, evenly spread.

    Args:
        model: in evaluation mode.
        image: ``[1, C, H, W]``, normalised, on the model's device.

    Raises:
        InputError: if the features of a block are no map of the image's proportions.
    """
    points = tap_points(model, tap)
    places = torch.linspace(0, len(points) - 1, min(SHOWN_BLOCKS, len(points))).round().int()
    points = [points[place] for place in places.tolist()]
    found: list[ChannelMaps] = []

    def receive(number: int, x_1nc: Tensor) -> None:
        sites, channels = x_1nc.shape[1:]
        height = round((sites * image.shape[2] / image.shape[3]) ** 0.5)
        width = sites // max(1, height)
        if height * width != sites:
            raise InputError(f"block {points[number].block}: {sites} sites are no map of the image")
        shown_channels = min(SHOWN_CHANNELS, channels)
        shown = [place * channels // shown_channels for place in range(shown_channels)]
        maps = x_1nc[0, :, shown].T.reshape(len(shown), height, width).float().cpu()
        found.append(
            ChannelMaps(points[number].block, channels, maps, kinds_of(x_1nc[0].cpu(), shown))
        )

    with tapped(points, receive):
        run_features(model, image)
    return found


def draw_channel_maps(blocks: Sequence[ChannelMaps], path: Path, title: str) -> None:
    """Each block's channels as small maps on one scale; the colour of a frame shows the fault."""
    figure = Figure(figsize=(3.6 * len(blocks), 4.7), layout="constrained")
    axes = figure.subplots(1, len(blocks), squeeze=False)[0]
    for axis, block in zip(axes, blocks, strict=True):
        height, width = (side + _gap(side) for side in block.maps.shape[1:])
        rows = -(-len(block.maps) // ACROSS)
        mosaic = torch.full((rows * height, ACROSS * width), float("nan"))
        for place, (pixels, kind) in enumerate(zip(block.maps, block.kinds, strict=True)):
            top, left = place // ACROSS * height, place % ACROSS * width
            mosaic[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
            if kind:
                corner = (left - 0.5, top - 0.5)
                axis.add_patch(
                    Rectangle(corner, *pixels.shape[::-1], fill=False, lw=2, color=FRAMES[kind])
                )
        low, high = torch.quantile(block.maps, torch.tensor([0.01, 0.99])).tolist()
        axis.imshow(mosaic.numpy(), cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        axis.set_axis_off()
        counts = ", ".join(f"{block.kinds.count(k)} {k}" for k in FRAMES if k in block.kinds)
        axis.set_title(
            f"{block.block}: {len(block.maps)} of {counted(block.channels, 'channel')}\n"
            f"{counts or 'none dead, saturated or duplicate'}",
            fontsize=9,
        )
    figure.suptitle(title)
    frames = [Patch(facecolor="none", edgecolor=c, lw=2, label=k) for k, c in FRAMES.items()]
    figure.legend(handles=frames, loc="outside lower center", ncols=len(frames), frameon=False)
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=110))


def _gap(side: int) -> int:
    """The space between two maps, in sites."""
    return max(1, side // 8)
