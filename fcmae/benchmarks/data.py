"""Measures whether the input pipeline keeps up with pretraining.

Images are read, cropped and masked as in a pretraining run. *images/s a worker* refers to processor
time in one process. *data wait* is the fraction of the time that steps of a real run
(:func:`fcmae.pretrain.pretrain`) waited for their batch, by its ``metrics.json``, without the first
WARM_UP steps. *index tables* (:mod:`fcmae.packed_mask`) is the fraction of a worker's time for a
batch that they take.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fcmae.benchmarks.steps import EncoderCase
from fcmae.data import collate, pretraining_samples
from fcmae.masking import grid_size, random_mask
from fcmae.packed_mask import PackedMask
from fcmae.pretrain import pretrain
from fcmae.pretrain_options import PretrainOptions
from training.data import SampleKey, SeededSamples
from training.records.measure import Row

WARM_UP = 2  # steps that wait for the workers to start
BATCHES = 16  # number of batches that are read and timed in one process
SYNTHETIC = (24, 375, 500)  # images, height, width: ImageNet's usual size
LARGE_FILES = [  # kind, ending, height, width
    ("24 MP JPEG", ".jpg", 4000, 6000),
    ("12 MP PNG", ".png", 3000, 4000),
    ("12 MP TIFF", ".tif", 3000, 4000),
]
ROUNDS, INDEX_ROUNDS = 3, 30
PIXELS = 224  # of the sides of a sample


def data_case(
    case: EncoderCase, workers: int, steps: int, data: Path | None = None, device: str = "cpu"
) -> Row:
    """One line of the table; writes to a temporary folder only.

    Args:
        steps: number of steps that are counted.
        data: a folder of images; None for synthetic JPEG files.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = data or write_photographs(Path(folder) / "images")
        samples = pretraining_samples(str(source), [case.image_size] * 2, case.mask_ratio)
        rate = images_per_second(SeededSamples(samples, seed=0), case.batch)
        options = PretrainOptions(
            model=case.size,
            data=str(source),
            output_dir=str(Path(folder) / "run"),
            image_size=(case.image_size, case.image_size),
            batch_size=case.batch,
            max_steps=WARM_UP + steps,
            mask_ratio=case.mask_ratio,
            precision="bf16" if case.precision == "bf16" else "no",
            workers=workers,
            device=device,
            log_every=1,
            panel_every=10**9,
            measure_features_every=0,
            trackers=(),
        )
        pretrain(options)
        lines = (Path(folder) / "run" / "metrics.json").read_text(encoding="utf-8").splitlines()
    timed = [json.loads(line) for line in lines][WARM_UP:]
    seconds, waited = (sum(line[name] for line in timed) for name in ("time", "data_time"))
    tables = index_seconds(case)
    return {
        "images": f"{len(samples)} {'of ' + data.name if data else 'synthetic 500x375 JPEG'}",
        "encoder": case.size,
        "precision": case.precision,
        "batch": case.batch,
        "pixels": case.image_size,
        "workers": workers,
        "images/s a worker": rate,
        "step ms": 1e3 * seconds / len(timed),
        "data wait %": 100 * waited / seconds,
        "index tables ms": 1e3 * tables,
        "index tables, % of a worker": 100 * tables * rate / case.batch,
    }


def write_photographs(
    folder: Path,
    count: int = SYNTHETIC[0],
    height: int = SYNTHETIC[1],
    width: int = SYNTHETIC[2],
    suffix: str = ".jpg",
) -> Path:
    """Write images of smooth noise with edges; the files are about as large as photographs."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.zeros((height, width, 3))
        for cells in (4, 16, 64):
            coarse = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
            pixels += np.asarray(Image.fromarray(coarse).resize((width, height))) / 3
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}{suffix}", quality=90)
    return folder


def images_per_second(samples: SeededSamples, batch: int) -> float:
    """How many images one loader process reads and collates per second of processor time.

    The images are evenly spread over the data set.
    """
    count = batch * BATCHES
    with _one_thread():
        samples[SampleKey(0, 0)]
        began = time.process_time()
        for first in range(0, count, batch):
            places = range(first, first + batch)
            keys = [SampleKey(0, place * len(samples) // count) for place in places]
            collate([samples[key][1] for key in keys])
        return count / (time.process_time() - began)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside this context torch uses one thread, as in a loader's worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def index_seconds(case: EncoderCase) -> float:
    """Processor time that one loader process takes to make a batch's index tables."""
    mask = random_mask(case.batch, grid_size(case.image_size, case.image_size), case.mask_ratio)
    with _one_thread():
        PackedMask.of(mask)
        began = time.process_time()
        for _ in range(INDEX_ROUNDS):
            PackedMask.of(mask)
        return (time.process_time() - began) / INDEX_ROUNDS


def large_case() -> list[Row]:
    """Images per second of a worker, by kind of file, and the ratio to small files.

    Photographs of 24 megapixels as JPEG and of 12 as PNG and TIFF, with and without shrunk copies
    (``--cache``). All kinds are measured in turn.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources: dict[str, tuple[Path, Path | None]] = {
            "small JPEG": (write_photographs(folder / "small"), None)
        }
        for kind, suffix, height, width in LARGE_FILES:
            images = write_photographs(folder / kind, 3, height, width, suffix)
            sources[kind] = (images, None)
            sources[f"{kind}, --cache"] = (images, folder / "cache")
        readers = {
            kind: SeededSamples(
                pretraining_samples(str(images), (PIXELS, PIXELS), 0.6, cache=cache), seed=0
            )
            for kind, (images, cache) in sources.items()
        }
        rates: dict[str, list[float]] = {kind: [] for kind in readers}
        for _ in range(ROUNDS):
            for kind, samples in readers.items():
                rates[kind].append(images_per_second(samples, batch=1))
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    return [
        {
            "files": kind,
            "pixels": PIXELS,
            "images/s a worker": rate,
            "/ small files": rate / medians["small JPEG"],
        }
        for kind, rate in medians.items()
    ]
