"""Processor time and memory of each step of work on a data set of COCO's size.

The annotations are synthetic: 118,000 images, 860,000 objects of 80 classes, 1% of them crowds in
run lengths, the others polygons of about 26 corners, as in COCO. SHAPES different objects are
repeated; a parser still builds each one anew. The images are hard links to a few JPEG files.

Every step runs in a fresh process. Seconds are processor time of all its threads, without imports.
Memory is what the process itself holds at its peak, imports included.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle_codec

import det_configs
from backbones.errors import InputError
from detection.benchmarks.evaluation import CLASSES, HEIGHT, WIDTH, write_synthetic
from detection.config import load_config
from detection.data.check import check_coco
from detection.data.checks.segmentations import run_lengths
from detection.data.transforms import DetectionSamples
from detection.dataset import CocoDataset, load_dataset, warn_of_shared_images
from detection.evaluate import coco_metrics
from detection.evaluation.diagnosis import diagnose
from training.data import BatchOrder, SeededSamples
from training.records.environment import peak_rss_mb
from training.records.measure import Row
from training.records.measure import in_fresh_process as _fresh

IMAGES, OBJECTS = 118_000, 860_000  # of COCO's train2017: 118,287 and 860,001
CROWDS = 0.01
SHAPES = 2000  # that are drawn, and repeated
PICTURES = 8
TEST_SHARE = 20  # one image of the test set for so many of the training set
BATCH, SAMPLES = 16, 200
EVALUATED, DETECTIONS = 5000, 100  # images, and detections of each
CONFIG = Path(det_configs.__file__).parent / "coco/mask_rcnn_convnextv2_base_fcmae_lsj3x.yaml"


def load_tables(images: int, objects: int) -> dict[str, list[Row]]:
    """Tables by their heading: of a training set of this size, and of an evaluation."""
    if min(images, objects) < 1:
        raise InputError(f"{images} images with {objects} objects: give at least 1 of each")
    evaluated = min(images, EVALUATED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _fresh(_write, folder, images, objects, evaluated)
        data = [row for work in (_check, _check_files, _train) for row in _fresh(work, folder)]
        results = [row for work in (_evaluate, _diagnose) for row in _fresh(work, folder)]
    return {
        f"{images} images, {objects} objects": data,
        f"evaluation of {evaluated} images x {DETECTIONS} detections, boxes and masks": results,
    }


def _measured(what: str, work: Callable[[], Any]) -> tuple[Any, Row]:
    began = time.process_time()
    value = work()
    return value, {"what": what, "s": time.process_time() - began, "peak MiB": peak_rss_mb()}


def _write(folder: Path, images: int, objects: int, evaluated: int) -> None:
    random = np.random.default_rng(0)
    pictures = [folder / f"picture{number}.jpg" for number in range(PICTURES)]
    for picture in pictures:
        coarse = random.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
        Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(picture)
    for split, share in (("train", 1), ("val", TEST_SHARE)):
        (folder / split).mkdir()
        number = max(images // share, 1)
        for image in range(1, number + 1):
            os.link(pictures[image % PICTURES], folder / split / f"{image:012}.jpg")
        write_annotations(folder / f"{split}.json", number, max(objects // share, 1))
    write_synthetic(folder, evaluated, DETECTIONS)


def write_annotations(path: Path, images: int, objects: int) -> None:
    """Write COCO annotations of ``images`` images with ``objects`` objects, crowds among them."""
    random = np.random.default_rng(0)
    polygons, crowds = [], []
    for number in range(SHAPES):
        polygon, box = _shape(random)
        area = float(rle_codec.area(rle_codec.frPyObjects([polygon], HEIGHT, WIDTH))[0])
        polygons.append(_entry([polygon], box, area, 0))
        if number < SHAPES * CROWDS:
            crowds.append(_entry(_run_lengths(polygon), box, area, 1))
    owners = np.sort(random.integers(1, images + 1, objects)).tolist()
    kinds = random.integers(0, SHAPES, objects).tolist()
    classes = random.integers(1, CLASSES + 1, objects).tolist()
    with path.open("w", encoding="utf-8") as file:
        file.write('{"images": [')
        for number in range(1, images + 1):
            entry = {"id": number, "file_name": f"{number:012}.jpg"}
            entry |= {"height": HEIGHT, "width": WIDTH}
            file.write(f"{', ' if number > 1 else ''}{json.dumps(entry)}")
        file.write('], "annotations": [')
        drawn = zip(owners, kinds, classes, strict=True)
        for number, (image, kind, category) in enumerate(drawn, 1):
            shapes = crowds if number % round(1 / CROWDS) == 0 else polygons
            file.write(
                f'{", " if number > 1 else ""}{{"id": {number}, "image_id": {image}, '
                f'"category_id": {category}, {shapes[kind % len(shapes)]}}}'
            )
        categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(CLASSES)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def _shape(random: np.random.Generator) -> tuple[list[float], list[float]]:
    """A polygon with a rough outline, and its box [x, y, width, height]; pixels."""
    corners = int(np.clip(random.lognormal(3.0, 0.7), 4, 300))
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radii = np.exp(random.uniform(np.log(6), np.log(150), 2))
    outline = np.stack([np.cos(angle), np.sin(angle)]) * random.uniform(0.8, 1.0, corners)
    centre = random.uniform((0, 0), (WIDTH, HEIGHT))
    x, y = (centre[:, None] + radii[:, None] * outline).clip(0, [[WIDTH], [HEIGHT]]).round(2)
    sides = [round(float(np.ptp(values)), 2) for values in (x, y)]
    return np.stack([x, y], axis=1).ravel().tolist(), [float(x.min()), float(y.min()), *sides]


def _run_lengths(polygon: list[float]) -> dict[str, Any]:
    """An uncompressed run-length encoding, as COCO has it for crowds."""
    (rle,) = rle_codec.frPyObjects([polygon], HEIGHT, WIDTH)
    return {"size": [HEIGHT, WIDTH], "counts": run_lengths(rle["counts"].decode()).tolist()}


def _entry(segmentation: Any, box: list[float], area: float, is_crowd: int) -> str:
    entry = {"segmentation": segmentation, "bbox": box, "area": area, "iscrowd": is_crowd}
    return json.dumps(entry)[1:-1]


def _check(folder: Path) -> list[Row]:
    files = folder / "train.json", folder / "train"
    return [
        _measured("imports alone", lambda: None)[1],
        _measured("check of the annotations", lambda: check_coco(*files, check_images=False))[1],
    ]


def _check_files(folder: Path) -> list[Row]:
    files = folder / "train.json", folder / "train"
    check = "check of annotations and images' headers"
    return [_measured(check, lambda: check_coco(*files, decode=False))[1]]


def _train(folder: Path) -> list[Row]:
    """What a training does before and in its steps; each peak includes the earlier ones."""

    def load(split: str) -> CocoDataset:
        return load_dataset(f"json:{folder / split}.json:{folder / split}")

    def draw(data: DetectionSamples) -> SeededSamples:
        batches = iter(BatchOrder(len(data), BATCH, seed=0))
        for _ in range(-(-len(data) // BATCH)):
            next(batches)
        return SeededSamples(data, 0)

    def decode(seeded: SeededSamples) -> None:
        keys = (key for batch in BatchOrder(len(seeded), 1, seed=0) for key in batch)
        for key in itertools.islice(keys, SAMPLES):
            seeded[key]

    rows: list[Row] = []

    def then(what: str, work: Callable[[], Any]) -> Any:
        value, row = _measured(what, work)
        rows.append(row)
        return value

    train = then("training: load, with this check", lambda: load("train"))
    test = then("training: load the test set", lambda: load("val"))
    then("training: compare the sets' files", lambda: warn_of_shared_images(train, test))
    then("training: fingerprint", lambda: train.fingerprint)
    data = DetectionSamples(train, load_config(CONFIG), training=True)
    seeded = then("training: an epoch's order", lambda: draw(data))
    then(f"training: {SAMPLES} samples of 1024 pixels", lambda: decode(seeded))
    return rows


def _evaluate(folder: Path) -> list[Row]:
    files = folder / "truth.json", folder / "results.json"
    return [_measured("COCO metrics", lambda: coco_metrics(*files))[1]]


def _diagnose(folder: Path) -> list[Row]:
    files = folder / "truth.json", folder / "results.json"
    return [_measured("diagnosis", lambda: diagnose(*files))[1]]
