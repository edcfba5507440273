"""Find out which start is best on your images: random weights, FCMAE on them, published weights.

OUTPUT_DIR gets report.html, which begins with the answers in plain words, study.csv with every run,
and a folder for each run. Stop it at any time; the same command goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from backbones.convnext import SIZES
from backbones.errors import InputError
from fcmae.grids.study import Arm, Study, StudyOptions, run_study
from fcmae.grids.study_labels import digests, leaked, read_labels, split_labels
from fcmae.grids.study_report import write_study
from images.files import Reading
from images.folders import files_of_folder
from training.cli import ToolParser, log_to, run_tool
from training.command_line.jobs import usable_cores
from training.guards.run_folder import held

CONFIG = "quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml"
EXAMPLES = """\
examples:
  # does pretraining on my images pay, with 16, 64 or all of my labels? one hour, this machine
  python tools/study.py --images images --train train.json --test test.json \\
      --output-dir study --labels 16 64 all --hours 1

  # published weights, and FCMAE that goes on from them, beside it
  python tools/study.py --images images --train train.json --test test.json --output-dir study \\
      --hours 12 --encoder imagenet=timm:convnextv2_atto.fcmae_ft_in1k --continue imagenet

  # more time for the same study
  python tools/study.py (the same arguments) --hours 24

exit code: 0; 1 for what cannot be used, before hours are spent; 2 on wrong usage
"""


def label_size(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of images; give 2 or more, or all")
    return int(text)


def named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=FILE, NAME of letters and digits")
    return name, value


def parse() -> argparse.Namespace:
    parser = ToolParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", required=True, type=Path, help="the folder of unlabelled images")
    add("--train", required=True, type=Path, help="COCO labels that subsets are drawn from")
    add("--test", required=True, type=Path, help="COCO labels that every run is tested on")
    add("--train-images", type=Path, help="the folder of --train's images; default: --images")
    add("--test-images", type=Path, help="the folder of --test's images; default: --images")
    add("--output-dir", required=True, type=Path)
    add("--hours", type=float, default=1.0, help="of wall-clock time in all (default: 1)")
    add("--labels", type=label_size, nargs="+", default=[8, 32, None], metavar="N|all",
        help="numbers of labelled images (default: 8 32 all)")  # fmt: skip
    add("--encoder", type=named, action="append", default=[], metavar="NAME=FILE",
        help="a published encoder as another start; may be given several times")  # fmt: skip
    add("--continue", dest="continued", action="append", default=[], metavar="NAME",
        help="FCMAE on --images that begins from this --encoder, as another start")  # fmt: skip
    add("--detector", type=named, action="append", default=[], metavar="NAME=FILE",
        help="a whole detector as another start")  # fmt: skip
    add("--no-pretraining", action="store_true", help="leave out FCMAE from random weights")
    add("--model", choices=list(SIZES), default="convnextv2_atto", metavar="SIZE")
    add("--config-file", default=CONFIG, help=f"of the trainings (default: {CONFIG})")
    add("--iterations", type=int, default=300, help="of a training (default: 300)")
    add("--image-size", type=int, default=128, help="of the pretraining (default: 128)")
    add("--in-chans", type=int, default=3, help="channels of the images")
    add("--jobs", type=int, default=0, help="runs at a time (default: one a core or GPU, up to 4)")
    add("opts", nargs="*", metavar="KEY VALUE", help="settings of the trainings")
    return parser.parse_intermixed_args()


def arms_of(arguments: argparse.Namespace) -> tuple[Arm, ...]:
    """Random weights first, which the others are compared with.

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
    missing = [
        f"{arm.name}: there is no file {file}"
        for arm in arms
        for file in (arm.weights, arm.detector)
        if file and not file.startswith("timm:") and not Path(file).is_file()
    ]
    if missing:
        raise InputError("\n".join(missing))
    return tuple(arms)


def main() -> None:
    arguments = parse()
    if arguments.hours <= 0:
        raise InputError(f"--hours is {arguments.hours}; give a positive number")
    if len(arguments.opts) % 2:
        raise InputError(f"settings are KEY VALUE pairs, but {arguments.opts[-1]!r} has no value")
    arms = arms_of(arguments)
    train_images = arguments.train_images or arguments.images
    test_images = arguments.test_images or arguments.images
    labels, test = read_labels(arguments.train), read_labels(arguments.test)
    split = split_labels(labels, arguments.labels)
    reading = Reading(channels=None)
    names = [[str(image["file_name"]) for image in side.images] for side in (labels, test)]
    of_test = digests(test_images, names[1], reading)
    if shared := leaked(digests(train_images, names[0], reading), of_test):
        raise InputError(
            f"{len(shared)} test images are among the labelled ones, such as {shared[0]}: take "
            "them out of --train, or the answers flatter"
        )
    options = StudyOptions(
        images=str(arguments.images),
        train=str(arguments.train),
        test=str(arguments.test),
        train_images=str(train_images),
        test_images=str(test_images),
        output_dir=str(arguments.output_dir),
        hours=arguments.hours,
        labels=tuple(dict.fromkeys(arguments.labels)),
        arms=arms,
        model=arguments.model,
        config_file=arguments.config_file,
        overrides=dict(zip(arguments.opts[::2], arguments.opts[1::2], strict=True)),
        iterations=arguments.iterations,
        image_size=arguments.image_size,
        in_chans=arguments.in_chans,
        at_once=arguments.jobs or min(4, usable_cores()),
    )
    with held(arguments.output_dir):
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        log_to(arguments.output_dir)
        study = Study(options, labels, split, Path(__file__).resolve().parent)
        study.save(notes=notes(arguments, test_images, names[1]))
        page = run_study(study, write_study)
    for line in page.with_suffix(".md").read_text(encoding="utf-8").split("\n## ")[1].splitlines():
        if line.strip() and line != "Answers":
            print(line)
    print(f"report: {page}")


def notes(arguments: argparse.Namespace, test_images: Path, names: list[str]) -> list[str]:
    """What a reader of the answers should know."""
    unlabelled = {path.resolve() for path in files_of_folder(arguments.images).images}
    among = sum((test_images / name).resolve() in unlabelled for name in names)
    if not among:
        return []
    return [
        f"{among} of the {len(names)} test images are among the unlabelled ones: FCMAE saw their "
        "pixels, never their labels."
    ]


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
