"""Fine-tune a ConvNeXt encoder on labelled images, or evaluate a classifier."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from backbones.grn_flags import add_grn_flags, pop_grn_options
from fcmae.classification.accuracy import evaluate_classifier
from fcmae.classification.finetune import finetune
from fcmae.classification.options import FinetuneOptions
from fcmae.classification.recipes import VALUES, Recipe
from fcmae.pretrain_options import parse_image_size
from training.cli import NUMBERS, OptionsParser, log_to, run_tool
from training.command_line.launch import add_launch_flags, launch_values, start_processes

EXAMPLES = """\
examples:
  # from a pretrained encoder, on a folder that holds train/CLASS/*.jpg and val/CLASS/*.jpg
  python tools/finetune_classifier.py --model convnextv2_atto --data my_images \\
      --init runs/fcmae/encoder.safetensors --output-dir runs/classifier

  # a few classes on a laptop: small images, a shorter schedule, a higher rate
  python tools/finetune_classifier.py --model convnextv2_atto --data my_images \\
      --init runs/fcmae/encoder.safetensors --output-dir runs/quick --image-size 64 \\
      --batch-size 32 --max-steps 500 --base-lr 8e-3

  # the paper's steps: ImageNet-22K, then ImageNet-1K with the rows of that head, then 384 pixels
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


def main() -> int:
    parser = OptionsParser(FinetuneOptions, __doc__, EXAMPLES)
    parser.add_argument(
        "--eval-only",
        help="train nothing; measure top-1 and top-5 of --init, or of the run's classifier",
        action="store_true",
    )
    add = parser.add_argument_group("values that replace the recipe's").add_argument
    for field in fields(Recipe):
        settings: dict[str, Any] = {"type": {"int": int, "float": float}.get(str(field.type), str)}
        if field.name == "layer_decay_type":
            settings = {"choices": ["single", "group"]}
        flag = "--" + field.name.replace("_", "-")
        add(flag, help=VALUES[field.name], metavar=NUMBERS.get(settings.get("type")), **settings)
    add_grn_flags(parser)
    add_launch_flags(parser)
    values, resume = parser.parse_options()
    launch = launch_values(values)
    eval_only = values.pop("eval_only", False)
    values["grn"] = pop_grn_options(values)
    if "image_size" in values:
        values["image_size"] = parse_image_size(values["image_size"])
    recipe = [field.name for field in fields(Recipe)]
    overrides = {name: values.pop(name) for name in recipe if name in values}
    options = FinetuneOptions(**values, overrides=overrides)
    if (code := start_processes(*launch)) >= 0:
        return code
    log_to(Path(options.output_dir))
    if eval_only:
        evaluate_classifier(options)
    else:
        finetune(options, resume)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
