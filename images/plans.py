"""Plans of trainings: the request, facts about images and encoder, and rules of every task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backbones.checkpoint import open_encoder
from backbones.convnext import SIZES
from backbones.errors import InputError, counted
from backbones.whole_files import write_text
from images.files import ImageError, Reading, open_picture
from images.statistics import ImageFiles, Statistics
from images.unlike_imagenet import LEAST_DEVIATION, unlike_imagenet
from training.command_line.commands import child_command
from training.data import evenly_spread
from training.devices import automatic_device
from training.plans import Machine, Plan, Timing, timed

RGB = (3, "8 bits")  # channels and depth of the images that ImageNet's statistics are for
MEASURED = 64  # images whose mean and deviation are measured
HEADERS = 200  # number of image files whose headers are read
MOST_EPOCHS = 400  # longest planned training, see steps_in_time
LEAST_LONG = 2000  # but so many steps may be planned whatever the epochs

Timer = Callable[[Plan], Timing]


@dataclass(frozen=True)
class Encoder:
    """Facts about an encoder, from its file."""

    path: str
    size: str
    in_chans: int
    has_statistics: bool


def read_encoder(path: str) -> Encoder:
    """Raises FileNotFoundError or InputError if there is no such encoder."""
    found = open_encoder(path)
    name = next((name for name, size in SIZES.items() if size == found.size), None)
    if name is None:
        raise InputError(f"{path} holds an encoder of a size that has no name: {found.size}")
    return Encoder(path, name, found.in_chans, found.statistics is not None)


@dataclass(frozen=True)
class Request:
    """The request for a plan.

    Attributes:
        train, test: names of data sets.
        minutes: time of the whole training, evaluation and report included.
        encoder: facts about the encoder; None for random weights.
        machine: the machine that trains.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    minutes: float
    encoder: Encoder | None
    machine: Machine


def plan_datasets(plan: Plan, request: Request, test_images: int) -> None:
    plan.set("DATASETS.TRAIN", list(request.train), "as given")
    why = (
        f"{counted(test_images, 'image')}, as given"
        if request.test
        else "no --test: nothing is evaluated"
    )
    plan.set("DATASETS.TEST", list(request.test), why)


def plan_device(plan: Plan, machine: Machine) -> None:
    """The device that was timed, where a config would by itself take another."""
    if machine.device != (auto := automatic_device()):
        why = f"the device that the steps were timed on; auto would be {auto} here"
        plan.set("MODEL.DEVICE", machine.device, why)


def channels_and_depth(paths: Sequence[str]) -> tuple[int, str]:
    """Channels and depth that most images have, by the headers of up to ``HEADERS`` files.

    3 channels if there are grey and RGB files: grey becomes RGB.

    Raises:
        InputError: if none can be read.
    """
    found: Counter[tuple[int, str]] = Counter()
    for index in evenly_spread(paths, HEADERS):
        try:
            with Path(paths[index]).open("rb") as file:
                picture = open_picture(file)
        except (ImageError, OSError):
            continue  # the check has reported it already
        found[picture.colours, picture.depth] += 1
    if not found:
        raise InputError(f"none of the images can be read, such as {paths[0]}")
    channels, depth = found.most_common(1)[0][0]
    if {key[0] for key in found} == {1, 3}:
        channels = 3
    return channels, depth


def statistics_from_nothing(paths: Sequence[str], channels: int, depth: str) -> Statistics | None:
    """Mean and deviation for random weights; None where the training finds those that do.

    A training measures those of its images, but for RGB of 8 bits, which get ImageNet's: here their
    own, if :func:`images.unlike_imagenet.unlike_imagenet` says so.
    """
    if (channels, depth) != RGB:
        return None
    images = ImageFiles(paths, Reading(channels, by_parts=True))
    images.skip_bad_images = True  # the check reports them
    return unlike_imagenet(images, MEASURED)


def plan_channels(
    plan: Plan,
    channels: int,
    depth: str,
    encoder: Encoder | None,
    statistics: Statistics | None = None,
) -> None:
    """Plan the channels, mean and deviation; these are empty where the training finds them.

    Args:
        statistics: those of :func:`statistics_from_nothing`.
    """
    files = f"the files have {counted(channels, 'channel')} of {depth}"
    if channels == 1 and encoder is not None and encoder.in_chans == 3:
        channels, files = 3, f"{files}, the encoder takes 3: grey is repeated"
    plan.set("INPUT.FORMAT", {3: "RGB", 1: "L"}.get(channels, "raw"), files)
    plan.set("MODEL.CONVNEXT.IN_CHANS", channels, "as INPUT.FORMAT has")
    if encoder is not None and encoder.has_statistics and encoder.in_chans == channels:
        source = "empty: the encoder's file has its own"
    elif (channels, depth) == RGB:
        source = "empty: ImageNet's, as for all RGB of 8 bits"
    else:
        source = f"empty: measured by the training; ImageNet's are for RGB of 8 bits, not {files}"
    if statistics is None:
        plan.set("MODEL.PIXEL_MEAN", [], source)
        plan.set("MODEL.PIXEL_STD", [], "as MODEL.PIXEL_MEAN")
    else:
        mean, std = statistics.of_pixels_rounded()
        why = f"{statistics.origin}, which are not like ImageNet's (docs/transfer.md)"
        plan.set("MODEL.PIXEL_MEAN", mean, why)
        why = f"as MODEL.PIXEL_MEAN; each channel has at least {LEAST_DEVIATION} of the largest"
        plan.set("MODEL.PIXEL_STD", std, why)
    if encoder is not None and encoder.in_chans != channels:
        theirs = counted(encoder.in_chans, "channel")
        why = f"the encoder has {theirs}: timm's rule (docs/transfer.md)"
        plan.set("MODEL.CONVNEXT.ADAPT_CHANNELS", True, why)


def plan_weights(plan: Plan, encoder: Encoder | None) -> None:
    """The encoder that was given, or random weights of the smallest; no stage is frozen.

    All of the paper's fine-tunings train every stage (arXiv 2301.00808, A.3).
    """
    if encoder is None:
        why = "random: no --encoder; on nuclei FCMAE brought 5 to 15 box AP (docs/reproduction.md)"
        plan.set("MODEL.CONVNEXT.WEIGHTS", "", why)
    else:
        plan.set("MODEL.CONVNEXT.SIZE", encoder.size, "of the encoder's file")
        plan.set("MODEL.CONVNEXT.WEIGHTS", encoder.path, "--encoder")
    plan.set("MODEL.BACKBONE.FREEZE_AT", 0, "none is frozen, as in the paper's fine-tunings")


def timed_on(
    parts: Sequence[str], plan: Plan, command: str, file: Path, images: int, by_processor: bool
) -> Timing:
    """Time a training by the plan, on parts of the data sets.

    Args:
        parts: names of a part of the training set and, if there is one, of the test set.
        command: the command that trains, see :func:`training.command_line.commands.child_command`.
        file: where to write the plan.
        images, by_processor: see :func:`training.plans.timed`.
    """
    write_text(file, plan.text([], {}))
    train, test = [*parts, "()"][:2]
    words = ["--config-file", str(file), "DATASETS.TRAIN", train, "DATASETS.TEST", test]
    return timed([*child_command(command), *words], images, by_processor=by_processor)


def timed_at_best_side(
    plan: Plan,
    wanted: int,
    side_for: Callable[[int], int],
    set_side: Callable[[int, str], None],
    steps_of: Callable[[Timing], int],
    timer: Timer,
) -> Timing:
    """Plan the image size for large enough objects and enough steps; returns the timing.

    Args:
        wanted: the side at which objects are large enough.
        side_for: the side to plan if the wanted one allows so many steps.
        set_side: plans a side; the text, if any, is the reason why it is not the wanted one.
        steps_of: the number of steps that the minutes allow.
    """
    set_side(wanted, "")
    timing = timer(plan)
    steps = steps_of(timing)
    if (side := side_for(steps)) != wanted:
        trade = "fewer pixels for more steps" if side < wanted else "time for more pixels"
        set_side(side, f"; {wanted} would be {max(steps, 0)} steps: {trade}")
        timing = timer(plan)
    return timing


def timed_in_memory(
    plan: Plan, timing: Timing, machine: Machine, set_batch: Callable[[int], None], timer: Timer
) -> Timing:
    """Halve the batch until the training fits into memory; returns the timing."""
    while not timing.fits(machine) and plan["SOLVER.IMS_PER_BATCH"] > 1:
        set_batch(plan["SOLVER.IMS_PER_BATCH"] // 2)
        timing = timer(plan)
    return timing


def steps_in_time(
    plan: Plan,
    request: Request,
    timing: Timing,
    samples: int,
    test_images: int,
    sample: str = "image",
) -> tuple[int, str]:
    """The number of steps that the minutes allow, and the reason in words.

    At most 400 epochs or 2000 steps, whichever is more: 400 epochs are the longest schedule for
    which a gain is published for detectors from random weights (COCO, arXiv 2012.07177).

    Args:
        samples: of an epoch.
        sample: what one is: an image or a tile.

    Raises:
        InputError: for too little time or memory.
    """
    steps = timing.checked_iterations(request.minutes, test_images, request.machine)
    most = max(LEAST_LONG, MOST_EPOCHS * samples // plan["SOLVER.IMS_PER_BATCH"])
    if steps > most:
        return most, f"more teaches little on {counted(samples, sample)}"
    return steps, f"{request.minutes:g} minutes at {timing.step:.2f} s a step"


def plan_iterations(
    plan: Plan, steps: int, samples: int, reason: str, most_warmup: int, sample: str = "image"
) -> None:
    """Plan iterations, a warm-up of a fifteenth as in the quick configs, and four checkpoints."""
    epochs = steps * plan["SOLVER.IMS_PER_BATCH"] / samples
    said = f"{epochs:.3g} epochs of {counted(samples, sample)}"
    plan.set("SOLVER.MAX_ITER", steps, f"{reason}; {said}")
    why = f"a fifteenth, as in the quick config; {most_warmup} at most"
    plan.set("SOLVER.WARMUP_ITERS", max(1, min(most_warmup, steps // 15)), why)
    plan.set("SOLVER.CHECKPOINT_PERIOD", max(1, -(-steps // 4)), "four checkpoints")
