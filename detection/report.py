"""The report of one detection run, or the comparison of several: an HTML page and a Markdown file.

It reads only files (``detection.reporting.run``) and so does not depend on the engine. Whatever a
run did not record is shown as "not recorded".
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backbones.errors import InputError
from backbones.whole_files import write_files
from detection.evaluate import coco_metrics
from detection.evaluation.diagnosis import diagnose
from detection.reporting.diagnosis import confusion_blocks, error_blocks, score_blocks
from detection.reporting.facts import facts_table, started
from detection.reporting.metrics import (
    class_blocks,
    headline_blocks,
    metrics_blocks,
    test_set_blocks,
)
from detection.reporting.predictions import prediction_blocks
from detection.reporting.run import EvaluatedRun, NamedRuns, Run, read_runs
from detection.reporting.training import curve_blocks, pretraining_blocks, pretraining_folder
from reporting.blocks import (
    NOT_RECORDED,
    Block,
    Cell,
    Gallery,
    Page,
    Paragraph,
    Pictures,
    RunName,
    Section,
    Table,
)
from reporting.html import render_html
from reporting.markdown import markdown_files
from reporting.run_files import config_differences

logger = logging.getLogger(__name__)


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
    """The run with metrics and diagnosis, computed here if its folder has none."""
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
    named = [(RunName(index, run.name), run) for index, run in enumerate(runs)]
    typical, gallery = prediction_blocks(named, f"{output.stem}_files")
    headline = [*headline_blocks(named), *(Paragraph(note, "note") for note in notes)]
    for run in runs:
        headline += [Paragraph(f"{run.name}: {problem}", "warning") for problem in run.problems]
    sections = [
        Section("headline", "Result", [*headline, *test_set_blocks(named), *typical]),
        Section("metrics", "All COCO metrics", metrics_blocks(named)),
        Section("classes", "Classes", class_blocks(named)),
        Section("errors", "What the errors are", error_blocks(named)),
        Section("scores", "Scores and thresholds", score_blocks(named)),
        Section("confusion", "Confusion of classes", confusion_blocks(named)),
        Section("curves", "Training curves", curve_blocks(named)),
    ]
    if pretraining:
        sections.append(Section("pretraining", "Pretraining", pretraining))
    sections.append(Section("predictions", "Best and worst images", gallery))
    if len(runs) > 1:
        sections.append(Section("differences", "What differs", _difference_blocks(named)))
    sections.append(Section("facts", "How it was made", _fact_blocks(named)))
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


def _difference_blocks(named: NamedRuns) -> list[Block]:
    if missing := [run.name for _, run in named if not run.config]:
        return [Paragraph(f"The settings of {', '.join(missing)}: {NOT_RECORDED}.")]
    rows = config_differences([run.config for _, run in named])
    if not rows:
        return [Paragraph("The runs' settings are the same, the output folder apart.")]
    caption = "Settings that are not the same in all runs, the output folder apart"
    columns: list[Cell] = ["Setting", *(name for name, _ in named)]
    return [Table(columns, [[key, *values] for key, values in rows], caption, prose=True)]


def _fact_blocks(named: NamedRuns) -> list[Block]:
    blocks: list[Block] = [facts_table(named)]
    for _, run in named:
        of_run = f" of {run.name}" if len(named) > 1 else ""
        blocks += run.details(of_run)
    return blocks
