"""Compare exported ONNX files with the PyTorch detector: AP, size and time."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from detection.data.transforms import DetectionSamples
from detection.dataset import CocoDataset
from detection.engines.torchvision.model import MaskRCNN
from detection.engines.torchvision.predict import coco_results
from detection.evaluate import coco_metrics, tasks_of
from detection.exporting.runtimes import ExportedForward, onnx_detector
from reporting import tables
from training.progress import progress
from training.records.measure import interleaved

logger = logging.getLogger(__name__)

TORCH = "PyTorch"


def torch_detector(model: MaskRCNN) -> ExportedForward:
    """The PyTorch model as a function of one sample, as :func:`onnx_detector` gives for a file."""

    @torch.no_grad()
    def detect(sample: dict[str, Any]) -> dict[str, Tensor]:
        (found,) = model([sample], paste=False)
        return found

    return detect


def average_precisions(
    config: CfgNode,
    dataset: CocoDataset,
    samples: DetectionSamples,
    detect: ExportedForward,
    name: str,
) -> dict[str, float | None]:
    """AP by task, in percent, of one detector."""
    results = []
    for index in progress(range(len(samples)), name, unit="image"):
        sample = samples[index]
        size = (sample["height"], sample["width"])
        results += coco_results(detect(sample), dataset, sample["image_id"], size)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        file.write_text(json.dumps(results), encoding="utf-8")
        metrics = coco_metrics(dataset.annotations, file, tasks_of(config))
    return {task: metrics[task]["AP"] for task in tasks_of(config)}


def compare(
    config: CfgNode,
    model: MaskRCNN,
    files: Mapping[str, Path],
    dataset: CocoDataset,
    timed_images: int = 10,
    padded: Sequence[float] = (),
    runtimes: Sequence[str] = ("onnxruntime",),
) -> list[dict[str, Any]]:
    """A row for PyTorch and for each file: size (MB), AP of each task, seconds per image, ratio.

    Args:
        files: name -> ONNX file.
        dataset: AP is measured on all of it.
        timed_images: how many of its images are timed. All variants run in turn on each; the time
            is processor time.
        padded: a further row for each file and for each of these, see :func:`onnx_detector`.
        runtimes: a row for each file and for each of these, likewise.
    """
    samples = DetectionSamples(dataset, config, training=False)
    variants = {TORCH: torch_detector(model.eval())}
    size_of = {TORCH: sum(p.numel() * p.element_size() for p in model.parameters())}
    for name, path in files.items():
        for runtime in runtimes:
            for times in (1.0, *padded):
                row = name + (f", {runtime}" if len(runtimes) > 1 else "")
                row += f", sides padded to {times:g}x" if times > 1 else ""
                variants[row] = onnx_detector(path, times, runtime)
                size_of[row] = path.stat().st_size
    timed = [samples[index] for index in range(min(timed_images, len(samples)))]

    def over_images(detect: ExportedForward) -> Callable[[], None]:
        def run() -> None:
            for sample in timed:
                detect(sample)

        return run

    runs = {name: over_images(detect) for name, detect in variants.items()}
    seconds = interleaved(runs, rounds=3, device=torch.device("cpu"), clock=time.process_time)
    return [
        {
            "file": name,
            "mb": size_of[name] / 1e6,
            **average_precisions(config, dataset, samples, detect, name),
            "seconds": seconds[name] / len(timed),
            "ratio": seconds[name] / seconds[TORCH],
        }
        for name, detect in variants.items()
    ]


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of :func:`compare` for a document."""
    of_tasks = [task for task in ("bbox", "segm") if task in rows[0]]
    titles = {"bbox": "box AP", "segm": "mask AP"}
    head = ["", "MB", *(titles[task] for task in of_tasks), "ms an image", "of PyTorch's time"]
    lines = [
        [
            row["file"],
            f"{row['mb']:.1f}",
            *("–" if row[task] is None else f"{row[task]:.2f}" for task in of_tasks),
            f"{1000 * row['seconds']:.0f}",
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    return tables.markdown_table(head, lines, right=range(1, len(head)))
