"""Run detectron2 on the golden detector and store what it says in tests/golden/.

``tests/test_detection_parity.py`` holds the torchvision engine to these files on machines that
have no detectron2. Run this only to change the golden inputs, and say why in the commit.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from training.cli import run_tool

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

EPILOG = """examples:
  python tools/write_golden.py
  python tools/write_golden.py --output-dir /tmp/golden   # to compare with the stored ones
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=TESTS / "golden")
    args = parser.parse_args()
    try:
        from golden.outputs import compute_golden
    except ImportError as error:
        raise ValueError(f"golden files come from detectron2, see README: {error}") from error
    golden = compute_golden()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "detectron2.json"
    path.write_text(json.dumps(golden, indent=0, separators=(",", ":")) + "\n")
    counts = [len(found["scores"]) for found in golden["detections"]]
    print(f"wrote {path} ({path.stat().st_size} bytes): detections {counts}")
    print("losses " + ", ".join(f"{name} {value:.6f}" for name, value in golden["losses"].items()))


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
