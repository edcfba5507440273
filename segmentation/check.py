"""Checks a segmentation data set before a training, and reports all problems at once."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from backbones.errors import InputError, counted, listed
from images.files import Reading, pixel_digest, read_image
from images.threads import in_threads
from segmentation.dataset import Record, SegmentationDataset
from segmentation.label_maps import read_label_file
from segmentation.upernet import IGNORED
from training.progress import progress

logger = logging.getLogger(__name__)

SHOWN = 5  # examples of one kind of problem


@dataclass(frozen=True)
class Checked:
    """The result of reading every image and map of a data set.

    Attributes:
        errors, warnings: one line for each kind of problem, with a count and examples.
        pixels: number of pixels of each class, int64 ``[K]``.
        ignored: number of pixels without a class.
        digests: digest of an image's pixels -> its path.
        size: height and width of the first image.
    """

    errors: list[str]
    warnings: list[str]
    pixels: np.ndarray
    ignored: int
    digests: dict[str, str]


def check_segmentation(dataset: SegmentationDataset, reading: Reading) -> Checked:
    """Read every image and class map."""
    errors: dict[str, list[str]] = defaultdict(list)
    warnings: dict[str, list[str]] = defaultdict(list)
    pixels, ignored = np.zeros(len(dataset.classes.names), np.int64), 0
    digests: dict[str, str] = {}
    values_of: dict[int, int] = defaultdict(int)
    for lonely in dataset.without_partner:
        warnings["files without a partner are left out"].append(lonely)

    for told, into in ((dataset.errors, errors), (dataset.warnings, warnings)):
        for kind, example in told:
            into[kind] += [example] if example else []

    def look(record: Record) -> _Looked:
        return _look(dataset, record, reading)

    looked = in_threads(look, dataset.records)
    for found in progress(looked, "checking", len(dataset.records), "image"):
        for kind, line in found.errors:
            errors[kind].append(line)
        for value, count in found.foreign.items():
            values_of[value] += count
        pixels += found.pixels
        ignored += found.ignored
        if found.digest:
            if twin := digests.get(found.digest):
                warnings["pictures that are there twice"].append(f"{found.image} = {twin}")
            digests.setdefault(found.digest, found.image)
    if values_of:
        errors[_explained(dataset, values_of)] = [
            f"value {value}: {count} pixels" for value, count in sorted(values_of.items())
        ]
    never = [name for name, count in zip(dataset.classes.names, pixels, strict=True) if not count]
    if never and not errors:
        warnings["classes that no pixel has"] = never
    if not pixels.sum() and not errors:
        errors["no pixel has a class: everything is ignored; correct IGNORE_LABEL or the maps"] = []
    lines = [_lines(kinds) for kinds in (errors, warnings)]
    return Checked(lines[0], lines[1], pixels, ignored, digests)


@dataclass
class _Looked:
    """The result for one image and its map; ``foreign``: value without a class -> pixels."""

    image: str
    pixels: np.ndarray
    errors: list[tuple[str, str]] = field(default_factory=list)
    foreign: dict[int, int] = field(default_factory=dict)
    ignored: int = 0
    digest: str = ""


def _look(dataset: SegmentationDataset, record: Record, reading: Reading) -> _Looked:
    found = _Looked(record.image, np.zeros(len(dataset.classes.names), np.int64))
    try:
        image = read_image(record.image, reading)
    except (InputError, OSError) as error:
        found.errors.append(("images that cannot be read", str(error)))
        return found
    found.digest = pixel_digest(image)
    size = image.shape[:2]
    try:
        if record.labels is None:
            assert record.size is not None
            values, told = None, record.size
            labels = dataset.class_map(record).astype(np.int32)
        else:
            values = read_label_file(record.labels)
            told = (values.shape[0], values.shape[1])
            labels = dataset.classes.table()[values].astype(np.int32)
    except (InputError, OSError) as error:
        found.errors.append(("class maps that cannot be read", str(error)))
        return found
    if told != size:
        kind = "class maps of another size than their image (height x width); make them equal"
        line = f"{record.labels or record.image}: {told[0]}x{told[1]}, image {size[0]}x{size[1]}"
        found.errors.append((kind, line))
    if values is not None and (labels < 0).any():
        for value, count in zip(*np.unique(values[labels < 0], return_counts=True), strict=True):
            found.foreign[int(value)] = int(count)
    labelled = labels[(labels >= 0) & (labels != IGNORED)]
    found.pixels = np.bincount(labelled, minlength=len(found.pixels)).astype(np.int64)
    found.ignored = int((labels == IGNORED).sum())
    return found


def _explained(dataset: SegmentationDataset, foreign: dict[int, int]) -> str:
    """The message about values without a class, with the remedy that fits."""
    count = len(dataset.classes.names)
    remedy = "name them in CLASSES.json, or set INPUT.IGNORE_LABEL or INPUT.REDUCE_ZERO_LABEL"
    return f"values without a class ({dataset.name} has {count}): {remedy}"


def two_valued(dataset: SegmentationDataset, checked: Checked) -> str | None:
    """A message if maps hold only 0 and 255, which nearly always means background and object.

    255 is ignored by default, so such a set would have a single class.
    """
    classes = dataset.classes
    only_first = checked.pixels[0] > 0 and not checked.pixels[1:].any()
    if classes.of_value or classes.ignore_label != IGNORED or not only_first or not checked.ignored:
        return None
    if not any(record.labels for record in dataset.records):
        return None
    return (
        "the maps hold only 0 and 255: mostly that is background and object, but 255 is ignored "
        '(INPUT.IGNORE_LABEL). Name the classes: masks:IMAGES:LABELS:CLASSES.json with {"0": '
        '"background", "255": "object"}'
    )


def shared_pictures(train: Checked, test: Checked) -> list[str]:
    """Images of the test set that are trained on, compared by their pixels."""
    return [
        path if path == train.digests[digest] else f"{path} = {train.digests[digest]}"
        for digest, path in test.digests.items()
        if digest in train.digests
    ]


def _lines(kinds: dict[str, list[str]]) -> list[str]:
    return [
        kind if not examples else f"{kind} ({len(examples)}): {_shortened(examples)}"
        for kind, examples in kinds.items()
    ]


def _shortened(examples: list[str]) -> str:
    rest = len(examples) - SHOWN
    return "; ".join(examples[:SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def checked_or_refused(
    datasets: dict[str, SegmentationDataset], reading: Reading
) -> dict[str, Checked]:
    """Check a run's data sets together, and log warnings and the meaning of the values.

    Args:
        datasets: role ("train", "test") -> data set.

    Raises:
        InputError: listing every problem of all of them.
    """
    results: dict[str, Checked] = {}
    problems: list[str] = []
    for role, dataset in datasets.items():
        if same := [other for other in results if datasets[other] == dataset]:
            results[role] = results[same[0]]  # a set that stands in TRAIN and in TEST
            continue
        checked = results[role] = check_segmentation(dataset, reading)
        errors = list(checked.errors)
        if remedy := two_valued(dataset, checked):
            errors.append(remedy)
        problems += [f"{dataset.name}: {line}" for line in errors]
        for line in checked.warnings:
            logger.warning("%s: %s", dataset.name, line)
        total = checked.pixels.sum() + checked.ignored
        logger.info(
            "%s: %s, %s; %s; %.1f%% of the pixels are ignored",
            dataset.name,
            counted(len(dataset.records), "image"),
            counted(len(dataset.classes.names), "class"),
            dataset.classes.said() or "values are class numbers",
            100 * checked.ignored / total if total else 0,
        )
    if len(datasets) == 2 and (shared := shared_pictures(*results.values())):
        logger.warning(
            "%d of the test images are trained on, so the results will be too good: %s",
            len(shared),
            _shortened(shared),
        )
    if problems:
        raise InputError(listed(problems, "the data"))
    return results


def class_shares(dataset: SegmentationDataset, checked: Checked) -> Iterator[tuple[str, float]]:
    """Each class and its fraction of the labelled pixels."""
    total = max(1, int(checked.pixels.sum()))
    for name, count in zip(dataset.classes.names, checked.pixels, strict=True):
        yield name, float(count / total)
