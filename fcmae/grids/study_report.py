"""A study's page: what to do first, in plain words, then everything that it rests on."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from backbones.whole_files import write_files
from fcmae.grids.study import Study
from fcmae.grids.study_sentences import advice, sentence, sized
from fcmae.grids.study_table import Rows, loss_by_iteration, study_rows
from fcmae.grids.verdicts import LOOKS
from reporting.blocks import (
    Block,
    Cell,
    Chart,
    Charts,
    Code,
    Details,
    Number,
    Page,
    Paragraph,
    RunName,
    Section,
    Series,
    Table,
)
from reporting.html import render_html
from reporting.markdown import markdown_files
from reporting.tables import csv_text

# two runs that were tested on the same images -> the pictures that changed most between them
ChangedPictures = Callable[[Sequence[tuple[RunName, Path]]], list[Block]]
METHOD = (
    "Each pair shares its label subset and its seed. The intervals are Student's t of the paired "
    f"differences. They hold for all {{questions}} questions together (Bonferroni) and for looking "
    f"at {', '.join(map(str, LOOKS))} pairs and stopping at any of them (alpha spending, Lan and "
    "DeMets, 1983): in at most 5% of such studies does any of them miss the truth. A verdict is "
    "taken at these numbers of pairs alone."
)
NOT_READABLE = "not readable here"


def write_study(study: Study, changed: ChangedPictures | None = None) -> Path:
    """Write ``study.csv``, ``report.html`` and ``report.md`` into the study's folder."""
    rows = study_rows(study)
    page = study.folder / "report.html"
    content = _page(study, rows, changed)
    write_files(
        {
            study.folder / "study.csv": csv_text(rows.titles, rows.cells),
            page: render_html(content),
            **markdown_files(content, page.with_suffix(".md")),
        }
    )
    return page


def writer(changed: ChangedPictures) -> Callable[[Study], Path]:
    """:func:`write_study` with pictures, each pair of which is drawn once."""
    drawn: Callable[[tuple[tuple[RunName, Path], ...]], list[Block]] = cache(changed)
    return lambda study: write_study(study, lambda runs: drawn(tuple(runs)))


def _page(study: Study, rows: Rows, changed: ChangedPictures | None) -> Page:
    options = study.options
    answers: list[Block] = [Paragraph(advice(study))]
    answers += [Paragraph(sentence(study, *item)) for item in study.answers().items()]
    if not study.state.get("tuned", False):
        text = (
            "All starts had the same learning rate: there was no time to tune it for each. A "
            "difference may be the rate's."
        )
        answers.append(Paragraph(text, "warning"))
    answers += [Paragraph(line, "warning") for line in rates_at_an_end(study)]
    for line in study.state.get("notes", []):
        answers.append(Paragraph(line, "note"))
    metric = options.of_task.metrics[0]
    pictures = _pictures(study, changed) if changed else []
    return Page(
        "Which start is best on these images?",
        f"{options.images}; labels: {options.train}; test: {options.test}",
        [
            Section("answers", "Answers", answers),
            Section(
                "labels",
                f"{metric[0].upper()}{metric[1:]} by number of labels",
                _efficiency(study, rows),
            ),
            Section("verdicts", "Every question", _verdict_table(study)),
            *([Section("pictures", "What changed most", pictures)] if pictures else []),
            Section("curves", "Training loss", _curves(study)),
            Section("cost", "What it cost", _cost(study, rows)),
            Section("runs", "Every run", _runs(study)),
            Section("method", "How it was found", _method(study)),
        ],
    )


def _names(study: Study) -> dict[str, RunName]:
    return {arm.name: RunName(i, arm.name) for i, arm in enumerate(study.options.arms)}


def _efficiency(study: Study, rows: Rows) -> list[Block]:
    names, sizes = _names(study), study.options.labels
    metric = study.options.of_task.metrics[0]
    series, table = [], []
    for arm, name in names.items():
        groups = [(rows.labelled[size], rows.groups.get((arm, size))) for size in sizes]
        points = [(float(count), group.mean) for count, group in groups if group]
        band = [
            (float(count), group.low, group.high)
            for count, group in groups
            if group and group.low is not None and group.high is not None
        ]
        if points:
            series.append(Series(name, points, band))
    if not series:
        return [Paragraph("No wave of runs has ended yet.")]
    for size in sizes:
        row: list[Cell] = [f"{rows.labelled[size]}" + (" (all)" if size is None else "")]
        for arm in names:
            group = rows.groups.get((arm, size))
            if group is None:
                row += [Number(None), Number(None), Number(0, 0)]
            else:
                row += [Number(group.mean), Number(group.deviation), Number(group.runs, 0)]
        table.append(row)
    spans: list[tuple[Cell, int]] = [("", 1), *((name, 3) for name in names.values())]
    columns: list[Cell] = ["labelled images", *([metric, "spread", "runs"] * len(names))]
    text = (
        "Bands: 95% of the mean of each start's own runs (Student's t). Whether two starts differ "
        "is told by their pairs, below, not by bands that overlap."
    )
    return [
        Charts([Chart(metric, series, x="labelled images")]),
        Paragraph(text, "small"),
        Table(columns, table, f"Mean {metric}, deviation over label subsets", groups=spans),
    ]


def _verdict_table(study: Study) -> list[Block]:
    rows: list[list[Cell]] = []
    for question, found in study.answers().items():
        ends = [Number(value, signed=True) for value in (found.mean, found.low, found.high)]
        title = f"{question.arm} against {question.against}, {sized(question.size)}"
        rows.append([title, *ends, Number(found.pairs, 0), found.answer])
    metric = study.options.of_task.metrics[0]
    columns: list[Cell] = ["", "difference", "from", "to", "pairs", "answer"]
    caption = f"Paired differences of {metric} with intervals that hold together"
    return [Table(columns, rows, caption)]


def _pictures(study: Study, changed: ChangedPictures) -> list[Block]:
    """The pictures that changed most, from the first start to the one that differs most from it."""
    names, first = _names(study), study.options.arms[0].name
    runs = {(r.arm, r.labels, r.seed): Path(r.folder) for r in study.results}
    pairs = [
        (abs(found.mean or 0.0), arm, size)
        for (arm, size), found in study.verdicts().items()
        if {(arm, size, 0), (first, size, 0)} <= runs.keys()
    ]
    if not pairs:
        return []
    largest = max(pairs, key=lambda pair: study.options.labels.index(pair[2]))[2]
    _, arm, size = max(pair for pair in pairs if pair[2] == largest)
    shown = changed([(names[name], runs[name, size, 0]) for name in (first, arm)])
    text = (
        f"The test images that changed most from {first} to {arm}, with {sized(size)}, in one pair "
        "of runs (seed 0): examples, not evidence."
    )
    return [Paragraph(text, "small"), *shown] if shown else []


def _curves(study: Study) -> list[Block]:
    size = study.options.labels[len(study.options.labels) // 2]
    series = []
    for arm, name in _names(study).items():
        by_step: dict[int, list[float]] = {}
        for run in (r for r in study.results if r.arm == arm and r.labels == size):
            for step, loss in loss_by_iteration(Path(run.folder)).items():
                by_step.setdefault(step, []).append(loss)
        if by_step:
            points = [
                (float(step), statistics.fmean(values)) for step, values in sorted(by_step.items())
            ]
            series.append(Series(name, points))
    if not series:
        return [Paragraph("No wave of runs has ended yet.")]
    title = f"mean total loss, {sized(size)}"
    return [Charts([Chart(title, series)])]


def _cost(study: Study, rows: Rows) -> list[Block]:
    table: list[list[Cell]] = []
    for arm in study.options.arms:
        cost = rows.costs[arm.name]
        table.append(
            [
                arm.name,
                Number(cost.steps, 0),
                Number(cost.hours, 2),
                Number(cost.minutes, 1),
                *(
                    NOT_READABLE if value is None else Number(value, 1)
                    for value in (cost.pretraining_kilojoules, cost.kilojoules)
                ),
            ]
        )
    columns: list[Cell] = ["start", "FCMAE steps", "FCMAE hours", "minutes per training",
                           "FCMAE kJ", "kJ per training"]  # fmt: skip
    text = (
        "Energy is that of the processors and GPUs, by their own counters, divided evenly among "
        "what ran at the time."
    )
    note = [Paragraph(text, "small")] if study.energy.readable else []
    return [Table(columns, table, "Cost of each start"), *note]


def _runs(study: Study) -> list[Block]:
    rows: list[list[Cell]] = [
        [r.arm, sized(r.labels), Number(r.seed, 0), Code(f"{r.rate:g}"), Number(r.value, 2),
         Number(r.other, 2)]
        for r in study.results
    ]  # fmt: skip
    columns: list[Cell] = ["start", "labels", "seed", "rate", *study.options.of_task.metrics]
    return [Table(columns, rows, "Every run; study.csv has all digits", long=True)]


def _method(study: Study) -> list[Block]:
    options = study.options
    blocks: list[Block] = [Paragraph(METHOD.format(questions=len(options.questions())))]
    if tried := study.state.get("tried"):
        rows: list[list[Cell]] = [
            [
                arm,
                Code(f"{study.rates[arm]:g}"),
                ", ".join(f"{r}: {ap:.1f}" for r, ap in by.items()),
            ]
            for arm, by in tried.items()
        ]
        metric = options.of_task.metrics[0]
        caption = f"Rates tried on images that no other table shows, {metric} of one run each"
        blocks.append(Table(["start", "chosen", "tried"], rows, caption, prose=True))
    if study.statistics:
        text = (
            "Random weights, and FCMAE that starts from them, take the mean and standard deviation "
            "of your images; published weights take their own."
        )
        blocks.append(Paragraph(text, "small"))
    if any(arm.pretrained for arm in options.arms):
        text = (
            "Each pretrained start rests on one pretraining: the intervals do not hold what "
            "another seed of it would change."
        )
        blocks.append(Paragraph(text, "note"))
    blocks.append(Details("Settings", json.dumps(study.state, indent=1)))
    return blocks + _commands(study)


def rates_at_an_end(study: Study) -> list[str]:
    """A sentence for each start whose best learning rate is an end of the range that was tried."""
    lines, tried = [], study.state.get("tried", {})
    for arm in study.options.arms:
        rates, best = sorted(map(float, tried.get(arm.name, {}))), study.rates.get(arm.name)
        if len(rates) > 1 and best in (rates[0], rates[-1]):
            which, further = ("lowest", "lower") if best == rates[0] else ("highest", "higher")
            lines.append(
                f"The best learning rate of {arm.said}, {best:g}, is the {which} of those tried: "
                f"with a {further} one this start may do better than it does here."
            )
    return lines


def _commands(study: Study) -> list[Block]:
    logs = sorted(study.folder.rglob("*.log"))
    first = [
        log.read_text(encoding="utf-8", errors="replace").partition("\n")[0].removeprefix("$ ")
        for log in logs
        if log.name != "log.txt"
    ]
    return [Details("Every command", "\n\n".join(first))] if first else []
