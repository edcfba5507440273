"""What predicting costs by the size of an image and the number of detections: seconds and memory.

The whole of ``detection.predict`` on one JPEG file: it is read, detected on, its masks are pasted
and encoded, the overlay is drawn and written. The detector has random weights, so that there are
as many detections as asked for, all drawn, their masks noise: run lengths are as long as they get.
Every case runs in a fresh process; a small image is predicted first, which is not counted.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import det_configs
from detection.config import load_config
from detection.engines.torchvision.model import build_mask_rcnn
from detection.engines.weights import torchvision_to_detectron2
from detection.predict import predict
from training.records.environment import peak_rss_mb
from training.records.measure import Row, in_fresh_process

CONFIG = Path(det_configs.__file__).parent / "quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml"
SHAPES = ((1000, 800, 100), (4000, 3000, 100), (8000, 6000, 10), (8000, 6000, 100))
CLASSES = 3


def prediction_case(width: int, height: int, detections: int, engine: str) -> Row:
    """One row: megapixels, detections, seconds, and MiB that the process grew by at its peak."""
    with tempfile.TemporaryDirectory() as folder:
        return in_fresh_process(_measure, Path(folder), width, height, detections, engine)


def _measure(folder: Path, width: int, height: int, detections: int, engine: str) -> Row:
    run = write_run(folder, detections, engine)
    for name, size in (("small", (64, 48)), ("large", (width, height))):
        coarse = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}.jpg")
    weights = str(folder / "detector.pth")

    def detect(name: str) -> dict[str, int]:
        return predict(run, [str(folder / f"{name}.jpg")], folder / name, 0.0, weights=weights)

    detect("small")
    before, began = resident_mb(), time.perf_counter()
    counts = detect("large")
    return {
        "megapixels": width * height / 1e6,
        "engine": engine,
        "detections": counts["shown"],
        "s": time.perf_counter() - began,
        "MiB more": round(peak_rss_mb() - before),
    }


def write_run(folder: Path, detections: int, engine: str) -> Path:
    """A run of random weights, ``folder/detector.pth``, that finds so many objects everywhere."""
    run = folder / "run"
    run.mkdir()
    settings = {"ENGINE": engine, "OUTPUT_DIR": run, "MODEL.ROI_HEADS.NUM_CLASSES": CLASSES}
    settings |= {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0, "MODEL.DEVICE": "cpu"}
    settings |= {"TEST.DETECTIONS_PER_IMAGE": detections}
    config = load_config(CONFIG, [str(item) for pair in settings.items() for item in pair])
    (run / "config.yaml").write_text(config.dump(), encoding="utf-8")
    categories = [{"id": number, "name": f"class {number}"} for number in range(CLASSES)]
    (run / "run.json").write_text(json.dumps({"categories": categories}), encoding="utf-8")
    torch.manual_seed(0)
    state = torchvision_to_detectron2(build_mask_rcnn(config).state_dict())
    torch.save({"model": state}, folder / "detector.pth")
    return run


def resident_mb() -> float:
    """MiB that this process holds now; at most so far where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_rss_mb()
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
