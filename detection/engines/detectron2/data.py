"""Data of the detectron2 engine: our checked records in, batches and test images out.

detectron2's own mapper, augmentations and loader do the work. Two things are this project's:
images are read by ``detection.data.pixels`` and resized with all of their channels and levels, and
the order of images and the seed of each sample's
augmentation are those of ``training.data``, so that both engines see the same samples and a
resumed run continues where it stopped.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import detectron2.data.transforms as T
import numpy as np
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.detection_utils import build_augmentation
from detectron2.utils import comm
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from backbones.errors import InputError
from detection.data.pixels import in_order, read_record, to_tensor
from detection.data.records import Records
from detection.dataset import CocoDataset
from images.resizing import resized
from training.data import BatchOrder, SampleKey, seed_cpu_generators, seed_generators
from training.guards.workers import prepare_worker


class _ShiftingCrop(T.CropTransform):
    """A crop whose polygons are shifted and not cut: drawing them as a bitmask cuts them.

    fvcore cuts polygons by shapely, which detectron2 does not declare.
    """

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        return [self.apply_coords(polygon) for polygon in polygons]


class _BitmaskCrop(T.FixedSizeCrop):
    def get_transform(self, image: np.ndarray) -> T.Transform:
        crop = self._get_crop(image)
        return _ShiftingCrop(crop.x0, crop.y0, crop.w, crop.h, crop.orig_w, crop.orig_h)


class _ResizeAny(T.ResizeTransform):
    """Resizes pixels of any number of channels and any depth as 8-bit RGB; masks as ever.

    detectron2 itself takes four channels for colours with alpha, and does not antialias floats.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if interp is not None or img.ndim == 2:
            return super().apply_image(img, interp)
        return resized(img, self.new_h, self.new_w, Image.Resampling(self.interp))


class _AnyImage(T.Augmentation):
    """Another augmentation, drawn as ever, whose resizing is the one above."""

    def __init__(self, inner: T.Augmentation) -> None:
        super().__init__()
        self.inner = inner

    def get_transform(self, image: np.ndarray) -> T.Transform:
        found = self.inner.get_transform(image)
        if isinstance(found, T.ResizeTransform):
            return _ResizeAny(found.h, found.w, found.new_h, found.new_w, found.interp)
        return found


class _OurReader(DatasetMapper):
    """detectron2's mapper, but the image is read and resized as the other engine does."""

    def __init__(self, cfg: Any, is_train: bool, **options: Any) -> None:
        super().__init__(cfg, is_train, **options)
        self.cfg = cfg
        steps = vars(self)["augmentations"].augs
        self.augmentations = T.AugmentationList([_AnyImage(step) for step in steps])

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        image = T.AugInput(in_order(read_record(record, self.cfg), self.cfg))
        transforms = self.augmentations(image)
        height, width = image.image.shape[:2]
        sample = {**record, "image": to_tensor(image.image)}
        if self.is_train:
            self._transform_annotations(sample, transforms, (height, width))
        else:
            del sample["annotations"]
        return sample


class Mapper:
    """detectron2's mapper, with large-scale jitter where the config asks for it.

    Jitter is a random flip, a resize to a random multiple of the square's size and a crop to at
    most that square; what is smaller is padded by the model, with zeros after normalisation.

    Raises:
        InputError: when called, if an image does not decode or has not the annotations' size.
    """

    def __init__(self, cfg: Any, is_train: bool) -> None:
        options: dict[str, Any] = {}
        if is_train and cfg.INPUT.LSJ.ENABLED:
            jitter = cfg.INPUT.LSJ
            crop = _BitmaskCrop if cfg.INPUT.MASK_FORMAT == "bitmask" else T.FixedSizeCrop
            options["augmentations"] = [
                *(step for step in build_augmentation(cfg, True) if isinstance(step, T.RandomFlip)),
                T.ResizeScale(jitter.MIN_SCALE, jitter.MAX_SCALE, jitter.SIZE, jitter.SIZE),
                crop((jitter.SIZE, jitter.SIZE), pad=False),
            ]
            options["recompute_boxes"] = cfg.MODEL.MASK_ON
        self.mapper = _OurReader(cfg, is_train, **options)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        annotations = [_in_floats(item) for item in record["annotations"]]
        return self.mapper({**record, "annotations": annotations})


def _in_floats(item: dict[str, Any]) -> dict[str, Any]:
    """An annotation whose coordinates are floats: detectron2 resizes integers in integers."""
    item = {**item, "bbox": [float(value) for value in item["bbox"]]}
    if isinstance(item.get("segmentation"), list):
        item["segmentation"] = [np.asarray(p, dtype=np.float64) for p in item["segmentation"]]
    return item


class _SeededRecords(Dataset):
    """Mapped records, every draw of a sample seeded by (seed, epoch, index)."""

    def __init__(self, records: Records, mapper: Mapper, seed: int) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        prepare_worker()
        epoch, index = key
        seed_cpu_generators(self.seed, 0, epoch, index)
        return self.mapper(self.records[index])


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

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        cfg, accumulate = self.cfg, self.cfg.SOLVER.ACCUMULATE
        order = BatchOrder(
            len(self.records),
            cfg.SOLVER.IMS_PER_BATCH // accumulate,
            self.seed,
            self.first_step * accumulate,
            comm.get_rank(),
            comm.get_world_size(),
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
    """Raise for what detectron2 would meet by an assert or in the middle of the training."""
    objects = int(dataset.records.objects.sum())
    if not objects:
        raise InputError(
            f"{dataset.annotations}: none of its {len(dataset.records)} images shows an object "
            "to train on (crowds do not count); annotate some, or train on another file"
        )
    if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon":
        if cfg.INPUT.LSJ.ENABLED and importlib.util.find_spec("shapely") is None:
            raise InputError(
                "INPUT.LSJ cuts polygons with shapely, which is not installed: "
                "set INPUT.MASK_FORMAT to bitmask, or pip install shapely"
            )
        encoded = sum(
            isinstance(item.get("segmentation"), dict) and not item["iscrowd"]
            for record in dataset.records
            for item in record["annotations"]
        )
        if encoded:
            raise InputError(
                f"INPUT.MASK_FORMAT is polygon, but {encoded} of {objects} objects in "
                f"{dataset.annotations} are run-length encoded: set INPUT.MASK_FORMAT to bitmask"
            )


def prediction_loader(cfg: Any, dataset: CocoDataset) -> DataLoader:
    """Every image of the data set once, over all processes, resized as the config says."""
    return build_detection_test_loader(
        dataset.records,
        mapper=Mapper(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
