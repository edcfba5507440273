"""Time and memory of detectors: adapter, engine against engine, each size against R50-FPN.

Compared engines get the same weights and images. Seconds are processor time on a CPU (of all
threads) and time on a GPU, medians over interleaved rounds. Memory is what PyTorch's allocator held
at most, with weights and the optimizer's state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from backbones.convnext import STAGES, build_convnext
from detection.benchmarks.detectors import (
    ENGINES,
    RESNET,
    DetectorCase,
    detectron2_detector,
    torchvision_detector,
)
from training.records.measure import Row, device_clock, interleaved


def adapter_case(case: DetectorCase, rounds: int, device: torch.device) -> Row:
    """Forward time of the detectron2 backbone against the bare encoder, with the same weights."""
    from backbones.d2_adapter import D2ConvNeXt

    torch.manual_seed(0)
    bare = build_convnext(case.size, out_norms=STAGES).to(device).eval()
    adapter = D2ConvNeXt(case.size).to(device).eval()
    adapter.load_state_dict(bare.state_dict())
    images = torch.randn(case.batch, 3, case.image_size, case.image_size, device=device)

    def forward(function: Callable[[Tensor], dict[str, Tensor]]) -> None:
        with torch.no_grad(), case.autocast(device):
            function(images)

    seconds = interleaved(
        {"bare": lambda: forward(bare.forward_features), "adapter": lambda: forward(adapter)},
        rounds,
        device,
        device_clock(device),
    )
    return {
        **case.described(),
        "bare encoder s": seconds["bare"],
        "adapter s": seconds["adapter"],
        "adapter / bare": seconds["adapter"] / seconds["bare"],
    }


def engines_case(case: DetectorCase, rounds: int, device: torch.device) -> list[Row]:
    """Both engines with the same weights: a row for training and one for inference."""
    ours = torchvision_detector(case, device)
    theirs = detectron2_detector(case, device, ours.model.state_dict())
    rows = []
    for what in ("inference", "training"):  # training changes the weights
        runs = {
            "torchvision": ours.infer if what == "inference" else ours.train,
            "detectron2": theirs.infer if what == "inference" else theirs.train,
        }
        seconds = interleaved(runs, rounds, device, device_clock(device))
        memory = {
            "torchvision": ours.mebibytes(runs["torchvision"]),
            "detectron2": theirs.mebibytes(runs["detectron2"]),
        }
        rows.append(
            {
                **case.described(),
                "what": what,
                **{f"{name} s": value for name, value in seconds.items()},
                "time ratio": seconds["torchvision"] / seconds["detectron2"],
                **{f"{name} MiB": value for name, value in memory.items()},
                "memory ratio": memory["torchvision"] / memory["detectron2"],
            }
        )
    return rows


def cost_cases(
    cases: list[DetectorCase], rounds: int, device: torch.device, engine: str
) -> list[Row]:
    """Training and inference of each case on one engine, relative to the first case: R50-FPN."""
    rows: list[Row] = []
    for case in cases:
        detector = ENGINES[engine](case, device)
        runs = {"inference": detector.infer, "training": detector.train}
        (found,) = detector.infer()
        detections = len(found["instances"] if engine == "detectron2" else found["scores"])
        memory = {"inference": detector.mebibytes(detector.infer)}  # before AdamW has a state
        seconds = interleaved(runs, rounds, device, device_clock(device))
        memory["training"] = detector.mebibytes(detector.train)
        reference = rows[0] if rows else None
        row: Row = case.described() | {"detections": detections}
        for what in ("training", "inference"):
            values = {f"{what} s": seconds[what], f"{what} MiB": memory[what]}
            row |= values
            for name, value in values.items():
                row[f"{name} / {RESNET}"] = value / reference[name] if reference else 1.0
        rows.append(row)
    return rows
