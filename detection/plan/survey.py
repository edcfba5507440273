"""The numbers of a detection data set that a plan is made from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from backbones.errors import InputError, counted
from detection.dataset import CocoDataset, join_datasets, joined_classes, load_all
from images.plans import channels_and_depth
from images.statistics import Statistics
from training.progress import progress

LONGEST = 1.75  # longer side / shorter side of a sample: the quick config's 448 / 256


@dataclass(frozen=True)
class Survey:
    """A training set in numbers. Lengths are pixels of the image files.

    Attributes:
        sizes: ``[N, 2]``, height and width of each image that shows an object.
        boxes: ``[M, 2]``, width and height of each object that is no crowd.
        owners: ``[M]``, the image of each object, an index of ``sizes``.
        classes: ``[M]``, the class index of each object.
        class_names: of all classes, those without an object, too.
        centres: ``[M, 2]``, x and y of each object; None where they are not known.
        channels: of the files, alpha left out.
        depth: of a value, in words: "8 bits".
        test_images: of all test sets, whose labels decide nothing.
        statistics: mean and deviation for random weights, where they are planned.
    """

    sizes: np.ndarray
    boxes: np.ndarray
    owners: np.ndarray
    classes: np.ndarray
    class_names: tuple[str, ...]
    empty: int = 0
    crowds: int = 0
    with_masks: int = 0
    channels: int = 3
    depth: str = "8 bits"
    test_images: int = 0
    statistics: Statistics | None = None
    centres: np.ndarray | None = None

    @cached_property
    def short(self) -> np.ndarray:
        """``[N]``, the shorter side of each image."""
        return self.sizes.min(1)

    @cached_property
    def frames(self) -> np.ndarray:
        """``[N]``, the shorter side of the smallest 1 x ``LONGEST`` frame that contains each image.

        An image is resized by side / frame. A panorama shrinks more than its shorter side suggests.
        """
        return np.maximum(self.short, self.sizes.max(1) / LONGEST)

    @cached_property
    def object_sizes(self) -> np.ndarray:
        """``[M]``, the square root of each box's area."""
        return np.sqrt(self.boxes.prod(1))

    @cached_property
    def relative_sizes(self) -> np.ndarray:
        """``[M]``, the same as a share of its image's frame."""
        return self.object_sizes / self.frames[self.owners]

    @cached_property
    def per_image(self) -> np.ndarray:
        """``[N]``, objects of each image."""
        return np.bincount(self.owners, minlength=len(self.sizes))

    @cached_property
    def images_of_class(self) -> np.ndarray:
        """``[classes]``, on how many images a class is."""
        pairs = np.unique(np.stack([self.classes, self.owners], 1), axis=0)
        return np.bincount(pairs[:, 0], minlength=len(self.class_names))

    def tiles(self, size: int) -> int:
        """Tiles of an epoch, as :func:`detection.data.tile_records.training_records` counts them.

        Where no centres are known, as many as an image has, or objects if they are fewer.
        """
        if self.centres is None:
            cells = np.ceil(self.sizes / size).prod(1)
            return int(np.minimum(self.per_image, cells).sum())
        places = np.column_stack([self.owners, self.centres // size])
        return len(np.unique(places, axis=0))

    def sentence(self) -> str:
        """The numbers in one sentence."""
        low, high = (np.percentile(self.short, q) for q in (5, 95))
        sides = f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
        return (
            f"{counted(len(self.boxes), 'object')} of "
            f"{counted(len(self.class_names), 'class', 'classes')} on "
            f"{counted(len(self.sizes), 'image')} (shorter side {sides} pixels, at most "
            f"{counted(int(self.per_image.max()), 'object')}); left out: "
            f"{counted(self.crowds, 'crowd')}, {counted(self.empty, 'image')} without an object"
        )


@dataclass(frozen=True)
class LoadedSets:
    """The data sets of a plan, checked; ``seconds``: of loading the training and the test sets."""

    train: CocoDataset
    tests: list[CocoDataset]
    seconds: tuple[float, float]


def load_sets(train: Sequence[str], test: Sequence[str]) -> LoadedSets:
    """Read and check data sets as a training does; their classes are joined.

    Raises:
        InputError: for everything that a training would refuse, all at once.
    """
    problems: list[str] = []
    sets: list[list[CocoDataset]] = []
    seconds = []
    for names in (train, test):
        began = time.perf_counter()
        sets.append(load_all(names, problems, masks=False))
        seconds.append(time.perf_counter() - began)
    if problems:
        raise InputError("\n".join(problems))
    dataset = join_datasets(sets[0], joined_classes([*sets[0], *sets[1]]))
    return LoadedSets(dataset, sets[1], (seconds[0], seconds[1]))


def unmasked(dataset: CocoDataset) -> Iterator[str]:
    """A message if objects (crowds too) have no mask: a training of masks refuses them."""
    items = (item for record in dataset.records for item in record["annotations"])
    if lacking := sum("segmentation" not in item for item in items):
        yield (
            f"{dataset.name}: {lacking} of {dataset.num_instances} objects (crowds counted) have "
            "no mask, but others of the training set have one: draw them, or leave them out by "
            "tools/check_dataset.py --repair"
        )


def survey(sets: LoadedSets) -> Survey:
    """Collect the numbers of the data sets.

    Raises:
        InputError: if there is nothing to train on, or only some objects have masks.
    """
    dataset = sets.train
    sizes: list[tuple[int, int]] = []
    boxes: list[list[float]] = []
    owners: list[int] = []
    labels: list[int] = []
    centres: list[tuple[float, float]] = []
    masks = 0
    for record in progress(dataset.records, "measuring objects", len(dataset.records), "image"):
        objects = [
            item
            for item in record["annotations"]
            if not item["iscrowd"] and min(item["bbox"][2:]) > 0
        ]
        if not objects:
            continue
        owners += [len(sizes)] * len(objects)
        sizes.append((record["height"], record["width"]))
        boxes += [item["bbox"][2:] for item in objects]
        centres += [(x + w / 2, y + h / 2) for x, y, w, h in (item["bbox"] for item in objects)]
        labels += [item["category_id"] for item in objects]
        masks += sum("segmentation" in item for item in objects)
    if not boxes:
        raise InputError(
            f"{dataset.name}: none of {counted(len(dataset.records), 'image')} shows an object to "
            "train on (crowds do not count): annotate some"
        )
    if masks and (problems := [one for each in [dataset, *sets.tests] for one in unmasked(each)]):
        raise InputError("\n".join(problems))
    channels, depth = channels_and_depth(
        [record["file_name"] for record in dataset.records.heads()]
    )
    return Survey(
        sizes=np.array(sizes),
        boxes=np.array(boxes, float),
        owners=np.array(owners),
        classes=np.array(labels),
        class_names=dataset.class_names,
        empty=len(dataset.records) - len(sizes),
        crowds=int(dataset.records.crowds.sum()),
        with_masks=masks,
        channels=channels,
        depth=depth,
        test_images=sum(len(one.records) for one in sets.tests),
        centres=np.array(centres, float),
    )
