"""What the golden file says of a detector on a batch, in JSON's types; read back for comparison."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from golden import inputs
from pycocotools import mask as rle
from torch import Tensor
from two_engines import Detections, Detectron2Detector, TorchvisionDetector

FILE = inputs.FOLDER / "detectron2.json"
SAMPLES = 4  # of each gradient, at even distances


def build(case: inputs.Case, engine: type) -> TorchvisionDetector | Detectron2Detector:
    """A golden detector of an engine with its weights."""
    with inputs.tiny_encoder():
        detector = engine(case.config())
    detector.load(case.state(shapes(detector)))
    return detector


def shapes(detector: TorchvisionDetector | Detectron2Detector) -> dict[str, list[int]]:
    """The shapes of a detector's tensors, by detectron2's names."""
    return {name: list(tensor.shape) for name, tensor in detector.state().items()}


def compute(case: inputs.Case, engine: type) -> dict[str, Any]:
    """An engine's detections, losses and gradients, and the shapes of its weights."""
    detector, samples = build(case, engine), case.samples()
    losses, gradients = detector.learn(samples)
    return {
        "shapes": shapes(detector),
        "detections": [pack(found) for found in detector.detect(samples)],
        "losses": losses,
        "gradients": {name: summary(gradient) for name, gradient in gradients.items()},
    }


def pack(found: Detections) -> dict[str, Any]:
    """Detections in JSON's types; masks as compressed run lengths."""
    columns = found.masks.permute(1, 2, 0).to(torch.uint8).numpy()
    return {
        "boxes": [[exact(value) for value in box] for box in found.boxes.tolist()],
        "scores": [exact(value) for value in found.scores.tolist()],
        "classes": found.classes.tolist(),
        "size": list(found.masks.shape[1:]),
        "masks": [code["counts"].decode() for code in rle.encode(np.asfortranarray(columns))],
    }


def unpack(packed: dict[str, Any]) -> Detections:
    """The inverse of :func:`pack`."""
    codes = [{"size": packed["size"], "counts": counts.encode()} for counts in packed["masks"]]
    masks = [torch.from_numpy(rle.decode(code)).bool() for code in codes]
    return Detections(
        torch.tensor(packed["boxes"]).view(-1, 4),
        torch.tensor(packed["scores"]),
        torch.tensor(packed["classes"], dtype=torch.int64),
        torch.stack(masks) if masks else torch.zeros(0, *packed["size"], dtype=torch.bool),
    )


def summary(gradient: Tensor) -> list[float]:
    """The gradient's length, and a few of its values."""
    values = gradient.flatten()
    some = values[:: max(1, len(values) // SAMPLES)][:SAMPLES]
    return [exact(value) for value in (gradient.norm().item(), *some.tolist())]


def exact(value: float) -> float:
    """A float32 in as few digits as name it."""
    return float(f"{value:.9g}")


def read() -> dict[str, dict[str, Any]]:
    """The golden file: what :func:`compute` gave with detectron2, by case."""
    return json.loads(FILE.read_text())
