"""What an export costs: AP and time of ONNX files beside the PyTorch detector's."""

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
from torch.nn import functional as F

from backbones.errors import InputError
from detection.data.transforms import DetectionSamples
from detection.dataset import CocoDataset
from detection.engines.torchvision.engine import tasks
from detection.engines.torchvision.model import MaskRCNN
from detection.engines.torchvision.predict import coco_results
from detection.engines.torchvision.roi import rescale_detections
from detection.evaluate import coco_metrics
from reporting import tables
from training.progress import progress
from training.records.measure import interleaved

logger = logging.getLogger(__name__)

ExportedForward = Callable[[dict[str, Any]], dict[str, Tensor]]
TORCH = "PyTorch"


def onnx_detector(path: str | Path, padded: float = 1.0) -> ExportedForward:
    """A function like the model's, of one sample, that runs an exported detector on the CPU.

    Args:
        padded: zeros below and at the right make each side that many times as long, as in a batch
            with a larger image.

    Raises:
        InputError: if onnxruntime cannot read the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own types, one for each status
        raise InputError(f"{path} is no ONNX file that onnxruntime reads: {error}") from None
    names = [output.name for output in session.get_outputs()]
    takes_real_numbers = session.get_inputs()[0].type == "tensor(float)"

    def detect(sample: dict[str, Any]) -> dict[str, Tensor]:
        image = sample["image"]
        size = (image.shape[1], image.shape[2])
        more = [round((padded - 1) * side) for side in size]
        images = F.pad(image[None], (0, more[1], 0, more[0]))
        images = images.float() if takes_real_numbers else images
        inputs = {"images": images.numpy(), "sizes": torch.tensor([size]).numpy()}
        values = map(torch.from_numpy, session.run(None, inputs))
        found = dict(zip(names, values, strict=True))
        del found["image"]
        return rescale_detections(found, size, (sample["height"], sample["width"]), paste=False)

    return detect


def torch_detector(model: MaskRCNN) -> ExportedForward:
    """The same of the model itself."""

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
        metrics = coco_metrics(dataset.annotations, file, tasks(config))
    return {task: metrics[task]["AP"] for task in tasks(config)}


def compare(
    config: CfgNode,
    model: MaskRCNN,
    files: Mapping[str, Path],
    dataset: CocoDataset,
    timed_images: int = 10,
    padded: Sequence[float] = (),
) -> list[dict[str, Any]]:
    """A row for PyTorch and for each file: size (MB), AP of each task, seconds per image, ratio.

    Args:
        files: name -> ONNX file.
        dataset: AP is measured on all of it.
        timed_images: of it, how many are timed, all variants in turn, by processor time.
        padded: a further row for each file and for each of these, see :func:`onnx_detector`.
    """
    samples = DetectionSamples(dataset, config, training=False)
    variants = {TORCH: torch_detector(model.eval())}
    for name, path in files.items():
        variants[name] = onnx_detector(path)
        for times in padded:
            variants[f"{name}, sides padded to {times:g}x"] = onnx_detector(path, times)
    timed = [samples[index] for index in range(min(timed_images, len(samples)))]

    def over_images(detect: ExportedForward) -> Callable[[], None]:
        def run() -> None:
            for sample in timed:
                detect(sample)

        return run

    runs = {name: over_images(detect) for name, detect in variants.items()}
    seconds = interleaved(runs, rounds=3, device=torch.device("cpu"), clock=time.process_time)
    parameters = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    rows = []
    for name, detect in variants.items():
        file = files.get(name.partition(", sides padded")[0])
        size = file.stat().st_size if file else parameters
        rows.append(
            {
                "file": name,
                "mb": size / 1e6,
                **average_precisions(config, dataset, samples, detect, name),
                "seconds": seconds[name] / len(timed),
                "ratio": seconds[name] / seconds[TORCH],
            }
        )
    return rows


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
