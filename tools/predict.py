"""Predict on images, folders and videos with a finished run of any task.

A detector writes to --output-dir: overlays/ (pictures and videos with the detections drawn),
predictions.json (all detections as COCO results), images.json (the file or frame of each image id,
and the categories), annotations.json (the detections as a COCO data set, for labelling tools) and
counts.csv (the number of detections and the pixels they cover, per image and class).
A segmentation run writes maps/ (the class of every pixel), overlays/ and areas.csv; a classifier
predictions.csv and predictions.json, with each image's class and probabilities.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from backbones.compiling import COMPILE_HELP, compiled_encoders
from backbones.errors import InputError, counted
from detection.data.formats.convert import WRITERS
from detection.predict import predict
from detection.prediction.outputs import write_labels
from training.cli import ToolParser, at_least, log_to, run_tool
from training.command_line.tasks import task_of
from training.devices import DEVICES
from training.guards.run_folder import held

EXAMPLES = """\
examples:
  python tools/predict.py --run runs/detector --input photos --output-dir predictions
  python tools/predict.py --run runs/detector --input a.jpg 'scans/**/*.tif' --output-dir out \\
      --score-threshold 0.3
  # a video: each fifth frame; overlays as a video, or with --frames as pictures
  python tools/predict.py --run runs/detector --input street.mp4 --output-dir out --every 5
  # only cells, and only with a score of 0.7 or more; then the same continued after an interruption
  python tools/predict.py --run runs/detector --input scans --output-dir out --classes cell \
      --score-threshold 0.7
  python tools/predict.py --run runs/detector --input scans --output-dir out --classes cell \
      --score-threshold 0.7 --resume
  # larger test images, on the CPU, with the other engine
  python tools/predict.py --run runs/detector --input photos --output-dir out \\
      --engine detectron2 MODEL.DEVICE cpu INPUT.MIN_SIZE_TEST 1000
  # large images by tiles of 768 pixels that overlap by 128
  python tools/predict.py --run runs/detector --input slides --output-dir out --tiles 768,128
  # as labels that LabelMe opens, to be corrected and trained on
  python tools/predict.py --run runs/detector --input photos --output-dir out --format labelme

  # the class of each image, from a classifier's run
  python tools/predict.py --run runs/classifier --input photos --output-dir classes --pictures

exit code: 0; 1 for inputs that cannot be used, all listed before anything is detected; 2 on wrong
usage
"""


def parse() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="the output folder of a training")
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="images, videos, folders (with all folders inside) or glob patterns",
    )
    add("--output-dir", type=Path, required=True, metavar="DIR", help="the folder to write to")
    add(
        "--score-threshold",
        type=float,
        default=0.5,
        help="lowest score of the detections in overlays, annotations.json and counts.csv, 0 to 1 "
        "(default: 0.5); predictions.json holds those below it, too",
    )
    add("--classes", nargs="+", metavar="NAME", help="only these classes (default: all)")
    add("--resume", action="store_true", help="continue an interrupted prediction")
    add(
        "--every",
        type=at_least(1),
        default=1,
        metavar="N",
        help="predict only each Nth frame of videos",
    )
    add("--pictures", action="store_true", help="classifier: draw each image with its class")
    add(
        "--frames",
        action="store_true",
        help="write overlays of videos as JPEG files, one per frame",
    )
    add("--weights", metavar="FILE", help="a file of weights to use instead of the run's")
    add("--engine", choices=["torchvision", "detectron2"], help="instead of the run's ENGINE")
    add(
        "--skip-bad-images",
        action="store_true",
        help="leave out files that cannot be read, and name them in the log, instead of stopping",
    )
    add(
        "--format",
        nargs="+",
        default=[],
        choices=list(WRITERS),
        help="also write the detections that reach the threshold as labels of another tool, to "
        "correct them there: labels_FORMAT/, which tools/import_dataset.py reads back; coco is "
        "annotations.json, which is always written",
    )
    add(
        "--show-bands",
        nargs="+",
        type=int,
        metavar="N",
        help="for images of many bands: the one or three channels, counted from 1, to show",
    )
    add(
        "--tiles",
        type=tile_settings,
        metavar="auto|SIZE|SIZE,OVERLAP",
        help="detect on overlapping tiles of SIZE pixels, at the images' own size, and join what "
        "several tiles show (INPUT.TILES); a run that was trained on tiles does so anyway; auto: "
        "the run's tiles, or 1024 pixels with an overlap of 256",
    )
    add("--device", choices=DEVICES, help="instead of the run's MODEL.DEVICE")
    add("--compile", action="store_true", help=COMPILE_HELP)
    add("opts", nargs="*", metavar="KEY VALUE", help="settings that override the run's")
    return parser.parse_intermixed_args()


def tile_settings(text: str) -> list[str]:
    """Config overrides for ``--tiles``."""
    size, _, overlap = text.partition(",")
    found = ["INPUT.TILES.ENABLED", "True"]
    if text == "auto":
        return found
    if not size.isdecimal() or not (overlap.isdecimal() or size == text):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, SIZE or SIZE,OVERLAP in pixels")
    found += ["INPUT.TILES.SIZE", size]
    return [*found, "INPUT.TILES.OVERLAP", overlap or "-1"]


def refuse_flags(arguments: argparse.Namespace, kind: str, *names: str) -> None:
    """Raise for flags that have no effect for a run of this kind.

    Raises:
        InputError: naming those that were given.
    """
    if given := [name for name in names if getattr(arguments, name)]:
        words = ["KEY VALUE" if name == "opts" else f"--{name}" for name in given]
        raise InputError(f"{arguments.run} is a {kind}'s run: {', '.join(words)} does not fit")


def shown_bands(arguments: argparse.Namespace) -> list[str]:
    """Config overrides for ``--show-bands``."""
    return ["INPUT.SHOW_BANDS", str(arguments.show_bands)] if arguments.show_bands else []


def segment(arguments: argparse.Namespace) -> None:
    from segmentation.predict import predict as predict_maps

    refuse_flags(arguments, "segmenter", "engine", "frames", "classes", "format", "tiles")
    device = ["MODEL.DEVICE", arguments.device] if arguments.device else []
    counts = predict_maps(
        arguments.run,
        arguments.input,
        arguments.output_dir,
        arguments.weights,
        [*arguments.opts, *device, *shown_bands(arguments)],
        arguments.skip_bad_images,
        arguments.resume,
    )
    print(f"class maps of {counted(counts['images'], 'image')}: {arguments.output_dir}")


def classify(arguments: argparse.Namespace) -> None:
    from fcmae.classification.predict import predict_classes

    flags = ("opts", "tiles", "engine", "weights", "frames", "classes", "format")
    refuse_flags(arguments, "classifier", *flags)
    counts = predict_classes(
        arguments.run,
        arguments.input,
        arguments.output_dir,
        arguments.every,
        arguments.pictures,
        arguments.skip_bad_images,
        arguments.device,
        resume=arguments.resume,
        show_bands=arguments.show_bands,
    )
    print(
        f"{counted(counts['images'], 'image')}, {counted(counts['classes'], 'class')} found: "
        f"{arguments.output_dir / 'predictions.csv'}"
    )


def main() -> None:
    arguments = parse()
    log_to()
    tasks = {"detection": detect, "segmentation": segment, "classification": classify}
    with held(arguments.output_dir), compiled_encoders(arguments.compile):
        tasks[task_of(arguments.run)](arguments)


def detect(arguments: argparse.Namespace) -> None:
    engine = ["ENGINE", arguments.engine] if arguments.engine else []
    device = ["MODEL.DEVICE", arguments.device] if arguments.device else []
    counts = predict(
        arguments.run,
        arguments.input,
        arguments.output_dir,
        arguments.score_threshold,
        arguments.every,
        arguments.frames,
        arguments.weights,
        [*arguments.opts, *(arguments.tiles or []), *engine, *device, *shown_bands(arguments)],
        arguments.skip_bad_images,
        arguments.classes,
        arguments.resume,
    )
    write_labels(arguments.output_dir, arguments.format)
    print(
        f"{counted(counts['detections'], 'detection')} on {counted(counts['images'], 'image')}, "
        f"{counts['shown']} of them drawn: {arguments.output_dir}"
    )


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
