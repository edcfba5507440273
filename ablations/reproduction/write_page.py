"""Put the figures of runs/reproduction (made by run.sh) into docs/reproduction.md and docs/images.

Between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` goes the table of that name. What has no
runs there stays as the page has it, so that a part can be run again alone. After ``command FOLDER``
goes the line of run.sh that writes to that folder of the runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from detection.arms import Arm, compare, curves, read_arms, spread
from fcmae.analysis_plots import COLOURS
from training.cli import run_tool
from training.intervals import estimate, paired_difference

ROOT = Path(__file__).resolve().parent.parent.parent
LABELS = {"16": 16, "64": 64, "all": 400}  # labelled tiles of a grid's runs
# the arms of a table of detection, the first of them the baseline; and the folder of its runs
PRETRAINED = ("scratch", "fcmae")
ENCODERS = ("fcmae", "no_grn", "mask_token")
DETECTION = {
    **{f"detection_{name}": (f"detection_{name}", PRETRAINED) for name in LABELS},
    "detection_encoders": ("detection_64", ENCODERS),
    "detection_chains": ("chains", ("fcmae", "no_grn", "scratch")),
    "detection_long": ("detection_long_64", PRETRAINED),
    "detection_long_all": ("detection_long_all", PRETRAINED),
    "detection_long_encoders": ("detection_long_64", ENCODERS),
    "detection_long_fcmae_again": ("detection_long_64", ("fcmae", "fcmae_again")),
    "detection_long_no_grn_again": ("detection_long_64", ("no_grn", "no_grn_again")),
}
ONE_METRIC = {"classification_chains": ("chains", "top-1")}  # of a grid's tables; else all of them
PRETRAININGS = {  # the folder of each table's runs
    "pretraining": "pretraining",
    "pretraining_long": "pretraining_long",
    "pretraining_chains": "chains",
}
FINISHED = "inference/metrics_summary.json"
PICTURES = {
    "diversity_by_epoch/distance_by_epoch.png": "reproduction_by_epoch.png",
    "diversity/cosine_distance.png": "reproduction_by_block.png",
    "diversity_supervised/distance_by_epoch.png": "reproduction_supervised_by_epoch.png",
    "diversity_long/distance_by_epoch.png": "reproduction_long_by_epoch.png",
}


def arms(folder: Path, names: Sequence[str] = PRETRAINED) -> list[Arm]:
    """The finished detection runs of a grid that are of these arms, in their order."""
    by_arm: dict[str, dict[str, Path]] = defaultdict(dict)
    for run in sorted(folder.glob("detect/*_seed_*/")):
        if (run / FINISHED).is_file():
            name, _, seed = run.name.rpartition("_seed_")
            by_arm[name][seed] = run
    return read_arms({name: list(by_arm[name].values()) for name in names if name in by_arm})


def by_iteration(found: Sequence[Arm]) -> str:
    """Box AP of each arm during the training and at its end, and the difference to the first."""
    columns: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for arm in found:
        for seed, run in arm.runs.items():
            for iteration, value in run.history.get("bbox/AP", []):
                columns[f"iteration {iteration:.0f}"][arm.name][seed] = value
    for arm in found:
        columns["the end"][arm.name] = arm.values("bbox")
    lines = [["box AP"], ["---"]]
    for title in columns:
        lines[0] += [title, "difference to the first"]
        lines[1] += ["---", "---"]
    for arm in found:
        line = [arm.name]
        for values in columns.values():
            of_arm = values[arm.name]
            line.append(spread(estimate(list(of_arm.values()))) if of_arm else "")
            difference = paired_difference(of_arm, values[found[0].name])
            line.append(spread(difference, sign="+") if difference and arm is not found[0] else "")
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def grid_table(folder: Path, metric: str) -> str:
    """The tables that tools/ablate.py wrote of the metrics of a pattern, without their headings."""
    text = (folder / "table.md").read_text()
    tables = re.findall(rf"^\| {metric} \|.*\n(?:^\|.*\n?)+", text, re.MULTILINE)
    return "\n\n".join(table.strip() for table in tables)


def measured_pretraining(folder: Path) -> str:
    """Of each pretraining: its loss, its hours, and how far apart the features are at its end."""
    with (folder / "runs.csv").open() as stream:
        runs = [run for run in csv.DictReader(stream) if run["metric"] == "pretraining hours"]
    lines = [
        "| encoder | loss of the last steps | hours, other work beside it | distance, mean of the "
        "blocks | of the lowest block |",
        "| --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        metrics = folder / f"pretrain/{run['row']}_seed_{run['seed']}/metrics.json"
        last = json.loads(metrics.read_text().splitlines()[-1])
        distances = [f"{last[f'feature_distance/{which}']:.2f}" for which in ("mean", "lowest")]
        lines.append(
            f"| {run['row']}, seed {run['seed']} | {last['total_loss']:.3f} | "
            f"{float(run['value']):.2f} | {' | '.join(distances)} |"
        )
    return "\n".join(lines)


def command(folder: str) -> str:
    """The command of run.sh that writes to a folder of the runs, its variables replaced."""
    text = (ROOT / "ablations/reproduction/run.sh").read_text()
    variables = dict(re.findall(r"(?m)^(\w+)=(\S+)$", text)) | {"data": "DATA"}
    for line in re.findall(r"(?m)^python (?:.*\\\n)*.*$", text):
        while found := re.search(r"\$(\w+)", line):
            line = line.replace(found[0], variables[found[1]])
        if re.search(rf" --output-dir runs/reproduction/{folder}\s", line + "\n"):
            return f"```bash\n{line}\n```"
    raise ValueError(f"no line of run.sh writes to {folder}")


def table(name: str, out: Path) -> str | None:
    """A grid's table; None where it has no runs."""
    if name.startswith("command "):
        return command(name.removeprefix("command "))
    if name == "by_iteration":
        every = arms(out / "detection_64", ("fcmae", "scratch", "no_grn", "mask_token"))
        return by_iteration(every) if every else None
    if name in DETECTION:
        runs, names = DETECTION[name]
        return compare(found).rstrip() if (found := arms(out / runs, names)) else None
    if name in PRETRAININGS:
        folder = out / PRETRAININGS[name]
        return measured_pretraining(folder) if (folder / "runs.csv").is_file() else None
    runs, metric = ONE_METRIC.get(name, (name, "[^|]*"))
    return grid_table(out / runs, metric) if (out / runs / "table.md").is_file() else None


def draw_labels(out: Path, path: Path) -> None:
    """Box AP by the number of labelled tiles, a line an arm: means and 95% intervals."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    points: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for name, labels in LABELS.items():
        for arm in arms(out / f"detection_{name}"):
            found = estimate(list(arm.values("bbox").values()))
            points[arm.name].append((labels, found.mean, found.half_width or 0.0))
    for index, (arm_name, of_arm) in enumerate(points.items()):
        labels, means, widths = zip(*of_arm, strict=True)
        moved = [count * 1.04**index for count in labels]  # so that intervals do not cover others
        axis.errorbar(
            moved, means, widths, color=COLOURS[index], marker="o", capsize=3, label=arm_name
        )
    axis.set(xscale="log", xlabel="labelled tiles", ylabel="box AP", ylim=(0, None))
    axis.set_xticks(list(LABELS.values()), list(map(str, LABELS.values())))
    axis.minorticks_off()
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduction"))
    out = parser.parse_args().runs
    page = ROOT / "docs/reproduction.md"

    def filled(block: re.Match[str]) -> str:
        new = table(block[2], out)
        return block[0] if new is None else f"{block[1]}\n\n{new}\n\n{block[3]}"

    pattern = r"(<!-- begin ([\w ]+) -->).*?(<!-- end \2 -->)"
    page.write_text(re.sub(pattern, filled, page.read_text(), flags=re.DOTALL))
    images = ROOT / "docs/images"
    for source, picture in PICTURES.items():
        if (out / source).is_file():
            shutil.copyfile(out / source, images / picture)
    if all(arms(out / f"detection_{name}") for name in LABELS):
        draw_labels(out, images / "reproduction_labels.png")
    if found := arms(out / "detection_64"):
        (images / "reproduction_total_loss.svg").write_text(curves(found))


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
