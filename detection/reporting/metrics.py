"""The report's numbers: the headline, all of COCO's metrics, each class, each test set."""

from __future__ import annotations

from typing import Any

from backbones.errors import counted
from detection.reporting.diagnosis import TASKS
from detection.reporting.facts import data_mismatch, duration, encoder_sentence
from detection.reporting.run import NamedRuns, Run, columns_of_runs
from reporting.blocks import (
    NOT_RECORDED,
    Block,
    Cards,
    Cell,
    Number,
    Paragraph,
    Table,
    Term,
)

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


def headline_blocks(named: NamedRuns) -> list[Block]:
    """AP of the run, or of all runs and their differences to the first; what to know of them."""
    runs = [run for _, run in named]
    blocks: list[Block]
    if len(runs) == 1:
        sentence = f"Encoder: {encoder_sentence(runs[0])}."
        blocks = [_cards(runs[0]), Paragraph(sentence, "small")]
    else:
        blocks = [_comparison(named)]
        if problem := data_mismatch(runs):
            blocks.append(Paragraph(problem, "warning"))
        else:
            sentence = (
                "Each line is a single run: how far repeated runs with other seeds would scatter "
                "is not in this table."
            )
            blocks.append(Paragraph(sentence, "small"))
        if not all(run.fact("datasets", "test", "name") for run in runs):
            same = "Whether all runs were tested on the same data"
            blocks.append(Paragraph(f"{same}: {NOT_RECORDED}.", "warning"))
    return blocks + _limit_blocks(named)


def _cards(run: Run) -> Cards:
    cards: list[tuple[str, Cell, str]] = [
        (f"{title} {name}", _measured(run, task, name), METRICS[name])
        for task, title in TASKS.items()
        for name in ("AP", "AP50")
    ]
    cards.append(("Training time", duration(run.fact("train_seconds")), "without evaluation"))
    return Cards(cards)


def _comparison(named: NamedRuns) -> Table:
    (_, first), *_ = named
    comparable = data_mismatch([run for _, run in named]) is None
    rows: list[list[Cell]] = []
    for name, run in named:
        row: list[Cell] = [name]
        for task in TASKS:
            row.append(_measured(run, task, "AP", bar=True))
            if run is first:
                row.append("baseline")
            else:
                row.append(_difference(run, first, task) if comparable else "not comparable")
        rows.append([*row, duration(run.fact("train_seconds"))])
    columns = ["Run", "AP", "Δ AP", "AP", "Δ AP", "training time"]
    groups: list[tuple[Cell, int]] = [("", 1), ("Box", 2), ("Mask", 2), ("", 1)]
    caption = f"AP in percent; Δ AP is the difference to the first run, {first.name}, in AP points"
    return Table(columns, rows, caption, groups)


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


def metrics_blocks(named: NamedRuns) -> list[Block]:
    """COCO's 12 metrics of each run, of boxes and of masks."""
    rows: list[list[Cell]] = []
    for metric, meaning in METRICS.items():
        cells = [_measured(run, task, metric) for _, run in named for task in TASKS]
        rows.append([Term(metric, meaning), *cells])
    columns: list[Cell] = ["Metric", *[title for _ in named for title in TASKS.values()]]
    caption = "In percent; – where there is no ground truth of that size"
    blocks: list[Block] = [Table(columns, rows, caption, columns_of_runs(named, 1, len(TASKS)))]
    counts: dict[str, Any] = next(
        (run.metrics["counts"] for _, run in named if run.metrics.get("counts")), {}
    )
    if over := counts.get("images_over_limit"):
        sentence = (
            f"{over} of {counted(counts['images'], 'image')} hold more than 100 objects of one "
            "class, COCO's limit of detections: their recall cannot reach 100."
        )
        blocks.append(Paragraph(sentence, "warning"))
    return blocks + _limit_blocks(named)


def _limit_blocks(named: NamedRuns) -> list[Block]:
    """AP at another limit of detections than COCO's, a sentence for each run that has it."""
    blocks: list[Block] = []
    for _, run in named:
        if limit := run.metrics.get("at_limit"):
            found = [
                f"{title} AP {limit[task]['AP']:.1f}"
                for task, title in TASKS.items()
                if isinstance(limit.get(task), dict) and limit[task].get("AP") is not None
            ]
            sentence = (
                f"{run.name} with {counted(limit['max_detections'], 'detection')} of a class and "
                f"image (TEST.DETECTIONS_PER_IMAGE) in place of COCO's 100: {', '.join(found)}."
            )
            blocks.append(Paragraph(sentence, "small"))
    return blocks


def class_blocks(named: NamedRuns) -> list[Block]:
    """AP of each class, the most frequent first."""
    classes: dict[str, dict[str, Any]] = {}
    for _, run in reversed(named):  # the first run's counts win
        classes = run.metrics.get("per_class", {}) | classes
        classes |= run.metrics.get("per_class", {})
    if not classes:
        return [Paragraph(f"Metrics by class: {NOT_RECORDED}.")]
    rows: list[list[Cell]] = []
    for name, found in sorted(classes.items(), key=lambda item: -item[1].get("instances", 0)):
        row: list[Cell] = [name]
        row += [Number(found.get(key, 0), digits=0) for key in ("instances", "images")]
        for _, run in named:
            measured = run.metrics.get("per_class", {}).get(name, {})
            for task in TASKS:
                value = measured.get(task, {}).get("AP")
                bar = None if value is None else value / 100
                row.append(Number(value, bar=bar) if task in measured else NOT_RECORDED)
        rows.append(row)
    columns: list[Cell] = ["Class", "objects", "images"]
    columns += [f"{title} AP" for _ in named for title in TASKS.values()]
    caption = (
        "AP of each class, the most frequent first, with the ground truth's number of objects "
        "(without crowds) and of images"
    )
    groups = columns_of_runs(named, 3, len(TASKS))
    return [Table(columns, rows, caption, groups, long=len(rows) > 20)]


def test_set_blocks(named: NamedRuns) -> list[Block]:
    """A table of all test sets, one a row, if a run was evaluated on several."""
    labels = list(dict.fromkeys(label for _, run in named for label in run.test_sets))
    if not labels:
        return []
    rows: list[list[Cell]] = []
    at_limit = any("at_limit" in metrics for _, r in named for _, metrics in r.test_sets.values())
    for label in labels:
        facts = next(run.test_sets[label][0] for _, run in named if label in run.test_sets)
        row: list[Cell] = [label]
        row += [Number(facts.get(key, 0), digits=0) for key in ("images", "instances")]
        for _, run in named:
            _, metrics = run.test_sets.get(label, ({}, {}))
            for source in (metrics, metrics.get("at_limit", {}))[: 1 + at_limit]:
                for task in TASKS:
                    measured = source.get(task, {})
                    row.append(Number(measured["AP"]) if "AP" in measured else NOT_RECORDED)
        rows.append(row)
    columns: list[Cell] = ["Test set", "images", "objects"]
    of_run: list[Cell] = [f"{title} AP" for title in TASKS.values()]
    if at_limit:
        of_run += [f"{title} AP at its limit" for title in TASKS.values()]
    columns += of_run * len(named)
    caption = "Every test set; all other numbers and pictures of this page are of the first"
    return [Table(columns, rows, caption, columns_of_runs(named, 3, len(of_run)))]
