"""The whole pipeline in one command: pretrain by FCMAE, fine-tune Mask R-CNN twice, compare.

It draws a data set of small scenes, so nothing is downloaded, and runs the same commands that you
would run on your images. OUTPUT_DIR/commands.txt lists them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from backbones.errors import InputError
from backbones.whole_files import write_text
from detection.data.scenes import write_scenes
from detection.report import write_report
from training.cli import ToolParser, at_least, run_tool
from training.command_line.commands import child_command, shown_command
from training.command_line.jobs import Job, run_jobs
from training.devices import DEVICES
from training.guards.run_folder import LOCK, held

CONFIG = "quick/mask_rcnn_convnextv2_atto_{}_quick.yaml"
PRETRAINING_STEPS = 300
NOTE = (
    "One seed, {train} labelled scenes and {minutes:.0f} minutes of pretraining: this page shows "
    "that all steps work, and proves nothing about pretraining: at this scale a difference of "
    "several AP between the two runs is chance. A comparison needs ten or more paired seeds, "
    "a learning rate tuned for each arm on other data, an interval beside each difference, and "
    "far longer pretraining. Here each arm has the rate that was best for it on scenes "
    "of another seed (see the headers of det_configs/quick)."
)
EXAMPLES = """\
examples:
  python tools/quickstart.py --output-dir quickstart
  python tools/quickstart.py --output-dir quickstart --seed 1 --iterations 1200
"""


def jobs_for(arguments: argparse.Namespace, out: Path) -> tuple[Job, list[Job]]:
    """The pretraining, and the two fine-tunings on the same data with the same seed."""
    data, seed = out / "data", arguments.seed
    pretrain = [*child_command("pretrain"), "--model", "convnextv2_atto"]
    pretrain += ["--data", f"{data}/unlabelled", "--output-dir", f"{out}/pretraining"]
    pretrain += ["--image-size", "128", "--batch-size", "32", "--base-lr", "8e-3"]
    pretrain += ["--clip-norm", "3", "--workers", "0", "--log-every", "10", "--seed", str(seed)]
    pretrain += ["--max-steps", str(arguments.pretraining_steps), "--device", arguments.device]
    pretraining = Job(
        "FCMAE pretraining", pretrain, out / "pretraining", arguments.pretraining_steps
    )
    arms = []
    for arm in ("scratch", "fcmae"):
        command = [*child_command("train"), "--config-file", CONFIG.format(arm)]
        for split, key in (("train", "DATASETS.TRAIN"), ("val", "DATASETS.TEST")):
            command += [key, f"json:{data}/annotations/{split}.json:{data}/images"]
        if arm == "fcmae":
            command += ["MODEL.CONVNEXT.WEIGHTS", f"{out}/pretraining/encoder.safetensors"]
        command += [
            "OUTPUT_DIR",
            f"{out}/{arm}",
            "SEED",
            str(seed),
            "MODEL.DEVICE",
            arguments.device,
        ]
        command += ["DATALOADER.NUM_WORKERS", "0"]
        command += ["INPUT.MIN_SIZE_TRAIN", "[224]", "INPUT.MIN_SIZE_TEST", "224"]
        steps = f"[{round(0.8 * arguments.iterations)}]"
        command += ["SOLVER.MAX_ITER", str(arguments.iterations), "SOLVER.STEPS", steps]
        title = f"Mask R-CNN from {'scratch' if arm == 'scratch' else 'FCMAE'}"
        arms.append(Job(title, command, out / arm, arguments.iterations))
    return pretraining, arms


def main() -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--output-dir", required=True, help="a new or empty folder")
    add("--seed", type=at_least(0), default=0, help="seed of the scenes and of both trainings")
    add("--train", type=at_least(1), default=100, help="labelled scenes to train on")
    add("--val", type=at_least(1), default=50, help="labelled scenes to evaluate on")
    add("--unlabelled", type=at_least(1), default=400, help="scenes for pretraining")
    add("--pretraining-steps", type=at_least(1), default=PRETRAINING_STEPS)
    add(
        "--iterations",
        type=at_least(1),
        default=500,
        help="training steps of each of the two detectors",
    )
    add("--device", choices=DEVICES, default="cpu", help="default: cpu")
    arguments = parser.parse_args()
    out = Path(arguments.output_dir).resolve()
    with held(out):
        if any(path.name != LOCK for path in out.iterdir()):
            raise InputError(f"{out} is not an empty folder; choose another --output-dir")
        quickstart(arguments, out)


def quickstart(arguments: argparse.Namespace, out: Path) -> None:
    print("drawing scenes ...", file=sys.stderr)
    write_scenes(out / "data", arguments.train, arguments.val, arguments.unlabelled, arguments.seed)
    pretraining, arms = jobs_for(arguments, out)
    commands = [shown_command(job.command) for job in (pretraining, *arms)]
    write_text(out / "commands.txt", "\n\n".join(commands) + "\n")
    began = time.perf_counter()
    run_jobs([pretraining], Path.cwd())
    minutes = (time.perf_counter() - began) / 60
    run_jobs(arms, Path.cwd())
    write_report(
        [arm.run for arm in arms],
        out / "report.html",
        names=["scratch", "FCMAE"],
        notes=[NOTE.format(train=arguments.train, minutes=minutes)],
        pretraining=pretraining.run,
    )
    scratch, fcmae = (
        json.loads((arm.run / "inference/metrics_summary.json").read_text(encoding="utf-8"))
        for arm in arms
    )
    print(
        f"report: {out / 'report.html'}   box AP: scratch {scratch['bbox']['AP']:.1f}, "
        f"FCMAE {fcmae['bbox']['AP']:.1f}"
    )


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
