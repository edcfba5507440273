"""Plan a detection training: read the data, apply the rules, time a few steps, count."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from detection.config import load_config
from detection.data.coco_file import write_coco
from detection.dataset import CocoDataset
from detection.plan import rules, tiles
from detection.plan.survey import LoadedSets, Survey, load_sets, survey
from images.plans import (
    Request,
    Timer,
    plan_channels,
    plan_datasets,
    plan_weights,
    statistics_from_nothing,
    steps_in_time,
    timed_at_best_side,
    timed_in_memory,
    timed_on,
)
from training.config_files import get
from training.data import evenly_spread
from training.plans import TIMED_STEPS, Plan, Timing, plan_loader

TIMED_IMAGES = (64, 12)  # of the training and the test set, in the steps that are timed


def plan_detection(request: Request, by_processor: bool = False) -> tuple[Plan, Survey, Timing]:
    """The plan, the numbers that it was made from, and the time that a training by it takes.

    Args:
        by_processor: minutes are processor time, see :func:`training.plans.timed`.

    Raises:
        InputError: for data that a training would refuse, or minutes that are too few.
    """
    sets = load_sets(request.train, request.test)
    numbers = survey(sets)
    if request.encoder is None:
        paths = sets.train.image_paths()
        found = statistics_from_nothing(paths, numbers.channels, numbers.depth)
        numbers = replace(numbers, statistics=found)
    with tempfile.TemporaryDirectory(prefix="plan_") as name:
        timer = TimedPart(Path(name), sets, by_processor)
        plan, timing = decide(request, numbers, timer)
    return plan, numbers, timing


class TimedPart:
    """Times a plan's training on some of the images, and adds the time of loading all of them."""

    def __init__(self, folder: Path, sets: LoadedSets, by_processor: bool) -> None:
        self.by_processor = by_processor
        self.file = folder / "plan.yaml"
        parts = [sets.train, *sets.tests[:1]]
        counts = [min(len(s.records), n) for s, n in zip(parts, TIMED_IMAGES, strict=False)]
        self.names = [
            write_part(dataset, folder / f"{split}.json", count)
            for dataset, split, count in zip(parts, ("train", "test"), counts, strict=False)
        ]
        self.tested = counts[1] if sets.tests else 0
        alls = [len(sets.train.records), sum(len(one.records) for one in sets.tests)]
        shares = [1 - count / whole for count, whole in zip(counts, alls, strict=False)]
        self.loading = sum(s * t for s, t in zip(shares, sets.seconds, strict=False))

    def __call__(self, plan: Plan) -> Timing:
        found = timed_on(self.names, plan, "train", self.file, self.tested, self.by_processor)
        return replace(found, fixed=found.fixed + self.loading)


def decide(request: Request, numbers: Survey, timer: Timer) -> tuple[Plan, Timing]:
    """Apply the rules; ``timer`` is called a few times to time a training by them.

    Raises:
        InputError: for minutes or memory that are too few.
    """
    machine, images = request.machine, numbers.test_images
    plan = rules.plan_base(machine, request.encoder)
    plan_datasets(plan, request, images)
    rules.plan_classes(plan, numbers)
    plan_channels(plan, numbers.channels, numbers.depth, request.encoder, numbers.statistics)
    plan_weights(plan, request.encoder)
    plan_loader(plan, machine)
    is_tiled = tiles.needs_tiles(numbers, machine)
    if is_tiled:
        tiles.plan_tiles(plan, numbers, machine)
    rules.plan_batch(plan, numbers, machine)
    rules.plan_sampler(plan, numbers)
    rules.plan_augmentation(plan)
    rules.plan_schedule(plan, TIMED_STEPS, numbers, "timed")
    rules.plan_counts(plan, numbers)
    rules.plan_samples(plan, numbers, machine)

    def set_side(side: int, trade: str) -> None:
        rules.plan_side(plan, side, rules.said_sizes(numbers, side) + trade)
        rules.plan_anchors(plan, numbers)

    if is_tiled:
        rules.plan_anchors(plan, numbers)
        timing = timer(plan)
    else:
        wanted = rules.wanted_side(numbers)
        timing = timed_at_best_side(
            plan,
            wanted,
            lambda steps: rules.side_for_time(wanted, steps, numbers),
            set_side,
            lambda timing: timing.iterations(request.minutes, images),
            timer,
        )
    timing = timed_in_memory(
        plan, timing, machine, lambda most: rules.plan_batch(plan, numbers, machine, most), timer
    )
    samples, sample = rules.samples_of_epoch(plan, numbers)
    steps, why = steps_in_time(plan, request, timing, samples, images, sample)
    rules.plan_schedule(plan, steps, numbers, why)
    return plan, timing


def base_values(plan: Plan) -> dict[str, Any]:
    """Each chosen key with its value in the base."""
    config = load_config(plan.base)
    return {key: get(config, key) for key in plan.choices}


def write_part(dataset: CocoDataset, path: Path, count: int) -> str:
    """Write some of a data set's images, evenly spread, as a COCO file; returns its data set name.

    Only images with an object are taken, if there are any.
    """
    records = dataset.records.with_objects() or dataset.records
    chosen = [records[index] for index in evenly_spread(records, count)]
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(r["file_name"])) for r in chosen])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(chosen, 1):
        file = os.path.relpath(os.path.abspath(record["file_name"]), folder)
        sides = {side: record[side] for side in ("height", "width")}
        images.append({"id": number, "file_name": Path(file).as_posix(), **sides})
        for item in record["annotations"]:
            kept = {key: item[key] for key in ("bbox", "iscrowd", "segmentation") if key in item}
            if isinstance(mask := kept.get("segmentation"), dict):
                kept["segmentation"] = mask | {"counts": _text(mask["counts"])}
            ids = {"id": len(annotations) + 1, "image_id": number}
            annotations.append(ids | {"category_id": item["category_id"] + 1} | kept)
    names = (*dataset.class_names, *dataset.beyond)
    categories = [{"id": index, "name": name} for index, name in enumerate(names, 1)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    write_coco(tree, path)
    return f"json:{path}:{folder}"


def _text(counts: Any) -> Any:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts
