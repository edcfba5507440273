"""Train and evaluate UPerNet on a ConvNeXt: a class for every pixel.

Writes to OUTPUT_DIR: config.yaml, metrics.json, model_final.safetensors, last_checkpoint,
inference/metrics_summary.json, inference/maps/, report.html, report.md.
"""

from __future__ import annotations

from segmentation.config import load_config
from segmentation.run import run
from training.cli import ToolParser, run_tool
from training.command_line.launch import add_launch_flags, launch_values, start_processes
from training.devices import DEVICES

EXAMPLES = """\
examples:
  # a folder of images and a folder of PNG class maps, a laptop
  python tools/train_segmentation.py \\
      --config-file det_configs/quick/upernet_convnextv2_atto_scratch_quick.yaml \\
      DATASETS.TRAIN masks:images/train:labels/train:classes.json \\
      DATASETS.TEST masks:images/val:labels/val:classes.json OUTPUT_DIR runs/segmentation

  # the same from a pretrained encoder
  python tools/train_segmentation.py --config-file ... \\
      MODEL.CONVNEXT.WEIGHTS runs/fcmae/encoder.safetensors

  # continue after an interruption; evaluate the newest checkpoint again
  python tools/train_segmentation.py --config-file ... OUTPUT_DIR runs/segmentation --resume
  python tools/train_segmentation.py --config-file ... OUTPUT_DIR runs/segmentation --eval-only

  # the published V1 tiny on ADE20K (46.0 mIoU, single scale)
  python tools/train_segmentation.py --eval-only \\
      --config-file det_configs/ade20k/upernet_convnext_tiny_in1k_160k.yaml \\
      MODEL.WEIGHTS upernet_convnext_tiny_1k_512x512.pth OUTPUT_DIR runs/ade20k

Data sets are masks:IMAGES:LABELS[:CLASSES.json], json:ANNOTATIONS:IMAGES (COCO's objects as class
maps), ade20k_train, cityscapes_train, coco_stuff_train (and _val) under the folder that the
environment variable DETECTRON2_DATASETS names.
"""


def main() -> int:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add(
        "--config-file",
        required=True,
        metavar="FILE",
        help="a YAML file, yours or one of det_configs/",
    )
    add("--device", choices=DEVICES, help="where to compute, instead of the config's MODEL.DEVICE")
    add("--resume", action="store_true", help="continue the run in OUTPUT_DIR, if there is one")
    add(
        "--eval-only",
        action="store_true",
        help="train nothing; evaluate MODEL.WEIGHTS, or the run in OUTPUT_DIR",
    )
    add("--wandb", action="store_true", help="log to Weights & Biases, too (extra: wandb)")
    add(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="keys of the config to change, such as SOLVER.MAX_ITER 1000",
    )
    add_launch_flags(parser)
    arguments = parser.parse_intermixed_args()
    device = ["MODEL.DEVICE", arguments.device] if arguments.device else []
    wandb = ["WANDB", "True"] if arguments.wandb else []
    config = load_config(arguments.config_file, [*arguments.opts, *device, *wandb])
    if (code := start_processes(*launch_values(vars(arguments)))) >= 0:
        return code
    run(config, arguments.resume, arguments.eval_only, arguments.config_file)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
