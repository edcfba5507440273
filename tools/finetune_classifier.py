"""Fine-tune a ConvNeXt encoder on labelled images, or evaluate a classifier."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from backbones.convnext import SIZES
from backbones.grn_flags import add_grn_flags, pop_grn_options
from backbones.kernels import KERNELS
from fcmae.classification.accuracy import evaluate_classifier
from fcmae.classification.finetune import finetune
from fcmae.classification.options import FinetuneOptions
from fcmae.classification.recipes import RECIPES, VALUES, Recipe
from fcmae.pretrain_options import parse_image_size
from training.cli import OptionsParser, log_to, run_tool

EXAMPLES = """\
examples:
  # from a pretrained encoder, on a folder that holds train/CLASS/*.jpg and val/CLASS/*.jpg
  python tools/finetune_classifier.py --model convnextv2_atto --data my_images \\
      --init runs/fcmae/encoder.safetensors --output-dir runs/classifier

  # a few classes on a laptop: small images, a shorter schedule, a higher rate
  python tools/finetune_classifier.py --model convnextv2_atto --data my_images \\
      --init runs/fcmae/encoder.safetensors --output-dir runs/quick --image-size 64 \\
      --batch-size 32 --max-steps 500 --base-lr 8e-3

  # the chain: ImageNet-22K, then its head's rows for ImageNet-1K, then 384 pixels
  torchrun --nproc-per-node 8 tools/finetune_classifier.py --model convnextv2_base --recipe in22k \\
      --data in22k --init encoder.safetensors --output-dir runs/22k --batch-size 4096
  torchrun --nproc-per-node 8 tools/finetune_classifier.py --model convnextv2_base \\
      --recipe in22k_in1k --data in1k --init runs/22k/classifier.safetensors \\
      --output-dir runs/22k_1k --batch-size 512
  torchrun --nproc-per-node 8 tools/finetune_classifier.py --model convnextv2_base \\
      --recipe in22k_in1k --data in1k --init runs/22k_1k/classifier_ema.safetensors \\
      --output-dir runs/384 --batch-size 512 --image-size 384

  # top-1 and top-5 of any classifier
  python tools/finetune_classifier.py --model convnextv2_atto --data imagenet/val --eval-only \\
      --init timm:convnextv2_atto.fcmae_ft_in1k --output-dir runs/evaluation
"""

DATA = (
    "a folder with a folder of images for each class (or train/ and val/ of these), .tar shards of "
    "such folders, wds/ shards with .cls fields, or hfds/owner/name"
)

MEASURE = "measure how far apart the channels of 16 images are, and warn of collapse; 0: never"


def parse() -> argparse.Namespace:
    defaults = FinetuneOptions(model="", data="", output_dir="")
    parser = OptionsParser(defaults, __doc__, EXAMPLES)
    add = parser.add
    add("--model", ", ".join(SIZES), required=True, choices=list(SIZES), metavar="NAME")
    add("--data", DATA, required=True)
    add("--output-dir", "the run's folder", required=True)
    add("--init", "weights to start from: an encoder or classifier, a file or timm:NAME")
    add("--recipe", "published values; auto: by classes and head", choices=["auto", *RECIPES])
    add("--val-data", "validation images; without, val/ in --data or a part of --data")
    add("--val-fraction", "that part, of each class")
    add("--split-seed", "which images are in that part, whatever --seed")
    add("--split", "training images, of sources that have several splits")
    add("--val-split", "validation images, likewise")
    add("--class-list", "the rows (numbers or names) of --init's head, a line a class of --data")
    add("--eval-only", "top-1 and top-5 of --init, or of the run's classifier", action="store_true")
    add("--image-size", "pixels, 224 or 160x96 (height x width); default: --init's own, or 224")
    add(
        "--crop-pct",
        "share of a resized image that is evaluated; default: the authors'",
        type=float,
    )
    add("--mean", "of each channel, of values scaled to 0..1", type=float, nargs=3)
    add("--std", "likewise; default of both: --init's own, or ImageNet's", type=float, nargs=3)
    add("--batch-size", "images a step, all processes")
    add("--max-steps", "end (and schedule) after that many steps instead", type=int)
    for field in fields(Recipe):
        kind = {"int": int, "float": float}.get(str(field.type), str)
        choices = {"choices": ["single", "group"]} if field.name == "layer_decay_type" else {}
        flag = "--" + field.name.replace("_", "-")
        add(flag, f"{VALUES[field.name]}; default: the recipe's", type=kind, **choices)
    add("--kernels", "auto: Triton on a GPU", choices=KERNELS)
    add("--eval-every", "steps between two evaluations; 0: ten over the run, at most one an epoch")
    add("--measure-features-every", MEASURE, type=float, metavar="EPOCHS")
    add("--clip-norm", "largest global gradient norm", type=float)
    add("--precision", "of the arithmetic, float32 or mixed", choices=["no", "bf16", "fp16"])
    add("--workers", "loader processes of each training process")
    add("--accumulate", "micro-batches of a step")
    add("--seed", "of weights, data order, augmentation and mixing")
    add("--device", "keep off a GPU that is there", choices=["cpu"])
    add("--log-every", "steps between two lines of metrics.json")
    add("--checkpoint-every", "steps between two checkpoints")
    add("--keep-checkpoints", "how many of the newest stay")
    add("--wandb", "log to Weights & Biases too (extra: wandb)", action="store_true")
    add("--resume", "continue the run in --output-dir", action="store_true")
    add_grn_flags(parser)
    return parser.parse_args()


def main() -> None:
    arguments = vars(parse())
    resume, eval_only = (arguments.pop(flag, False) for flag in ("resume", "eval_only"))
    arguments["grn"] = pop_grn_options(arguments)
    wandb = ["wandb"] if arguments.pop("wandb", False) else []
    arguments["trackers"] = ("tensorboard", *wandb)
    if "image_size" in arguments:
        arguments["image_size"] = parse_image_size(arguments["image_size"])
    recipe = [field.name for field in fields(Recipe)]
    overrides = {name: arguments.pop(name) for name in recipe if name in arguments}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    options = FinetuneOptions(**values, overrides=overrides)
    log_to(Path(options.output_dir))
    if eval_only:
        evaluate_classifier(options)
    else:
        finetune(options, resume)


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
