"""Plan a training: read labels and images, write a config with the reason beside each value.

Rules choose resolution, anchors and limits by the labels. The number of iterations follows from a
few timed steps and --minutes; no other trainings are run.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import detection.plan.plan as detection
import segmentation.plan as segmentation
from backbones.errors import InputError
from backbones.whole_files import try_writing, write_text
from images.plans import Request, read_encoder
from training.cli import ToolParser, run_tool
from training.command_line.commands import as_called
from training.devices import DEVICES
from training.plans import this_machine

EXAMPLES = """
examples:
  # one set of labels; --test is evaluated at the end, and its time is planned for
  python tools/plan_training.py train.json --images images --minutes 20 --output plan.yaml
  python tools/plan_training.py json:train.json:images --test json:val.json:images \\
      --minutes 20 --output plan.yaml

  # several sets, an encoder that FCMAE has pretrained
  python tools/plan_training.py json:a.json:images json:b.json:more --test json:val.json:images \\
      --encoder runs/fcmae/encoder.safetensors --minutes 60 --output plan.yaml

  # class maps: a config for tools/train_segmentation.py
  python tools/plan_training.py masks:images/train:labels/train:classes.json \\
      --test masks:images/val:labels/val:classes.json --minutes 20 --output plan.yaml

  # then
  python tools/train_net.py --config-file plan.yaml OUTPUT_DIR runs/planned
"""


def parse() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add(
        "datasets",
        nargs="+",
        metavar="DATASET",
        help="what to train on: json:..., masks:..., a known name, or a COCO json and --images",
    )
    add("--images", metavar="DIR", help="the image folder, if a COCO json is given")
    add(
        "--test",
        nargs="+",
        default=[],
        metavar="DATASET",
        help="data sets to evaluate on at the end",
    )
    add("--task", choices=["detection", "segmentation"],
        help="default: segmentation for masks:IMAGES:LABELS, else detection")  # fmt: skip
    add("--encoder", metavar="FILE", help="pretrained weights: a file of any format, or timm:NAME")
    add(
        "--minutes",
        type=float,
        default=15.0,
        help="time of the whole training, with evaluation (default: 15)",
    )
    add("--device", choices=DEVICES, help="where to train (default: a GPU, if there is one)")
    add("--output", required=True, type=Path, metavar="CONFIG", help="the config to write")
    return parser.parse_args()


def dataset_name(text: str, images: str | None) -> str:
    """A data set's name as configs have it.

    Raises:
        InputError: for a json without its image folder.
    """
    is_named = text.startswith(("json:", "masks:"))
    if is_named or Path(text).suffix.lower() != ".json":
        return text
    if images is None:
        raise InputError(
            f"{text}: its image folder is missing: add --images DIR, or give json:{text}:DIR"
        )
    return f"json:{text}:{images}"


def main() -> None:
    arguments = parse()
    if not 0 < arguments.minutes < float("inf"):
        raise InputError(f"--minutes is {arguments.minutes}; give a positive number")
    if arguments.output.exists():
        raise InputError(f"{arguments.output} exists already: give another --output")
    try_writing(arguments.output)
    train, test = (
        tuple(dataset_name(text, arguments.images) for text in texts)
        for texts in (arguments.datasets, arguments.test)
    )
    task = arguments.task or ("segmentation" if train[0].startswith("masks:") else "detection")
    if task == "segmentation" and max(len(train), len(test)) > 1:
        raise InputError(
            "segmentation takes one data set to train on and at most one to test on, not "
            f"{' '.join((*train, *test))}"
        )
    encoder = read_encoder(arguments.encoder) if arguments.encoder else None
    machine, minutes = this_machine(arguments.device), arguments.minutes
    numbers: detection.Survey | segmentation.Survey
    request = Request(train, test, minutes, encoder, machine)
    if task == "segmentation":
        plan, numbers, timing = segmentation.plan_segmentation(request)
        base, trains = segmentation.base_values(plan), "train_segmentation"
    else:
        plan, numbers, timing = detection.plan_detection(request)
        base, trains = detection.base_values(plan), "train_net"
    command = as_called(f"python tools/{trains}.py --config-file ")
    command += f"{shlex.quote(str(arguments.output))} OUTPUT_DIR runs/planned"
    expected = timing.minutes(plan["SOLVER.MAX_ITER"], numbers.test_images)
    header = [
        f"Planned by {as_called('tools/plan_training.py')} for {minutes:g} minutes on {machine}.",
        numbers.sentence(),
        f"Command:  {command}",
        f"Expected: {expected:.1f} minutes: {timing}",
    ]
    write_text(arguments.output, plan.text(header, base))
    print(numbers.sentence())
    print(plan.table())
    print(f"{expected:.1f} minutes: {timing}")
    print(f"wrote {arguments.output}; now: {command}")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
