"""The report's sections on the detections' faults (``detection.evaluation.diagnosis``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backbones.errors import counted
from detection.reporting.run import NamedRuns, Run, columns_of_runs
from reporting.blocks import (
    NOT_RECORDED,
    Block,
    Cell,
    Chart,
    Charts,
    Number,
    Paragraph,
    RunName,
    Series,
    Table,
    Term,
)

TASKS = {"bbox": "Box", "segm": "Mask"}
KINDS = {
    "class": "the place of an object, IoU of 0.5 or more, called another class",
    "localisation": "the right class, IoU 0.1 to 0.5",
    "class and place": "another class, IoU 0.1 to 0.5",
    "duplicate": "an object that a better score has found already",
    "background": "no object there, IoU under 0.1",
    "missed": "an object that no detection found or meant",
}
MATRIX_CLASSES = 20


def error_blocks(runs: NamedRuns) -> list[Block]:
    """Each kind of error: how often, and what it costs in AP50."""
    held = _diagnosed(runs)
    if not held:
        return [Paragraph(f"Errors by kind: {NOT_RECORDED}.")]
    tasks = _tasks(held)
    rows: list[list[Cell]] = []
    for kind, meaning in KINDS.items():
        row: list[Cell] = [Term(kind, meaning)]
        for _, run in held:
            for task in tasks:
                found = run.diagnosis[task]["errors"]["kinds"][kind]
                row += [Number(found["count"], digits=0), Number(found["cost"])]
        rows.append(row)
    columns: list[Cell] = ["Error", *["count", "cost"] * (len(held) * len(tasks))]
    groups: list[tuple[Cell, int]] = [("", 1)]
    for name, _ in held:
        for task in tasks:
            title: Cell = TASKS[task] if len(held) == 1 else f"{name}, {TASKS[task].lower()}"
            groups.append((title, 2))
    caption = (
        "Detections that are wrong at IoU 0.5 and objects that were missed; cost: AP50 points that "
        "mending this kind alone would give (TIDE); costs do not add up"
    )
    return [*_absent(runs, held, "Errors by kind"), Table(columns, rows, caption, groups)]


def score_blocks(runs: NamedRuns) -> list[Block]:
    """Precision-recall, AP by IoU, calibration, and the best threshold of each class."""
    charts = _curve_charts(runs)
    held = _diagnosed(runs)
    blocks: list[Block] = _absent(runs, held, "Calibration and thresholds")
    if held:
        charts += _calibration_charts(held)
    blocks += [Charts(charts)] if charts else []
    if held:
        blocks += [_calibration_sentence(held), _threshold_table(held)]
    return blocks or [Paragraph(f"Curves: {NOT_RECORDED}.")]


def confusion_blocks(runs: NamedRuns) -> list[Block]:
    """For each run the classes of objects against those of the detections on them."""
    held = _diagnosed(runs)
    blocks = _absent(runs, held, "Confusion of classes")
    for name, run in held:
        task = _tasks([(name, run)])[0]
        blocks.append(_confusion_table(name if len(runs) > 1 else None, run, task))
    return blocks


def class_names(run: Run) -> dict[Any, str]:
    """category id -> name, in the order of ``metrics["per_class"]``; ids where it is missing."""
    rows: Mapping[str, Any] = run.metrics.get("per_class", {})
    return {row.get("category_id"): name for name, row in rows.items()}


def _diagnosed(runs: NamedRuns) -> list[tuple[RunName, Run]]:
    return [(name, run) for name, run in runs if run.diagnosis]


def _absent(runs: NamedRuns, held: NamedRuns, what: str) -> list[Block]:
    missing = [run.name for _, run in runs if not run.diagnosis]
    return [Paragraph(f"{what} of {', '.join(missing)}: {NOT_RECORDED}.")] if missing else []


def _tasks(held: NamedRuns) -> list[str]:
    return [task for task in TASKS if all(task in run.diagnosis for _, run in held)]


def _curve_charts(runs: NamedRuns) -> list[Chart]:
    charts = []
    for task, title in TASKS.items():
        curves = [(name, (run.metrics.get("curves") or {}).get(task) or {}) for name, run in runs]
        for iou in ("0.50", "0.75"):
            lines = [
                Series(name, list(enumerate(found["precision"][iou])))
                for name, found in curves
                if found.get("precision")
            ]
            if lines:
                charts.append(Chart(f"{title}: precision at IoU {iou}", lines, "recall"))
        lines = [
            Series(name, [(float(iou), value) for iou, value in found["AP_by_IoU"].items()])
            for name, found in curves
            if found.get("AP_by_IoU")
        ]
        if lines:
            charts.append(Chart(f"{title}: AP", lines, "IoU"))
    return charts


def _calibration_charts(held: NamedRuns) -> list[Chart]:
    charts = []
    for task in _tasks(held):
        lines = []
        for name, run in held:
            bins = run.diagnosis[task]["calibration"]["bins"]
            points = [(b["score"], b["precision"]) for b in bins if b["count"]]
            if points:
                lines.append(Series(name, points))
        if lines:
            perfect = Series(RunName(5, "score = precision"), [(0.0, 0.0), (100.0, 100.0)])
            charts.append(Chart(f"{TASKS[task]}: precision", [*lines, perfect], "score"))
    return charts


def _calibration_sentence(held: NamedRuns) -> Paragraph:
    parts = []
    for name, run in held:
        for task in _tasks(held):
            error = run.diagnosis[task]["calibration"]["error"]
            if error is not None:
                of_run = f"{name}, " if len(held) > 1 else ""
                parts.append(f"{of_run}{TASKS[task].lower()} {error:.1f}")
    return Paragraph(
        "Expected calibration error, the mean distance of a score from the share of detections of "
        f"that score that are right, in percent: {'; '.join(parts) or NOT_RECORDED}.",
        "small",
    )


def _threshold_table(held: NamedRuns) -> Table:
    task = _tasks(held)[0]
    named = [(class_names(run), run) for _, run in held]
    by_class: dict[str, list[dict[str, Any] | None]] = {}
    for index, (names, run) in enumerate(named):
        for row in run.diagnosis[task]["thresholds"]:
            name = names.get(row["category_id"], str(row["category_id"]))
            by_class.setdefault(name, [None] * len(held))[index] = row
    rows: list[list[Cell]] = []
    for name, found in by_class.items():
        cells: list[Cell] = [name]
        for row_or_none in found:
            if row_or_none is None or row_or_none["threshold"] > 1:
                cells += ["none found" if row_or_none else NOT_RECORDED, "", "", ""]
                continue
            cells.append(Number(row_or_none["threshold"], digits=2))
            cells += [Number(row_or_none[key]) for key in ("precision", "recall", "F1")]
        rows.append(cells)
    columns: list[Cell] = ["Class", *["threshold", "precision", "recall", "F1"] * len(held)]
    caption = (
        f"The score of each class with the best F1 ({TASKS[task].lower()}, IoU 0.5); "
        "precision, recall and F1 there, in percent"
    )
    return Table(columns, rows, caption, columns_of_runs(held, 1, 4), long=len(rows) > 20)


def _confusion_table(name: RunName | None, run: Run, task: str) -> Table:
    counts = run.diagnosis[task]["confusion"]
    names = class_names(run)
    titles = [
        names.get(row["category_id"], str(row["category_id"]))
        for row in run.diagnosis[task]["thresholds"]
    ]
    number = len(titles)
    of_class = "boxes" if task == "bbox" else "masks"
    left_out = ""
    chosen = list(range(number))
    if number > MATRIX_CLASSES:
        mistakes = [
            sum(counts[i][j] + counts[j][i] for j in range(number + 1) if j != i) for i in chosen
        ]
        chosen = sorted(sorted(chosen, key=lambda i: -mistakes[i])[:MATRIX_CLASSES])
        left_out = f", the {MATRIX_CLASSES} of {counted(number, 'class')} with most mistakes"
    places = [*chosen, number]
    rows: list[list[Cell]] = []
    for i in places:
        total = max(1, sum(counts[i]))
        cells: list[Cell] = [titles[i] if i < number else "nothing there"]
        cells += [
            "" if i == j == number else Number(counts[i][j], digits=0, shade=counts[i][j] / total)
            for j in places
        ]
        rows.append(cells)
    columns: list[Cell] = ["Object", *[titles[i] for i in chosen], "not found"]
    caption = (
        f"Objects (rows) and what was detected on them (columns): {of_class}, IoU 0.5, detections "
        f"over each class's best threshold{left_out}"
    )
    groups: list[tuple[Cell, int]] = [(name, len(columns))] if name else []
    return Table(columns, rows, caption, groups)
