"""The tables of ``tools/benchmark.py detection``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from detection.benchmarks.detectors import ENGINES, RESNET, DetectorCase
from detection.benchmarks.engines import adapter_case, cost_cases, engines_case
from detection.benchmarks.evaluation import evaluation_case
from detection.benchmarks.exported import exported_cases
from detection.benchmarks.prediction import SHAPES, SIDES, prediction_case, tiles_case
from detection.config import has_detectron2
from training.records.measure import Row

PARTS = ("adapter", "engines", "cost", "evaluation", "prediction")
ASKED = ("tiles", "exported")  # what is only measured where it is asked for: it takes long
ADAPTER_PIXELS, ADAPTER_ROUNDS = 224, 30  # a small image, often: the adapter's cost is constant


def detection_tables(
    shapes: Sequence[tuple[str, str, int, int]],
    rounds: int,
    device: torch.device,
    evaluation_images: int,
    parts: Sequence[str] = PARTS,
) -> dict[str, list[Row]]:
    """Tables by their heading.

    Args:
        shapes: encoder, precision, images of a training step, and image side in pixels.
        rounds: measured rounds.
        evaluation_images: of the synthetic results to evaluate; 0 for no evaluation and no
            prediction.
        parts: which of PARTS and ASKED to measure.
    """
    cases = [DetectorCase(*shape) for shape in shapes]
    tables: dict[str, list[Row]] = {}
    missing = "" if has_detectron2() else "detectron2 is not installed"
    if missing and set(parts) - {"evaluation", "exported"}:
        tables["what needs detectron2"] = [{"skipped": missing}]
    if "adapter" in parts and not missing:
        small = [replace(case, batch=1, image_size=ADAPTER_PIXELS) for case in cases]
        tables["detectron2's adapter"] = [
            adapter_case(case, ADAPTER_ROUNDS * rounds, device) for case in small
        ]
    if "engines" in parts and not missing:
        tables["the two engines"] = [
            row for case in cases for row in engines_case(case, rounds, device)
        ]
    if "cost" in parts:
        references = dict.fromkeys(replace(case, size=RESNET) for case in cases)
        for engine in ["torchvision"] if missing else ENGINES:
            tables[f"cost on the {engine} engine"] = [
                row
                for reference in references
                for row in cost_cases(
                    [reference, *(c for c in cases if replace(c, size=RESNET) == reference)],
                    rounds,
                    device,
                    engine,
                )
            ]
    if "evaluation" in parts and evaluation_images:
        tables["evaluation of box and mask results"] = [evaluation_case(evaluation_images)]
    if "prediction" in parts and evaluation_images:
        tables["prediction of one image, by its size"] = [
            prediction_case(*shape, engine)
            for engine in (["torchvision"] if missing else ENGINES)
            for shape in SHAPES
        ]
    if "exported" in parts:
        tables["inference of an exported detector"] = [
            row for case in cases for row in exported_cases(case, rounds)
        ]
    if "tiles" in parts:
        tables["prediction of one large image by its tiles"] = [
            tiles_case(side, engine)
            for engine in (["torchvision"] if missing else ENGINES)
            for side in SIDES
        ]
    return tables
