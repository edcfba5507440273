"""Train and evaluate Mask R-CNN on a ConvNeXt, with detectron2's command line.

Writes to OUTPUT_DIR: config.yaml, metrics.json, model_final.*, last_checkpoint,
inference/coco_instances_results.json, inference/metrics_summary.json, report.html, report.md.
"""

from __future__ import annotations

import argparse

from backbones.compiling import COMPILE_HELP, compiled_encoders
from detection.config import load_config
from detection.run import run
from training.cli import ToolParser, run_tool
from training.command_line.launch import add_launch_flags, launch_values, start_processes
from training.devices import DEVICES

EXAMPLES = """\
examples:
  # own data, no detectron2, a laptop
  python tools/train_net.py \\
      --config-file det_configs/quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml \\
      DATASETS.TRAIN json:train.json:images DATASETS.TEST json:val.json:images OUTPUT_DIR runs/mine

  # the same from a pretrained encoder
  python tools/train_net.py --config-file ... MODEL.CONVNEXT.WEIGHTS runs/fcmae/encoder.safetensors

  # continue after an interruption; evaluate the newest checkpoint again
  python tools/train_net.py --config-file ... OUTPUT_DIR runs/mine --resume
  python tools/train_net.py --config-file ... OUTPUT_DIR runs/mine --eval-only

  # 8 GPUs, either engine: two ways to start the same
  python tools/train_net.py --config-file ... --num-gpus 8
  torchrun --nproc-per-node 8 tools/train_net.py --config-file ...

Data sets are json:ANNOTATIONS:IMAGE_FOLDER, or coco_2017_train and coco_2017_val under the folder
that the environment variable DETECTRON2_DATASETS names.
"""


def parse() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add(
        "--config-file",
        required=True,
        metavar="FILE",
        help="a YAML file, yours or one of det_configs/",
    )
    add("--engine", choices=["torchvision", "detectron2"], help="instead of the config's ENGINE")
    add("--device", choices=DEVICES, help="where to compute, instead of the config's MODEL.DEVICE")
    add("--resume", action="store_true", help="continue the run in OUTPUT_DIR, if there is one")
    add(
        "--eval-only",
        action="store_true",
        help="train nothing; evaluate MODEL.WEIGHTS, or the run in OUTPUT_DIR",
    )
    add("--compile", action="store_true", help=f"with --eval-only: {COMPILE_HELP}")
    add("--wandb", action="store_true", help="log to Weights & Biases, too (extra: wandb)")
    add(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="keys of the config to change, such as SOLVER.MAX_ITER 1000",
    )
    add_launch_flags(parser)
    arguments = parser.parse_intermixed_args()
    if arguments.compile and not arguments.eval_only:
        parser.error("--compile is for --eval-only: a training is not compiled")
    return arguments


def main() -> int:
    arguments = parse()
    engine = ["ENGINE", arguments.engine] if arguments.engine else []
    device = ["MODEL.DEVICE", arguments.device] if arguments.device else []
    wandb = ["WANDB", "True"] if arguments.wandb else []
    overrides = [*arguments.opts, *engine, *device, *wandb]
    config = load_config(arguments.config_file, overrides, training=not arguments.eval_only)
    if (code := start_processes(*launch_values(vars(arguments)))) >= 0:
        return code
    with compiled_encoders(arguments.compile):
        run(config, arguments.resume, arguments.eval_only, arguments.config_file)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
