"""Draw small synthetic scenes as a COCO-format data set, for a quickstart without any download.

Textured dull backgrounds, five classes of shapes in several sizes and fills, turned and
overlapping; each class prefers a hue, as real classes do, so that a few hundred iterations learn
it. Later shapes hide earlier ones; masks are the visible parts. Pictures differ in
size, some hold nothing, and category ids have gaps, as in real data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from training.progress import progress

CATEGORIES = {2: "disc", 3: "ring", 7: "triangle", 11: "star", 16: "cross"}
HUES = {2: 5.0, 3: 45.0, 7: 110.0, 11: 205.0, 16: 285.0}  # degrees, of the typical object
PICTURE_SIZES = ((224, 224), (224, 288), (272, 224))
LEAST_VISIBLE = 0.6  # share of each shape that later ones must leave visible
EMPTY_PICTURES = 0.05

Generator = np.random.Generator
Picture = NDArray[np.uint8]


def _noise(generator: Generator, height: int, width: int, cell: float) -> NDArray[Any]:
    """Smooth noise in about [-1, 1] that varies over ``cell`` pixels."""
    coarse = generator.uniform(-1, 1, (int(height / cell) + 2, int(width / cell) + 2))
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def _stripes(generator: Generator, height: int, width: int) -> NDArray[Any]:
    """A sine wave of random direction and period, in [-1, 1]."""
    angle, period = generator.uniform(0, np.pi), generator.uniform(5, 24)
    rows, columns = np.mgrid[:height, :width]
    return np.sin(2 * np.pi * (rows * np.sin(angle) + columns * np.cos(angle)) / period)


def _colour(hue: float, saturation: float, value: float) -> NDArray[Any]:
    """RGB in 0..255 of a hue (degrees), saturation and value (0..1)."""
    hsv = np.array([[[hue % 360, saturation, value]]], np.float32)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))[0, 0] * 255


def _textured(
    generator: Generator, height: int, width: int, colour: NDArray[Any], contrast: float
) -> NDArray[Any]:
    """A texture ``[height, width, 3]`` in 0..255: an RGB colour, noise, maybe stripes."""
    texture = np.mean([_noise(generator, height, width, cell) for cell in (48, 16, 5)], axis=0)
    if generator.random() < 0.3:
        texture = texture + 0.5 * _stripes(generator, height, width)
    tint = generator.uniform(0.5, 1.0, 3)
    return colour + contrast * texture[..., None] * tint


def _outline(generator: Generator, kind: str, radius: float) -> NDArray[Any]:
    """Corners ``[N, 2]`` of a shape around the origin (a disc's and a ring's outer circle)."""
    if kind in ("disc", "ring"):
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        stretch = generator.uniform(0.75, 1.0)
        corners = np.stack([np.cos(angles), stretch * np.sin(angles)], 1)
    elif kind == "triangle":
        angles = np.array([0, 2, 4]) * np.pi / 3 + generator.uniform(-0.25, 0.25, 3)
        corners = np.stack([np.cos(angles), np.sin(angles)], 1)
    elif kind == "star":
        angles = np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2, generator.uniform(0.38, 0.5), 1.0)
        corners = np.stack([reach * np.cos(angles), reach * np.sin(angles)], 1)
    else:  # cross
        a = generator.uniform(0.26, 0.38)
        quarter = np.array([[1, -a], [1, a], [a, a]])
        rotation = np.array([[0, -1], [1, 0]])
        turns = [np.linalg.matrix_power(rotation, k) for k in range(4)]
        corners = np.concatenate([quarter @ turn.T for turn in turns])
    angle = generator.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return radius * corners @ turn.T


def _coverage(generator: Generator, kind: str, height: int, width: int) -> NDArray[Any]:
    """A shape of random size at a random place: how much of each pixel it covers, 0..1."""
    radius = float(np.exp(generator.uniform(np.log(15), np.log(65))))
    margin = 0.7 * radius  # so that the picture's border cuts some shapes, but little
    centre = generator.uniform(margin, (width - margin, height - margin))
    coverage = np.zeros((height, width), np.uint8)
    outline = _outline(generator, kind, radius)
    loops = [outline, outline * generator.uniform(0.45, 0.6)] if kind == "ring" else [outline]
    points = [np.round((loop + centre) * 16).astype(np.int32) for loop in loops]
    cv2.fillPoly(coverage, points, 255, lineType=cv2.LINE_AA, shift=4)
    return coverage / 255.0


def draw_scene(generator: Generator) -> tuple[Picture, list[tuple[int, NDArray[np.bool_]]]]:
    """One scene: an RGB picture, and (category id, visible mask ``[H, W]``) of each object."""
    height, width = PICTURE_SIZES[generator.integers(len(PICTURE_SIZES))]
    dull = _colour(
        generator.uniform(0, 360), generator.uniform(0, 0.3), generator.uniform(0.3, 0.8)
    )
    picture = _textured(generator, height, width, dull, contrast=35)
    count = 0 if generator.random() < EMPTY_PICTURES else generator.integers(2, 8)
    drawn: list[tuple[int, NDArray[np.bool_], int]] = []
    for _ in range(count):
        category = int(generator.choice(list(CATEGORIES)))
        coverage = _coverage(generator, CATEGORIES[category], height, width)
        mask = coverage > 0.5
        if any((below & ~mask).sum() < LEAST_VISIBLE * area for _, below, area in drawn):
            continue
        hue = HUES[category] + generator.normal(0, 15)
        vivid = _colour(hue, generator.uniform(0.45, 0.9), generator.uniform(0.5, 0.95))
        fill = _textured(generator, height, width, vivid, contrast=22)
        picture += coverage[..., None] * (fill - picture)
        drawn = [(c, below & ~mask, area) for c, below, area in drawn]
        drawn.append((category, mask, int(mask.sum())))
    picture *= generator.uniform(0.8, 1.1)
    picture += generator.normal(0, 4, picture.shape)
    return picture.clip(0, 255).astype(np.uint8), [(c, mask) for c, mask, _ in drawn]


def _annotation(number: int, image: int, category: int, mask: NDArray[np.bool_]) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(coco_mask.area(rle)),
        "iscrowd": 0,
    }


def write_scenes(folder: Path, train: int, val: int, unlabelled: int, seed: int = 0) -> None:
    """Draw a data set: ``images/``, ``annotations/{train,val}.json`` and ``unlabelled/``.

    Args:
        train, val: labelled pictures of each split.
        unlabelled: pictures for pretraining, none of which is in either split.
    """
    for name in ("images", "annotations", "unlabelled"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    number = 0
    for stream, (split, count) in enumerate((("train", train), ("val", val))):
        images, annotations = [], []
        for index in progress(range(count), f"drawing {split}", unit="scene"):
            picture, objects = draw_scene(np.random.default_rng([seed, stream, index]))
            name, image_id = f"{split}_{index:04d}.png", 1000 * (stream + 1) + index
            cv2.imwrite(str(folder / "images" / name), picture[..., ::-1])
            height, width = picture.shape[:2]
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            for category, mask in objects:
                number += 1
                annotations.append(_annotation(number, image_id, category, mask))
        categories = [{"id": id_, "name": name} for id_, name in CATEGORIES.items()]
        (folder / "annotations" / f"{split}.json").write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories}),
            encoding="utf-8",
        )
    for index in progress(range(unlabelled), "drawing unlabelled", unit="scene"):
        picture, _ = draw_scene(np.random.default_rng([seed, 2, index]))
        cv2.imwrite(str(folder / "unlabelled" / f"{index:05d}.jpg"), picture[..., ::-1])
