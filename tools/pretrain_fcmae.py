"""Pretrain a ConvNeXt V2 encoder on unlabelled images by FCMAE."""

from __future__ import annotations

from pathlib import Path

from backbones.grn_flags import add_grn_flags, pop_grn_options
from backbones.normalization import GRNOptions
from fcmae.pretrain import pretrain
from fcmae.pretrain_options import PretrainOptions, parse_image_size
from training.cli import OptionsParser, log_to, run_tool
from training.command_line.launch import add_launch_flags, launch_values, start_processes

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

  # satellite images of 13 bands (16-bit TIFF) in webdataset shards; mean and std are measured
  python tools/pretrain_fcmae.py --model convnextv2_tiny --data 'wds/shards/{000..010}.tar' \\
      --output-dir runs/bands --in-chans 13 --image-size 256 --skip-bad-images

  # continue after an interruption
  python tools/pretrain_fcmae.py (the same arguments) --resume
"""


def main() -> int:
    parser = OptionsParser(PretrainOptions, __doc__, EXAMPLES)
    parser.add_argument(
        "--raw-pixels",
        help="predict pixels as they are, not normalised per patch",
        action="store_true",
    )
    add_grn_flags(parser)
    add_launch_flags(parser)
    values, resume = parser.parse_options()
    launch = launch_values(values)
    values["grn"] = pop_grn_options(values) or GRNOptions()
    values["norm_pix_loss"] = not values.pop("raw_pixels", False)
    values["image_size"] = parse_image_size(values["image_size"])
    options = PretrainOptions(**values)
    if (code := start_processes(*launch)) >= 0:
        return code
    log_to(Path(options.output_dir))
    pretrain(options, resume)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
