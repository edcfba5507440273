"""Measure speed and memory as ratios, interleaved in one run, and print a Markdown table."""

from __future__ import annotations

import argparse
import json

import torch

from fcmae.benchmark import Case, encoder_case, pretrain_case, table
from training.cli import run_tool
from training.environment import device_name, versions

EXAMPLES = """\
examples:
  OMP_NUM_THREADS=1 python tools/benchmark.py encoder
  OMP_NUM_THREADS=1 python tools/benchmark.py pretrain --sizes convnextv2_atto --rounds 15
  python tools/benchmark.py encoder --device cuda --sizes convnextv2_base --precision bf16 \\
      --batch 256
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
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=list(DEFAULTS), help="the encoder alone, or a whole pretraining step")
    add("--sizes", nargs="+", metavar="NAME", help="encoders (default: those of the table)")
    add("--precision", nargs="+", choices=["fp32", "bf16"], help="with --sizes")
    add("--batch", type=int, nargs="+", default=[8], help="images; several make several lines")
    add("--image-size", type=int, nargs="+", default=[224], help="pixels, multiples of 32")
    add("--mask-ratio", type=float, nargs="+", default=[0.6])
    add("--rounds", type=int, default=7, help="rounds that are counted")
    add("--device", default="cpu", help="cpu or cuda")
    add("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here")
    models = DEFAULTS[arguments.what]
    if arguments.sizes:
        precisions = arguments.precision or ["fp32"]
        models = [(size, precision) for size in arguments.sizes for precision in precisions]
    measure = encoder_case if arguments.what == "encoder" else pretrain_case
    rows = [
        measure(Case(size, precision, batch, pixels, ratio), arguments.rounds, device)
        for size, precision in models
        for batch in arguments.batch
        for pixels in arguments.image_size
        for ratio in arguments.mask_ratio
    ]
    if arguments.json:
        print(json.dumps({"device": device_name(device), "versions": versions(), "rows": rows}))
        return
    print(
        f"{device_name(device)}, torch {torch.__version__}, medians of {arguments.rounds} rounds\n"
    )
    print(table(rows))


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
