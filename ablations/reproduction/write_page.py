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
from fcmae.analysis_plots import COLOURS, MARKERS
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
    "detection_one_pretraining": ("one_pretraining", ENCODERS),
    "detection_long": ("detection_long_64", PRETRAINED),
    "detection_long_all": ("detection_long_all", PRETRAINED),
    "detection_long_encoders": ("detection_long_64", ENCODERS),
    "detection_long_fcmae_again": ("detection_long_64", ("fcmae", "fcmae_again")),
    "detection_long_no_grn_again": ("detection_long_64", ("no_grn", "no_grn_again")),
}
ONE_METRIC = {"classification_one_pretraining": ("one_pretraining", "top-1")}  # else all of a grid
COMPARED = {  # by iteration: the folder of the runs, the arm and what it is compared with
    **{
        f"FCMAE over random weights, {labels} tiles": (f"detection_{name}", "fcmae", "scratch")
        for name, labels in LABELS.items()
    },
    "without GRN over with it, 64 tiles": ("detection_64", "no_grn", "fcmae"),
}
LOSS, HOURS = "loss of the last steps", "hours, other work beside it"
MEASURED = {  # of the last line of a pretraining's metrics.json
    LOSS: "total_loss",
    "distance, mean of the blocks": "feature_distance/mean",
    "of the lowest block": "feature_distance/lowest",
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


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table: its head, then its rows."""
    head, *rows = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def by_iteration(arm: Arm) -> dict[int, dict[int, float]]:
    """iteration -> seed -> box AP, the end of the training included."""
    found: dict[int, dict[int, float]] = defaultdict(dict)
    for seed, run in arm.runs.items():
        for iteration, value in run.history.get("bbox/AP", []):
            found[int(iteration)][seed] = value
        end = int(run.history["total_loss"][-1][0])
        found[end][seed] = arm.values("bbox")[seed]
    return dict(sorted(found.items()))


def differences_by_iteration(out: Path) -> str | None:
    """Of each pair of arms: the paired difference of box AP at every evaluation."""
    rows: dict[str, dict[int, str]] = {}
    for title, (folder, *names) in COMPARED.items():
        found = arms(out / folder, names)
        if len(found) == 2:
            ours, theirs = map(by_iteration, found)
            apart = {i: paired_difference(ours[i], theirs[i]) for i in ours.keys() & theirs.keys()}
            rows[title] = {i: spread(each, sign="+") for i, each in apart.items() if each}
    iterations = sorted({iteration for row in rows.values() for iteration in row})
    lines = [["box AP at iteration", *map(str, iterations)]]
    lines += [[title, *(row.get(i, "") for i in iterations)] for title, row in rows.items()]
    return markdown(lines) if rows else None


def grid_table(folder: Path, metric: str) -> str:
    """The tables that tools/ablate.py wrote of the metrics of a pattern, without their headings."""
    text = (folder / "table.md").read_text()
    tables = re.findall(rf"^\| {metric} \|.*\n(?:^\|.*\n?)+", text, re.MULTILINE)
    return "\n\n".join(table.strip() for table in tables)


def measured_pretrainings(folder: Path) -> dict[str, dict[str, dict[int, float]]]:
    """measure -> arm -> seed -> value at the end of each pretraining of a grid."""
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    with (folder / "runs.csv").open() as stream:
        runs = [run for run in csv.DictReader(stream) if run["metric"] == "pretraining hours"]
    for run in runs:
        metrics = folder / f"pretrain/{run['row']}_seed_{run['seed']}/metrics.json"
        last = json.loads(metrics.read_text().splitlines()[-1])
        values = {title: last[key] for title, key in MEASURED.items()}
        for title, value in (values | {HOURS: float(run["value"])}).items():
            found[title][run["row"]][int(run["seed"])] = value
    return found


def pretraining_table(folder: Path) -> str:
    """Each arm's pretrainings: means with 95% intervals, and the difference to the first arm."""
    found = measured_pretrainings(folder)
    first, *others = found[HOURS]
    head = ["encoder", "seeds"]
    for title in found:
        head += [title] if title == HOURS else [title, "difference to the first"]
    lines = [head]
    for arm in (first, *others):
        line = [arm, ", ".join(map(str, sorted(found[HOURS][arm])))]
        for title, values in found.items():
            line.append(spread(estimate(list(values[arm].values())), digits=3))
            apart = paired_difference(values[arm], values[first]) if arm != first else None
            if title != HOURS:
                line.append(spread(apart, sign="+", digits=3) if apart else "")
        lines.append(line)
    return markdown(lines)


def each_pretraining(folder: Path) -> str:
    """The loss and the hours of each pretraining."""
    found = measured_pretrainings(folder)
    lines = [["encoder", LOSS, HOURS]]
    lines += [
        [f"{arm}, seed {seed}", f"{found[LOSS][arm][seed]:.3f}", f"{hours:.2f}"]
        for arm, of_arm in found[HOURS].items()
        for seed, hours in of_arm.items()
    ]
    return markdown(lines)


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
        return differences_by_iteration(out)
    if name in DETECTION:
        runs, names = DETECTION[name]
        return compare(found).rstrip() if (found := arms(out / runs, names)) else None
    if name in PRETRAININGS:
        written = (out / name / "runs.csv").is_file()
        return PRETRAININGS[name](out / name) if written else None
    runs, metric = ONE_METRIC.get(name, (name, "[^|]*"))
    return grid_table(out / runs, metric) if (out / runs / "table.md").is_file() else None


def draw_iterations(out: Path, path: Path) -> None:
    """Box AP by iteration, a panel for each number of labelled tiles, with 95% intervals."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    panels = figure.subplots(1, len(LABELS), sharey=True)
    for axis, (name, labels) in zip(panels, LABELS.items(), strict=True):
        for index, arm in enumerate(
            arms(out / f"detection_{name}", ("scratch", "fcmae", "no_grn"))
        ):
            found = {i: estimate(list(v.values())) for i, v in by_iteration(arm).items()}
            middle = [each.mean for each in found.values()]
            widths = [each.half_width or 0.0 for each in found.values()]
            low, high = ([m + side * w for m, w in zip(middle, widths, strict=True)]
                         for side in (-1, 1))  # fmt: skip
            colour = COLOURS[index]
            axis.plot(list(found), middle, color=colour, marker=MARKERS[index], label=arm.name)
            axis.fill_between(list(found), low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set(title=f"{labels} labelled tiles", xlabel="iteration", ylim=(0, None))
        axis.legend(frameon=False, loc="upper left")
    panels[0].set_ylabel("box AP")
    figure.savefig(path, dpi=150)


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


PRETRAININGS = {"pretraining": pretraining_table, "pretraining_long": each_pretraining}


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
        draw_iterations(out, images / "reproduction_iterations.png")
    if found := arms(out / "detection_64"):
        (images / "reproduction_total_loss.svg").write_text(curves(found))


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
