"""A study's page: what to do first, in plain words, then everything that it rests on."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

from backbones.whole_files import write_files
from fcmae.grids.study import Study
from fcmae.grids.verdicts import LOOKS, Verdict
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

METHOD = (
    "Each pair shares its label subset and its seed. The intervals are Student's t of the paired "
    f"differences. They hold for all {{questions}} questions together (Bonferroni) and for looking "
    f"at {', '.join(map(str, LOOKS))} pairs and stopping at any of them (alpha spending, Lan and "
    "DeMets, 1983): in at most 5% of such studies does any of them miss the truth. A verdict is "
    "taken at these numbers of pairs alone."
)


def sized(size: int | None) -> str:
    return "all labels" if size is None else f"{size} labels"


def signed(value: float) -> str:
    return f"{value:+.1f}"


def sentence(study: Study, arm_name: str, size: int | None, found: Verdict) -> str:
    """One question's answer, for who reads nothing else."""
    arm = next(arm for arm in study.options.arms if arm.name == arm_name)
    base = study.options.arms[0].said
    start = f"With {sized(size)}, {arm.said}"
    if found.low is None or found.high is None or found.mean is None:
        pairs = f"{found.pairs} pair{'s' * (found.pairs != 1)}"
        return f"{start} against {base}: cannot tell yet, with {pairs}; {LOOKS[0]} are needed."
    interval = f"(95%: {signed(found.low)} to {signed(found.high)}, {found.pairs} pairs)"
    if found.answer == "cannot tell":
        return f"{start} against {base}: cannot tell, {signed(found.mean)} AP {interval}."
    verb = "gives" if found.answer == "better" else "costs"
    amount = signed(found.mean) if found.answer == "better" else f"{abs(found.mean):.1f}"
    return (
        f"{start} {verb} {amount} AP {'over' if verb == 'gives' else 'against'} {base} {interval}."
    )


def advice(study: Study) -> str:
    """The first sentence: what to start from."""
    found = study.verdicts()
    better = sorted({name for (name, _), v in found.items() if v.answer == "better"})
    worse = sorted({name for (name, _), v in found.items() if v.answer == "worse"})
    names = {arm.name: arm.said for arm in study.options.arms}
    if better:
        best = max(
            better,
            key=lambda name: max(v.mean or 0 for (n, _), v in found.items() if n == name),
        )
        return (
            f"Start from {names[best]}: it is better here than {names[study.options.arms[0].name]}."
        )
    if worse and len(worse) == len(study.options.arms) - 1:
        return f"Start from {names[study.options.arms[0].name]}: every other start is worse here."
    return "No start is shown to be better than the others on these images yet."


def write_study(study: Study) -> Path:
    """Write ``study.csv``, ``report.html`` and ``report.md`` into the study's folder."""
    folder = study.folder
    titles = ["arm", "labels", "seed", "rate", "box AP", "mask AP", "train seconds", "folder"]
    rows = [
        [r.arm, "all" if r.labels is None else r.labels, r.seed, r.rate, r.box, r.mask, r.seconds,
         r.folder]
        for r in study.results
    ]  # fmt: skip
    page = folder / "report.html"
    content = _page(study)
    write_files(
        {
            folder / "study.csv": csv_text(titles, rows),
            page: render_html(content),
            **markdown_files(content, page.with_suffix(".md")),
        }
    )
    return page


def _page(study: Study) -> Page:
    options = study.options
    found = study.verdicts()
    answers: list[Block] = [Paragraph(advice(study))]
    answers += [Paragraph(sentence(study, *key, value)) for key, value in found.items()]
    if not study.state.get("tuned", False):
        text = (
            "All arms had the same learning rate: there was no time to tune it for each. A "
            "difference may be the rate's."
        )
        answers.append(Paragraph(text, "warning"))
    for line in study.state.get("notes", []):
        answers.append(Paragraph(line, "note"))
    return Page(
        "Which start is best on these images?",
        f"{options.images}; labels: {options.train}; test: {options.test}",
        [
            Section("answers", "Answers", answers),
            Section("labels", "AP by number of labels", _efficiency(study)),
            Section("verdicts", "Every question", _verdict_table(study)),
            Section("curves", "Training loss", _curves(study)),
            Section("cost", "What it cost", _cost(study)),
            Section("runs", "Every run", _runs(study)),
            Section("method", "How it was found", _method(study)),
        ],
    )


def _names(study: Study) -> dict[str, RunName]:
    return {arm.name: RunName(i, arm.name) for i, arm in enumerate(study.options.arms)}


def _of(study: Study, arm: str, size: int | None) -> list[float]:
    return [r.box for r in study.results if r.arm == arm and r.labels == size]


def _efficiency(study: Study) -> list[Block]:
    names = _names(study)
    sizes = study.options.labels
    counts = {size: len(study.split.pool) if size is None else size for size in sizes}
    series = []
    for arm, name in names.items():
        points = [
            (float(counts[size]), statistics.fmean(_of(study, arm, size)))
            for size in sizes
            if _of(study, arm, size)
        ]
        if points:
            series.append(Series(name, points))
    if not series:
        return [Paragraph("No wave of runs has ended yet.")]
    rows: list[list[Cell]] = []
    for size in sizes:
        row: list[Cell] = [f"{counts[size]}" + (" (all)" if size is None else "")]
        for arm in names:
            values = _of(study, arm, size)
            mean = statistics.fmean(values) if values else None
            spread = statistics.stdev(values) if len(values) > 1 else None
            row += [Number(mean), Number(spread), Number(len(values), 0)]
        rows.append(row)
    groups: list[tuple[Cell, int]] = [("", 1), *((name, 3) for name in names.values())]
    columns: list[Cell] = ["labelled images", *(["box AP", "spread", "runs"] * len(names))]
    return [
        Charts([Chart("box AP", series, x="labelled images")]),
        Table(columns, rows, "Mean box AP, standard deviation over label subsets", groups=groups),
    ]


def _verdict_table(study: Study) -> list[Block]:
    rows: list[list[Cell]] = []
    for (arm, size), found in study.verdicts().items():
        ends = [Number(value, signed=True) for value in (found.mean, found.low, found.high)]
        rows.append([f"{arm}, {sized(size)}", *ends, Number(found.pairs, 0), found.answer])
    columns: list[Cell] = ["against " + study.options.arms[0].name, "difference", "from", "to",
                           "pairs", "answer"]  # fmt: skip
    return [Table(columns, rows, "Paired differences of box AP with intervals that hold together")]


def _curves(study: Study) -> list[Block]:
    size = study.options.labels[len(study.options.labels) // 2]
    series = []
    for arm, name in _names(study).items():
        runs = [r for r in study.results if r.arm == arm and r.labels == size]
        by_step: dict[float, list[float]] = {}
        for run in runs:
            path = Path(run.folder) / "metrics.json"
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            for entry in map(json.loads, lines):
                if "total_loss" in entry:
                    by_step.setdefault(entry["iteration"], []).append(entry["total_loss"])
        if by_step:
            points = [(step, statistics.fmean(values)) for step, values in sorted(by_step.items())]
            series.append(Series(name, points))
    if not series:
        return [Paragraph("No wave of runs has ended yet.")]
    title = f"mean total loss, {sized(size)}"
    return [Charts([Chart(title, series)])]


def _cost(study: Study) -> list[Block]:
    rows: list[list[Cell]] = []
    for arm in study.options.arms:
        seconds = [r.seconds for r in study.results if r.arm == arm.name and r.seconds]
        steps = study.state.get("pretraining_steps", 0) if arm.pretrained else 0
        step = study.state.get("measured", {}).get("pretraining_step", math.nan)
        rows.append(
            [
                arm.name,
                Number(steps, 0),
                Number(steps * step / 3600 if steps else 0.0, 2),
                Number(statistics.fmean(seconds) / 60 if seconds else None, 1),
            ]
        )
    columns: list[Cell] = ["start", "FCMAE steps", "FCMAE hours", "minutes per training"]
    return [Table(columns, rows, "Cost of each start; energy is not measured")]


def _runs(study: Study) -> list[Block]:
    rows: list[list[Cell]] = [
        [r.arm, sized(r.labels), Number(r.seed, 0), Code(f"{r.rate:g}"), Number(r.box, 2),
         Number(r.mask, 2)]
        for r in study.results
    ]  # fmt: skip
    columns: list[Cell] = ["start", "labels", "seed", "rate", "box AP", "mask AP"]
    return [Table(columns, rows, "Every run; study.csv has all digits", long=True)]


def _method(study: Study) -> list[Block]:
    options = study.options
    asked = (len(options.arms) - 1) * len(options.labels)
    blocks: list[Block] = [Paragraph(METHOD.format(questions=asked))]
    tried = study.state.get("tried")
    if tried:
        rows: list[list[Cell]] = [
            [
                arm,
                Code(f"{study.rates[arm]:g}"),
                ", ".join(f"{r}: {ap:.1f}" for r, ap in by.items()),
            ]
            for arm, by in tried.items()
        ]
        caption = "Rates tried on images that no other table shows, box AP of one run each"
        blocks.append(Table(["start", "chosen", "tried"], rows, caption, prose=True))
    if any(arm.pretrained for arm in options.arms):
        text = (
            "Each pretrained start rests on one pretraining: the intervals do not hold what "
            "another seed of it would change."
        )
        blocks.append(Paragraph(text, "note"))
    blocks.append(Details("Settings", json.dumps(study.state, indent=1)))
    return blocks + _commands(study)


def _commands(study: Study) -> list[Block]:
    logs = sorted(study.folder.rglob("*.log"))
    first = [
        log.read_text(encoding="utf-8", errors="replace").partition("\n")[0].removeprefix("$ ")
        for log in logs
        if log.name != "log.txt"
    ]
    return [Details("Every command", "\n\n".join(first))] if first else []
