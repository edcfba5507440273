"""Measure speed and memory of the variants in turn, in one run, and print a Markdown table."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from backbones.kernels import KERNELS, use_kernels
from detection.benchmarks.load import IMAGES, OBJECTS, load_tables
from detection.benchmarks.tables import ASKED, PARTS, detection_tables
from fcmae.benchmarks.data import data_case, large_case
from fcmae.benchmarks.gpu import gpu_encoder_case
from fcmae.benchmarks.growth import COLUMNS, draw_growth, measure_growth
from fcmae.benchmarks.steps import EncoderCase, encoder_case, inference_case, pretrain_case
from reporting.tables import by_column, markdown_table
from segmentation.benchmark import segmentation_case
from training.cli import ToolParser, at_least, run_tool
from training.devices import DEVICES, find_device
from training.records.environment import device_name, versions
from training.records.measure import Row

EXAMPLES = """\
examples:
  OMP_NUM_THREADS=1 python tools/benchmark.py encoder
  OMP_NUM_THREADS=1 python tools/benchmark.py inference
  OMP_NUM_THREADS=1 python tools/benchmark.py pretrain --sizes convnextv2_atto --rounds 15
  python tools/benchmark.py encoder --device cuda --sizes convnextv2_base --precision bf16 \\
      --batch 256
  OMP_NUM_THREADS=1 python tools/benchmark.py growth --picture growth.png
  OMP_NUM_THREADS=1 python tools/benchmark.py data --data PHOTOGRAPHS --workers 2
  OMP_NUM_THREADS=1 python tools/benchmark.py files
  OMP_NUM_THREADS=1 python tools/benchmark.py detection --rounds 3
  OMP_NUM_THREADS=1 python tools/benchmark.py detection --only cost --rounds 2
  OMP_NUM_THREADS=1 python tools/benchmark.py segmentation --rounds 5
  # an exported detector in fp32 and int8, by each runtime, beside eager PyTorch
  OMP_NUM_THREADS=1 python tools/benchmark.py detection --only exported --sizes convnextv2_atto
  # memory of a TIFF of 20,000 x 20,000 pixels, about 500 tiles on each engine
  OMP_NUM_THREADS=1 python tools/benchmark.py detection --only tiles
  OMP_NUM_THREADS=1 python tools/benchmark.py load
  python tools/benchmark.py detection --device cuda --sizes convnextv2_base --precision bf16 \\
      --image-size 1024
"""

DEFAULTS = {
    "encoder": [
        ("convnextv2_atto", "fp32"),
        ("convnextv2_nano", "fp32"),
        ("convnextv2_tiny", "fp32"),
        ("convnextv2_tiny", "bf16"),
        ("convnextv2_base", "fp32"),
    ],
    "pretrain": [
        ("convnextv2_atto", "fp32"),
        ("convnextv2_tiny", "fp32"),
        ("convnextv2_tiny", "bf16"),
    ],
    "inference": [("convnextv2_atto", "fp32"), ("convnextv2_base", "fp32")],
    "data": [("convnextv2_atto", "fp32")],
    "detection": [("convnextv2_atto", "fp32"), ("convnextv2_nano", "fp32")],
    "segmentation": [("convnextv2_atto", "fp32")],
}
BATCH, SIDE = {"detection": 1, "segmentation": 2}, {"detection": 512, "segmentation": 256}


def parse() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add(
        "what",
        choices=[*DEFAULTS, "files", "growth", "load"],
        help="encoder: the encoder alone; inference: the same without gradients; pretrain: a "
        "whole step; data: its input pipeline; files: the same by kind of file; detection: both "
        "engines and the evaluation; segmentation: UPerNet beside transformers'; growth: how the "
        "encoder's cost grows; load: a data set of COCO's size",
    )
    add(
        "--sizes",
        nargs="+",
        metavar="NAME",
        help="sizes of the encoder (default: those of the docs)",
    )
    add("--precision", nargs="+", choices=["fp32", "bf16"], help="with --sizes")
    batch = ", ".join(f"of {what} {number}" for what, number in BATCH.items())
    add("--batch", type=at_least(1), nargs="+", help=f"images per batch (default: 8, {batch})")
    side = ", ".join(f"of {what} {number}" for what, number in SIDE.items())
    add(
        "--image-size",
        type=at_least(1),
        nargs="+",
        help=f"side of the images in pixels (default: 224, {side})",
    )
    add("--mask-ratio", type=float, nargs="+", default=[0.6])
    add("--rounds", type=at_least(1), default=7, help="how often each variant is measured")
    add("--device", choices=DEVICES, default="cpu", help="default: cpu")
    add(
        "--kernels",
        choices=KERNELS,
        default="auto",
        help="kernels of the packed encoder; with encoder --device cuda, auto measures each",
    )
    add(
        "--compile",
        action="store_true",
        help="inference: also measure torch.compile (takes minutes)",
    )
    add("--workers", type=at_least(0), default=2, help="data: number of loader processes")
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="data: a folder of images (default: synthetic ones)",
    )
    add(
        "--images",
        type=int,
        help="detection: images of the evaluation (default: 5000; 0 leaves out evaluation and "
        f"prediction); load: images of the data set (default: {IMAGES})",
    )
    add("--objects", type=int, default=OBJECTS, help="load: objects of the data set")
    add(
        "--only",
        nargs="+",
        choices=[*PARTS, *ASKED],
        default=PARTS,
        help="detection: only these tables",
    )
    add("--picture", type=Path, metavar="FILE", help="growth: a PNG or SVG to draw")
    add("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def measure(arguments: argparse.Namespace, device: torch.device) -> dict[str, list[Row]]:
    """Tables by their heading."""
    if arguments.what == "growth":
        grown = measure_growth(partial(encoder_case, rounds=arguments.rounds, device=device))
        if arguments.picture:
            draw_growth(grown, arguments.picture, f"{device_name(device)}: one step of the encoder")
        return {f"by {COLUMNS[field]}": rows for field, rows in grown.items()}
    if arguments.what == "files":
        return {"files": large_case()}
    if arguments.what == "load":
        images = IMAGES if arguments.images is None else arguments.images
        return load_tables(images, arguments.objects)
    models = DEFAULTS[arguments.what]
    if arguments.sizes:
        precisions = arguments.precision or ["fp32"]
        models = [(size, precision) for size in arguments.sizes for precision in precisions]
    batches = arguments.batch or [BATCH.get(arguments.what, 8)]
    sides = arguments.image_size or [SIDE.get(arguments.what, 224)]
    if arguments.what == "detection":
        shapes = [(*model, batch, side) for model in models for batch in batches for side in sides]
        images = 5000 if arguments.images is None else arguments.images
        return detection_tables(shapes, arguments.rounds, device, images, arguments.only)
    if arguments.what == "segmentation":
        shapes = [(*model, batch, side) for model in models for batch in batches for side in sides]
        rows = [segmentation_case(*shape, arguments.rounds, device) for shape in shapes]
        return {"a training step of UPerNet": rows}
    cases = [
        EncoderCase(size, precision, batch, pixels, ratio)
        for size, precision in models
        for batch in batches
        for pixels in sides
        for ratio in arguments.mask_ratio
    ]
    if arguments.what == "data":
        reading = (arguments.workers, arguments.rounds, arguments.data, arguments.device)
        rows = [data_case(case, *reading) for case in cases]
    elif arguments.what == "encoder" and device.type == "cuda":
        variants = partial(gpu_encoder_case, rounds=arguments.rounds, device=device)
        rows = [row for case in cases for row in variants(case, kernels=arguments.kernels)]
    elif arguments.what == "inference":
        options = (arguments.rounds, device, arguments.compile)
        rows = [inference_case(case, *options) for case in cases]
    else:
        of_case = encoder_case if arguments.what == "encoder" else pretrain_case
        rows = [of_case(case, arguments.rounds, device) for case in cases]
    return {arguments.what: rows}


def main() -> None:
    arguments = parse()
    device = find_device(arguments.device)
    with use_kernels(arguments.kernels):
        tables = measure(arguments, device)
    if arguments.json:
        print(json.dumps({"device": device_name(device), "versions": versions(), **tables}))
        return
    rounds = f"medians of {arguments.rounds} rounds"
    rounds = {"load": "one run", "files": "medians of 3 rounds"}.get(arguments.what, rounds)
    print(f"{device_name(device)}, torch {torch.__version__}, {rounds}")
    for heading, rows in tables.items():
        print(f"\n{heading}\n\n{markdown_table(*by_column(rows))}")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
