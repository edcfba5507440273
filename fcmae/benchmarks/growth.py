"""Measures how cost grows with mask ratio, image size, batch and model: a table and a picture.

Each sweep changes one field of one case; rows are measured as in :mod:`fcmae.benchmarks.steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from backbones.whole_files import write_atomically
from fcmae.benchmarks.steps import EncoderCase
from training.records.measure import Row


@dataclass(frozen=True)
class Sweep:
    """One panel of the picture."""

    field: str  # the field of :class:`EncoderCase` that changes
    values: tuple[Any, ...]  # its values
    label: str  # label of the horizontal axis
    start: tuple[tuple[str, Any], ...] = ()  # fields of the case that differ from the common one

    def cases(self, common: EncoderCase) -> list[EncoderCase]:
        start = replace(common, **dict(self.start))
        return [replace(start, **{self.field: value}) for value in self.values]


COMMON = EncoderCase("convnextv2_atto")
SWEEPS = (
    Sweep("mask_ratio", (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9), "share of patches removed"),
    Sweep("image_size", (128, 192, 224, 320, 416, 512), "image side, pixels", (("batch", 2),)),
    Sweep("batch", (1, 2, 4, 8, 16, 32), "images in the batch"),
    Sweep(
        "size",
        tuple(f"convnextv2_{name}" for name in ("atto", "femto", "pico", "nano", "tiny", "base")),
        "encoder",
    ),
)
COLUMNS = {"mask_ratio": "mask", "image_size": "pixels", "batch": "batch", "size": "encoder"}
LINES = {"dense": "#999999", "masked-dense": "#d55e00", "packed": "#0072b2"}


def measure_growth(
    measure: Callable[[EncoderCase], Row],
    sweeps: Iterable[Sweep] = SWEEPS,
    common: EncoderCase = COMMON,
) -> dict[str, list[Row]]:
    """The rows of every sweep, by the field that it changes."""
    return {sweep.field: [measure(case) for case in sweep.cases(common)] for sweep in sweeps}


def draw_growth(growth: dict[str, list[Row]], path: Path, title: str) -> None:
    """Draw time per image above, ratios below, a column for each sweep; PNG or SVG by suffix."""
    figure = Figure(figsize=(4.2 * len(growth), 6.4), layout="constrained")
    axes = figure.subplots(2, len(growth), squeeze=False)
    labels = {sweep.field: sweep.label for sweep in SWEEPS}
    for (field, rows), (above, below) in zip(growth.items(), axes.T, strict=True):
        x = [row[COLUMNS[field]] for row in rows]
        if field == "size":
            x = [name.removeprefix("convnextv2_") for name in x]
        for name, colour in LINES.items():
            above.plot(
                x,
                [row[f"{name} ms"] / row["batch"] for row in rows],
                "o-",
                color=colour,
                label=name,
            )
        for name, colour, style in (
            ("packed / masked-dense", LINES["packed"], "o-"),
            ("saved packed / masked-dense", "#009e73", "s-"),
            ("bound", "#999999", "--"),
        ):
            below.plot(x, [row[name] for row in rows], style, color=colour, label=name)
        above.set_ylabel("ms per image, forward + backward")
        if field in ("size", "image_size"):
            above.set_yscale("log")
            above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            above.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            above.minorticks_off()
        else:
            above.set_ylim(0, None)
        if field in ("batch", "image_size"):
            for axis in (above, below):
                axis.set_xscale("log", base=2)
                axis.set_xticks(x, [str(value) for value in x])
                axis.minorticks_off()
        below.set(xlabel=labels[field], ylabel="ratio", ylim=(0, 1.05))
        for axis in (above, below):
            axis.grid(alpha=0.25)
    axes[0, 0].legend(frameon=False)
    axes[1, 0].legend(frameon=False)
    figure.suptitle(title)
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=110))
