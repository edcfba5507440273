"""A small data set of class maps: discs and squares on a gradient."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ["ground", "disc", "square"]


def write_scenes(root: Path, images: int = 6, seed: int = 0) -> str:
    """Images and maps under ``root``; returns the data set's name."""
    generator = np.random.default_rng(seed)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:64, :96]
    for number in range(images):
        labels = np.zeros((64, 96), np.uint8)
        y, x = generator.integers(16, 48), generator.integers(16, 80)
        labels[(rows - y) ** 2 + (columns - x) ** 2 < 120] = 1
        y, x = generator.integers(4, 44), generator.integers(4, 76)
        labels[y : y + 14, x : x + 14] = 2
        picture = 60 + 90 * labels[..., None] * np.array([1.0, 0.5, 0.2]) + columns[..., None] / 3
        picture += generator.normal(0, 4, picture.shape)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(
            root / "images" / f"{number:02d}.png"
        )
        Image.fromarray(labels).save(root / "labels" / f"{number:02d}.png")
    (root / "classes.json").write_text(json.dumps(NAMES), encoding="utf-8")
    return f"masks:{root / 'images'}:{root / 'labels'}:{root / 'classes.json'}"
