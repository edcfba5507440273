"""Write a trained model or an encoder as ONNX (.onnx) or as a program of torch.export (.pt2).

Batch, height and width may vary. docs/export.md describes inputs and outputs;
examples/onnx_inference.py runs a detector with onnxruntime and opencv only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from backbones.errors import InputError
from backbones.export import PRECISIONS, check_target, encoder_export, write_export
from detection.exporting.runtimes import RUNTIMES
from training.cli import ToolParser, log_to, run_tool
from training.command_line.tasks import task_of

EXAMPLES = """examples:
  python tools/export.py --run runs/mine --output mine.onnx
  python tools/export.py --run runs/mine --output mine_int8.onnx --precision int8
  python tools/export.py --run runs/mine --weights runs/mine/model_0000299.pth --output mine.pt2
  python tools/export.py --encoder runs/fcmae/encoder.safetensors --output encoder.onnx
  python tools/export.py --run runs/classifier --output classifier.onnx

  # a run with soft-NMS, which cannot be exported: with ordinary suppression instead
  python tools/export.py --run runs/mine --output mine.onnx MODEL.ROI_HEADS.SOFT_NMS.ENABLED False

  # AP on DATASETS.TEST and time of exported files beside PyTorch's, as a table
  python tools/export.py --run runs/mine --evaluate mine.onnx mine_int8.onnx
  # the same files by OpenVINO as well: pip install openvino
  python tools/export.py --run runs/mine --evaluate mine.onnx mine_int8.onnx \\
      --runtimes onnxruntime openvino
"""


def at_least_one(text: str) -> float:
    if not 1 <= (value := float(text)) < 100:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 100")
    return value


def parse() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    source = parser.add_mutually_exclusive_group(required=True)
    add = source.add_argument
    add("--run", type=Path, metavar="DIR", help="a finished run of any task")
    add("--encoder", metavar="FILE", help="an encoder of any format, or timm:NAME")
    add = parser.add_argument
    add("--output", type=Path, metavar="FILE", help="the file to write, .onnx or .pt2")
    add("--precision", choices=PRECISIONS, default="fp32")
    add(
        "--calibrate",
        metavar="json:ANNOTATIONS:IMAGES",
        help="int8 of a detector: the data set whose images give the ranges of activations "
        "(default: the run's DATASETS.TRAIN)",
    )
    add("--in-chans", type=int, help="channels of the images, with --encoder and --adapt-channels")
    add(
        "--adapt-channels",
        action="store_true",
        help="convert the stem's weights to --in-chans channels",
    )
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a checkpoint to use instead of the run's newest",
    )
    add(
        "--evaluate",
        type=Path,
        nargs="+",
        metavar="ONNX",
        help="compare exported files with PyTorch instead of writing one",
    )
    add(
        "--padded",
        type=at_least_one,
        nargs="+",
        default=[],
        metavar="TIMES",
        help="--evaluate also with images padded by zeros to TIMES their sides, as in a batch "
        "with a larger image",
    )
    add(
        "--runtimes",
        choices=RUNTIMES,
        nargs="+",
        default=["onnxruntime"],
        help="programs that run the files of --evaluate",
    )
    add("opts", nargs="*", metavar="KEY VALUE", help="settings that override the run's")
    arguments = parser.parse_intermixed_args()
    if bool(arguments.output) == bool(arguments.evaluate):
        parser.error("give either --output or --evaluate")
    for_run = arguments.evaluate or arguments.weights or arguments.opts or arguments.calibrate
    if for_run and not arguments.run:
        parser.error("--evaluate, --weights, --calibrate and KEY VALUE are for --run")
    if arguments.calibrate and arguments.precision != "int8":
        parser.error("--calibrate is for --precision int8")
    if bool(arguments.in_chans) != arguments.adapt_channels or (
        arguments.in_chans and not arguments.encoder
    ):
        parser.error("--in-chans and --adapt-channels go together, and with --encoder")
    return arguments


def evaluate(arguments: argparse.Namespace) -> None:
    from detection.dataset import load_dataset
    from detection.export import load_run
    from detection.exporting.evaluate import compare, markdown_table

    config, model = load_run(arguments.run, arguments.weights, arguments.opts)
    if not config.DATASETS.TEST:
        raise InputError("nothing to evaluate on: give DATASETS.TEST json:ANNOTATIONS:IMAGE_FOLDER")
    dataset = load_dataset(config.DATASETS.TEST[0], config.MODEL.MASK_ON)
    files = {path.name: path for path in arguments.evaluate}
    further = {"padded": arguments.padded, "runtimes": arguments.runtimes}
    print(markdown_table(compare(config, model, files, dataset, **further)))


def main() -> None:
    arguments = parse()
    log_to()
    if arguments.evaluate:
        evaluate(arguments)
        return
    output, precision = arguments.output, arguments.precision
    check_target(output, precision)
    if arguments.calibrate and task_of(arguments.run) != "detection":
        raise InputError(
            f"--calibrate is for detectors, and {arguments.run} is a run of another task: its "
            "int8 takes no images"
        )
    if arguments.encoder:
        export = encoder_export(arguments.encoder, precision, arguments.in_chans)
    elif task_of(arguments.run) == "classification":
        from fcmae.classification.classifier import classifier_export

        export = classifier_export(arguments.run, precision)
    else:
        if task_of(arguments.run) == "segmentation":
            from segmentation.export import run_export as segmentation_export

            export = segmentation_export(
                arguments.run, precision, arguments.weights, tuple(arguments.opts)
            )
        else:
            from detection.export import run_export

            export = run_export(
                arguments.run,
                output.suffix,
                precision,
                arguments.weights,
                arguments.opts,
                arguments.calibrate,
            )
    write_export(export, output, precision)
    print(
        f"wrote   {output}: {export.metadata['kind']}, {precision}, {output.stat().st_size} bytes"
    )
    for name, axes in export.free.items():
        print(f"free    in {name}: {', '.join(axes.values())}")
    print(f"licence of the weights: {export.metadata['licence']}")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
