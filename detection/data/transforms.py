"""From a record of a data set to a sample: decode, resize, flip or jitter, boxes and masks.

The data pipeline of the torchvision engine. It is the same function of a record and of numpy's
generator as detectron2's ``DatasetMapper`` with the augmentations of a config, draw by draw:
``ResizeShortestEdge`` then ``RandomFlip``; with large-scale jitter (Copy-Paste, arXiv 2012.07177)
``RandomFlip``, ``ResizeScale`` and ``FixedSizeCrop(pad=False)``, and boxes recomputed from the
masks. Padding is the model's, after normalisation.

Deliberate deviations:
  * polygons of whole numbers are resized as real numbers; detectron2 truncates them.
  * a polygon that leaves the crop is cut by pycocotools' rasterisation, not by shapely before it;
    masks may differ by single pixels along the edge of the crop.
  * masks are always bitmaps.

Coordinates: x to the right, y down, pixels; the image spans [0, width] x [0, height].
"""

# ruff: noqa: NPY002 - numpy's global generator is what the loop seeds and what detectron2 draws from

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pycocotools.mask as mask_util
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from backbones.errors import InputError
from detection.data.pixels import in_order, read_record, to_tensor, values_of
from detection.dataset import CocoDataset
from images.resizing import resized

logger = logging.getLogger(__name__)

EMPTY_SIDE = 1e-5  # detectron2's threshold for a box without area


class Transform(Protocol):
    """A change of an image's geometry."""

    def pixels(self, image: np.ndarray, resample: Image.Resampling) -> np.ndarray:
        """``[H, W]`` or ``[H, W, C]`` of uint8 or float32 -> the same, transformed."""

    def points(self, xy: np.ndarray) -> np.ndarray:
        """``[N, 2]`` float64 points -> the same, transformed."""


@dataclass(frozen=True)
class Resize:
    """From ``height x width`` to ``new_height x new_width``, by Pillow (antialiased)."""

    height: int
    width: int
    new_height: int
    new_width: int

    def pixels(self, image: np.ndarray, resample: Image.Resampling) -> np.ndarray:
        return resized(image, self.new_height, self.new_width, resample)

    def points(self, xy: np.ndarray) -> np.ndarray:
        return xy * [self.new_width * 1.0 / self.width, self.new_height * 1.0 / self.height]


@dataclass(frozen=True)
class Flip:
    """Mirror x within ``extent`` (the width), or y within it (the height)."""

    axis: int  # 0: x, 1: y
    extent: int

    def pixels(self, image: np.ndarray, resample: Image.Resampling) -> np.ndarray:
        return np.flip(image, axis=1 - self.axis)

    def points(self, xy: np.ndarray) -> np.ndarray:
        flipped = xy.copy()
        flipped[:, self.axis] = self.extent - flipped[:, self.axis]
        return flipped


@dataclass(frozen=True)
class Crop:
    """The part of at most ``size x size`` pixels whose upper left corner is (x, y)."""

    x: int
    y: int
    size: int

    def pixels(self, image: np.ndarray, resample: Image.Resampling) -> np.ndarray:
        return image[self.y : self.y + self.size, self.x : self.x + self.size]

    def points(self, xy: np.ndarray) -> np.ndarray:
        return xy - [self.x, self.y]


def resize_shortest_edge(height: int, width: int, shortest: int, longest: int) -> Resize:
    """The shorter side becomes ``shortest``, or less where the longer would exceed ``longest``."""
    scale = shortest / min(height, width)
    new_height, new_width = scale * height, scale * width
    # detectron2 takes the shorter side as it is, not as scale * side: a matter of rounding.
    if height < width:
        new_height = float(shortest)
    else:
        new_width = float(shortest)
    if max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return Resize(height, width, max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1))


def resize_into_square(height: int, width: int, side: float) -> Resize:
    """The largest size of the same shape that fits into a square, rounded half to even."""
    scale = min(side / height, side / width)
    return Resize(height, width, max(round(height * scale), 1), max(round(width * scale), 1))


def draw_transforms(options: CfgNode, height: int, width: int, training: bool) -> list[Transform]:
    """Draw the transforms of one image of ``height x width`` from numpy's global generator.

    Args:
        options: the section ``INPUT`` of a config.
        height, width: of the image in its file.
        training: with augmentation.
    """
    if not training:
        if options.MIN_SIZE_TEST == 0:
            return []
        return [resize_shortest_edge(height, width, options.MIN_SIZE_TEST, options.MAX_SIZE_TEST)]
    if options.LSJ.ENABLED:
        flips = _draw_flip(options.RANDOM_FLIP, height, width)
        scale = np.random.uniform(options.LSJ.MIN_SCALE, options.LSJ.MAX_SCALE)
        resize = resize_into_square(height, width, options.LSJ.SIZE * scale)
        return [*flips, resize, _draw_crop(options.LSJ.SIZE, resize.new_height, resize.new_width)]
    sizes = options.MIN_SIZE_TRAIN
    if options.MIN_SIZE_TRAIN_SAMPLING == "range":
        shortest = np.random.randint(sizes[0], sizes[1] + 1)
    else:
        shortest = np.random.choice(sizes)
    resize = resize_shortest_edge(height, width, int(shortest), options.MAX_SIZE_TRAIN)
    return [resize, *_draw_flip(options.RANDOM_FLIP, resize.new_height, resize.new_width)]


def _draw_flip(direction: str, height: int, width: int) -> list[Transform]:
    if direction == "none" or np.random.uniform() >= 0.5:
        return []
    return [Flip(0, width) if direction == "horizontal" else Flip(1, height)]


def _draw_crop(size: int, height: int, width: int) -> Crop:
    # One draw for both sides, as detectron2's: large images are cropped along their diagonal.
    offset = np.random.uniform(0.0, 1.0)
    return Crop(round(max(width - size, 0) * offset), round(max(height - size, 0) * offset), size)


class DetectionSamples(Dataset):
    """The samples of a data set, as a map-style torch data set.

    ``samples[i]`` is a dictionary of ``image`` (``[C, H, W]``, 0 to 255, uint8 or of deeper files
    float32, in the channel order of ``INPUT.FORMAT``), ``height``, ``width`` (of the original
    image), ``image_id``, ``file_name``; in training also ``boxes`` (float32 ``[N, 4]``, x0, y0, x1,
    y1 in pixels of ``image``), ``labels`` (int64 ``[N]``, class indices from 0) and, with
    ``MODEL.MASK_ON``, ``masks`` (bool ``[N, H, W]``). Crowds are left out of the objects, and so is
    an object of which nothing is left in the sample; N may be 0.

    Args:
        dataset: the data set.
        config: a detection config.
        training: with augmentation and objects, and without images that have no object
            (``DATALOADER.FILTER_EMPTY_ANNOTATIONS``).

    Raises:
        InputError: if no image is left; when indexed, if an image does not decode or does not have
            the annotations' size.
    """

    def __init__(self, dataset: CocoDataset, config: CfgNode, training: bool) -> None:
        self.config, self.options = config, config.INPUT
        self.masks = config.MODEL.MASK_ON
        self.training = training
        self.records = dataset.records
        if training and config.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            self.records = dataset.records.with_objects()
            logger.info(
                "%s: %d of %d images are left out of training, for they show no object",
                dataset.name,
                len(dataset.records) - len(self.records),
                len(dataset.records),
            )
        if not self.records:
            raise InputError(
                f"{dataset.annotations}: none of its {len(dataset.records)} images shows an object "
                "to train on (crowds do not count); annotate some, or train on another file"
            )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        image = in_order(read_record(record, self.config), self.config)
        transforms = draw_transforms(self.options, record["height"], record["width"], self.training)
        image = _apply(transforms, image, Image.Resampling.BILINEAR)
        sample = {
            "image": to_tensor(image),
            **{key: record[key] for key in ("height", "width", "image_id", "file_name")},
        }
        if self.training:
            sample |= self._targets(record, transforms, image.shape[0], image.shape[1])
        return sample

    def _targets(
        self, record: dict[str, Any], transforms: list[Transform], height: int, width: int
    ) -> dict[str, Tensor]:
        """The objects of a record in a sample of ``height x width`` pixels."""
        objects = _objects(record)
        boxes = torch.zeros(len(objects), 4)
        for row, item in zip(boxes, objects, strict=True):
            row.copy_(torch.from_numpy(transformed_box(item["bbox"], transforms, height, width)))
        targets = {
            "boxes": boxes,
            "labels": torch.tensor([item["category_id"] for item in objects], dtype=torch.int64),
        }
        keep = torch.ones(len(objects), dtype=torch.bool)
        if self.masks:
            masks = torch.zeros(len(objects), height, width, dtype=torch.bool)
            for mask, item in zip(masks, objects, strict=True):
                bitmap = transformed_mask(item["segmentation"], transforms, height, width)
                mask.copy_(torch.from_numpy(bitmap))
            targets["masks"] = masks
            keep &= masks.flatten(1).any(1)
            if self.options.LSJ.ENABLED:
                targets["boxes"] = boxes = tight_boxes(masks)
        keep &= (boxes[:, 2:] - boxes[:, :2] > EMPTY_SIDE).all(1)
        return {key: value[keep] for key, value in targets.items()}


def prediction_sample(pixels: np.ndarray, config: CfgNode, image_id: int) -> dict[str, Any]:
    """The sample that :class:`DetectionSamples` makes of an image outside of training.

    Args:
        pixels: ``[H, W]`` or ``[H, W, C]`` (RGB), as a file of these values would be read.
    """
    return sample_of_values(values_of(pixels, config), config, image_id)


def sample_of_values(values: np.ndarray, config: CfgNode, image_id: int) -> dict[str, Any]:
    """The same of what was read already: ``[H, W, C]``, uint8, or float32 in 0..1."""
    height, width = values.shape[:2]
    transforms = draw_transforms(config.INPUT, height, width, training=False)
    image = _apply(transforms, in_order(values, config), Image.Resampling.BILINEAR)
    return {"image": to_tensor(image), "height": height, "width": width, "image_id": image_id}


def collate(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A batch is the list of its samples, which differ in size."""
    return samples


def transformed_box(
    box: list[float], transforms: list[Transform], height: int, width: int
) -> np.ndarray:
    """[x, y, width, height] -> [x0, y0, x1, y1] after the transforms, clipped to the image."""
    corners = np.asarray(box, dtype=np.float32).reshape(2, 2)
    corners[1] += corners[0]  # in float32, as detectron2 does
    points = corners.astype(np.float64)
    for transform in transforms:
        points = transform.points(points)
    points = np.clip(np.sort(points, axis=0), 0, [width, height])
    return points.reshape(4)


def transformed_mask(
    segmentation: Any, transforms: list[Transform], height: int, width: int
) -> np.ndarray:
    """Polygons or compressed RLE -> bool ``[height, width]`` after the transforms.

    Polygons are transformed and then drawn; an RLE is drawn and then resized to the nearest pixel.
    """
    if isinstance(segmentation, dict):
        return _apply(transforms, mask_util.decode(segmentation), Image.Resampling.NEAREST) > 0
    polygons = []
    for polygon in segmentation:
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        for transform in transforms:
            points = transform.points(points)
        polygons.append(points.reshape(-1))
    rle = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
    return mask_util.decode(rle) > 0


def tight_boxes(masks: Tensor) -> Tensor:
    """bool ``[N, H, W]`` -> float32 ``[N, 4]`` around the pixels; zeros for an empty mask."""
    boxes = torch.zeros(len(masks), 4)
    for box, mask in zip(boxes, masks, strict=True):
        if mask.any():
            x, y = mask.any(0).nonzero(), mask.any(1).nonzero()
            box.copy_(torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1]))
    return boxes


def _objects(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in record["annotations"] if not item["iscrowd"]]


def _apply(
    transforms: list[Transform], image: np.ndarray, resample: Image.Resampling
) -> np.ndarray:
    for transform in transforms:
        image = transform.pixels(image, resample)
    return image
