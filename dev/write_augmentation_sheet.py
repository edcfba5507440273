"""Draw docs/images/augmentation.jpg: one image under each augmentation, with its objects' outlines.

Each picture is a training sample, as the torchvision engine gets it, of a config with that one
augmentation on, and strong, so that the eye sees it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detection.config import default_config
from detection.data.transforms import DetectionSamples
from detection.dataset import CocoDataset, load_dataset
from training.cli import ToolParser, run_tool
from training.data import seed_cpu_generators

EXAMPLES = """
examples:
  python dev/write_augmentation_sheet.py json:nuclei/annotations/train.json:nuclei/images
  python dev/write_augmentation_sheet.py json:my/train.json:my/images --image 3 --output sheet.png
"""
A = "INPUT.AUGMENTATION."
PLAIN = {"INPUT.RANDOM_FLIP": "none"}
CROP = {"INPUT.CROP.ENABLED": True, "INPUT.CROP.SIZE": [0.5, 0.5]}
JITTER = {"INPUT.LSJ.ENABLED": True}
ROWS: dict[str, dict[str, Any]] = {
    "the image": {},
    "RANDOM_FLIP both": {"INPUT.RANDOM_FLIP": "both"},
    "ROTATE_90": {f"{A}ROTATE_90": True},
    "CROP 0.5 to 1": CROP,
    "LSJ 0.5 to 2": JITTER | {"INPUT.LSJ.MIN_SCALE": 0.5},
    "BRIGHTNESS 0.4": {f"{A}BRIGHTNESS": 0.4},
    "CONTRAST 0.6": {f"{A}CONTRAST": 0.6},
    "SATURATION 0.8": {f"{A}SATURATION": 0.8},
    "HUE 0.1": {f"{A}HUE": 0.1},
    "BLUR 2": {f"{A}BLUR": 2.0},
    "NOISE 0.1": {f"{A}NOISE": 0.1},
    "COPY_PASTE": {f"{A}COPY_PASTE.ENABLED": True},
}
DRAWS, SIDE, TITLE, GAP = 3, 150, 22, 6  # pictures of each row; pixels
OUTLINE = (255, 60, 0)


def drawn(dataset: CocoDataset, changes: dict[str, Any], image: int, draw: int) -> np.ndarray:
    """A sample as a square picture, ``[SIDE, SIDE, 3]``, padded with white."""
    config = default_config()
    config.INPUT.MIN_SIZE_TRAIN, config.INPUT.MAX_SIZE_TRAIN = (SIDE,), SIDE
    config.INPUT.LSJ.SIZE = SIDE
    config.merge_from_list([item for pair in (PLAIN | changes).items() for item in pair])
    seed_cpu_generators(draw)
    sample = DetectionSamples(dataset, config, training=True)[image]
    picture = np.ascontiguousarray(sample["image"].permute(1, 2, 0).numpy())
    for mask in sample["masks"].numpy().astype(np.uint8):
        found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, found, -1, OUTLINE, 1)
    square = np.full((SIDE, SIDE, 3), 255, np.uint8)
    height, width = picture.shape[:2]
    square[:height, :width] = picture[:SIDE, :SIDE]
    return square


def sheet(dataset: CocoDataset, image: int) -> Image.Image:
    """A row of pictures for two augmentations."""
    across = 2
    width = across * (DRAWS * (SIDE + GAP)) + GAP
    height = -(-len(ROWS) // across) * (SIDE + TITLE + GAP)
    canvas = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    for number, (title, changes) in enumerate(ROWS.items()):
        row, column = divmod(number, across)
        left, top = GAP + column * DRAWS * (SIDE + GAP), row * (SIDE + TITLE + GAP)
        pen.text((left, top + 2), title, fill="black", font=font)
        for draw in range(DRAWS):
            picture = Image.fromarray(drawn(dataset, changes, image, draw))
            canvas.paste(picture, (left + draw * (SIDE + GAP), top + TITLE))
    return canvas


def main() -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("dataset", help="json:ANNOTATIONS:IMAGE_FOLDER, of colours")
    parser.add_argument("--image", type=int, default=0, help="which of its images")
    parser.add_argument("--output", type=Path, default=Path("docs/images/augmentation.jpg"))
    options = parser.parse_args()
    dataset = load_dataset(options.dataset, check_images=False)
    sheet(dataset, options.image).save(options.output, quality=80)
    print(options.output)


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
