"""Draw how a pretrained encoder and its decoder reconstruct the hidden parts of images.

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
    add("--run", required=True, type=Path, help="the output folder of a pretraining")
    add(
        "--input",
        required=True,
        nargs="+",
        metavar="IMAGES",
        help="images, folders or glob patterns",
    )
    add("--output-dir", required=True, type=Path)
    add(
        "--mask-ratio",
        type=float,
        metavar="X",
        help="fraction of the patches to hide; default: the run's",
    )
    add("--seed", type=int, default=0, help="seed of the masks (default: 0)")
    add("--device", choices=DEVICES, help="where to compute; default: a GPU, if there is one")
    given = parser.parse_args()
    written = reconstruct_images(
        given.run, given.input, given.output_dir, given.mask_ratio, given.seed, given.device
    )
    print(f"{len(written)} pictures and losses.csv in {given.output_dir}")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
