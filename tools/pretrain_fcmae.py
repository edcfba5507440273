"""Pretrain a ConvNeXt V2 encoder on unlabelled images by FCMAE."""

from __future__ import annotations

import argparse
from pathlib import Path

from backbones.convnext import SIZES
from fcmae.packed import ENCODERS
from fcmae.pretrain import PretrainOptions, parse_image_size, pretrain
from training.cli import log_to, run_tool

EXAMPLES = """\
examples:
  # a folder of images (flat or nested), a laptop
  python tools/pretrain_fcmae.py --model convnextv2_atto --data my_images --output-dir runs/fcmae \\
      --image-size 128 --batch-size 32 --max-steps 2000

  # one GPU, bf16
  python tools/pretrain_fcmae.py --model convnextv2_base --data my_images --output-dir runs/fcmae \\
      --batch-size 256 --precision bf16 --workers 12

  # several GPUs; --batch-size stays that of all of them together
  torchrun --nproc-per-node 8 tools/pretrain_fcmae.py --model convnextv2_base --data my_images \\
      --output-dir runs/fcmae --batch-size 4096 --precision bf16

  # go on after an interruption
  python tools/pretrain_fcmae.py (the same arguments) --resume
"""


def parse() -> argparse.Namespace:
    defaults = PretrainOptions(model="", data="", output_dir="")
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, choices=list(SIZES), metavar="NAME", help=", ".join(SIZES))
    add("--data", required=True, help="a folder of images, a .tar, or a timm.data name")
    add("--output-dir", required=True, help="the run's folder")
    add("--image-size", default="224", help="pixels, 224 or 160x96 (height x width)")
    add("--batch-size", type=int, default=defaults.batch_size, help="images a step, all processes")
    add("--epochs", type=int, default=defaults.epochs)
    add("--max-steps", type=int, help="end (and schedule) after that many steps instead")
    add("--encoder", choices=list(ENCODERS), default=defaults.encoder)
    add("--mask-ratio", type=float, default=defaults.mask_ratio)
    add("--base-lr", type=float, default=defaults.base_lr, help="for a batch of 256")
    add("--warmup-epochs", type=float, default=defaults.warmup_epochs)
    add("--weight-decay", type=float, default=defaults.weight_decay)
    add("--decoder-dim", type=int, default=defaults.decoder_dim)
    add("--decoder-depth", type=int, default=defaults.decoder_depth)
    add("--raw-pixels", action="store_true", help="do not normalise the targets per patch")
    add("--init", metavar="ENCODER", help="encoder weights to start from: a file or timm:NAME")
    add("--clip-norm", type=float, help="largest global gradient norm")
    add("--precision", choices=["no", "bf16", "fp16"], default=defaults.precision)
    add("--workers", type=int, default=defaults.workers, help="loader processes")
    add("--accumulate", type=int, default=defaults.accumulate, help="micro-batches of a step")
    add("--seed", type=int, default=defaults.seed)
    add("--device", choices=["cpu"], help="keep off a GPU that is there")
    add("--log-every", type=int, default=defaults.log_every, help="steps")
    add("--checkpoint-every", type=int, default=defaults.checkpoint_every, help="steps")
    add("--panel-every", type=int, default=defaults.panel_every, help="steps; 0: ten over the run")
    add("--wandb", action="store_true", help="log to Weights & Biases too (extra: wandb)")
    add("--resume", action="store_true", help="continue the run in --output-dir")
    return parser.parse_args()


def main() -> None:
    arguments = vars(parse())
    resume = arguments.pop("resume")
    arguments["norm_pix_loss"] = not arguments.pop("raw_pixels")
    arguments["trackers"] = ("tensorboard", *(["wandb"] if arguments.pop("wandb") else []))
    arguments["image_size"] = parse_image_size(arguments["image_size"])
    log_to(Path(arguments["output_dir"]))
    pretrain(PretrainOptions(**arguments), resume)


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
