"""Show what a pretrained encoder and its decoder make of new images: masked, and reconstructed.

OUTPUT_DIR gets a picture of each image (image, masked image, reconstruction), and losses.csv.
"""

from __future__ import annotations

from pathlib import Path

from fcmae.reconstruct import reconstruct_images
from training.cli import ToolParser, run_tool
from training.devices import DEVICES

EXAMPLES = """\
examples:
  python tools/reconstruct.py --run runs/fcmae --input photos --output-dir reconstructions

  # with three quarters of each image removed
  python tools/reconstruct.py --run runs/fcmae --input 'photos/*.jpg' \\
      --output-dir reconstructions --mask-ratio 0.75
"""


def main() -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--run", required=True, type=Path, help="a pretraining's folder, with its checkpoints")
    add("--input", required=True, nargs="+", metavar="IMAGES", help="files, folders, patterns")
    add("--output-dir", required=True, type=Path)
    add("--mask-ratio", type=float, metavar="X", help="fraction to remove; default: the run's")
    add("--seed", type=int, default=0, help="seed of the masks (default: 0)")
    add("--device", choices=DEVICES, help="what computes; without it, a GPU that is there")
    given = parser.parse_args()
    written = reconstruct_images(
        given.run, given.input, given.output_dir, given.mask_ratio, given.seed, given.device
    )
    print(f"{len(written)} pictures and losses.csv in {given.output_dir}")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
