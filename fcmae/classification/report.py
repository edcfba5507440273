"""The page of a classifier: figures by class, the confusion matrix, best and worst images.

A training writes ``report.html``, ``--eval-only`` ``evaluation.html``, of the images evaluated.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backbones.errors import counted
from backbones.whole_files import write_files
from fcmae.classification.data import LabelledSamples
from fcmae.classification.evaluation import TOP, Evaluation
from fcmae.run_files import CONFIG
from images.configured import shown_bands
from images.display import read_shown, shown
from images.files import ImageError
from reporting.blocks import (
    Block,
    Cards,
    Cell,
    Chart,
    Charts,
    Details,
    Number,
    Page,
    Paragraph,
    Picture,
    Pictures,
    RunName,
    Section,
    Series,
    Table,
)
from reporting.html import render_html
from reporting.markdown import markdown_files
from reporting.pictures import thumbnail
from training.records.metrics import read_history

logger = logging.getLogger(__name__)

MATRIX_CLASSES = 30  # at most; of more classes, so many pairs are listed
PICTURES = 12  # of a group
PER_IMAGE = "per_image.json"
CHARTS = {"total_loss": "training loss", "trained/top1": "top-1 (%)", "trained/loss": "loss"}


def write_report(
    path: Path,
    title: str,
    classes: Sequence[str],
    samples: LabelledSamples,
    evaluation: Evaluation,
    facts: Mapping[str, Any],
    trained_on: Sequence[int] = (),
) -> Path:
    """Write a page, and the same as Markdown beside it.

    Args:
        path: the page, an ``.html`` file; ``metrics.json`` and ``config.yaml`` of its folder are
            shown.
        facts: shown as they are, by name.
        trained_on: the class of each image of the training.
    """
    blocks = {
        "headline": ("Figures", _headline(classes, evaluation)),
        "pictures": ("Images", _pictures(classes, samples, evaluation)),
        "classes": ("Classes", _by_class(classes, evaluation, trained_on)),
        "confusion": ("Confusion", _confusion(classes, evaluation)),
        "training": ("Training", _curves(path.parent)),
        "facts": ("Settings", _facts(path.parent, facts)),
    }
    sections = [Section(key, name, found) for key, (name, found) in blocks.items() if found]
    figures = evaluation.figures()
    page = Page(
        title,
        f"top-1 {figures['top1']:.1f} % of {counted(len(evaluation.truth), 'image')}",
        sections,
    )
    write_files({path: render_html(page), **markdown_files(page, path.with_suffix(".md"))})
    logger.info("wrote %s", path)
    return path


def _recalls(evaluation: Evaluation) -> dict[int, float]:
    """The percentage of each class's images that are predicted as it."""
    pairs = list(zip(evaluation.truth, evaluation.predicted, strict=True))
    images, right = Counter(evaluation.truth), Counter(a for a, b in pairs if a == b)
    return {label: 100 * right[label] / count for label, count in images.items()}


def _headline(classes: Sequence[str], evaluation: Evaluation) -> list[Block]:
    figures, recalls = evaluation.figures(), _recalls(evaluation)
    worst = min(recalls, key=lambda label: (recalls[label], label))
    mean = sum(recalls.values()) / len(recalls)
    words = "the true one is among the five most probable"
    cards: list[tuple[str, Cell, str]] = [
        ("top-1 (%)", Number(figures["top1"]), "the most probable class is the true one"),
        *([("top-5 (%)", Number(figures["top5"]), words)] if len(classes) > TOP else []),
        ("mean of classes (%)", Number(mean), "top-1 of each class, each class counted alike"),
        ("loss", Number(figures["loss"], 3), "mean cross-entropy"),
        ("lowest class (%)", Number(recalls[worst]), classes[worst]),
    ]
    found: list[Block] = [Cards(cards)]
    if without := len(classes) - len(recalls):
        found.append(
            Paragraph(f"{without} of {counted(len(classes), 'class')} have no image here.", "note")
        )
    if evaluation.left_out:
        found.append(
            Paragraph(f"{counted(evaluation.left_out, 'image')} could not be used.", "warning")
        )
    return found


def _by_class(
    classes: Sequence[str], evaluation: Evaluation, trained_on: Sequence[int]
) -> list[Block]:
    recalls = _recalls(evaluation)
    pairs = Counter(zip(evaluation.truth, evaluation.predicted, strict=True))
    images, said = Counter(evaluation.truth), Counter(evaluation.predicted)
    trained = Counter(trained_on)
    rows: list[list[Cell]] = []
    for label in sorted(recalls, key=lambda label: (recalls[label], label)):
        right = pairs[label, label]
        wrong = Counter({b: n for (a, b), n in pairs.items() if a == label != b})
        taken = ", ".join(f"{classes[b]} ({n})" for b, n in wrong.most_common(2))
        precision = 100 * right / said[label] if said[label] else None
        cells: list[Cell] = [classes[label]]
        cells += [Number(trained[label], 0)] if trained_on else []
        cells += [
            Number(images[label], 0),
            Number(recalls[label], bar=recalls[label] / 100),
            Number(precision),
            taken,
        ]
        rows.append(cells)
    columns: list[Cell] = ["class", *(["trained on"] if trained_on else []), "images"]
    columns += ["top-1 (%)", "precision (%)", "most often taken for"]
    caption = (
        "The lowest top-1 first: the share of the class's images that were predicted as it. "
        "Precision: the share of the images predicted as the class that are of it"
    )
    return [Table(columns, rows, caption, long=len(rows) > 20)]


def _confusion(classes: Sequence[str], evaluation: Evaluation) -> list[Block]:
    pairs = Counter(zip(evaluation.truth, evaluation.predicted, strict=True))
    met = sorted({*evaluation.truth, *evaluation.predicted})
    if len(met) > MATRIX_CLASSES:
        wrong = Counter({pair: n for pair, n in pairs.items() if pair[0] != pair[1]})
        rows: list[list[Cell]] = [
            [classes[a], classes[b], Number(n, 0)]
            for (a, b), n in wrong.most_common(MATRIX_CLASSES)
        ]
        caption = f"The most frequent confusions of {counted(len(met), 'class')}"
        return [Table(["is", "predicted as", "images"], rows, caption)] if rows else []
    images = Counter(evaluation.truth)
    matrix: list[list[Cell]] = [
        [classes[a], *(Number(pairs[a, b], 0, shade=pairs[a, b] / max(1, images[a])) for b in met)]
        for a in met
    ]
    caption = "Images by their class (rows) and the predicted one (columns)"
    return [
        Table(["is \N{RIGHTWARDS ARROW} predicted", *(classes[b] for b in met)], matrix, caption)
    ]


def _pictures(
    classes: Sequence[str], samples: LabelledSamples, evaluation: Evaluation
) -> list[Block]:
    order = np.argsort(evaluation.loss, kind="stable").tolist()
    wrong = [i for i in reversed(order) if evaluation.truth[i] != evaluation.predicted[i]]
    right = [i for i in order if evaluation.truth[i] == evaluation.predicted[i]]
    groups = {
        "Worst: the true class was least probable": wrong[:PICTURES],
        "Best: the true class was most probable": right[:PICTURES],
    }
    blocks: list[Block] = []
    for title, chosen in groups.items():
        members = [_picture(classes, samples, evaluation, index) for index in chosen]
        if members := [member for member in members if member is not None]:
            blocks.append(Pictures(title, members))
    return blocks


def _picture(
    classes: Sequence[str], samples: LabelledSamples, evaluation: Evaluation, index: int
) -> Picture | None:
    place = evaluation.places[index]
    try:
        image = shown(samples.whole_image(place), samples.reading.show_bands)
    except ImageError:  # it could be read a moment ago
        return None
    truth, predicted = (classes[of[index]] for of in (evaluation.truth, evaluation.predicted))
    share = f"{100 * evaluation.probability[index]:.0f} %"
    said = "" if truth == predicted else f"; predicted {predicted}"
    label = f"{truth}{said}, {share} ({Path(samples.describe(place)).name})"
    return Picture(thumbnail(image), label, label)


def per_image_rows(
    classes: Sequence[str], samples: LabelledSamples, evaluation: Evaluation
) -> list[dict[str, Any]]:
    """What a classifier said of each image, for ``per_image.json``."""
    columns = (evaluation.places, evaluation.truth, evaluation.predicted, evaluation.loss)
    return [
        {
            "image": samples.describe(place),
            "truth": classes[truth],
            "predicted": classes[predicted],
            "loss": loss,
        }
        for place, truth, predicted, loss in zip(*columns, strict=True)
    ]


def changed_classes(runs: Sequence[tuple[RunName, Path]]) -> list[Block]:
    """The images whose loss rose and fell most from the first of two runs to the last.

    Args:
        runs: names and folders that hold ``per_image.json``.
    """
    try:
        tables = [
            json.loads((folder / PER_IMAGE).read_text(encoding="utf-8")) for _, folder in runs
        ]
    except (OSError, ValueError) as error:
        return [Paragraph(f"The predictions cannot be shown: {error}", "warning")]
    first, last = ({row["image"]: row for row in rows} for rows in (tables[0], tables[-1]))
    change = {name: last[name]["loss"] - first[name]["loss"] for name in first.keys() & last.keys()}
    order = sorted(change, key=lambda name: (change[name], name))
    groups = {
        "Lost most": [name for name in order[::-1][:PICTURES] if change[name] > 0],
        "Gained most": [name for name in order[:PICTURES] if change[name] < 0],
    }
    blocks: list[Block] = []
    bands = next((found for _, folder in runs if (found := shown_bands(folder))), [])
    for title, names in groups.items():
        members = []
        for name in names:
            try:
                image = read_shown(Path(name), bands)
            except (ValueError, OSError):
                continue
            before, after = first[name]["predicted"], last[name]["predicted"]
            changed = f"{first[name]['truth']}; predicted {before}, then {after}"
            label = f"{changed} ({Path(name).name})"
            members.append(Picture(thumbnail(image), label, label))
        if members:
            blocks.append(Pictures(title, members))
    return blocks


def _curves(output_dir: Path) -> list[Block]:
    run, (curves, _) = RunName(0, output_dir.name), read_history(output_dir / "metrics.json")
    charts = [Chart(CHARTS[key], [Series(run, curves[key])]) for key in CHARTS if key in curves]
    return [Charts(charts)] if charts else []


def _fact(value: Any) -> str:
    """A setting or a figure as a cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "not set" if value is None else str(value)


def _facts(output_dir: Path, facts: Mapping[str, Any]) -> list[Block]:
    rows: list[list[Cell]] = [[name, _fact(value)] for name, value in facts.items()]
    blocks: list[Block] = [Table(["setting", "value"], rows, "How it was evaluated", prose=True)]
    config = output_dir / CONFIG
    if config.is_file():
        blocks.append(Details("config.yaml", config.read_text(encoding="utf-8")))
    return blocks
