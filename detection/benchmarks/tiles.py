"""What a large image costs by tiles: seconds and memory of ``detection.predict`` on a TIFF.

The TIFF has tiles of 512 pixels, compressed; its pattern of squares takes little room on the disk.
The detector has random weights, so that every tile has detections. Every size runs in a fresh
process; an image of one tile is predicted first, which is not counted.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from detection.benchmarks.prediction import resident_mb, write_run
from detection.predict import predict
from training.records.environment import peak_rss_mb
from training.records.measure import Row, in_fresh_process

SIDES = (5_000, 20_000)  # pixels of the square images
SIZE, OVERLAP, STORED = 1024, 64, 512  # of the tiles that are detected on; of the file's tiles
DETECTIONS = 20  # of a tile


def tiles_case(side: int, engine: str) -> Row:
    """One row: the image's side, seconds, and MiB that the process grew by at its peak."""
    with tempfile.TemporaryDirectory() as folder:
        return in_fresh_process(_measure, Path(folder), side, engine)


def _measure(folder: Path, side: int, engine: str) -> Row:
    run = write_run(folder, DETECTIONS, engine)
    for name, pixels in (("small", SIZE), ("large", side)):
        write_pattern(folder / f"{name}.tif", pixels)
    tiles = ["INPUT.TILES.ENABLED", "True", "INPUT.TILES.SIZE", str(SIZE)]
    tiles += ["INPUT.TILES.OVERLAP", str(OVERLAP)]

    def detect(name: str) -> dict[str, int]:
        paths, weights = [str(folder / f"{name}.tif")], str(folder / "detector.pth")
        return predict(run, paths, folder / name, 0.0, weights=weights, overrides=tiles)

    detect("small")
    before, began = resident_mb(), time.perf_counter()
    counts = detect("large")
    return {
        "side": side,
        "megapixels": side * side / 1e6,
        "engine": engine,
        "detections": counts["shown"],
        "s": time.perf_counter() - began,
        "MiB more": round(peak_rss_mb() - before),
        "MiB of the pixels": round(side * side * 3 / 2**20),
    }


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
