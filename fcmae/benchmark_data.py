"""Whether the input pipeline keeps up with pretraining.

Images are read, cropped and masked as in a pretraining run. *images/s a worker* is of processor
time in one process. *data wait* is what a real run (:func:`fcmae.pretrain.pretrain`) writes to its
``metrics.json``: how long the steps stood still for their batch, as a share of their time, the
first WARM_UP steps aside. *index tables* are what the packed encoder makes of a batch's masks
(:mod:`fcmae.packed`), as a share of the same steps.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backbones.convnext import STRIDES
from fcmae.benchmark import Case
from fcmae.data import collate, pretraining_samples
from fcmae.masking import PATCH, grid_size, random_mask, visible_patches
from fcmae.packed import _Places
from fcmae.pretrain import pretrain
from fcmae.pretrain_options import PretrainOptions
from training.data import SampleKey, SeededSamples
from training.measure import Row

WARM_UP = 2  # steps that wait for the workers to start
SYNTHETIC = (24, 375, 500)  # images, height, width: ImageNet's usual size


def data_case(
    case: Case, workers: int, steps: int, data: Path | None = None, device: str = "cpu"
) -> Row:
    """One line of the table; writes to a temporary folder only.

    Args:
        case: encoder, precision, batch, image size and mask ratio of the run.
        workers: loader processes.
        steps: that are counted.
        data: a folder of images; None for synthetic JPEG files.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = data or write_photographs(Path(folder) / "images")
        samples = pretraining_samples(str(source), [case.image_size] * 2, case.mask_ratio)
        rate = images_per_second(SeededSamples(samples, seed=0), case.batch, batches=4)
        options = PretrainOptions(
            case.size,
            str(source),
            str(Path(folder) / "run"),
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
        lines = (Path(folder) / "run" / "metrics.json").read_text().splitlines()
    timed = [json.loads(line) for line in lines][WARM_UP:]
    seconds, waited = (sum(line[name] for line in timed) for name in ("time", "data_time"))
    tables = index_seconds(case, torch.device(device))
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
        "index tables %": 100 * tables * len(timed) / seconds,
    }


def write_photographs(folder: Path) -> Path:
    """JPEG files of smooth noise with edges, about as large as photographs of their size."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    count, height, width = SYNTHETIC
    for number in range(count):
        pixels = np.zeros((height, width, 3))
        for cells in (4, 16, 64):
            coarse = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
            pixels += np.asarray(Image.fromarray(coarse).resize((width, height))) / 3
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.jpg", quality=90)
    return folder


def images_per_second(samples: SeededSamples, batch: int, batches: int) -> float:
    """Of one loader process: samples and their collation, by processor time."""
    count = batch * batches
    with _one_thread():
        samples[SampleKey(0, 0)]
        began = time.process_time()
        for first in range(0, count, batch):
            keys = [SampleKey(0, i % len(samples)) for i in range(first, first + batch)]
            collate([samples[key][1] for key in keys])
        return count / (time.process_time() - began)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a loader's worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def index_seconds(case: Case, device: torch.device, rounds: int = 30) -> float:
    """Median time until the caller goes on: on a GPU the work itself is queued."""
    grid = grid_size(case.image_size, case.image_size)
    mask = random_mask(case.batch, grid, case.mask_ratio).to(device)
    return _median_seconds(lambda: index_tables(mask), rounds)


def index_tables(mask: Tensor) -> list[_Places]:
    """What :class:`fcmae.packed.PackedEncoder` makes of a mask."""
    patches = visible_patches(mask)
    return [_Places.of_stage(mask, patches, PATCH // stride) for stride in STRIDES.values()]


def _median_seconds(run: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
