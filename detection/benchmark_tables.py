"""The tables of ``tools/benchmark.py detection``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from detection.benchmark import (
    RESNET,
    Case,
    adapter_case,
    cost_cases,
    engines_case,
    why_no_detectron2,
)
from detection.benchmark_evaluation import evaluation_case
from training.measure import Row

ADAPTER_PIXELS, ADAPTER_ROUNDS = 224, 30  # small and often: what the adapter adds is constant


def detection_tables(
    shapes: Sequence[tuple[str, str, int, int]],
    rounds: int,
    device: torch.device,
    evaluation_images: int,
) -> dict[str, list[Row]]:
    """Tables by their heading.

    Args:
        shapes: encoder, precision, images of a training step, and image side in pixels.
        rounds: that are counted.
        evaluation_images: of the synthetic results to evaluate; 0 for none.
    """
    cases = [Case(*shape) for shape in shapes]
    tables: dict[str, list[Row]] = {}
    if missing := why_no_detectron2():
        tables["adapter and engines"] = [{"skipped": missing}]
    else:
        small = [replace(case, batch=1, image_size=ADAPTER_PIXELS) for case in cases]
        tables["detectron2's adapter"] = [
            adapter_case(case, ADAPTER_ROUNDS * rounds, device) for case in small
        ]
        tables["the two engines"] = [
            row for case in cases for row in engines_case(case, rounds, device)
        ]
    references = dict.fromkeys(replace(case, size=RESNET) for case in cases)
    tables["cost on the torchvision engine"] = [
        row
        for reference in references
        for row in cost_cases(
            [reference, *(case for case in cases if replace(case, size=RESNET) == reference)],
            rounds,
            device,
        )
    ]
    if evaluation_images:
        tables["evaluation of box and mask results"] = [evaluation_case(evaluation_images)]
    return tables
