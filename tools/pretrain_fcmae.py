"""Pretrain a ConvNeXt V2 encoder on unlabelled images by FCMAE."""

from __future__ import annotations

import argparse
from pathlib import Path

from backbones.convnext import SIZES
from backbones.grn_flags import add_grn_flags, pop_grn_options
from backbones.kernels import KERNELS
from backbones.normalization import GRNOptions
from fcmae.decoders import DECODERS
from fcmae.model import MODES
from fcmae.pretrain import pretrain
from fcmae.pretrain_options import PretrainOptions, parse_image_size
from training.cli import OptionsParser, log_to, run_tool

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

  # satellite images of 13 bands (16-bit TIFF) in webdataset shards; statistics are measured
  python tools/pretrain_fcmae.py --model convnextv2_tiny --data 'wds/shards/{000..010}.tar' \\
      --output-dir runs/bands --in-chans 13 --image-size 256 --skip-bad-images

  # go on after an interruption
  python tools/pretrain_fcmae.py (the same arguments) --resume
"""


DATA = (
    "a folder of images (flat or nested), .tar shards (a file, a folder, or a pattern such as "
    "'shards/{000..010}.tar'; with wds/ before it for webdataset's naming of files), or a Hugging "
    "Face data set (hfds/owner/name)"
)
CHANNELS = (
    "converted are grey to 3 (repeated), RGB to 1 (luma) and a dropped alpha; a file of any other "
    "number of channels is bad"
)
ENCODER = (
    "packed computes visible patches alone; masked-dense is its slow reference; mask-token sees "
    "whole images with a learnt token at removed patches"
)
STATISTICS = (
    "where mean and std come from if not given; auto: ImageNet's for 3 channels of 8 bits, "
    "measured for all others"
)
MEASURE = (
    "how far apart the channels of each block are, with a warning where they collapse; 0: never; "
    "else about fifty times over the run"
)
SKIP = (
    "replace an image that cannot be used by the next good one, count it and list it in "
    "bad_images.txt; without this flag it ends the run with an error that names it"
)


def parse() -> argparse.Namespace:
    defaults = PretrainOptions(model="", data="", output_dir="")
    parser = OptionsParser(defaults, __doc__, EXAMPLES)
    add = parser.add
    add("--model", ", ".join(SIZES), required=True, choices=list(SIZES), metavar="NAME")
    add("--data", DATA, required=True)
    add("--output-dir", "the run's folder", required=True)
    add("--split", "of hfds/, or of shards whose folder has webdataset's _info.json")
    add("--in-chans", "channels; " + CHANNELS)
    add("--mean", "of each channel, of values scaled to 0..1", type=float, nargs="+")
    add("--std", "likewise: 8-bit values / 255, 16-bit / 65535", type=float, nargs="+")
    add("--statistics", STATISTICS, choices=["auto", "imagenet", "measure"])
    add("--statistics-images", "at most so many, drawn with the seed, are measured")
    add("--skip-bad-images", SKIP, action="store_true")
    add("--image-size", "pixels, 224 or 160x96 (height x width)", type=str, default="224")
    add("--batch-size", "images a step, all processes")
    add("--epochs", "passes over the images")
    add("--max-steps", "end (and schedule) after that many steps instead", type=int)
    add("--encoder", ENCODER, choices=MODES)
    add("--kernels", "auto: Triton on a GPU", choices=KERNELS)
    add("--mask-ratio", "share of the patches that is removed")
    add("--patch-size", "of a patch in pixels, a multiple of 32")
    add("--base-lr", "learning rate for a batch of 256; it scales with the batch")
    add("--warmup-epochs", "of linear warm-up, at most a tenth of the run", type=float)
    add("--weight-decay", "on all but norms, biases and GRN")
    add("--decoder", "what predicts pixels", choices=list(DECODERS))
    add("--decoder-dim", "channels of the decoder")
    add("--decoder-depth", "blocks of the decoder (a UNet's, at each scale)")
    add("--raw-pixels", "do not normalise the targets per patch", action="store_true")
    add("--init", "encoder weights to start from: a file or timm:NAME", metavar="ENCODER")
    add("--clip-norm", "largest global gradient norm", type=float)
    add("--precision", "of the arithmetic, float32 or mixed", choices=["no", "bf16", "fp16"])
    add("--workers", "loader processes of each training process")
    add("--accumulate", "micro-batches of a step")
    add("--seed", "of weights, data order, augmentation and masks")
    add("--device", "keep off a GPU that is there", choices=["cpu"])
    add("--log-every", "steps between two lines of metrics.json")
    add("--checkpoint-every", "steps between two checkpoints")
    add("--keep-checkpoints", "how many of the newest stay")
    add("--panel-every", "steps between two pictures of progress; 0: ten over the run")
    add("--measure-features-every", MEASURE, type=float, metavar="EPOCHS")
    add("--wandb", "log to Weights & Biases too (extra: wandb)", action="store_true")
    add("--resume", "continue the run in --output-dir", action="store_true")
    add_grn_flags(parser)
    return parser.parse_args()


def main() -> None:
    arguments = vars(parse())
    resume = arguments.pop("resume", False)
    arguments["grn"] = pop_grn_options(arguments) or GRNOptions()
    arguments["norm_pix_loss"] = not arguments.pop("raw_pixels", False)
    wandb = ["wandb"] if arguments.pop("wandb", False) else []
    arguments["trackers"] = ("tensorboard", *wandb)
    arguments["image_size"] = parse_image_size(arguments["image_size"])
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    log_to(Path(arguments["output_dir"]))
    pretrain(PretrainOptions(**options), resume)


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
