"""The questions and options of a study, and a plan of its time from a few measured steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from backbones.errors import InputError, counted
from fcmae.grids.study_tasks import TASKS, StudyTask
from fcmae.grids.verdicts import LOOKS, verdict
from training.command_line.tasks import Task

PRETRAINING = 0.3  # share of the time for FCMAE
FEWEST_STEPS = 10  # of FCMAE


@dataclass(frozen=True)
class Arm:
    """A start: the weights that a training begins with."""

    name: str  # in tables
    said: str  # in sentences: "... gives +3 AP over random weights".
    weights: str = ""  # an encoder's file (or ``timm:NAME``) that it starts from
    detector: str = ""  # a whole model's file instead
    # FCMAE on the study's images comes first, from ``weights`` or random ones
    pretrained: bool = False


class Question(NamedTuple):
    """Is ``arm`` better than ``against``, with so many labels (None: all)?"""

    arm: str
    against: str
    size: int | None


@dataclass(frozen=True)
class StudyOptions:
    """Settings of a study; written to ``study.json``."""

    images: str  # the folder of unlabelled images
    # train, test: the labels, as the command was given them
    train: str
    test: str
    # train_images, test_images: their folders; of COCO files
    train_images: str
    test_images: str
    output_dir: str  # the study's
    hours: float  # of wall-clock time
    labels: tuple[int | None, ...]  # sizes of the label subsets; None for all
    arms: tuple[Arm, ...]  # the starts; the first is what the others are compared with
    model: str  # a size of the encoder
    config_file: str  # of the trainings; "" for a classifier's flags alone
    task: Task = "detection"  # what the labels are for
    # keys of the trainings' config, or flags of a classifier's training
    overrides: Mapping[str, str] = field(default_factory=dict)
    iterations: int = 300  # of a training
    # image_size, batch_size: of the pretraining
    image_size: int = 128
    batch_size: int = 32
    in_chans: int = 3  # of the images
    at_once: int = 1  # runs at a time
    max_seeds: int = max(LOOKS)  # label subsets at most of each size

    @property
    def of_task(self) -> StudyTask:
        return TASKS[self.task]

    @property
    def waves_at_once(self) -> int:
        """Waves that run side by side."""
        return max(1, self.at_once // len(self.arms))

    def rounds(self, runs: int) -> int:
        """How many rounds of ``at_once`` runs it takes to do ``runs``."""
        return math.ceil(runs / self.at_once)

    def questions(self) -> list[Question]:
        """Each start against the first, and FCMAE here against each published start, by size."""
        first, *others = self.arms
        pairs = [(arm, first) for arm in others]
        pairs += [
            (arm, other)
            for arm in others
            for other in others
            if arm.pretrained and not other.pretrained
        ]
        return [Question(a.name, b.name, size) for size in self.labels for a, b in pairs]


@dataclass
class Measured:
    """Seconds on this machine, with as many runs at a time as there will be."""

    pretraining_step: float  # of FCMAE
    iteration: float  # of a training
    overhead: float  # of a training beside its iterations: start, evaluation, report

    def run(self, iterations: int) -> float:
        return self.overhead + iterations * self.iteration


@dataclass(frozen=True)
class Plan:
    """What fits into the time."""

    pretraining_steps: int  # of each arm that is pretrained here
    rates: tuple[float, ...]  # tried for each arm
    waves: int  # that fit, of all arms each
    # of the pretrainings, the tuning, and of as many waves as run side by side
    seconds: tuple[float, float, float]

    def said(self, options: StudyOptions) -> str:
        pretraining, tuning, wave = (value / 60 for value in self.seconds)
        pairs = self.waves // len(options.labels)
        width = _widening(pairs, options)
        expected = (
            f"an interval of +- {width:.1f} standard deviations of a difference"
            if math.isfinite(width)
            else f"no interval: that takes {LOOKS[0]} pairs"
        )
        return (
            f"{options.hours:g} hours: {pretraining:.0f} minutes of FCMAE "
            f"({counted(self.pretraining_steps, 'step')}), {tuning:.0f} minutes for the rates, "
            f"then {counted(self.waves, 'wave')} of {counted(len(options.arms), 'run')}, "
            f"{wave:.1f} minutes each: about {counted(pairs, 'pair')} for each of "
            f"{counted(len(options.labels), 'label size')}, and {expected}"
        )


def _widening(pairs: int, options: StudyOptions) -> float:
    look = max((look for look in LOOKS if look <= pairs), default=0)
    if not look:
        return math.inf
    unit = [0.0] * look
    unit[0], unit[1] = math.sqrt((look - 1) / 2), -math.sqrt((look - 1) / 2)  # deviation 1
    found = verdict(unit, len(options.questions()))
    assert found.low is not None
    assert found.high is not None
    return (found.high - found.low) / 2


def make_plan(options: StudyOptions, measured: Measured) -> Plan:
    """What fits into ``options.hours`` of wall-clock time.

    Raises:
        InputError: if not even one pair does, with the hours that it takes.
    """
    budget = 3600 * options.hours
    pretrained = sum(arm.pretrained for arm in options.arms)
    run = measured.run(options.iterations)
    together = options.waves_at_once
    wave = run * options.rounds(together * len(options.arms))
    steps = 0
    if pretrained:
        share = PRETRAINING * budget / options.rounds(pretrained)
        steps = int(share / measured.pretraining_step)
    pretraining = options.rounds(pretrained) * steps * measured.pretraining_step
    rates = options.of_task.rates
    for tried in (rates, rates[1:2]):  # a short study takes one rate for all
        tuning = run * options.rounds(len(options.arms) * len(tried)) if len(tried) > 1 else 0.0
        waves = int((budget - pretraining - tuning) / wave) * together
        if waves >= LOOKS[0] * len(options.labels) or len(tried) == 1:
            break
    sizes = len(options.labels)
    needed = wave * math.ceil(sizes / together)
    needed = (needed + 60 * pretrained) / (1 - PRETRAINING * bool(pretrained))
    if waves < sizes or (pretrained and steps < FEWEST_STEPS):
        raise InputError(
            f"--hours {options.hours:g} is too little for one pair of runs at each of "
            f"{counted(sizes, 'label size')}: that takes about {needed / 3600:.2g} hours here. "
            "Give more, or fewer --labels, arms or --iterations"
        )
    return Plan(steps, tried, waves, (pretraining, tuning, wave))
