"""The data sets of a run: loaded, their classes joined, and compared."""

from __future__ import annotations

import itertools
import logging

from fvcore.common.config import CfgNode

from backbones.errors import InputError
from detection.dataset import (
    CocoDataset,
    join_datasets,
    joined_classes,
    load_all,
    warn_of_shared_images,
)
from detection.engines.classes import trained_classes
from images.configured import reading_of
from training.cli import is_main_process

logger = logging.getLogger(__name__)


def load_datasets(
    config: CfgNode, eval_only: bool
) -> tuple[CocoDataset | None, list[CocoDataset], list[CocoDataset]]:
    """The checked training set (``DATASETS.TRAIN`` joined), validation sets and test sets.

    Their classes are the detector's: those of all sets, joined by name; in an evaluation those that
    the detector was trained with. An evaluation has neither training nor validation sets.

    Raises:
        InputError: for problems in the data, a set that is not named, or training and test sets
            that have no class in common.
    """
    needed = "TEST" if eval_only else "TRAIN"
    if not config.DATASETS[needed]:
        raise InputError(
            f"DATASETS.{needed} is empty: give DATASETS.{needed} json:ANNOTATIONS:IMAGE_FOLDER"
        )
    problems: list[str] = []
    options = {
        "masks": config.MODEL.MASK_ON,
        "check_images": is_main_process(),
        "reading": reading_of(config),
    }
    names = config.DATASETS
    trained_on, validated_on = ((), ()) if eval_only else (names.TRAIN, names.VAL)
    train_parts = load_all(trained_on, problems, **options)
    val_sets = load_all(validated_on, problems, for_evaluation=True, **options)
    test_sets = load_all(names.TEST, problems, for_evaluation=True, **options)
    problems += [
        f"{dataset.annotations}: none of its {len(dataset.records)} images shows an object (crowds "
        "do not count), so no AP can be measured by which DATASETS.VAL chooses the best weights: "
        "annotate some, or name another set"
        for dataset in val_sets
        if not dataset.records.objects.sum()
    ]
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))  # a set may stand in two keys
    trained = trained_classes(config.MODEL.WEIGHTS, config.OUTPUT_DIR) if eval_only else None
    classes = trained or joined_classes([*train_parts, *val_sets, *test_sets])
    learnt = {name for part in train_parts for name in part.class_names} or set(classes.values())
    for dataset in [*val_sets, *test_sets]:
        compare_classes(dataset, learnt)
    train_set = join_datasets(train_parts, classes) if train_parts else None
    val_sets, test_sets = (
        [dataset.with_classes(tuple(classes.values())) for dataset in sets]
        for sets in (val_sets, test_sets)
    )
    if train_set and is_main_process():
        for dataset in [*val_sets, *test_sets]:
            warn_of_shared_images(train_set, dataset)
        for chooses, measures in itertools.product(val_sets, test_sets):
            warn_of_shared_images(chooses, measures)
    return train_set, val_sets, test_sets


def compare_classes(test_set: CocoDataset, learnt: set[str]) -> None:
    """Warn of classes that only the training set or only the test set has.

    Raises:
        InputError: if they have none in common.
    """
    own = set(test_set.class_names)
    if not own & learnt:
        raise InputError(
            f"the classes of the detector and of {test_set.annotations} differ: "
            f"{sorted(learnt)} and {sorted(own)}; give both the same names"
        )
    if only := sorted(own - learnt):
        logger.warning(
            "%s has classes that no training set has, which are never found: %s",
            test_set.annotations,
            ", ".join(only),
        )
    if lacking := sorted(learnt - own):
        logger.warning(
            "%s lacks the classes %s: detections of them are left out of its results",
            test_set.annotations,
            ", ".join(lacking),
        )
