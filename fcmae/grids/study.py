"""A study: which start is best on these images and labels, by how much, how sure.

Arms are trainings that differ in their start alone. A wave is one run of every arm on the same
label subset with the same seed; waves are run, most telling first, until the time is over or every
question is answered (:mod:`fcmae.grids.verdicts`). Everything is a run of the project's own command
lines in a folder of its own, so that a study can be stopped and started again at any time.

The time is planned from a few measured steps: ``PRETRAINING`` of it for FCMAE, then the rates of
each arm, tuned on images that are in no table, then waves.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from backbones.whole_files import write_json
from fcmae.grids.run import GridRun, StartCommand, shares
from fcmae.grids.study_labels import Labels, Split
from fcmae.grids.verdicts import LOOKS, Verdict, verdict
from training.command_line.jobs import Running, Share, run_side_by_side, start_process

logger = logging.getLogger(__name__)

PRETRAINING = 0.3  # share of the time that goes to FCMAE
RATES = (2.5e-4, 5e-4, 1e-3)  # tried for each arm
TIMED_STEPS = 8  # of the runs that are timed
BASELINE = "random"
STATE = "study.json"


@dataclass(frozen=True)
class Arm:
    """A start.

    Args:
        name: in tables.
        said: in sentences: "... gives +3 AP over random weights".
        weights: an encoder's file (or ``timm:NAME``) that it starts from.
        detector: a whole detector's file instead.
        pretrained: FCMAE on the study's images comes first, from ``weights`` or random ones.
    """

    name: str
    said: str
    weights: str = ""
    detector: str = ""
    pretrained: bool = False


@dataclass(frozen=True)
class StudyOptions:
    """What a study is made of; written to ``study.json``.

    Args:
        images: the folder of unlabelled images.
        train, test: COCO files; ``train_images``, ``test_images``: their folders.
        output_dir: the study's.
        hours: of wall-clock time.
        labels: sizes of the label subsets; None for all.
        arms: the starts; the first is what the others are compared with.
        model: a size of the encoder.
        config_file: of the trainings.
        overrides: keys of the trainings' config.
        iterations: of a training.
        image_size, batch_size: of the pretraining.
        in_chans: of the images.
        at_once: runs at a time.
        max_seeds: label subsets at most of each size.
    """

    images: str
    train: str
    test: str
    train_images: str
    test_images: str
    output_dir: str
    hours: float
    labels: tuple[int | None, ...]
    arms: tuple[Arm, ...]
    model: str
    config_file: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    iterations: int = 300
    image_size: int = 128
    batch_size: int = 32
    in_chans: int = 3
    at_once: int = 1
    max_seeds: int = max(LOOKS)


@dataclass
class Measured:
    """Seconds on this machine.

    Args:
        pretraining_step: of FCMAE.
        iteration: of a training.
        overhead: of a training beside its iterations: start, evaluation, report.
    """

    pretraining_step: float
    iteration: float
    overhead: float

    def run(self, iterations: int) -> float:
        return self.overhead + iterations * self.iteration


@dataclass(frozen=True)
class Plan:
    """What fits into the time.

    Args:
        pretraining_steps: of each arm that is pretrained here.
        rates: tried for each arm.
        waves: that fit, of all arms each.
        seconds: of the pretrainings, the tuning, and a wave.
    """

    pretraining_steps: int
    rates: tuple[float, ...]
    waves: int
    seconds: tuple[float, float, float]

    def said(self, options: StudyOptions) -> str:
        pretraining, tuning, wave = (value / 60 for value in self.seconds)
        pairs = self.waves // len(options.labels)
        return (
            f"{options.hours:g} hours: {pretraining:.0f} minutes of FCMAE "
            f"({self.pretraining_steps} steps), {tuning:.0f} minutes for the rates, then "
            f"{self.waves} waves of {len(options.arms)} runs, {wave:.1f} minutes each: about "
            f"{pairs} pairs for each of {len(options.labels)} label sizes, whose interval is "
            f"+- {_widening(pairs, options):.1f} standard deviations of a difference"
        )


def _widening(pairs: int, options: StudyOptions) -> float:
    look = max((look for look in LOOKS if look <= pairs), default=0)
    if not look:
        return math.inf
    unit = [0.0] * look
    unit[0], unit[1] = math.sqrt((look - 1) / 2), -math.sqrt((look - 1) / 2)  # deviation 1
    found = verdict(unit, questions(options))
    assert found.low is not None
    assert found.high is not None
    return (found.high - found.low) / 2


def questions(options: StudyOptions) -> int:
    """Each other arm against the first, at each label size."""
    return max(1, (len(options.arms) - 1) * len(options.labels))


def make_plan(options: StudyOptions, measured: Measured) -> Plan:
    """What fits into ``options.hours``.

    Raises:
        InputError: if not even one pair does, with the hours that it takes.
    """
    budget = 3600 * options.hours * options.at_once
    pretrained = sum(arm.pretrained for arm in options.arms)
    run = measured.run(options.iterations)
    wave = run * len(options.arms)
    steps = 0
    if pretrained:
        steps = int(PRETRAINING * budget / pretrained / measured.pretraining_step)
    pretraining = pretrained * steps * measured.pretraining_step
    for rates in (RATES, RATES[1:2]):  # a short study takes one rate for all
        tuning = run * len(options.arms) * len(rates) if len(rates) > 1 else 0.0
        waves = int((budget - pretraining - tuning) / wave)
        if waves >= 3 * len(options.labels) or len(rates) == 1:
            break
    needed = (wave * len(options.labels) + 60 * pretrained) / (1 - PRETRAINING * bool(pretrained))
    if waves < len(options.labels) or (pretrained and steps < 10):
        raise InputError(
            f"--hours {options.hours:g} is too little for one pair of runs at each of "
            f"{len(options.labels)} label sizes: that takes about "
            f"{needed / 3600 / options.at_once:.2g} hours here. Give more, or fewer --labels, arms "
            "or --iterations"
        )
    return Plan(steps, rates, waves, (pretraining, tuning, wave))


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        arm, labels, seed, rate: what it was; ``labels`` None for all.
        box, mask: AP.
        seconds: of its training.
        folder: the run's.
    """

    arm: str
    labels: int | None
    seed: int
    rate: float
    box: float
    mask: float | None
    seconds: float | None
    folder: str


class Study:
    """One study in its folder; see this module's header.

    Args:
        labels, split: of ``options.train``.
        tools: the folder of the command lines.
        start: in place of a process of its own for each run.
        clock: seconds.
    """

    def __init__(
        self,
        options: StudyOptions,
        labels: Labels,
        split: Split,
        tools: Path,
        start: StartCommand | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options, self.labels, self.split, self.tools = options, labels, split, tools
        self.start, self.clock = start or start_process, clock
        self.folder = Path(options.output_dir)
        self.rates: dict[str, float] = {}
        self.results: list[Result] = []
        self.state: dict[str, Any] = self._state()

    # --- what is remembered

    def _state(self) -> dict[str, Any]:
        """``study.json``, or a new one; a study goes on as it was begun.

        Raises:
            InputError: if the study in the folder had other arguments or data.
        """
        asked = json.loads(json.dumps(asdict(self.options) | {"data": self._data_digest()}))
        free = ("hours", "at_once", "max_seeds")
        path = self.folder / STATE
        if path.is_file():
            state = json.loads(path.read_text(encoding="utf-8"))
            changed = [
                f"{key} was {state['asked'].get(key)!r}, is {value!r}"
                for key, value in asked.items()
                if key not in free and state["asked"].get(key) != value
            ]
            if changed:
                raise InputError(
                    "\n  ".join(
                        [f"the study in {self.folder} was begun with other arguments:", *changed,
                         "give its own, or another --output-dir"]
                    )
                )  # fmt: skip
            return state
        state = {"asked": asked, "spent": 0.0}
        write_json(path, state, indent=1)
        return state

    def _data_digest(self) -> str:
        digest = hashlib.sha256()
        for path in (self.options.train, self.options.test):
            digest.update(Path(path).read_bytes())
        return digest.hexdigest()

    def save(self, **values: Any) -> None:
        self.state |= values
        write_json(self.folder / STATE, self.state, indent=1)

    # --- runs

    def detection(self, arm: Arm, folder: Path, train: Path, rate: float, seed: int) -> GridRun:
        """A training of an arm."""
        options = self.options
        steps = options.iterations
        keys: dict[str, Any] = {
            "config-file": options.config_file,
            "DATASETS.TRAIN": f"json:{train}:{options.train_images}",
            "DATASETS.TEST": f"json:{options.test}:{options.test_images}",
            "MODEL.CONVNEXT.SIZE": options.model,
            "SOLVER.BASE_LR": rate,
            "SOLVER.MAX_ITER": steps,
            "SOLVER.STEPS": f"[{round(0.8 * steps)}]",
            "SOLVER.CHECKPOINT_PERIOD": max(steps, 1),
            "DATALOADER.NUM_WORKERS": 0,
            **options.overrides,
            "SEED": seed,
        }
        if arm.detector:
            keys["MODEL.WEIGHTS"] = arm.detector
        elif not arm.pretrained:
            keys["MODEL.CONVNEXT.WEIGHTS"] = arm.weights
        return GridRun("detect", folder, keys, self.pretraining_folder(arm))

    def pretraining_folder(self, arm: Arm) -> Path | None:
        return self.folder / "pretrain" / arm.name if arm.pretrained else None

    def pretraining(self, arm: Arm, steps: int, folder: Path | None = None) -> GridRun:
        """FCMAE on the study's images."""
        options = self.options
        flags: dict[str, Any] = {
            "model": options.model,
            "data": options.images,
            "image-size": options.image_size,
            "batch-size": options.batch_size,
            "in-chans": options.in_chans,
            "base-lr": 8e-3,
            "clip-norm": 3.0,
            "workers": 0,
            "max-steps": steps,
            "skip-bad-images": True,
            "seed": 0,
        }
        if arm.weights:
            flags["init"] = arm.weights
        target = folder or self.pretraining_folder(arm)
        assert target is not None
        return GridRun("pretrain", target, flags)

    def run(self, jobs: Sequence[GridRun]) -> None:
        """Run what is not finished, side by side.

        Raises:
            InputError: if one fails, with the end of its log.
        """
        failed: list[str] = []

        def start(job: GridRun, share: Share) -> Running:
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            return self.start(job.command(self.tools, ()), log_of(job), share)

        def ended(job: GridRun, code: int) -> bool:
            if code or not job.finished:
                lines = log_of(job).read_text(encoding="utf-8", errors="replace").splitlines()
                failed.append("\n  ".join([f"{job.folder} failed:", *lines[-8:]]))
            return bool(code)

        waiting = {job.folder: job for job in jobs if not job.finished}
        run_side_by_side(waiting, start, ended, shares(self.options.at_once))
        if failed:
            raise InputError("\n".join(failed))

    # --- the study

    def measure(self) -> Measured:
        """Time a few steps of the pretraining and of a training, once."""
        if "measured" in self.state:
            return Measured(**self.state["measured"])
        folder, options = self.folder / "timing", self.options
        step = 1.0
        if any(arm.pretrained for arm in options.arms):
            arm = next(arm for arm in options.arms if arm.pretrained)
            job = self.pretraining(arm, TIMED_STEPS, folder / "pretrain")
            self.run([job])
            step = _step_seconds(job.folder)
        train = self.labels.write(self.split.tune_train, folder / "train.json")
        began = self.clock()
        arm = options.arms[0]
        job = self.detection(arm, folder / "detect", train, RATES[1], 0)
        keys = {**job.arguments, "SOLVER.MAX_ITER": TIMED_STEPS, "SOLVER.STEPS": "[]"}
        job = GridRun("detect", job.folder, keys)
        self.run([job])
        whole = self.clock() - began
        iteration = _step_seconds(job.folder)
        measured = Measured(step, iteration, max(0.0, whole - TIMED_STEPS * iteration))
        self.save(measured=asdict(measured))
        return measured

    def tune(self, plan: Plan) -> None:
        """Choose each arm's rate by AP on images that no table shows."""
        if "rates" in self.state:
            self.rates = dict(self.state["rates"])
            return
        if len(plan.rates) == 1:
            self.rates = {arm.name: plan.rates[0] for arm in self.options.arms}
            self.save(rates=self.rates, tuned=False)
            return
        folder = self.folder / "rates"
        train = self.labels.write(self.split.tune_train, folder / "train.json")
        test = self.labels.write(self.split.tune_test, folder / "test.json")
        jobs = {}
        for arm in self.options.arms:
            for rate in plan.rates:
                job = self.detection(arm, folder / f"{arm.name}_{rate:g}", train, rate, 0)
                own = f"json:{test}:{self.options.train_images}"
                jobs[arm.name, rate] = GridRun(
                    "detect", job.folder, {**job.arguments, "DATASETS.TEST": own}, job.init
                )
        self.run(list(jobs.values()))
        found: dict[str, dict[float, float]] = {}
        for (name, rate), job in jobs.items():
            found.setdefault(name, {})[rate] = _metrics(job.folder)[0]
        self.rates = {
            name: max(by_rate, key=by_rate.__getitem__) for name, by_rate in found.items()
        }
        tried = {name: {f"{r:g}": ap for r, ap in rates.items()} for name, rates in found.items()}
        self.save(rates=self.rates, tuned=True, tried=tried)

    def wave(self, size: int | None, seed: int) -> list[GridRun]:
        """Every arm on one label subset."""
        name = "all" if size is None else str(size)
        train = self.folder / "labels" / f"{name}_seed_{seed}.json"
        if not train.is_file():
            self.labels.write(self.split.subset(size, seed), train)
        return [
            self.detection(
                arm, self.folder / "runs" / f"{arm.name}_{name}_seed_{seed}", train,
                self.rates[arm.name], seed,
            )
            for arm in self.options.arms
        ]  # fmt: skip

    def collect(self) -> list[Result]:
        """Every finished run, wave by wave."""
        self.results = []
        for seed in range(self.options.max_seeds):
            for size in self.options.labels:
                name = "all" if size is None else str(size)
                for arm in self.options.arms:
                    folder = self.folder / "runs" / f"{arm.name}_{name}_seed_{seed}"
                    if GridRun("detect", folder, {}).finished:
                        box, mask, seconds = _metrics(folder)
                        self.results.append(
                            Result(
                                arm.name, size, seed, self.rates[arm.name], box, mask, seconds,
                                str(folder),
                            )
                        )  # fmt: skip
        return self.results

    def differences(self, arm: Arm, size: int | None) -> list[float]:
        """Box AP of an arm minus the first arm's, in the order of the seeds that both have."""
        found = {
            (result.arm, result.seed): result.box
            for result in self.results
            if result.labels == size
        }
        first = self.options.arms[0].name
        seeds = range(self.options.max_seeds)
        both = [s for s in seeds if (arm.name, s) in found and (first, s) in found]
        return [found[arm.name, s] - found[first, s] for s in both]

    def verdicts(self) -> dict[tuple[str, int | None], Verdict]:
        """(arm, label size) -> what the pairs say, of every arm but the first."""
        asked = questions(self.options)
        return {
            (arm.name, size): verdict(self.differences(arm, size), asked)
            for size in self.options.labels
            for arm in self.options.arms[1:]
        }

    def next_wave(self) -> tuple[int | None, int] | None:
        """The label size and seed that tell most: of the sizes with an open question, the one with
        the fewest pairs; the middle size first. None when nothing is open."""
        sizes = list(self.options.labels)
        middle = len(sizes) // 2
        order = sorted(range(len(sizes)), key=lambda place: abs(place - middle))
        open_sizes = []
        found = self.verdicts()
        for place in order:
            size = sizes[place]
            seeds = self._seeds_done(size)
            answers = [found[arm.name, size].answer for arm in self.options.arms[1:]]
            if seeds < self.options.max_seeds and "cannot tell" in answers:
                open_sizes.append((seeds, order.index(place), size))
        if not open_sizes:
            return None
        seeds, _, size = min(open_sizes, key=lambda item: item[:2])
        return size, seeds

    def _seeds_done(self, size: int | None) -> int:
        done = {(r.arm, r.seed) for r in self.results if r.labels == size}
        seed = 0
        while all((arm.name, seed) in done for arm in self.options.arms):
            seed += 1
        return seed


def log_of(job: GridRun) -> Path:
    return job.folder.with_name(job.folder.name + ".log")


def _step_seconds(folder: Path) -> float:
    """The mean seconds of a step, by ``metrics.json``."""
    text = (folder / "metrics.json").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    times = [line["time"] for line in lines if "time" in line]
    return sum(times) / len(times)


def _metrics(folder: Path) -> tuple[float, float | None, float | None]:
    """Box AP, mask AP and training seconds of a finished run."""
    summary = json.loads((folder / "inference/metrics_summary.json").read_text(encoding="utf-8"))
    facts = folder / "run.json"
    seconds = json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {}
    mask = summary.get("segm", {}).get("AP")
    return summary["bbox"]["AP"] or 0.0, mask, seconds.get("train_seconds")


def run_study(study: Study, write: Callable[[Study], Path]) -> Path:
    """Run until the time is over or every question is answered, writing the page after each wave.

    Args:
        write: writes ``study.csv`` and the report, and returns the report's path.

    Raises:
        InputError: if the time is too little, or a run fails.
    """
    options = study.options
    spent, began = study.state["spent"], study.clock()

    def used() -> float:
        return spent + study.clock() - began

    measured = study.measure()
    plan = make_plan(options, measured)
    logger.info("%s", plan.said(options))
    jobs = [
        study.pretraining(arm, plan.pretraining_steps) for arm in options.arms if arm.pretrained
    ]
    if "pretraining_steps" in study.state:  # as it was begun
        steps = study.state["pretraining_steps"]
        jobs = [study.pretraining(arm, steps) for arm in options.arms if arm.pretrained]
    else:
        study.save(pretraining_steps=plan.pretraining_steps)
    study.run(jobs)
    study.save(spent=used())
    study.tune(plan)
    study.save(spent=used())
    study.collect()
    page = write(study)
    one = plan.seconds[2] / options.at_once
    while (chosen := study.next_wave()) is not None:
        left = 3600 * options.hours - used()
        if left < one:
            logger.info("%.0f minutes are left, a wave takes %.1f: the end", left / 60, one / 60)
            break
        size, seed = chosen
        logger.info("wave: %s labels, seed %d", "all" if size is None else size, seed)
        study.run(study.wave(size, seed))
        study.collect()
        study.save(spent=used())
        page = write(study)
    else:
        logger.info("every question is answered, or has %d pairs", options.max_seeds)
    return page
