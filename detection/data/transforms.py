"""From a record of a data set to a sample: decode, change at random, boxes and masks.

The data pipeline of the torchvision engine. From the same record and the same state of numpy's
generator it makes the same sample as detectron2's ``DatasetMapper``: first the augmentations of
:mod:`detection.data.augmentation.geometry`, then those of
:mod:`detection.data.augmentation.photometry`. The model pads, after normalisation.

Deliberate deviations:
  * polygons of whole numbers are resized as real numbers; detectron2 truncates them.
  * a polygon that leaves the crop is cut by pycocotools' rasterisation, not by shapely before it;
    masks may differ by single pixels along the edge of the crop.
  * masks are always bitmaps.

Coordinates: x to the right, y down, pixels; the image spans [0, width] x [0, height].
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from backbones.errors import InputError, counted
from detection.data.augmentation.copy_paste import Objects, copy_paste, tight_boxes
from detection.data.augmentation.geometry import Transform, draw_transforms, recomputes_boxes
from detection.data.augmentation.photometry import change_values
from detection.data.pixels import read_record, to_tensor
from detection.data.tile_records import training_record, training_records
from detection.dataset import CocoDataset
from images.configured import in_order

logger = logging.getLogger(__name__)

EMPTY_SIDE = 1e-5  # detectron2's threshold for a box without area


class DetectionSamples(Dataset):
    """The samples of a data set, as a map-style torch data set.

    ``samples[i]`` is a dictionary of ``image`` (``[C, H, W]``, 0 to 255, uint8 or of deeper files
    float32, in the channel order of ``INPUT.FORMAT``), ``height``, ``width`` (of the original
    image), ``image_id``, ``file_name``; in training also ``boxes`` (float32 ``[N, 4]``, x0, y0, x1,
    y1 in pixels of ``image``), ``labels`` (int64 ``[N]``, class indices from 0) and, with
    ``MODEL.MASK_ON``, ``masks`` (bool ``[N, H, W]``). Crowds are left out of the objects, and so is
    an object of which nothing is left in the sample; N may be 0.

    Args:
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
            if left := len(dataset.records) - len(self.records):
                logger.info(
                    "%s: %d of %d images are left out of training, for they show no object",
                    *(dataset.name, left, len(dataset.records)),
                )
        if not self.records:
            raise InputError(
                f"{dataset.annotations}: none of its {counted(len(dataset.records), 'image')} "
                "shows an object to train on (crowds do not count); annotate some, or train on "
                "another file"
            )
        if training:
            self.records = training_records(self.records, config)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._sample(index)
        if not (self.training and self.options.AUGMENTATION.COPY_PASTE.ENABLED):
            return sample

        def read(other: int, scale: float) -> Objects:
            return _objects_of(self._sample(other, scale))

        found = copy_paste(self.options, _objects_of(sample), len(self), read)
        return {**sample, **found._asdict(), "boxes": tight_boxes(found.masks)}

    def _sample(self, index: int, scale: float = 1.0) -> dict[str, Any]:
        """A record's sample, its drawn size multiplied by ``scale``."""
        record = self.records[index]
        if self.training:
            record = training_record(record, self.config)
        image = in_order(read_record(record, self.config), self.config)
        size = record["height"], record["width"]
        transforms = draw_transforms(self.options, *size, self.training, scale)
        image = _apply(transforms, image, Image.Resampling.BILINEAR)
        if self.training:
            image = change_values(image, self.config)
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
            if recomputes_boxes(self.options):
                targets["boxes"] = boxes = tight_boxes(masks)
        keep &= (boxes[:, 2:] - boxes[:, :2] > EMPTY_SIDE).all(1)
        return {key: value[keep] for key, value in targets.items()}


def sample_of_values(values: np.ndarray, config: CfgNode, image_id: int) -> dict[str, Any]:
    """The sample that :class:`DetectionSamples` makes of an image outside of training.

    Args:
        values: ``[H, W, C]``, uint8 or float32 in 0..1, as :mod:`detection.data.pixels` reads.
    """
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


def _objects_of(sample: dict[str, Any]) -> Objects:
    return Objects(sample["image"], sample["masks"], sample["labels"])


def _objects(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in record["annotations"] if not item["iscrowd"]]


def _apply(
    transforms: list[Transform], image: np.ndarray, resample: Image.Resampling
) -> np.ndarray:
    for transform in transforms:
        image = transform.pixels(image, resample)
    return image
