"""Writes the report of a segmentation run, or a comparison of several, as HTML and Markdown."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backbones.errors import InputError, counted
from backbones.whole_files import write_files
from reporting.blocks import (
    NOT_RECORDED,
    Block,
    Cards,
    Cell,
    Chart,
    Charts,
    Code,
    Details,
    Gallery,
    Number,
    Page,
    Paragraph,
    RunName,
    Section,
    Series,
    Table,
    Term,
)
from reporting.html import render_html
from reporting.markdown import markdown_files
from reporting.run_files import (
    RunFiles,
    config_differences,
    read_object,
    read_run_files,
    read_text,
)
from segmentation.figures import picture_panels

logger = logging.getLogger(__name__)

METRICS = {
    "mIoU": "mean IoU over the classes of the truth (detectron2's convention)",
    "mIoU_mmseg": "a class that is only predicted counts as 0 (mmsegmentation's)",
    "mACC": "mean recall of the classes",
    "pACC": "fraction of the pixels that are right",
    "fwIoU": "IoU weighted by the classes' pixels",
    "boundary_IoU": "IoU of the pixels near edges",
}
CURVES = ("total_loss", "loss_seg", "loss_aux", "lr", "sem_seg/mIoU", "sem_seg/pACC")
CONFUSED = 20  # most classes in the confusion matrix: those with the most pixels


@dataclass(frozen=True)
class Run(RunFiles):
    """The content of a run's folder; ``{}`` or empty for missing files."""

    folder: Path
    metrics: dict[str, Any]
    images: list[dict[str, Any]]


def write_report(runs: Sequence[Path], output: Path, names: Sequence[str] | None = None) -> None:
    """Write ``output`` (HTML, one file) and the same as Markdown beside it (``.md``).

    Args:
        runs: output folders; with several, differences are to the first.
        names: names of the runs; default: their folders' names.

    Raises:
        InputError: for a folder without a segmentation run, or an output that is not ``.html``.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{output}: the report's name must end in .html")
    found = [read_run(Path(run)) for run in runs]
    called = names or [run.folder.resolve().name for run in found]
    named = [
        (RunName(i, name), run) for i, (name, run) in enumerate(zip(called, found, strict=True))
    ]
    page = Page(
        "Semantic segmentation: " + ", ".join(str(name) for name, _ in named),
        "; ".join(filter(None, (_set_sentence(run) for _, run in named[:1]))),
        [
            Section("headline", "Result", _headline(named)),
            Section("pictures", "Worst and best images", _pictures(named)),
            Section("classes", "Classes", _classes(named)),
            Section("confusion", "Confusion of classes", _confusion(named)),
            Section("curves", "Training", _curves(named)),
            Section("facts", "How it was made", _facts(named)),
        ],
    )
    write_files({output: render_html(page), **markdown_files(page, output.with_suffix(".md"))})
    logger.info("report written: %s", output)


def read_run(folder: Path) -> Run:
    """Read a run's files.

    Raises:
        InputError: if it holds no segmentation run, or its images' rows are not JSON.
    """
    files = read_run_files(folder)
    metrics = read_object(folder / "inference/metrics_summary.json", files.problems)
    if not files.facts and "sem_seg" not in metrics:
        raise InputError(
            "\n  ".join([f"{folder} holds no segmentation run: no run.json, no metrics",
                         *files.problems])
        )  # fmt: skip
    per_image = folder / "inference/per_image.json"
    try:
        images = json.loads(read_text(per_image) or "[]")
    except ValueError as error:
        raise InputError(f"{per_image} is not JSON: {error}") from error
    return Run(folder, metrics, images, **vars(files))


Named = Sequence[tuple[RunName, Run]]


def _set_sentence(run: Run) -> str:
    test = run.facts.get("datasets", {}).get("test")
    return f"{counted(test['images'], 'image')} of {test['name']}" if test else ""


def _headline(named: Named) -> list[Block]:
    blocks: list[Block] = []
    measured = [(name, run) for name, run in named if run.metrics]
    if not measured:
        return [Paragraph(f"Metrics: {NOT_RECORDED}.")]
    if len(named) == 1:
        summary = measured[0][1].metrics["sem_seg"]
        blocks.append(
            Cards([(k, Number(summary[k]), METRICS[k]) for k in ("mIoU", "pACC", "boundary_IoU")])
        )
    first = measured[0][1].metrics["sem_seg"]
    rows: list[list[Cell]] = []
    for key, meaning in METRICS.items():
        row: list[Cell] = [Term(key, meaning)]
        for index, (_, run) in enumerate(measured):
            value = run.metrics["sem_seg"].get(key)
            row.append(Number(value, 2))
            if index:
                both = value is not None and first.get(key) is not None
                row.append(Number(value - first[key] if both else None, 2, signed=True))
        rows.append(row)
    columns: list[Cell] = ["percent"]
    for index, (name, _) in enumerate(measured):
        columns += [name] + (["difference"] if index else [])
    blocks.append(Table(columns, rows, "Metrics of the whole test set"))
    if len(measured) > 1:
        text = "Differences are to the first run. One pair of runs proves nothing about a method."
        blocks.append(Paragraph(text, "small"))
    return blocks


def _classes(named: Named) -> list[Block]:
    measured = [(name, run) for name, run in named if run.metrics]
    if not measured:
        return [Paragraph(f"Classes: {NOT_RECORDED}.")]
    shares = named[0][1].facts.get("datasets", {}).get("train", {}).get("class_shares", {})
    columns: list[Cell] = ["class", "test pixels", "% of training"]
    for name, _ in measured:
        columns += [name, "recall", "boundary IoU"]
    rows: list[list[Cell]] = []
    for class_name, row in measured[0][1].metrics["per_class"].items():
        share = shares.get(class_name)
        cells: list[Cell] = [
            class_name,
            Number(row["pixels"], 0),
            Number(100 * share if share is not None else None, 2),
        ]
        for _, run in measured:
            found = run.metrics["per_class"].get(class_name, {})
            iou = found.get("IoU")
            cells.append(Number(iou, bar=iou / 100 if iou is not None else None))
            cells += [Number(found.get("ACC")), Number(found.get("boundary_IoU"))]
        rows.append(cells)
    groups: list[tuple[Cell, int]] = [("", 3), *((name, 3) for name, _ in measured)]
    titles: list[Cell] = [*columns[:3], *(["IoU", "recall", "boundary IoU"] * len(measured))]
    return [Table(titles, rows, "IoU of each class", groups=groups, long=len(rows) > 25)]


def _confusion(named: Named) -> list[Block]:
    blocks: list[Block] = []
    for name, run in named:
        counts = np.array(run.metrics.get("confusion", []))
        if not counts.size:
            continue
        classes = list(run.metrics["per_class"])
        order = np.argsort(-counts.sum(1), kind="stable")[:CONFUSED]
        shown = [k for k in order if counts[k].sum()]
        rows: list[list[Cell]] = []
        for k in shown:
            share = counts[k] / counts[k].sum()
            cells: list[Cell] = [classes[k]]
            cells += [Number(100 * share[j], 0, shade=float(share[j])) for j in shown]
            rows.append(cells)
        caption = "For each class (row), the percentage of its pixels predicted as each class"
        titles: list[Cell] = ["", *(classes[k] for k in shown)]
        if len(named) > 1:
            blocks.append(Paragraph(str(name)))
        blocks.append(Table(titles, rows, caption, long=len(rows) > 12))
        if len(classes) > len(shown):
            text = f"The {len(shown)} classes with the most pixels of {len(classes)}."
            blocks.append(Paragraph(text, "small"))
    return blocks or [Paragraph(f"Confusion: {NOT_RECORDED}.")]


def _pictures(named: Named) -> list[Block]:
    try:
        panels, omitted = picture_panels([(n, r.folder, r.images, r.facts) for n, r in named])
    except (OSError, ValueError) as error:
        return [Paragraph(f"The predictions cannot be shown: {error}", "warning")]
    if not panels:
        return [Paragraph(f"Images with predictions: {NOT_RECORDED}.")]
    text = (
        "Image, truth, prediction, and where they differ (red; grey is right, black has no class). "
        "Sorted by each image's own mean IoU over the classes of its truth."
    )
    blocks: list[Block] = [Paragraph(text, "small")]
    return [*blocks, *(Paragraph(line, "small") for line in omitted), Gallery(panels)]


def _curves(named: Named) -> list[Block]:
    charts = []
    for key in CURVES:
        series = [Series(name, run.history[key]) for name, run in named if run.history.get(key)]
        if series:
            charts.append(Chart(key, series))
    return [Charts(charts)] if charts else [Paragraph(f"Curves: {NOT_RECORDED}.")]


FACTS = {
    "encoder": "weights that it started from",
    "statistics": "mean and deviation of the images",
    "engine": "engine",
    "device": "device",
    "seed": "seed",
    "started": "started",
    "train_seconds": "training, seconds",
    "predict_seconds": "prediction, seconds",
    "peak_memory_mb": "peak memory, MB",
    "git_commit": "this project's commit",
}


def _facts(named: Named) -> list[Block]:
    rows: list[list[Cell]] = []
    for key, title in FACTS.items():
        row: list[Cell] = [title]
        for _, run in named:
            value = run.facts.get(key)
            if key == "encoder" and run.facts:
                value = value or "random"
            if isinstance(value, float):
                row.append(Number(value, 0))
            else:
                row.append(NOT_RECORDED if value is None else Code(str(value)))
        rows.append(row)
    for role in ("train", "test"):
        sets = [run.facts.get("datasets", {}).get(role) for _, run in named]
        rows.append(
            [
                f"{role} set",
                *(
                    f"{counted(s['images'], 'image')}, {s['name']}" if s else NOT_RECORDED
                    for s in sets
                ),
            ]
        )
        rows.append([f"its values ({role})", *((s and s["values"]) or NOT_RECORDED for s in sets)])
    names: list[Cell] = ["", *(name for name, _ in named)]
    blocks: list[Block] = [Table(names, rows, "What made the runs", prose=True)]
    if different := config_differences([run.config for _, run in named]):
        lines: list[list[Cell]] = [[Code(key), *map(Code, values)] for key, values in different]
        blocks.append(Table(names, lines, "Settings that differ", prose=True))
    for name, run in named:
        blocks += [Paragraph(f"{name}: {problem}", "warning") for problem in run.problems]
        if run.facts.get("command"):
            blocks.append(Details(f"{name}: command", run.facts["command"]))
        blocks += run.details(f" of {name}")
    return blocks
