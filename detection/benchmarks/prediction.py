"""Seconds and memory of ``detection.predict`` on one image, whole or by tiles.

The image is read, detected on, its masks are encoded, the overlay is drawn and written. The
detector has random weights: there are as many detections as asked for, all are drawn, and their
masks are noise, so run lengths are as long as they get. Whole images are JPEG files; large ones are
TIFFs of tiles of 512 pixels, whose pattern of squares takes little room on the disk. Every case
runs in a fresh process; a small image is predicted first, which is not counted.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image

import det_configs
from detection.config import load_config
from detection.engines.renaming import torchvision_to_detectron2
from detection.engines.torchvision.model import build_mask_rcnn
from detection.predict import predict
from training.records.environment import peak_rss_mb
from training.records.measure import Row, in_fresh_process

CONFIG = Path(det_configs.__file__).parent / "quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml"
SHAPES = ((1000, 800, 100), (4000, 3000, 100), (8000, 6000, 10), (8000, 6000, 100))
CLASSES = 3
SIDES = (5_000, 20_000)  # pixels of the square images that are predicted by tiles
SIZE, OVERLAP, STORED = 1024, 64, 512  # of the tiles that are detected on; of the file's tiles
TILE_DETECTIONS = 20


def prediction_case(width: int, height: int, detections: int, engine: str) -> Row:
    """A row of a whole image; the memory is what the process grew by at its peak."""
    with tempfile.TemporaryDirectory() as folder:
        return in_fresh_process(_of_whole, Path(folder), width, height, detections, engine)


def _of_whole(folder: Path, width: int, height: int, detections: int, engine: str) -> Row:
    files = [folder / "small.jpg", folder / "large.jpg"]
    for file, size in zip(files, ((64, 48), (width, height)), strict=True):
        coarse = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file)
    facts: Row = {"megapixels": width * height / 1e6, "engine": engine}
    return facts | _measured(folder, files, detections, engine)


def tiles_case(side: int, engine: str) -> Row:
    """A row of a large square image by its tiles."""
    with tempfile.TemporaryDirectory() as folder:
        return in_fresh_process(_of_tiles, Path(folder), side, engine)


def _of_tiles(folder: Path, side: int, engine: str) -> Row:
    files = [folder / "small.tif", folder / "large.tif"]
    for file, pixels in zip(files, (SIZE, side), strict=True):
        write_pattern(file, pixels)
    tiles = ["INPUT.TILES.ENABLED", "True", "INPUT.TILES.SIZE", str(SIZE)]
    tiles += ["INPUT.TILES.OVERLAP", str(OVERLAP)]
    facts: Row = {"side": side, "megapixels": side * side / 1e6, "engine": engine}
    row = facts | _measured(folder, files, TILE_DETECTIONS, engine, tiles)
    return row | {"MiB of the pixels": round(side * side * 3 / 2**20)}


def _measured(
    folder: Path, files: Sequence[Path], detections: int, engine: str, overrides: Sequence[str] = ()
) -> Row:
    """Predict on each file; time and memory of the last one."""
    run, weights = write_run(folder, detections, engine), str(folder / "detector.pth")
    for file in files:
        before, began = resident_mb(), time.perf_counter()
        output = folder / f"{file.stem}_output"
        counts = predict(run, [str(file)], output, 0.0, weights=weights, overrides=overrides)
    return {
        "detections": counts["shown"],
        "s": time.perf_counter() - began,
        "MiB more": round(peak_rss_mb() - before),
    }


def write_run(folder: Path, detections: int, engine: str) -> Path:
    """A run with random weights, ``folder/detector.pth``, that finds so many objects per image."""
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


def write_pattern(path: Path, side: int) -> None:
    """A TIFF of ``side x side`` RGB pixels: squares of 16 pixels in random colours."""
    generator = np.random.default_rng(0)
    squares = generator.integers(0, 256, (8, STORED // 16, STORED // 16, 3), np.uint8)
    patterns = squares.repeat(16, axis=1).repeat(16, axis=2)
    count = -(-side // STORED)

    def tiles() -> Iterator[np.ndarray]:
        for _ in range(count * count):
            yield patterns[generator.integers(len(patterns))]

    tifffile.imwrite(
        path,
        tiles(),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(STORED, STORED),
        compression="zlib",
        photometric="rgb",
    )
