"""Find out which weights to start from on your images: random, FCMAE on them, or published ones.

OUTPUT_DIR gets report.html, which begins with the answers in plain words, study.csv with every run
and every number of the page, and a folder for each run. Stop it at any time; the same command
continues it. The kind of --train decides what is trained: for COCO labels (a .json file) detectors,
for masks:... or json:... segmenters, for a folder of class folders classifiers.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from backbones.convnext import SIZES
from backbones.errors import InputError
from detection.config import load_config as load_detection
from detection.reporting.predictions import changed_detections
from fcmae.classification.report import changed_classes
from fcmae.grids.grid import known_flags
from fcmae.grids.study import Study, run_study
from fcmae.grids.study_checks import check_study
from fcmae.grids.study_labels import LabelSet, read_class_folders, read_labels
from fcmae.grids.study_plan import Arm, StudyOptions
from fcmae.grids.study_report import ChangedPictures, writer
from fcmae.grids.study_tasks import TASKS
from images.folders import files_of_folder
from images.plans import channels_and_depth, statistics_from_nothing
from images.statistics import Statistics
from segmentation.config import load_config as load_segmentation
from segmentation.figures import changed_maps
from segmentation.subsets import read_class_maps
from training.cli import ToolParser, at_least, log_to, run_tool
from training.command_line.commands import closest
from training.command_line.jobs import usable_cores
from training.command_line.tasks import Task
from training.guards.run_folder import held

CHANGED: dict[Task, ChangedPictures] = {
    "detection": changed_detections,
    "segmentation": changed_maps,
    "classification": changed_classes,
}
EXAMPLES = """\
examples:
  # does pretraining on my images help, with 16, 64 or all of my labels? one hour on this machine
  python tools/study.py --images images --train train.json --test test.json \\
      --output-dir study --labels 16 64 all --hours 1

  # also published weights, and FCMAE that starts from them
  python tools/study.py --images images --train train.json --test test.json --output-dir study \\
      --hours 12 --encoder imagenet=timm:convnextv2_atto.fcmae_ft_in1k --continue imagenet

  # segmentation, from images and class maps; classification, from folders of classes
  python tools/study.py --images images --train masks:images/train:labels/train:classes.json \\
      --test masks:images/test:labels/test:classes.json --output-dir study
  python tools/study.py --images images --train classes/train --test classes/test \\
      --output-dir study

  # more time for the same study
  python tools/study.py (the same arguments) --hours 24

exit code: 0; 1 for input that cannot be used, found before the runs start; 2 on wrong usage
"""


def label_size(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 2:
        settings = "; KEY VALUE settings stand before all flags" if text[:1].isalpha() else ""
        said = f"{text!r} is no number of images; give 2 or more, or all{settings}"
        raise argparse.ArgumentTypeError(said)
    return int(text)


def named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=FILE, NAME of letters and digits")
    return name, value


def parse() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--images", required=True, type=Path, help="the folder of unlabelled images")
    add("--train", required=True, metavar="LABELS",
        help="labels to train on, of which subsets are drawn: COCO json; "
        "masks:IMAGES:LABELS:CLASSES.json or "
        "json:ANNOTATIONS:IMAGES for segmentation; a folder of class folders")  # fmt: skip
    add(
        "--test",
        required=True,
        metavar="LABELS",
        help="labels to test every run on, in the same form",
    )
    add("--train-images", type=Path,
        help="the image folder of a COCO --train; default: --images")  # fmt: skip
    add(
        "--test-images",
        type=Path,
        help="the image folder of a COCO --test; default: as for --train",
    )
    add("--output-dir", required=True, type=Path)
    add("--hours", type=float, default=1.0, help="time of the whole study, in hours (default: 1)")
    add("--labels", type=label_size, nargs="+", default=[8, 32, None], metavar="N|all",
        help="numbers of labelled images to compare at (default: 8 32 all)")  # fmt: skip
    add("--encoder", type=named, action="append", default=[], metavar="NAME=FILE",
        help="a published encoder as another start; may be given several times")  # fmt: skip
    add("--continue", dest="continued", action="append", default=[], metavar="NAME",
        help="FCMAE on --images that starts from this --encoder, as another start")  # fmt: skip
    add("--detector", type=named, action="append", default=[], metavar="NAME=FILE",
        help="a whole detector or segmenter as another start")  # fmt: skip
    add(
        "--no-pretraining",
        action="store_true",
        help="leave out FCMAE that starts from random weights",
    )
    add("--model", choices=list(SIZES), default="convnextv2_atto", metavar="SIZE")
    add("--config-file", help="config of the trainings (default: the quick config of the task)")
    add("--iterations", type=at_least(1), default=300, help="steps of a training (default: 300)")
    add("--image-size", type=at_least(32), default=128,
        help="pixels, in pretraining and for a classifier (default: 128)")  # fmt: skip
    add("--in-chans", type=at_least(1), default=3, help="channels of the images")
    add("--jobs", type=at_least(0), default=0,
        help="runs at a time (default: one per GPU; without: one per core, up to 4)")  # fmt: skip
    add("opts", nargs="*", metavar="KEY VALUE",
        help="settings of the trainings: keys, or a classifier's flags without dashes")  # fmt: skip
    return parser.parse_intermixed_args()


def arms_of(arguments: argparse.Namespace) -> tuple[Arm, ...]:
    """The starts to compare, random weights first: the others are compared with it.

    Raises:
        InputError: for names that are used twice or not given.
    """
    encoders = dict(arguments.encoder)
    arms = [Arm("random", "random weights")]
    if not arguments.no_pretraining:
        arms.append(Arm("fcmae", "pretraining on your images (FCMAE)", pretrained=True))
    arms += [Arm(name, f"the encoder {name}", file) for name, file in arguments.encoder]
    if unknown := [name for name in arguments.continued if name not in encoders]:
        raise InputError(f"--continue {' '.join(unknown)}: no --encoder has this name")
    arms += [
        Arm(f"fcmae_{name}", f"pretraining on your images from {name}", encoders[name], "", True)
        for name in arguments.continued
    ]
    arms += [Arm(name, f"the detector {name}", "", file) for name, file in arguments.detector]
    names = [arm.name for arm in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two starts are named {', '.join(twice)}: give them other names")
    if len(arms) < 2:
        raise InputError("there is nothing to compare: give --encoder or --detector")
    return tuple(arms)


def task_of(train: str) -> Task:
    """The task that the form of a data set's name stands for."""
    if train.startswith(("masks:", "json:")):
        return "segmentation"
    return "classification" if Path(train).is_dir() else "detection"


def labels_of(name: str, task: Task, folder: Path) -> LabelSet:
    """The labels that a name stands for.

    Args:
        folder: the image folder of a COCO file, if the name does not say it.
    """
    if task == "classification":
        return read_class_folders(Path(name))
    if name.startswith("masks:"):
        return read_class_maps(name)
    if name.startswith("json:"):
        annotations, colon, images = name.removeprefix("json:").rpartition(":")
        if not colon:
            raise InputError(f"{name!r}: give json:ANNOTATIONS:IMAGES")
        return read_labels(Path(annotations), Path(images))
    return read_labels(Path(name), folder)


def settings_of(arguments: argparse.Namespace, task: Task) -> dict[str, str]:
    """The settings of the trainings, from the KEY VALUE pairs.

    Raises:
        InputError: for keys without a value, and flags that a classifier's training lacks.
    """
    opts = arguments.opts
    if len(opts) % 2:
        raise InputError(f"settings are KEY VALUE pairs, but {opts[-1]!r} has no value")
    found = dict(zip(opts[::2], opts[1::2], strict=True))
    if task == "classification":
        known = known_flags("classify")
        if unknown := [name for name in found if name not in known]:
            raise InputError(
                f"a classifier's training has no flag {unknown[0]}{closest(unknown[0], known)}"
            )
    return found


def options_of(arguments: argparse.Namespace) -> StudyOptions:
    """The study's options.

    Raises:
        InputError: for arguments that contradict each other.
    """
    if arguments.hours <= 0:
        raise InputError(f"--hours is {arguments.hours}; give a positive number")
    task = task_of(arguments.train)
    if task != task_of(arguments.test):
        raise InputError(
            f"--train {arguments.train} is for {task}, --test {arguments.test} for "
            f"{task_of(arguments.test)}: give labels of the same form"
        )
    if arguments.detector and not TASKS[task].whole:
        raise InputError(
            f"--detector {arguments.detector[0][0]}: a classifier's file is given as --encoder"
        )
    return StudyOptions(
        images=str(arguments.images),
        train=arguments.train,
        test=arguments.test,
        train_images=str(arguments.train_images or arguments.images),
        test_images=str(arguments.test_images or arguments.images),
        output_dir=str(arguments.output_dir),
        hours=arguments.hours,
        labels=tuple(dict.fromkeys(arguments.labels)),
        arms=arms_of(arguments),
        model=arguments.model,
        config_file=arguments.config_file or TASKS[task].config_file,
        task=task,
        overrides=settings_of(arguments, task),
        iterations=arguments.iterations,
        image_size=arguments.image_size,
        in_chans=arguments.in_chans,
        at_once=arguments.jobs or torch.cuda.device_count() or min(4, usable_cores()),
    )


def statistics_of(options: StudyOptions) -> Statistics | None:
    """Mean and deviation of the images, for starts from random weights.

    So that pretraining is not compared with weights that ImageNet's statistics hold back (see
    :func:`images.plans.statistics_from_nothing`). None if the settings say others, and where the
    runs measure by themselves.
    """
    if options.task == "classification":
        says = bool({"mean", "std"} & set(options.overrides))
    else:
        load = load_detection if options.task == "detection" else load_segmentation
        settings = [text for pair in options.overrides.items() for text in pair]
        config = load(options.config_file, settings)
        says = bool(config.MODEL.PIXEL_MEAN) or config.INPUT.FORMAT != "RGB"
    if says or options.in_chans != 3:
        return None
    files = [str(path) for path in files_of_folder(Path(options.images)).images]
    return statistics_from_nothing(files, 3, channels_and_depth(files)[1])


def main() -> None:
    arguments = parse()
    options = options_of(arguments)
    labels = labels_of(options.train, options.task, Path(options.train_images))
    test = labels_of(options.test, options.task, Path(options.test_images))
    split, notes = check_study(options, labels, test)
    with held(arguments.output_dir):
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        log_to(arguments.output_dir)
        tools = Path(__file__).resolve().parent
        find = partial(statistics_of, options)
        study = Study(options, labels, split, tools, find_statistics=find)
        study.save(notes=notes)
        page = run_study(study, writer(CHANGED[options.task]))
    for line in page.with_suffix(".md").read_text(encoding="utf-8").split("\n## ")[1].splitlines():
        if line.strip() and line != "Answers":
            print(line)
    print(f"report: {page}")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
