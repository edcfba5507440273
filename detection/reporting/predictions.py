"""The report's pictures of predictions: typical images at its top, the others as a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detection.reporting.facts import data_mismatch
from detection.reporting.figures import prediction_panels
from detection.reporting.gallery import TYPICAL, changed_most, choose_images
from detection.reporting.run import NamedRuns, read_run
from reporting.blocks import NOT_RECORDED, Block, Gallery, Paragraph, RunName

TYPICAL_SENTENCE = (
    "Typical images of the test set: a quarter, half and three quarters of all images have a lower "
    "F1. The ground truth comes first, then the detections above their class's best threshold."
)
GALLERY_SENTENCE = (
    "The images with the lowest and the highest F1. The ground truth comes first, then the "
    "detections above their class's best threshold. Crowds are only outlined."
)


def prediction_blocks(runs: NamedRuns, full_folder: str) -> tuple[list[Block], list[Block]]:
    """Typical images, which may be none, and the gallery or why there is none."""
    source = next((run for _, run in runs if run.fact("datasets", "test", "annotations")), None)
    if source is None:
        return [], [Paragraph(f"The data that the runs were tested on: {NOT_RECORDED}.")]
    blocks: list[Block] = []
    if data_mismatch([run for _, run in runs]):
        runs = [(name, run) for name, run in runs if run is source]
        blocks.append(Paragraph(f"Of {source.name} only, since the test sets differ.", "small"))
    if without := [run.name for _, run in runs if run.results is None]:
        blocks.append(Paragraph(f"Predictions of {', '.join(without)}: {NOT_RECORDED}."))
    runs = [(name, run) for name, run in runs if run.results is not None and run.diagnosis]
    chosen = choose_images(runs)
    if not chosen:
        return [], blocks or [Paragraph(f"Images with predictions: {NOT_RECORDED}.")]
    test = source.fact("datasets", "test")
    annotations, image_root = Path(str(test["annotations"])), Path(str(test.get("image_root", "")))
    try:
        panels, omissions = prediction_panels(runs, annotations, image_root, chosen, full_folder)
    except (OSError, ValueError) as error:
        return [], [*blocks, Paragraph(f"The predictions cannot be shown: {error}", "warning")]
    typical: list[Block] = [panel for panel, groups in panels if TYPICAL in groups]
    others = [panel for panel, groups in panels if set(groups) != {TYPICAL}]
    blocks.append(Paragraph(GALLERY_SENTENCE, "small"))
    blocks += [Paragraph(omission, "small") for omission in omissions]
    if typical:
        typical.insert(0, Paragraph(TYPICAL_SENTENCE, "small"))
    return typical, [*blocks, Gallery(others)]


def changed_detections(runs: Sequence[tuple[RunName, Path]]) -> list[Block]:
    """The images that lost and gained most from the first of two runs' folders to the last.

    Nothing where one has no predictions; a paragraph where they cannot be drawn.
    """
    read = [(name, read_run(folder, str(name))) for name, folder in runs]
    if any(run.results is None or not run.diagnosis for _, run in read):
        return []
    test = read[0][1].fact("datasets", "test") or {}
    try:
        panels, omissions = prediction_panels(
            *(read, Path(str(test.get("annotations"))), Path(str(test.get("image_root", "")))),
            *(changed_most(read), ""),
        )
    except (OSError, ValueError) as error:
        return [Paragraph(f"The predictions cannot be shown: {error}", "warning")]
    if not panels:
        return []
    members = [
        replace(panel, pictures=[replace(picture, full=None) for picture in panel.pictures])
        for panel, _ in panels
    ]
    return [Gallery(members), *(Paragraph(omission, "small") for omission in omissions)]
