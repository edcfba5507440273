"""Planned configs against the hand-made quick config, at equal minutes of the processor.

For each data set and seed: the quick config trains as it is, its processor time is taken, and the
plan is asked for a training of that many minutes (tools/plan_training.py's rules, timed by the
processor). Data sets: nuclei, fruits_nuts and coco_mini of the folder that is given, the
quickstart's drawn scenes, and other scenes that were written as YOLO labels and imported.

What is in OUTPUT/results.csv is not run again, so that the same command goes on. --write puts the
table into docs/plan.md.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import statistics
import subprocess
from pathlib import Path

from backbones.errors import InputError
from backbones.whole_files import write_text
from detection.data.coco_file import write_coco
from detection.data.formats.convert import read_labels
from detection.data.formats.yolo import write_yolo
from detection.data.scenes import write_scenes
from detection.plan.plan import base_values, plan_detection
from images.plans import Request
from reporting.tables import write_between
from training.cli import ToolParser, at_least, run_tool
from training.command_line.commands import child_command
from training.plans import children_seconds, this_machine

QUICK = "quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml"
REAL = ("nuclei", "fruits_nuts", "coco_mini")
SETS = (*REAL, "scenes", "imported")
FIELDS = ("data", "seed", "arm", "iterations", "cpu_seconds", "box_ap", "box_ap50", "mask_ap")
PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "plan.md"
MARKS = ("<!-- comparison -->", "<!-- end of comparison -->")
EXAMPLES = """\
examples:
  # data holds nuclei/, fruits_nuts/ and coco_mini/, each with annotations/ and images/
  nice -n 5 python ablations/plan/compare.py data --output-dir runs/plan
  python ablations/plan/compare.py data --output-dir runs/plan --sets fruits_nuts --seeds 1
  python ablations/plan/compare.py data --output-dir runs/plan --write
"""


def data_set(name: str, data: Path, out: Path) -> tuple[str, str]:
    """The names of a data set's training and test part, drawn or imported where need be."""
    if name in REAL:
        folder = data / name
        parts = [folder / f"annotations/{split}.json" for split in ("train", "val")]
        return tuple(f"json:{part}:{folder / 'images'}" for part in parts)  # type: ignore[return-value]
    folder = out / "data" / name
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)  # what an interruption left
        write_scenes(partial, train=100, val=50, unlabelled=1, seed=int(name == "imported"))
        partial.rename(folder)
    parts = [folder / f"annotations/{split}.json" for split in ("train", "val")]
    if name == "imported":
        parts = [imported(part, folder) for part in parts]
    return tuple(f"json:{part}:{folder / 'images'}" for part in parts)  # type: ignore[return-value]


def imported(part: Path, folder: Path) -> Path:
    """COCO labels that went through YOLO's polygons."""
    path = folder / f"imported_{part.stem}.json"
    if not path.is_file():
        labels = folder / f"yolo_{part.stem}"
        write_yolo(json.loads(part.read_text(encoding="utf-8")), labels)
        read = read_labels(labels / "labels", "yolo", folder / "images", "object")
        (builder,) = read.values()
        tree = builder.tree()
        with_labels = {item["image_id"] for item in tree["annotations"]}
        tree["images"] = [image for image in tree["images"] if image["id"] in with_labels]
        write_coco(tree, path)
    return path


def train(config: str, names: tuple[str, str], folder: Path, seed: int) -> float:
    """Train in a process of its own; its seconds of the processor."""
    shutil.rmtree(folder, ignore_errors=True)  # an interrupted run: its seconds are not known
    before = children_seconds()
    command = [*child_command("train"), "--config-file", config, "OUTPUT_DIR", str(folder)]
    command += ["DATASETS.TRAIN", names[0], "DATASETS.TEST", names[1], "SEED", str(seed)]
    command += ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{folder}: {(done.stdout + done.stderr)[-1500:]}")
    return children_seconds() - before


def row_of(data: str, seed: int, arm: str, folder: Path, seconds: float) -> dict[str, str]:
    summary = json.loads((folder / "inference/metrics_summary.json").read_text(encoding="utf-8"))
    last = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()[-1]
    values = (
        data, seed, arm, json.loads(last)["iteration"], f"{seconds:.0f}",
        *(f"{summary[task][key] or 0:.2f}" for task, key in
          (("bbox", "AP"), ("bbox", "AP50"), ("segm", "AP"))),
    )  # fmt: skip
    return dict(zip(FIELDS, map(str, values), strict=True))


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def add_row(path: Path, row: dict[str, str]) -> None:
    is_new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, FIELDS)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def compare(name: str, seed: int, data: Path, out: Path) -> None:
    """Both arms of one data set and seed, but for those whose rows are there."""
    table = out / "results.csv"
    rows = {(r["data"], int(r["seed"]), r["arm"]): r for r in read_rows(table)}
    names = data_set(name, data, out)
    config = out / f"plan_{name}.yaml"
    for arm in ("quick", "planned"):
        if (name, seed, arm) in rows:
            continue
        folder = out / f"{name}_{arm}_{seed}"
        if arm == "planned" and not config.is_file():
            minutes = float(rows[name, seed, "quick"]["cpu_seconds"]) / 60
            request = Request((names[0],), (names[1],), minutes, None, this_machine("cpu"))
            plan, _, _ = plan_detection(request, by_processor=True)
            text = plan.text(["Planned by ablations/plan/compare.py"], base_values(plan))
            write_text(config, text)
        seconds = train(str(config) if arm == "planned" else QUICK, names, folder, seed)
        rows[name, seed, arm] = row_of(name, seed, arm, folder, seconds)
        add_row(table, rows[name, seed, arm])
        print(*rows[name, seed, arm].values())


def comparison(rows: list[dict[str, str]]) -> str:
    """The table of docs/plan.md: means over the seeds that both arms have, and the median gain."""
    of = {(r["data"], r["seed"], r["arm"]): r for r in rows}
    lines = [
        "| data | seeds | quick: iterations, CPU s | box AP | mask AP | planned: iterations, CPU s "
        "| box AP | mask AP | box AP gained |",
        "| --- | ---: | --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    gains = []
    for name in SETS:
        seeds = [s for d, s, arm in of if d == name and arm == "planned" and (d, s, "quick") in of]
        if not seeds:
            lines.append(f"| {name} | 0 | not yet run |  |  |  |  |  |  |")
            continue
        cells, box = [name, str(len(seeds))], []
        for arm in ("quick", "planned"):
            chosen = [of[name, seed, arm] for seed in seeds]
            mean = {key: statistics.fmean(float(row[key]) for row in chosen) for key in FIELDS[3:]}
            cells.append(f"{mean['iterations']:.0f}, {mean['cpu_seconds']:.0f}")
            cells += [f"{mean['box_ap']:.1f}", f"{mean['mask_ap']:.1f}"]
            box.append(mean["box_ap"])
        share = f" ({(box[1] - box[0]) / box[0]:+.0%})" if box[0] >= 1 else ""
        if share:
            gains.append((box[1] - box[0]) / box[0])
        lines.append(f"| {' | '.join(cells)} | {box[1] - box[0]:+.1f}{share} |")
    if gains:
        lines += ["", f"The median of these gains is {statistics.median(gains):+.0%}."]
    return "\n".join(lines)


def main() -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("data", type=Path, help="the folder of nuclei, fruits_nuts and coco_mini")
    add("--output-dir", type=Path, required=True)
    add("--sets", nargs="+", choices=SETS, default=list(SETS))
    add("--seeds", nargs="+", type=at_least(0), default=[1, 2, 3])
    add("--write", action="store_true", help="write the table into docs/plan.md, run nothing")
    arguments = parser.parse_args()
    out = arguments.output_dir.resolve()
    if not arguments.write:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        out.mkdir(parents=True, exist_ok=True)
        for seed in arguments.seeds:  # so that every set has its first seed early
            for name in arguments.sets:
                compare(name, seed, arguments.data.resolve(), out)
    table = comparison(read_rows(out / "results.csv"))
    if arguments.write:
        write_between(PAGE, MARKS, table)
    print(table)


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
