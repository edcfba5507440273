"""Data of the detectron2 engine: from this project's checked records to batches.

detectron2's own mapper, structures and loader do the work. Three parts are this project's, so that
both engines see the same samples and a resumed run continues where it stopped:

  * reading images (``detection.data.pixels``);
  * changing them at random (``detection.data.augmentation``: the draws are those of detectron2's
    augmentations, for any channels and depth);
  * the order of images and the seed of each sample (``training.data``).
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from backbones.errors import InputError, counted
from detection.data.augmentation.checks import augmentation_words
from detection.data.augmentation.copy_paste import Objects, copy_paste, tight_boxes
from detection.data.augmentation.geometry import (
    Crop,
    Transform,
    draw_transforms,
    recomputes_boxes,
)
from detection.data.augmentation.photometry import change_values
from detection.data.pixels import read_record, to_tensor
from detection.data.records import Records
from detection.data.repeats import repeats_of
from detection.data.tile_records import training_record, training_records
from detection.dataset import CocoDataset
from images.configured import in_order
from training.data import BatchOrder, SampleKey, seed_cpu_generators, seed_generators
from training.guards.workers import prepare_worker


class _Drawn(T.Transform):
    """One of ``detection.data.augmentation.geometry``'s transforms, as detectron2's.

    Polygons that leave a crop are shifted and not cut: drawing them as a bitmask cuts them, and
    fvcore would do it by shapely, which detectron2 does not declare.
    """

    def __init__(self, inner: Transform) -> None:
        super().__init__()
        self.inner = inner

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.inner.pixels(img, Image.Resampling.BILINEAR)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.inner.pixels(segmentation, Image.Resampling.NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return self.inner.points(coords)


class _ByConfig(T.Augmentation):
    """The geometry of a config, drawn as detectron2's own augmentations draw it.

    Args:
        scale: what the drawn size is multiplied by.
    """

    def __init__(self, cfg: Any, is_train: bool, scale: float = 1.0) -> None:
        super().__init__()
        self.cfg, self.is_train, self.scale = cfg, is_train, scale

    def get_transform(self, image: np.ndarray) -> T.Transform:
        options, (height, width) = self.cfg.INPUT, image.shape[:2]
        drawn = draw_transforms(options, height, width, self.is_train, self.scale)
        return T.TransformList([self._as_detectron2s(each) for each in drawn])

    def _as_detectron2s(self, drawn: Transform) -> T.Transform:
        if isinstance(drawn, Crop) and self.cfg.INPUT.MASK_FORMAT == "polygon":
            return T.CropTransform(drawn.x, drawn.y, drawn.width, drawn.height)
        return _Drawn(drawn)

    def __repr__(self) -> str:
        return ", ".join(augmentation_words(self.cfg)) if self.is_train else "sizes alone"


class Mapper(DatasetMapper):
    """detectron2's mapper, whose images are read and changed as the other engine does.

    Raises:
        InputError: when called, if an image does not decode or has not the annotations' size.
    """

    def __init__(self, cfg: Any, is_train: bool) -> None:
        super().__init__(
            is_train=is_train,
            augmentations=[_ByConfig(cfg, is_train)],
            image_format=cfg.INPUT.FORMAT,
            use_instance_mask=cfg.MODEL.MASK_ON,
            instance_mask_format=cfg.INPUT.MASK_FORMAT,
        )
        self.cfg = cfg
        self.has_new_boxes = is_train and cfg.MODEL.MASK_ON and recomputes_boxes(cfg.INPUT)

    def __call__(self, record: dict[str, Any], scale: float = 1.0) -> dict[str, Any]:
        if self.is_train:
            record = training_record(record, self.cfg)
        image = T.AugInput(in_order(read_record(record, self.cfg), self.cfg))
        transforms = T.AugmentationList([_ByConfig(self.cfg, self.is_train, scale)])(image)
        height, width = image.image.shape[:2]
        if not self.is_train:
            kept = {key: value for key, value in record.items() if key != "annotations"}
            return kept | {"image": to_tensor(image.image)}
        annotations = [_in_floats(item) for item in record["annotations"]]
        pixels = to_tensor(change_values(image.image, self.cfg))
        sample = {**record, "annotations": annotations, "image": pixels}
        # Without an object there are no masks to compute boxes from.
        has_objects = not all(item["iscrowd"] for item in annotations)
        self.recompute_boxes = self.has_new_boxes and has_objects
        self._transform_annotations(sample, transforms, (height, width))
        return sample


def _in_floats(item: dict[str, Any]) -> dict[str, Any]:
    """An annotation whose coordinates are floats: detectron2 resizes integers in integers."""
    item = {**item, "bbox": [float(value) for value in item["bbox"]]}
    if isinstance(item.get("segmentation"), list):
        item["segmentation"] = [np.asarray(p, dtype=np.float64) for p in item["segmentation"]]
    return item


class _SeededRecords(Dataset):
    """Mapped records, Copy-Paste included; the random draws of a sample are seeded by its key."""

    def __init__(self, records: Records, mapper: Mapper, seed: int) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        prepare_worker()
        epoch, index = key
        seed_cpu_generators(self.seed, 0, epoch, index)
        sample = self.mapper(self.records[index])
        if not self.mapper.cfg.INPUT.AUGMENTATION.COPY_PASTE.ENABLED:
            return sample

        def read(other: int, scale: float) -> Objects:
            return _objects_of(self.mapper(self.records[other], scale))

        found = copy_paste(self.mapper.cfg.INPUT, _objects_of(sample), len(self), read)
        instances = Instances(
            tuple(found.image.shape[1:]),
            gt_boxes=Boxes(tight_boxes(found.masks)),
            gt_classes=found.labels,
            gt_masks=BitMasks(found.masks),
        )
        return {**sample, "image": found.image, "instances": instances}


def _objects_of(sample: dict[str, Any]) -> Objects:
    instances, image = sample["instances"], sample["image"]
    masks = torch.zeros(0, *image.shape[1:], dtype=torch.bool)
    if len(instances):
        masks = instances.gt_masks.tensor.bool()
    return Objects(image, masks, instances.gt_classes)


@dataclass
class _Order(Sampler):
    """The samples of ``training.data.BatchOrder`` one by one, as detectron2's loader takes them."""

    batches: BatchOrder

    def __iter__(self) -> Iterator[SampleKey]:
        return itertools.chain.from_iterable(self.batches)


@dataclass
class TrainingBatches:
    """An endless iterable of this process's batches from step ``first_step`` on.

    Each batch is a list of detectron2's sample dictionaries; ``SOLVER.ACCUMULATE`` of them make a
    step. Before one is handed out, the global generators are seeded by the step, so that drop
    path and the sampling of proposals repeat in a resumed run. (With ``ASPECT_RATIO_GROUPING``
    images wait in two buckets, which a resumed run refills: then its data order is the same only
    from the next few batches on.)

    Attributes:
        files: the image files of the newest step.

    Raises:
        InputError: if no image is left to train on, or processes and micro-batches do not divide
            the batch.
    """

    cfg: Any
    dataset: CocoDataset
    seed: int
    first_step: int = 0
    files: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        cfg, world_size = self.cfg, comm.get_world_size()
        if cfg.SOLVER.IMS_PER_BATCH % (world_size * cfg.SOLVER.ACCUMULATE):
            raise InputError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {world_size} processes "
                f"x SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE} cannot share evenly: make it a "
                "multiple"
            )
        _check_trainable(cfg, self.dataset)
        self.records = self.dataset.records
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            self.records = self.records.with_objects()
        self.records = training_records(self.records, cfg)
        self.repeats = repeats_of(cfg, self.records)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        cfg, accumulate = self.cfg, self.cfg.SOLVER.ACCUMULATE
        order = BatchOrder(
            len(self.records),
            cfg.SOLVER.IMS_PER_BATCH // accumulate,
            self.seed,
            self.first_step * accumulate,
            comm.get_rank(),
            comm.get_world_size(),
            self.repeats,
        )
        loader = build_detection_train_loader(
            _SeededRecords(self.records, Mapper(cfg, is_train=True), self.seed),
            mapper=None,
            sampler=_Order(order),
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH // accumulate,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        for number, batch in enumerate(loader, self.first_step * accumulate):
            step, micro = divmod(number, accumulate)
            self.files = (self.files if micro else []) + [sample["file_name"] for sample in batch]
            seed_generators(self.seed, 2, step, micro, comm.get_rank())
            yield batch


def _check_trainable(cfg: Any, dataset: CocoDataset) -> None:
    """Raise for data on which detectron2 would fail by an assertion or during the training."""
    objects = int(dataset.records.objects.sum())
    if not objects:
        raise InputError(
            f"{dataset.annotations}: none of its {counted(len(dataset.records), 'image')} shows "
            "an object to train on (crowds do not count); annotate some, or train on another file"
        )
    if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon":
        options = cfg.INPUT
        cuts = options.LSJ.ENABLED or options.CROP.ENABLED
        if cuts and importlib.util.find_spec("shapely") is None:
            raise InputError(
                f"INPUT.{'LSJ' if options.LSJ.ENABLED else 'CROP'} cuts polygons with shapely, "
                "which is not installed: "
                "set INPUT.MASK_FORMAT to bitmask, or pip install shapely"
            )
        encoded = sum(
            isinstance(item.get("segmentation"), dict) and not item["iscrowd"]
            for record in dataset.records
            for item in record["annotations"]
        )
        if encoded:
            raise InputError(
                f"INPUT.MASK_FORMAT is polygon, but {encoded} of {counted(objects, 'object')} in "
                f"{dataset.annotations} are run-length encoded: set INPUT.MASK_FORMAT to bitmask"
            )


def prediction_loader(cfg: Any, dataset: CocoDataset, share: range) -> DataLoader:
    """The images of these records, each a batch, resized as the config says."""
    return build_detection_test_loader(
        dataset.records,
        mapper=Mapper(cfg, is_train=False),
        sampler=share,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
