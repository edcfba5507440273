"""Write the table of det_configs/README.md from the config files and from runs' results.

Parameters and FLOPs are counted by fvcore on one 1280 x 800 image with COCO's 80 classes (some
minutes on a CPU for all sizes). Published AP is what a file's header says after "Expected:"; this
project's AP is what finished runs left in det_configs/results.json.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from fvcore.common.config import CfgNode

from backbones.errors import InputError
from detection.benchmarks.complexity import Complexity, complexity
from detection.config import load_config
from reporting.tables import write_between
from training.cli import ToolParser, run_tool

FOLDERS = ("quick", "coco", "edge")
CLASSES = ["MODEL.ROI_HEADS.NUM_CLASSES", "80"]
MARKS = ("<!-- table -->", "<!-- end of table -->")
EXAMPLES = """\
examples:
  # after a change of the files
  python dev/write_config_table.py
  # a finished run of one of them
  python dev/write_config_table.py --config quick/mask_rcnn_convnextv2_atto_scratch_nuclei.yaml \\
      --run runs/nuclei_scratch
"""


def parse() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("--configs", type=Path, default=Path("det_configs"), help="their folder")
    parser.add_argument("--config", help="the file that --run was made with, relative to --configs")
    parser.add_argument("--run", type=Path, help="a finished run's folder")
    return parser.parse_args()


def add_result(results: Path, config: str, run: Path) -> None:
    """Append a run's AP to ``results.json``."""
    summary = json.loads((run / "inference" / "metrics_summary.json").read_text(encoding="utf-8"))
    engine = load_config(run / "config.yaml").ENGINE
    known = json.loads(results.read_text(encoding="utf-8"))
    entry = {"engine": engine, "box AP": summary["bbox"]["AP"], "mask AP": summary["segm"]["AP"]}
    known.setdefault(config, []).append(entry)
    results.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def published(path: Path) -> str:
    """What a file's header expects, on one line."""
    header = path.read_text(encoding="utf-8").partition("\n_BASE_")[0]
    found = re.search(r"^# Expected: (.*?)(?=^# \w+: )", header, re.MULTILINE | re.DOTALL)
    if not found:
        raise InputError(f"{path}: its header has no line '# Expected:' before another")
    text = re.sub(r"\s*\n#\s*", " ", found[1]).strip().rstrip(".")
    return text.partition(". ")[0] if "AP" in text else ""


def same_model(config: CfgNode) -> str:
    """Equal for configs with equal layers."""
    model = config.MODEL.clone()
    model.defrost()
    model.CONVNEXT.WEIGHTS, model.CONVNEXT.DROP_PATH_RATE = "", 0.0
    return model.dump()


def rows(folder: Path) -> list[str]:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    counted: dict[str, Complexity] = {}
    lines = [
        "| config | engine | parameters | FLOPs | box / mask AP published | here |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(path for name in FOLDERS for path in (folder / name).glob("*rcnn*.yaml")):
        config = load_config(path, CLASSES)
        key = same_model(config)
        if key not in counted:
            counted[key] = complexity(config)
        count = counted[key]
        name = f"{path.parent.name}/{path.name}"
        here = "; ".join(
            f"{r['box AP']:.1f} / {r['mask AP']:.1f} ({r['engine']})" for r in results.get(name, [])
        )
        lines.append(
            f"| `{name}` | {config.ENGINE} | {count.parameters / 1e6:.1f} M "
            f"| {count.flops / 1e9:.0f} G | {published(path)} | {here or 'not yet run'} |"
        )
    return lines


def main() -> None:
    arguments = parse()
    if (arguments.run is None) != (arguments.config is None):
        raise InputError("--run and --config go together: the run, and the file it was made with")
    if arguments.run is not None:
        if not (arguments.configs / arguments.config).is_file():
            raise InputError(f"there is no config {arguments.configs / arguments.config}")
        add_result(arguments.configs / "results.json", arguments.config, arguments.run)
    write_between(arguments.configs / "README.md", MARKS, "\n".join(rows(arguments.configs)))


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
