"""Run detectron2 on the golden detectors and store what it says in tests/golden/.

``tests/test_detection_parity.py`` holds the torchvision engine to this on machines that have no
detectron2. Run this only to change the golden inputs, and say why in the commit.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from backbones.errors import InputError
from training.cli import ToolParser, run_tool

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from golden import inputs, outputs, training
from two_engines import Detectron2Detector

EPILOG = """examples:
  python dev/write_golden.py
  python dev/write_golden.py --output /tmp/detectron2.json   # to compare with the stored one
  python dev/write_golden.py --train                         # other trained weights first
"""


def main() -> None:
    parser = ToolParser(__doc__, EPILOG)
    parser.add_argument("--output", type=Path, default=outputs.FILE)
    parser.add_argument("--train", action="store_true", help="the trained detectors anew: minutes")
    args = parser.parse_args()
    if importlib.util.find_spec("detectron2") is None:
        raise InputError(
            "golden files come from detectron2, which is not installed: docs/detectron2.md"
        )
    torch.set_num_threads(1)
    if args.train:
        for variant in inputs.VARIANTS:
            save_file(training.train(variant), inputs.trained_file(variant))
            print(f"wrote {inputs.trained_file(variant)}")
    golden = {}
    for case in inputs.CASES:
        found = golden[str(case)] = outputs.compute(case, Detectron2Detector)
        counts = [len(image["scores"]) for image in found["detections"]]
        losses = ", ".join(f"{name} {value:.6f}" for name, value in found["losses"].items())
        print(f"{case}: detections {counts}; {losses}")
    args.output.write_text(
        json.dumps(golden, separators=(",", ":")).replace("},", "},\n") + "\n", encoding="utf-8"
    )
    print(f"wrote {args.output} ({args.output.stat().st_size} bytes)")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
