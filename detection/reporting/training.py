"""How the training went: curves of the runs, and the pretraining before them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backbones.errors import InputError
from detection.reporting.figures import read_image
from detection.reporting.run import NamedRuns, Run, read_run
from reporting.blocks import (
    Block,
    Chart,
    Charts,
    Details,
    Paragraph,
    Picture,
    Pictures,
    RunName,
    Series,
)
from reporting.charts import downsample
from reporting.pictures import encode_jpeg

CHART_TITLES = {
    "total_loss": "Total loss",
    "lr": "Learning rate",
    "bbox/AP": "Box AP in the training",
    "segm/AP": "Mask AP in the training",
    "images_per_second": "Images per second",
    "time": "Seconds per iteration",
    "data_time": "Seconds waiting for data",
    "max_mem": "Peak memory (MB)",
    "feature_distance/mean": "Feature diversity: distance of channels, mean",
    "feature_distance/lowest": "Feature diversity, the lowest block",
    "feature_dead/highest": "Share of dead channels, the highest block",
}
EVALUATIONS = ("bbox/AP", "segm/AP")
COSTS = ("images_per_second", "time", "data_time", "max_mem")
FEATURES = "feature_"  # what pretraining says about the diversity of its features
RECONSTRUCTION_BYTES = 700_000  # of all reconstruction panels together


def curve_blocks(runs: NamedRuns) -> list[Block]:
    """Losses, learning rate, features' diversity, speed and memory: one chart each, all runs."""
    recorded = list(dict.fromkeys(key for _, run in runs for key in run.history))
    losses = [key for key in recorded if "loss" in key and key != "total_loss"]
    charts, largest = [], 1
    features = [key for key in recorded if key.startswith(FEATURES)]
    for key in ["total_loss", *losses, "lr", *EVALUATIONS, *features, *COSTS]:
        lines = []
        for name, run in runs:
            if points := run.history.get(key):
                thinned, group = downsample(points)
                largest = max(largest, group)
                lines.append(Series(name, thinned))
        if lines:
            charts.append(Chart(CHART_TITLES.get(key, key), lines))
    blocks: list[Block] = [Charts(charts)] if charts else []
    if missing := [run.name for _, run in runs if not run.history]:
        blocks.append(Paragraph(f"Losses and learning rate of {', '.join(missing)}: not recorded."))
    if largest > 1:
        sentence = (
            f"Where a history is long, a point is the mean of up to {largest} recorded values."
        )
        blocks.append(Paragraph(sentence, "small"))
    return blocks


def pretraining_folder(runs: Sequence[Run]) -> Path | None:
    """The folder of the first run's encoder file that is a pretraining's, None without one."""
    for run in runs:
        source = run.fact("encoder", "source")
        folder = Path(str(source)).parent if source else None
        if folder and (folder / "metrics.json").is_file() and (folder / "reconstructions").is_dir():
            return folder
    return None


def pretraining_blocks(folder: Path | None, reconstructions: Sequence[Path] | None) -> list[Block]:
    """Loss, reconstructions and configuration of the pretraining; nothing where there was none."""
    blocks: list[Block] = []
    run = read_run(Path(folder), "pretraining") if folder is not None else None
    if run is not None:
        blocks += curve_blocks([(RunName(0, run.name), run)])
        blocks += [Paragraph(problem, "warning") for problem in run.problems]
    if reconstructions is None:
        found = sorted(run.folder.glob("reconstructions/*.png")) if run is not None else []
        reconstructions = [*found[:1], *found[1:][-1:]]
        if run is not None:
            sentence = (
                f"The first and the last of {len(found)} reconstruction panels: image, what the "
                "encoder saw, what the decoder made of it."
            )
            blocks.append(Paragraph(sentence, "small"))
    budget = RECONSTRUCTION_BYTES // max(1, len(reconstructions))
    pictures = []
    for path in map(Path, reconstructions):
        image = read_image(path)
        if image is None:
            raise InputError(f"{path} is not a picture that can be read")
        alternative = f"Pretraining, {path.stem}: image, masked image and reconstruction"
        pictures.append(Picture(encode_jpeg(image, budget), path.stem, alternative))
    if pictures:
        blocks.append(Pictures("Image, masked, reconstruction", pictures))
    if run is not None and (command := run.config.get("derived.command")):
        blocks.append(Paragraph(f"Command of the pretraining: {command}", "small"))
    if run is not None and run.config_text:
        blocks.append(Details("Full configuration of the pretraining", run.config_text))
    return blocks
