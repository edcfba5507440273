"""Plan a detection training: read the data, apply the rules, time a few steps, count."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from backbones.whole_files import write_text
from detection.config import load_config
from detection.data.repair import write_coco
from detection.dataset import CocoDataset
from detection.plan import rules
from detection.plan.survey import Encoder, LoadedSets, Survey, load_sets, survey
from training.command_line.commands import child_command
from training.config_files import get
from training.data import evenly_spread
from training.plans import TIMED_STEPS, Machine, Plan, Timing, timed

TIMED_IMAGES = (64, 12)  # of the training and the test set, in the steps that are timed
LEAST_STEPS = 20
MEMORY = 0.8  # share of the machine's that a training may hold

Timer = Callable[[Plan], Timing]


@dataclass(frozen=True)
class Request:
    """What a plan is asked for.

    Attributes:
        train, test: names of data sets.
        minutes: of the whole training, evaluation and report included.
        encoder: what the encoder's file tells; None for random weights.
        machine: that trains.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    minutes: float
    encoder: Encoder | None
    machine: Machine


def plan_detection(request: Request) -> tuple[Plan, Survey, Timing]:
    """The plan, what it was made of, and what a training by it takes.

    Raises:
        InputError: for data that a training would refuse, or minutes that are too few.
    """
    sets = load_sets(request.train, request.test)
    numbers = survey(sets)
    with tempfile.TemporaryDirectory(prefix="plan_") as name:
        timer = TimedPart(Path(name), sets)
        plan, timing = decide(request, numbers, timer)
    return plan, numbers, timing


class TimedPart:
    """Times a plan's training on some of the images, and adds what loading all of them takes."""

    def __init__(self, folder: Path, sets: LoadedSets) -> None:
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
        write_text(self.file, plan.text([], {}))
        train, test = self.names[0], self.names[1] if self.tested else "()"
        command = [*child_command("train"), "--config-file", str(self.file)]
        command += ["DATASETS.TRAIN", train, "DATASETS.TEST", test]
        found = timed(command, self.tested)
        return replace(found, fixed=found.fixed + self.loading)


def decide(request: Request, numbers: Survey, timer: Timer) -> tuple[Plan, Timing]:
    """Apply the rules; ``timer`` is asked what a step by them takes, up to four times."""
    machine, minutes = request.machine, request.minutes
    plan = rules.plan_base(machine)
    plan.set("DATASETS.TRAIN", list(request.train), "as given")
    if request.test:
        plan.set("DATASETS.TEST", list(request.test), f"{numbers.test_images} images, as given")
    rules.plan_classes(plan, numbers)
    rules.plan_channels(plan, numbers, request.encoder)
    rules.plan_weights(plan, request.encoder)
    rules.plan_loader(plan, machine)
    rules.plan_batch(plan, numbers, machine)
    rules.plan_counts(plan, numbers)
    rules.plan_augmentation(plan, numbers)
    wanted, reason = rules.wanted_side(numbers)

    def at(side: int, why: str) -> Timing:
        rules.plan_side(plan, side, why)
        rules.plan_anchors(plan, numbers)
        rules.plan_schedule(plan, TIMED_STEPS, numbers, "timed")
        return timer(plan)

    found = at(wanted, reason)
    steps = found.iterations(minutes, numbers.test_images)
    side = rules.affordable_side(wanted, steps, numbers)
    if side < wanted:
        found = at(
            side,
            f"{reason} at {wanted}, but {minutes:g} minutes are {max(steps, 0)} steps of it: fewer "
            f"pixels, more steps",
        )
        steps = found.iterations(minutes, numbers.test_images)
    while found.memory_mb > MEMORY * machine.memory_mb and plan["SOLVER.IMS_PER_BATCH"] > 1:
        rules.plan_batch(plan, numbers, machine, plan["SOLVER.IMS_PER_BATCH"] // 2)
        found = timer(plan)
        steps = found.iterations(minutes, numbers.test_images)
    if steps < LEAST_STEPS:
        least = found.minutes(LEAST_STEPS, numbers.test_images) / 0.96
        raise InputError(
            f"--minutes {minutes:g} are too few: start, checks, evaluation of "
            f"{numbers.test_images} images and report take "
            f"{found.minutes(0, numbers.test_images):.1f} minutes here, a step {found.step:.2f} s; "
            f"give at least {least:.1f}"
        )
    most = rules.enough_steps(numbers, plan["SOLVER.IMS_PER_BATCH"])
    why = f"{minutes:g} minutes at {found.step:.2f} s a step"
    if steps > most:
        steps, why = most, f"more teaches little on {len(numbers.sizes)} images"
    rules.plan_schedule(plan, steps, numbers, why)
    return plan, found


def base_values(plan: Plan) -> dict[str, Any]:
    """Each chosen key with its value in the base."""
    config = load_config(plan.base)
    return {key: get(config, key) for key in plan.choices}


def write_part(dataset: CocoDataset, path: Path, count: int) -> str:
    """Write some of a data set's images, evenly spread, as a COCO file; the part's name.

    Those with an object alone, if there are any.
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
            for part in (kept.get("segmentation"),):
                if isinstance(part, dict) and isinstance(part.get("counts"), bytes):
                    kept["segmentation"] = part | {"counts": part["counts"].decode("ascii")}
            ids = {"id": len(annotations) + 1, "image_id": number}
            annotations.append(ids | {"category_id": item["category_id"] + 1} | kept)
    names = (*dataset.class_names, *dataset.beyond)
    categories = [{"id": index, "name": name} for index, name in enumerate(names, 1)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    write_coco(tree, path)
    return f"json:{path}:{folder}"
