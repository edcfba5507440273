"""Train and evaluate Mask R-CNN on a ConvNeXt, with detectron2's command line.

Writes to OUTPUT_DIR: config.yaml, metrics.json, model_final.*, last_checkpoint,
inference/coco_instances_results.json, inference/metrics_summary.json, report.html, report.md.
"""

from __future__ import annotations

import argparse
import os

from fvcore.common.config import CfgNode

from backbones.errors import InputError
from detection.config import load_config
from detection.run import run
from training.cli import ToolParser, run_tool
from training.devices import DEVICES

EXAMPLES = """\
examples:
  # own data, no detectron2, a laptop
  python tools/train_net.py \\
      --config-file det_configs/quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml \\
      DATASETS.TRAIN json:train.json:images DATASETS.TEST json:val.json:images OUTPUT_DIR runs/mine

  # the same from a pretrained encoder
  python tools/train_net.py --config-file ... MODEL.CONVNEXT.WEIGHTS runs/fcmae/encoder.safetensors

  # go on after an interruption; evaluate the newest checkpoint again
  python tools/train_net.py --config-file ... OUTPUT_DIR runs/mine --resume
  python tools/train_net.py --config-file ... OUTPUT_DIR runs/mine --eval-only

  # 8 GPUs: by detectron2's own launcher, or by torchrun (either engine)
  python tools/train_net.py --config-file ... --engine detectron2 --num-gpus 8
  torchrun --nproc-per-node 8 tools/train_net.py --config-file ...

Data sets are json:ANNOTATIONS:IMAGE_FOLDER, or coco_2017_train and coco_2017_val under the folder
that the environment variable DETECTRON2_DATASETS names.
"""


def parse() -> argparse.Namespace:
    parser = ToolParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="a YAML file, see det_configs/")
    add("--engine", choices=["torchvision", "detectron2"], help="instead of the config's ENGINE")
    add("--device", choices=DEVICES, help="instead of the config's MODEL.DEVICE")
    add("--resume", action="store_true", help="continue the run in OUTPUT_DIR, where there is one")
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, or OUTPUT_DIR's run")
    add("--wandb", action="store_true", help="log to Weights & Biases too (extra: wandb)")
    add("--num-gpus", type=int, default=1, help="processes on this machine (engine detectron2)")
    add("--num-machines", type=int, default=1, help="(engine detectron2)")
    add("--machine-rank", type=int, default=0, help="which machine this is, from 0")
    add("--dist-url", default="auto", help="where the processes meet, such as tcp://HOST:PORT")
    add("opts", nargs="*", metavar="KEY VALUE", help="settings that override the file's")
    return parser.parse_intermixed_args()


def launch(arguments: argparse.Namespace, config: CfgNode) -> None:
    """Call :func:`detection.run.run` in as many processes as asked for.

    Raises:
        InputError: for several processes with the torchvision engine, which torchrun starts.
    """
    settings = (config, arguments.resume, arguments.eval_only, arguments.config_file)
    if arguments.num_gpus * arguments.num_machines == 1:
        run(*settings)
        return
    if config.ENGINE != "detectron2" or "WORLD_SIZE" in os.environ:
        machines = f"--nnodes {arguments.num_machines} " if arguments.num_machines > 1 else ""
        raise InputError(
            f"--num-gpus {arguments.num_gpus} is for detectron2's launcher; start several "
            f"processes of the {config.ENGINE} engine by\n  torchrun {machines}--nproc-per-node "
            f"{arguments.num_gpus} tools/train_net.py --config-file {arguments.config_file} ..."
        )
    from detection.engines.detectron2.engine import launch as launch_processes

    launch_processes(
        run,
        arguments.num_gpus,
        arguments.num_machines,
        arguments.machine_rank,
        arguments.dist_url,
        settings,
    )


def main() -> None:
    arguments = parse()
    engine = ["ENGINE", arguments.engine] if arguments.engine else []
    device = ["MODEL.DEVICE", arguments.device] if arguments.device else []
    wandb = ["WANDB", "True"] if arguments.wandb else []
    overrides = [*arguments.opts, *engine, *device, *wandb]
    config = load_config(arguments.config_file, overrides, training=not arguments.eval_only)
    launch(arguments, config)


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
