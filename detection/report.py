"""The report of one detection run, or the comparison of several: an HTML page and a Markdown file.

It reads files only (``detection.reporting.run``) and knows no engine. Whatever a run did not record
is shown as "not recorded".
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from backbones.whole_files import write_files
from detection.evaluate import coco_metrics
from detection.evaluation.diagnosis import diagnose
from detection.reporting.diagnosis import TASKS, confusion_blocks, error_blocks, score_blocks
from detection.reporting.facts import (
    data_mismatch,
    duration,
    encoder_sentence,
    facts_table,
    started,
)
from detection.reporting.predictions import prediction_blocks
from detection.reporting.run import EvaluatedRun, Run, read_runs
from detection.reporting.test_sets import test_set_blocks
from detection.reporting.training import curve_blocks, pretraining_blocks, pretraining_folder
from reporting.blocks import (
    NOT_RECORDED,
    Block,
    Cards,
    Cell,
    Gallery,
    Number,
    Page,
    Paragraph,
    Pictures,
    RunName,
    Section,
    Table,
    Term,
)
from reporting.html import render_html
from reporting.markdown import markdown_files
from reporting.run_files import config_differences

logger = logging.getLogger(__name__)

METRICS = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small, under 32² pixels",
    "APm": "medium",
    "APl": "large, over 96² pixels",
    "AR1": "recall, 1 detection per class and image",
    "AR10": "recall, 10 detections",
    "AR100": "recall, 100 detections",
    "ARs": "recall, small",
    "ARm": "recall, medium",
    "ARl": "recall, large",
}


def write_report(
    runs: Sequence[Path | EvaluatedRun],
    output: Path,
    names: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    pretraining: Path | None = None,
    reconstructions: Sequence[Path] | None = None,
    test_set: tuple[Path, Path] | None = None,
) -> None:
    """Write ``output`` (HTML, one file) and the same as Markdown beside it (``.md``).

    Args:
        runs: output folders, with what was read of them already; with several, differences are to
            the first.
        output: the HTML file; its folder is made where it is missing.
        names: what to call the runs; default: their folders' names.
        notes: paragraphs under the headline, such as what the comparison does not show.
        pretraining: the folder of the pretraining whose encoder the runs used; default: the folder
            of the encoder's file, if that is a pretraining's.
        reconstructions: pictures of its progress; default: its first and last panel.
        test_set: annotations and image folder of runs that do not record theirs, such as those of
            detectron2's own trainers; metrics that are not there are computed.

    Raises:
        InputError: for a folder that holds no run, names that do not fit the runs, an output that
            is no ``.html`` file, or a picture that cannot be read.
    """
    output = Path(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{output}: the report's name must end in .html")
    read = {run.folder: run.evaluation for run in runs if isinstance(run, EvaluatedRun)}
    folders = [run.folder if isinstance(run, EvaluatedRun) else Path(run) for run in runs]
    found = read_runs(folders, names)
    found = [replace(run, evaluation=read.get(run.folder)) for run in found]
    found = [_completed(run, test_set) for run in found]
    if pretraining is None:
        pretraining = pretraining_folder(found)
    page = _page(found, notes, pretraining_blocks(pretraining, reconstructions), output)
    files = {output: render_html(page), **markdown_files(page, output.with_suffix(".md"))}
    files |= _full_pictures(page, output.parent)
    pictures = output.with_name(f"{output.stem}_files")
    earlier = {p for kind in ("[0-9][0-9][0-9].*", "full-[0-9]*.jpg") for p in pictures.glob(kind)}
    write_files(files)
    for path in earlier - files.keys():
        path.unlink()
    logger.info("report written: %s and %s", output, output.with_suffix(".md").name)


def _completed(run: Run, test_set: tuple[Path, Path] | None) -> Run:
    """The run with the metrics and the diagnosis that the tool which wrote its files did not."""
    if test_set and not run.fact("datasets", "test", "annotations"):
        annotations, images = map(str, test_set)
        test = {"name": annotations, "annotations": annotations, "image_root": images}
        run = replace(run, facts=run.facts | {"datasets": {"test": test}})
    annotations = run.fact("datasets", "test", "annotations")
    if run.results is None or not annotations:
        return run
    try:
        metrics = run.metrics or (coco_metrics(annotations, run.results) if test_set else {})
        diagnosis = run.diagnosis or diagnose(annotations, run.results)
    except (OSError, ValueError) as error:
        return replace(run, problems=[*run.problems, f"no diagnosis of the errors: {error}"])
    return replace(run, metrics=metrics, diagnosis=diagnosis)


def _full_pictures(page: Page, folder: Path) -> dict[Path, bytes]:
    """The pictures that a click opens, by their files."""
    return {
        folder / picture.full[0]: picture.full[1]
        for section in page.sections
        for block in section.blocks
        for member in (block.members if isinstance(block, Gallery) else [block])
        for picture in (member.pictures if isinstance(member, Pictures) else ())
        if picture.full
    }


def _page(
    runs: Sequence[Run], notes: Sequence[str], pretraining: Sequence[Block], output: Path
) -> Page:
    named = list(zip(_run_names(runs), runs, strict=True))
    typical, gallery = prediction_blocks(named, f"{output.stem}_files")
    headline = [*_headline_blocks(runs, notes), *test_set_blocks(named), *typical]
    sections = [
        Section("headline", "Result", headline),
        Section("metrics", "All COCO metrics", _metrics_blocks(runs)),
        Section("classes", "Classes", _class_blocks(runs)),
        Section("errors", "What the errors are", error_blocks(named)),
        Section("scores", "Scores and thresholds", score_blocks(named)),
        Section("confusion", "Confusion of classes", confusion_blocks(named)),
        Section("curves", "Training curves", curve_blocks(named)),
    ]
    if pretraining:
        sections.append(Section("pretraining", "Pretraining", pretraining))
    sections.append(Section("predictions", "Best and worst images", gallery))
    if len(runs) > 1:
        sections.append(Section("differences", "What differs", _difference_blocks(runs)))
    sections.append(Section("facts", "How it was made", _fact_blocks(runs)))
    names = [run.name for run in runs]
    if len(runs) == 1:
        return Page(f"Detection run: {names[0]}", _subtitle(runs[0]), sections)
    return Page(f"{names[0]} compared with {', '.join(names[1:])}", _subtitle(runs[0]), sections)


def _subtitle(run: Run) -> str:
    parts = [run.fact("engine"), run.fact("datasets", "test", "name"), started(run)]
    return (
        " · ".join(str(part) for part in parts if part != NOT_RECORDED and part)
        or "engine and data not recorded"
    )


def _run_names(runs: Sequence[Run]) -> list[RunName]:
    return [RunName(index, run.name) for index, run in enumerate(runs)]


def _measured(run: Run, task: str, name: str, bar: bool = False) -> Cell:
    """A metric's cell; a task that was not evaluated is told from one without ground truth."""
    if not isinstance(run.metrics.get(task), dict) or name not in run.metrics[task]:
        return NOT_RECORDED
    value = run.metric(task, name)
    return Number(value, bar=value / 100 if bar and value is not None else None)


def _difference(run: Run, baseline: Run, task: str) -> Cell:
    value, reference = run.metric(task, "AP"), baseline.metric(task, "AP")
    if value is None or reference is None:
        return NOT_RECORDED
    return Number(value - reference, signed=True)


def _headline_blocks(runs: Sequence[Run], notes: Sequence[str]) -> list[Block]:
    blocks: list[Block] = [_headline_cards(runs[0]) if len(runs) == 1 else _headline_table(runs)]
    if len(runs) > 1:
        if problem := data_mismatch(runs):
            blocks.append(Paragraph(problem, "warning"))
        else:
            blocks.append(
                Paragraph(
                    "Each line is a single run: how far repeated runs with other seeds would "
                    "scatter is not in this table.",
                    "small",
                )
            )
    else:
        blocks.append(Paragraph(f"Encoder: {encoder_sentence(runs[0])}.", "small"))
    if len(runs) > 1 and not all(run.fact("datasets", "test", "name") for run in runs):
        same = "Whether all runs were tested on the same data"
        blocks.append(Paragraph(f"{same}: {NOT_RECORDED}.", "warning"))
    blocks += [*_limit_blocks(runs), *(Paragraph(note, "note") for note in notes)]
    for run in runs:
        blocks += [Paragraph(f"{run.name}: {problem}", "warning") for problem in run.problems]
    return blocks


def _headline_cards(run: Run) -> Cards:
    cards: list[tuple[str, Cell, str]] = []
    for task, title in TASKS.items():
        cards.append((f"{title} AP", _measured(run, task, "AP"), METRICS["AP"]))
        cards.append((f"{title} AP50", _measured(run, task, "AP50"), METRICS["AP50"]))
    cards.append(("Training time", duration(run.fact("train_seconds")), "without evaluation"))
    return Cards(cards)


def _headline_table(runs: Sequence[Run]) -> Table:
    comparable = data_mismatch(runs) is None
    rows: list[list[Cell]] = []
    for name, run in zip(_run_names(runs), runs, strict=True):
        row: list[Cell] = [name]
        for task in TASKS:
            row.append(_measured(run, task, "AP", bar=True))
            if run is runs[0]:
                row.append("baseline")
            else:
                row.append(_difference(run, runs[0], task) if comparable else "not comparable")
        rows.append([*row, duration(run.fact("train_seconds"))])
    columns = ["Run", "AP", "Δ AP", "AP", "Δ AP", "training time"]
    groups: list[tuple[Cell, int]] = [("", 1), ("Box", 2), ("Mask", 2), ("", 1)]
    caption = (
        f"AP in percent; Δ AP is the difference to the first run, {runs[0].name}, in AP points"
    )
    return Table(columns, rows, caption, groups)


def _metrics_blocks(runs: Sequence[Run]) -> list[Block]:
    rows: list[list[Cell]] = []
    for metric, meaning in METRICS.items():
        cells = [_measured(run, task, metric) for run in runs for task in TASKS]
        rows.append([Term(metric, meaning), *cells])
    columns: list[Cell] = ["Metric", *[title for _ in runs for title in TASKS.values()]]
    groups: list[tuple[Cell, int]] = []
    if len(runs) > 1:
        groups = [("", 1), *[(name, len(TASKS)) for name in _run_names(runs)]]
    caption = "In percent; – where there is no ground truth of that size"
    blocks: list[Block] = [Table(columns, rows, caption, groups)]
    counts: dict[str, Any] = next(
        (run.metrics["counts"] for run in runs if run.metrics.get("counts")), {}
    )
    if over := counts.get("images_over_limit"):
        blocks.append(
            Paragraph(
                f"{over} of {counts['images']} images hold more than 100 objects of one class, "
                "COCO's limit of detections: their recall cannot reach 100.",
                "warning",
            )
        )
    return blocks + _limit_blocks(runs)


def _limit_blocks(runs: Sequence[Run]) -> list[Block]:
    """AP at another limit of detections than COCO's, a sentence a run."""
    blocks: list[Block] = []
    for run in runs:
        if limit := run.metrics.get("at_limit"):
            found = [
                f"{title} AP {limit[task]['AP']:.1f}"
                for task, title in TASKS.items()
                if isinstance(limit.get(task), dict) and limit[task].get("AP") is not None
            ]
            blocks.append(
                Paragraph(
                    f"{run.name} with {limit['max_detections']} detections of a class and image "
                    f"(TEST.DETECTIONS_PER_IMAGE) in place of COCO's 100: {', '.join(found)}.",
                    "small",
                )
            )
    return blocks


def _class_blocks(runs: Sequence[Run]) -> list[Block]:
    classes: dict[str, dict[str, Any]] = {}
    for run in reversed(runs):  # the first run's counts win
        classes = run.metrics.get("per_class", {}) | classes
        classes |= run.metrics.get("per_class", {})
    if not classes:
        return [Paragraph(f"Metrics by class: {NOT_RECORDED}.")]
    rows: list[list[Cell]] = []
    for name, counted in sorted(classes.items(), key=lambda item: -item[1].get("instances", 0)):
        row: list[Cell] = [name]
        row += [Number(counted.get(key, 0), digits=0) for key in ("instances", "images")]
        for run in runs:
            measured = run.metrics.get("per_class", {}).get(name, {})
            for task in TASKS:
                value = measured.get(task, {}).get("AP")
                bar = None if value is None else value / 100
                row.append(Number(value, bar=bar) if task in measured else NOT_RECORDED)
        rows.append(row)
    columns: list[Cell] = ["Class", "objects", "images"]
    columns += [f"{title} AP" for _ in runs for title in TASKS.values()]
    groups: list[tuple[Cell, int]] = []
    if len(runs) > 1:
        groups = [("", 3), *[(name, len(TASKS)) for name in _run_names(runs)]]
    caption = (
        "AP of each class, the most frequent first, with the ground truth's number of objects "
        "(without crowds) and of images"
    )
    return [Table(columns, rows, caption, groups, long=len(rows) > 20)]


def _difference_blocks(runs: Sequence[Run]) -> list[Block]:
    if missing := [run.name for run in runs if not run.config]:
        return [Paragraph(f"The settings of {', '.join(missing)}: {NOT_RECORDED}.")]
    rows = config_differences([run.config for run in runs])
    if not rows:
        return [Paragraph("The runs' settings are the same, the output folder apart.")]
    caption = "Settings that are not the same in all runs, the output folder apart"
    columns: list[Cell] = ["Setting", *_run_names(runs)]
    return [Table(columns, [[key, *values] for key, values in rows], caption, prose=True)]


def _fact_blocks(runs: Sequence[Run]) -> list[Block]:
    blocks: list[Block] = [facts_table(runs, _run_names(runs))]
    for run in runs:
        of_run = f" of {run.name}" if len(runs) > 1 else ""
        blocks += run.details(of_run)
    return blocks
