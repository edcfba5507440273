"""The report's table of facts: software, data, weights, settings and time of each run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from backbones.errors import counted
from detection.data.tiles import tiles_sentence
from detection.reporting.run import NamedRuns, Run
from reporting.blocks import NOT_RECORDED, Cell, Code, Number, Table


def facts_table(named: NamedRuns) -> Table:
    """One line per fact, one column per run."""
    rows = [[title, *(read(run) for _, run in named)] for title, read in FACTS.items()]
    columns: list[Cell] = ["", *(name if len(named) > 1 else "" for name, _ in named)]
    return Table(columns, rows, "What was recorded when the runs were made", prose=True)


def duration(seconds: Any) -> Cell:
    """Seconds in readable units: 43 s, 7 min 32 s, 3 h 5 min."""
    if not isinstance(seconds, int | float):
        return NOT_RECORDED
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def encoder_sentence(run: Run) -> str:
    """Where the encoder's weights came from, with the counts."""
    if "encoder" not in run.facts:
        return f"encoder's weights: {NOT_RECORDED}"
    encoder = run.fact("encoder")
    if encoder is None:
        return "from scratch: no weights were loaded"
    if not isinstance(encoder, dict):
        return str(encoder)
    counts = [encoder.get(key, "?") for key in ("loaded", "total")]
    sentence = f"{counts[0]} of {counts[1]} encoder tensors from {encoder.get('source', '?')}"
    if encoder.get("format"):
        sentence += f" (format: {encoder['format']})"
    if encoder.get("new"):
        sentence += f"; {encoder['new']} new: {', '.join(map(str, encoder.get('new_parts') or []))}"
    return sentence


def data_mismatch(runs: Sequence[Run]) -> str | None:
    """Why the runs' metrics must not be compared, or None: they were tested on other data."""
    keys = ("fingerprint", "name")
    for key in keys:
        recorded = [run.fact("datasets", "test", key) for run in runs]
        if all(recorded):
            if len(set(map(str, recorded))) == 1:
                return None
            tested = [str(run.fact("datasets", "test", "name")) for run in runs]
            listed = ", ".join(f"{run.name} on {on}" for run, on in zip(runs, tested, strict=True))
            return (
                f"The runs were not tested on the same data, so no difference is given: {listed}."
            )
    return None


def _fact(*keys: str, cell: Callable[[Any], Cell] = str) -> Callable[[Run], Cell]:
    """A value inside run.json as a cell."""

    def read(run: Run) -> Cell:
        value = run.fact(*keys)
        return NOT_RECORDED if value is None or value == "" else cell(value)

    return read


def _code(value: Any) -> Cell:
    return Code(str(value))


def _number(value: Any) -> Cell:
    return Number(value, digits=0) if isinstance(value, int | float) else NOT_RECORDED


def _versions(run: Run) -> Cell:
    versions = run.fact("versions")
    if not isinstance(versions, dict) or not versions:
        return NOT_RECORDED
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _data(part: str) -> Callable[[Run], Cell]:
    def read(run: Run) -> Cell:
        data = run.fact("datasets", part)
        if not isinstance(data, dict):
            return NOT_RECORDED
        counts = [f"{data[key]} {key}" for key in ("images", "instances") if key in data]
        return f"{data.get('name', 'unnamed')}: {', '.join(counts) or NOT_RECORDED}"

    return read


def started(run: Run) -> Cell:
    """The start as people write it: 2026-06-01 12:00:00 UTC."""
    value = run.fact("started")
    if not value:
        return NOT_RECORDED
    return str(value).replace("T", " ", 1).replace("+00:00", " UTC")


def _iterations(run: Run) -> Cell:
    losses = run.history.get("total_loss")
    return Number(losses[-1][0], digits=0) if losses else NOT_RECORDED


def _of_weights(read: Callable[[Run], Cell]) -> Callable[[Run], Cell]:
    return lambda run: "no weights" if run.facts.get("encoder", "") is None else read(run)


def _pixels(run: Run) -> Cell:
    """Mean and deviation that images were normalised by, and whence they came."""
    origin = run.fact("pixel_statistics")
    values = [run.config.get(f"MODEL.PIXEL_{name}") for name in ("MEAN", "STD")]
    if not origin or not all(isinstance(row, list) and row for row in values):
        return NOT_RECORDED
    mean, std = (" ".join(f"{value:.5g}" for value in row) for row in values if row)
    return f"mean {mean}, deviation {std} of 0 to 255 ({origin})"


def _augmentation(run: Run) -> Cell:
    found = run.fact("augmentation")
    return ", ".join(found) or "none" if isinstance(found, list) else NOT_RECORDED


def _validation_data(run: Run) -> Cell:
    sets = run.fact("datasets", "val") or []
    return (
        "; ".join(f"{each['name']}: {counted(each['images'], 'image')}" for each in sets) or "none"
    )


def chosen_weights(run: Run) -> Cell:
    """Which step's weights the results are of, and what chose them."""
    found = run.fact("validation")
    if not isinstance(found, dict) or not (best := found.get("best")):
        return "those after the last step"
    average = ", averaged" if best["weights"] == "average" else ""
    # Patience that ends with the last step has cut nothing off.
    last = run.config.get("SOLVER.MAX_ITER", math.inf)
    is_early = found.get("stopped") and found["stopped"] < last
    stopped = f"; stopped early at {found['stopped']}" if is_early else ""
    value = f"{found['metric']} {best['value']:.2f} on the validation data"
    return f"those after step {best['iteration']}{average}: {value}{stopped}"


def _tiles(run: Run) -> Cell:
    """Whether images were taken in tiles, and what the test images' tiles came to."""
    if not run.config:
        return NOT_RECORDED
    if not run.config.get("INPUT.TILES.ENABLED"):
        return "none: whole images"
    size, overlap = (run.config.get(f"INPUT.TILES.{name}") for name in ("SIZE", "OVERLAP"))
    of_training = f"trained on tiles of {size} pixels"
    tested = run.metrics.get("tiles")
    if not tested:
        return f"{of_training}; an overlap of {overlap} in tests"
    return f"{of_training}; tested: {tiles_sentence(tested)}"


FACTS: dict[str, Callable[[Run], Cell]] = {
    "Engine": _fact("engine"),
    "Encoder's weights": encoder_sentence,
    "Weights' fingerprint": _of_weights(_fact("encoder", "fingerprint", cell=_code)),
    "Weights' licence": _of_weights(_fact("encoder", "licence")),
    "Pixels": _pixels,
    "Tiles": _tiles,
    "Parameters": _fact("parameters", cell=_number),
    "Training data": _data("train"),
    "Training data's fingerprint": _fact("datasets", "train", "fingerprint", cell=_code),
    "Augmentation": _augmentation,
    "Validation data": _validation_data,
    "Weights of the results": chosen_weights,
    "Test data": _data("test"),
    "Test data's fingerprint": _fact("datasets", "test", "fingerprint", cell=_code),
    "Seed": _fact("seed"),
    "Iterations": _iterations,
    "Started": started,
    "Training time": _fact("train_seconds", cell=duration),
    "Prediction time": _fact("predict_seconds", cell=duration),
    "Peak memory (MB)": _fact("peak_memory_mb", cell=_number),
    "Device": _fact("device"),
    "Versions": _versions,
    "Commit": _fact("git_commit", cell=_code),
    "Command": _fact("command", cell=_code),
    "Config file": _fact("config_file", cell=_code),
}
