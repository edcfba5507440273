"""The figures of a feature analysis, after those of ConvNeXt V2's paper (arXiv 2301.00808)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from backbones.whole_files import write_atomically
from fcmae.features.analysis import BlockFeatures
from fcmae.features.collapse import Measured

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MARKERS = "osD^vP*X"
DEPTH = "normalised layer index"
BINS = 25
SHOWN_BLOCKS = 4  # blocks whose distributions of selectivity are drawn
OTHERS = {
    "effective_rank": "effective rank",
    "dead": "fraction of dead channels",
    "saturated": "fraction of saturated channels",
    "class_selectivity": "mean class selectivity index",
}

Results = Mapping[str, Sequence[BlockFeatures]]


def draw_cosine_distance(results: Results, path: Path, title: str) -> None:
    """Figure 4: the cosine distance of every block by its depth, one line per model."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    _lines(axis, results, "cosine_distance")
    axis.set(xlabel=DEPTH, ylabel="mean pairwise cosine distance", title=title)
    _from_zero(axis)
    axis.legend(frameon=False)
    _save(figure, path)


def draw_other_measures(results: Results, path: Path, title: str) -> None:
    """Effective rank, dead and saturated channels and, of labelled images, selectivity."""
    measures = [m for m in OTHERS if m != "class_selectivity" or _labelled(results)]
    columns = -(-len(measures) // 2)
    figure = Figure(figsize=(5 * columns, 6.6), layout="constrained")
    axes = list(figure.subplots(2, columns, squeeze=False).flat)
    for axis, measure in zip(axes, measures, strict=False):
        _lines(axis, results, measure)
        axis.set(xlabel=DEPTH, ylabel=OTHERS[measure])
        _from_zero(axis)
    for axis in axes[len(measures) :]:
        axis.set_axis_off()
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title)
    _save(figure, path)


def draw_selectivity(results: Results, path: Path, title: str) -> None:
    """Figure 7: the density of the channels' class selectivity in blocks of several depths."""
    figure = Figure(figsize=(3.6 * SHOWN_BLOCKS, 3.4), layout="constrained")
    axes = figure.subplots(1, SHOWN_BLOCKS, sharey=True)
    edges = np.linspace(0, 1, BINS + 1)
    for place, axis in enumerate(axes):
        depth = place / (SHOWN_BLOCKS - 1)
        for (name, blocks), colour in zip(results.items(), _colours(results), strict=True):
            block = min(blocks, key=lambda b: abs(b.depth - depth))
            assert block.selectivity is not None
            known = block.selectivity[~block.selectivity.isnan()].tolist()
            if len(known):
                axis.hist(known, edges, density=True, histtype="step", lw=1.6, color=colour,
                          label=f"{name}: {block.block}")  # fmt: skip
        axis.set(xlabel="class selectivity index", title=f"depth {depth:.2f}", xlim=(0, 1))
        axis.legend(frameon=False, fontsize=8)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("density")
    figure.suptitle(title)
    _save(figure, path)


def draw_history(runs: Mapping[str, Sequence[Measured]], path: Path) -> None:
    """The cosine distance of every block (columns, by depth) after each measure (colours)."""
    figure = Figure(figsize=(5.2 * len(runs) + 1, 4.2), layout="constrained")
    axes = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    longest = max(history[-1].epoch for history in runs.values())
    colours = colormaps["viridis"]
    for axis, (name, history) in zip(axes, runs.items(), strict=True):
        for measured in history:
            y = list(measured.distances.values())
            x = np.linspace(0, 1, len(y))
            axis.plot(x, y, "o-", ms=3, lw=1, color=colours(measured.epoch / longest))
        axis.set(xlabel=DEPTH, title=name)
        axis.grid(alpha=0.25)
    _from_zero(*axes)
    axes[0].set_ylabel("mean pairwise cosine distance")
    scale = figure.colorbar(_epochs(longest), ax=list(axes))
    scale.set_label("epoch")
    _save(figure, path)


def _epochs(longest: float) -> ScalarMappable:
    return ScalarMappable(Normalize(0, longest), "viridis")


def _labelled(results: Results) -> bool:
    return any(block.selectivity is not None for blocks in results.values() for block in blocks)


def _colours(results: Results) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(results))]


def _lines(axis: Axes, results: Results, measure: str) -> None:
    for number, (name, blocks) in enumerate(results.items()):
        axis.plot(
            [block.depth for block in blocks],
            [getattr(block, measure) for block in blocks],
            marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
            ms=4,
            color=COLOURS[number % len(COLOURS)],
            label=name,
        )
    axis.grid(alpha=0.25)


def _from_zero(*axes: Axes) -> None:
    """From 0 to a little above the largest value of these axes, so that no marker is cut."""
    top = max(axis.dataLim.ymax for axis in axes)
    for axis in axes:
        axis.set_ylim(0, 1.05 * top if top > 0 else None)


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=110))
