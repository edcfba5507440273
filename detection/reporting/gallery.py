"""Choose the images of a report: typical ones, the worst and best, those where runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from detection.reporting.run import NamedRuns, Run

SHOWN = 20  # images of each group
CHANGED = 10
LOST, GAINED = "lost most", "gained most"
TYPICAL = "typical"
TYPICAL_RANKS = (0.25, 0.5, 0.75)  # of all images by F1, so that three are neither good nor bad


@dataclass(frozen=True)
class Chosen:
    """An image, the groups that it was chosen for, its errors by kind, and why in words."""

    image_id: Any
    groups: Sequence[str]
    errors: Sequence[str]
    why: str
    change: float = 0.0  # of F1 since the first run


def choose_images(runs: NamedRuns) -> list[Chosen]:
    """The last run's images at its quartiles, the worst and the best, by F1.

    With several runs also what changed most since the first. F1 is that at each class's best
    threshold; of equal ones the image with more mistakes is worse, the one with more objects
    better. Images that have neither objects nor detections are left out.
    """
    if not runs:
        return []
    rows = {row["id"]: row for row in _images(runs[-1][1]) if row["F1"] is not None}
    worst = sorted(rows.values(), key=lambda r: (r["F1"], r["found"] - r["objects"] - r["false"]))
    best = sorted(rows.values(), key=lambda r: (-r["F1"], -r["objects"]))
    half = min(SHOWN, (len(rows) + 1) // 2)
    ids = {row["id"] for row in worst[:half]}
    typical = [worst[round(rank * (len(worst) - 1))]["id"] for rank in TYPICAL_RANKS if worst]
    groups = {
        TYPICAL: list(dict.fromkeys(typical)),
        "worst": [row["id"] for row in worst[:half]],
        "best": [row["id"] for row in best if row["id"] not in ids][:half],
    }
    changes = _changes(runs)
    ranked = sorted(changes, key=lambda image: changes[image])
    groups[LOST] = [image for image in ranked[:CHANGED] if changes[image] < 0]
    groups[GAINED] = [image for image in ranked[::-1][:CHANGED] if changes[image] > 0]
    of_image: dict[Any, list[str]] = {}
    for group, members in groups.items():
        for image in members:
            of_image.setdefault(image, []).append(group)
    return [
        Chosen(
            image,
            held,
            list(rows[image]["errors"]) or ["none"],
            _why(rows[image], changes),
            changes.get(image, 0.0),
        )
        for image, held in of_image.items()
    ]


def changed_most(runs: NamedRuns) -> list[Chosen]:
    """The images that lost most and gained most since the first run, by F1; most changed first."""
    chosen = [
        replace(each, groups=[group for group in each.groups if group in (LOST, GAINED)])
        for each in choose_images(runs)
    ]
    changed = [each for each in chosen if each.groups]
    return sorted(changed, key=lambda each: -abs(each.change))


def _changes(runs: NamedRuns) -> dict[Any, float]:
    """F1 of the last run less that of the first, of the images that have one in both."""
    if len(runs) < 2:
        return {}
    before, after = (
        {row["id"]: row["F1"] for row in _images(run)} for _, run in (runs[0], runs[-1])
    )
    return {
        image: value - before[image]
        for image, value in after.items()
        if value is not None and before.get(image) is not None
    }


def _images(run: Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = run.diagnosis[run.diagnosed_task]["images"]
    return rows


def _why(row: dict[str, Any], changes: dict[Any, float]) -> str:
    errors = ", ".join(f"{count} {kind}" for kind, count in row["errors"].items())
    words = f"F1 {row['F1']:.0f}: {row['found']} of {row['objects']} found"
    if change := round(changes.get(row["id"], 0.0)):
        words += f", {change:+d} since the first run".replace("-", "\N{MINUS SIGN}")
    return f"{words}; {errors}" if errors else words
