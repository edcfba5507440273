"""Plans a training of UPerNet by rules; a few steps of it are timed.

As in :mod:`detection.plan`, each value has its reason, and no trial trainings are compared. Class
weights are not planned, because nothing was measured with them.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from backbones.errors import InputError, counted
from backbones.whole_files import write_json
from images.files import Reading
from images.plans import (
    Request,
    Timer,
    channels_and_depth,
    plan_channels,
    plan_datasets,
    plan_device,
    plan_iterations,
    plan_weights,
    statistics_from_nothing,
    steps_in_time,
    timed_at_best_side,
    timed_in_memory,
    timed_on,
)
from images.statistics import Statistics
from segmentation.check import Checked, check_segmentation
from segmentation.config import load_config
from segmentation.dataset import SegmentationDataset, load_segmentation
from segmentation.upernet import IGNORED
from training.config_files import get
from training.data import evenly_spread
from training.plans import TIMED_STEPS, Plan, Timing, plan_loader
from training.progress import progress

CPU_BASE = "quick/upernet_convnextv2_atto_scratch_quick.yaml"
GPU_BASE = "ade20k/upernet_convnextv2_atto_scratch_160k.yaml"
MEASURED = 200  # class maps whose regions are measured
LEAST_REGION = 16  # pixels of area; smaller regions are noise of the labelling
MIDDLE = 32  # pixels that half of the regions get at least: eight places of the finest map
SIDES = (128, 160, 192, 224, 256, 320, 384, 448, 512)
LONGEST = 4.0  # longer side / shorter side: ADE20K's 2048 / 512
CROP = 5 / 6  # side of a crop / shorter side, as in the quick config: 160 / 192
CPU_BATCH, GPU_BATCH = 4, 16
TIMED_IMAGES = (32, 8)
WANTED_STEPS, RICH_STEPS = 300, 3000  # the quick config's; see detection.plan.rules


@dataclass(frozen=True)
class Survey:
    """A training set in numbers."""

    sizes: np.ndarray  # ``[N, 2]``, height and width of the images that were measured
    # ``[M]``, the square root of the area of each connected region (without the commonest
    # class), as a fraction of its image's frame (``frame_sides``)
    regions: np.ndarray
    # images, test_images: all of them
    images: int
    test_images: int
    names: tuple[str, ...]
    shares: tuple[float, ...]  # of each class, of the labelled pixels
    channels: int
    depth: str
    statistics: Statistics | None = None  # for random weights, where they are planned

    @cached_property
    def short(self) -> float:
        """The images' shorter side, or of longer ones that of a frame of 1 x ``LONGEST``."""
        return float(np.median(frame_sides(self.sizes)))

    def sentence(self) -> str:
        rare = min((share, name) for share, name in zip(self.shares, self.names, strict=True))
        side = np.median(self.sizes.min(1))
        return (
            f"{counted(self.images, 'image')} of {counted(len(self.names), 'class')} (shorter side "
            f"{side:.0f} pixels); the rarest is {rare[1]} with {rare[0]:.2%} of the pixels"
        )


def plan_segmentation(request: Request) -> tuple[Plan, Survey, Timing]:
    """The plan, the survey that it is based on, and the timing of a training by it.

    Raises:
        InputError: for data that a training would refuse, or too little time.
    """
    sets = [load_segmentation(name) for name in (*request.train, *request.test)]
    reading = Reading(channels=None)
    checked = [check_segmentation(dataset, reading) for dataset in sets]
    if errors := [error for one in checked for error in one.errors]:
        raise InputError("\n".join(errors))
    numbers = survey(sets[0], checked[0], len(sets[1].records) if sets[1:] else 0)
    if request.encoder is None:
        paths = [record.image for record in sets[0].records]
        found = statistics_from_nothing(paths, numbers.channels, numbers.depth)
        numbers = replace(numbers, statistics=found)
    with tempfile.TemporaryDirectory(prefix="plan_") as name:
        folder = Path(name)
        parts = [
            write_part(dataset, folder / split, count)
            for dataset, split, count in zip(sets, ("train", "test"), TIMED_IMAGES, strict=False)
        ]

        def timer(plan: Plan) -> Timing:
            tested = min(TIMED_IMAGES[1], numbers.test_images)
            return timed_on(parts, plan, "segment", folder / "plan.yaml", tested, False)

        plan, timing = decide(request, numbers, timer)
    return plan, numbers, timing


def frame_sides(sizes: np.ndarray) -> np.ndarray:
    """``[N, 2]`` -> ``[N]``, the shorter side of the least frame of 1 x ``LONGEST`` around each.

    An image is resized by side / frame: a panorama more than its shorter side tells.
    """
    return np.maximum(sizes.min(1), sizes.max(1) / LONGEST)


def survey(dataset: SegmentationDataset, checked: Checked, test_images: int) -> Survey:
    """Measure the regions of up to ``MEASURED`` class maps."""
    commonest = int(checked.pixels.argmax())
    sizes, regions = [], []
    chosen = [dataset.records[i] for i in evenly_spread(dataset.records, MEASURED)]
    for record in progress(chosen, "measuring regions", unit="map"):
        labels = dataset.class_map(record)
        sizes.append(labels.shape)
        (frame,) = frame_sides(np.array([labels.shape]))
        for index in set(np.unique(labels).tolist()) - {commonest, IGNORED}:
            found = cv2.connectedComponentsWithStats((labels == index).astype(np.uint8))[2]
            areas = found[1:, cv2.CC_STAT_AREA]
            regions += (np.sqrt(areas[areas >= LEAST_REGION]) / frame).tolist()
    channels, depth = channels_and_depth([record.image for record in dataset.records])
    shares = checked.pixels / max(1, checked.pixels.sum())
    return Survey(
        np.array(sizes), np.array(regions or [1.0]), len(dataset.records), test_images,
        dataset.classes.names, tuple(shares.tolist()), channels, depth,
    )  # fmt: skip


def decide(request: Request, numbers: Survey, timer: Timer) -> tuple[Plan, Timing]:
    """Apply the rules; ``timer`` is called a few times to time a training.

    Raises:
        InputError: for too little time or memory.
    """
    machine, images = request.machine, numbers.test_images
    plan = Plan(GPU_BASE if machine.is_gpu else CPU_BASE)
    plan_device(plan, machine)
    plan_datasets(plan, request, images)
    plan.set("MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(numbers.names), "the data set's")
    plan_channels(plan, numbers.channels, numbers.depth, request.encoder, numbers.statistics)
    if "MODEL.CONVNEXT.ADAPT_CHANNELS" in plan.choices:
        raise InputError(
            f"the encoder takes {request.encoder and request.encoder.in_chans} channels and the "
            f"images have {numbers.channels}: convert it first, or plan without --encoder"
        )
    plan_weights(plan, request.encoder)
    plan_loader(plan, machine)
    is_colour = plan["INPUT.FORMAT"] == "RGB" and numbers.depth == "8 bits"
    why = "colours of photographs vary" if is_colour else "it is for RGB of 8 bits"
    plan.set("INPUT.DISTORT", is_colour, why)
    batch = min(GPU_BATCH if machine.is_gpu else CPU_BATCH, numbers.images)
    plan.set("SOLVER.IMS_PER_BATCH", batch, "the base's, but no more than there are images")
    plan_iterations(plan, TIMED_STEPS, numbers.images, "timed", most_warmup=1500)
    wanted = wanted_side(numbers)
    timing = timed_at_best_side(
        plan,
        wanted,
        lambda steps: side_for_time(wanted, steps, numbers),
        lambda side, trade: plan_side(plan, numbers, side, trade),
        lambda timing: timing.iterations(request.minutes, images),
        timer,
    )
    timing = timed_in_memory(
        plan,
        timing,
        machine,
        lambda batch: plan.set("SOLVER.IMS_PER_BATCH", batch, "for the memory"),
        timer,
    )
    steps, why = steps_in_time(plan, request, timing, numbers.images, images)
    plan_iterations(plan, steps, numbers.images, why, most_warmup=1500)
    return plan, timing


def wanted_side(numbers: Survey) -> int:
    """The shorter side at which half of the regions have ``MIDDLE`` pixels.

    Images are not enlarged, except to the smallest side.
    """
    half = float(np.median(numbers.regions))
    allowed = [side for side in SIDES if side <= numbers.short] or SIDES[:1]
    return next((side for side in allowed if half * side >= MIDDLE), allowed[-1])


def side_for_time(wanted: int, steps: int, numbers: Survey) -> int:
    """A smaller side (at least half) if there is little time, a larger one if there is much."""
    if steps < WANTED_STEPS:
        least = max(wanted / 2, wanted * (max(steps, 1) / WANTED_STEPS) ** 0.5)
        return min(side for side in SIDES if side >= min(least, wanted))
    if steps > RICH_STEPS:
        most = min(numbers.short, wanted * (steps / RICH_STEPS) ** 0.5)
        return max([wanted, *(side for side in SIDES if side <= most)])
    return wanted


def plan_side(plan: Plan, numbers: Survey, side: int, why: str) -> None:
    """Plan resolution and crop, the same in training and test."""
    half = float(np.median(numbers.regions)) * side
    scale = [int(side * LONGEST), side]
    plan.set("INPUT.SCALE", scale, f"half of the regions have {half:.0f} pixels or more{why}")
    crop = max(128, round(CROP * side / 32) * 32)
    plan.set("INPUT.CROP.SIZE", [crop, crop], "five sixths of it, as in the quick config")
    plan.set("TEST.SCALE", scale, "as in training")
    plan.set("TEST.SLIDE.ENABLED", False, "whole images are small enough at this size")


def base_values(plan: Plan) -> dict[str, Any]:
    """The base config's values of the chosen keys."""
    config = load_config(plan.base)
    return {key: get(config, key) for key in plan.choices}


def write_part(dataset: SegmentationDataset, folder: Path, count: int) -> str:
    """Write a part of a data set, evenly spread; returns the part's name."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number, index in enumerate(evenly_spread(dataset.records, count)):
        record = dataset.records[index]
        shutil.copyfile(record.image, folder / f"images/{number}{Path(record.image).suffix}")
        cv2.imwrite(str(folder / f"labels/{number}.png"), dataset.class_map(record))
    write_json(folder / "classes.json", list(dataset.classes.names))
    return f"masks:{folder / 'images'}:{folder / 'labels'}:{folder / 'classes.json'}"
