"""The runs of a study: pretrainings and trainings as the project's own command lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fcmae.grids.run import GridRun
from fcmae.grids.study_labels import LabelSet
from fcmae.grids.study_plan import Arm, StudyOptions
from images.statistics import Statistics


def training_of(
    options: StudyOptions,
    labels: LabelSet,
    arm: Arm,
    folder: Path,
    train: Path,
    rate: float,
    seed: int,
    test: Path | None = None,
    steps: int = 0,
    statistics: Statistics | None = None,
) -> GridRun:
    """A training of an arm.

    Args:
        train: labels that :meth:`LabelSet.write` has written; ``test`` likewise, in place of the
            study's test set.
        steps: in place of the study's.
        statistics: mean and deviation for random weights; other starts bring theirs.
    """
    task, tested = options.of_task, options.test
    if test:
        tested = labels.told(test)
    elif options.task == "detection":
        tested = f"json:{options.test}:{options.test_images}"
    keys = task.settings(
        *(labels.told(train), tested, options.model, options.image_size),
        *(steps or options.iterations, rate),
    )
    if task.config_file:
        keys = {"config-file": options.config_file, **keys}
    if statistics and not (arm.weights or arm.detector or arm.pretrained):
        keys |= task.normalised_by(statistics)
    keys |= options.overrides
    keys[task.seed] = seed
    if arm.detector:
        keys[task.whole] = arm.detector
    elif arm.weights and not arm.pretrained:
        keys[task.encoder] = arm.weights
    return GridRun(task.stage, folder, keys, pretraining_folder(options, arm))


def pretraining_folder(options: StudyOptions, arm: Arm) -> Path | None:
    return Path(options.output_dir) / "pretrain" / arm.name if arm.pretrained else None


def pretraining_of(
    options: StudyOptions,
    arm: Arm,
    steps: int,
    folder: Path | None = None,
    statistics: Statistics | None = None,
) -> GridRun:
    """FCMAE on the study's images."""
    flags: dict[str, Any] = {
        "model": options.model,
        "data": options.images,
        "image-size": options.image_size,
        "batch-size": options.batch_size,
        "in-chans": options.in_chans,
        "base-lr": 8e-3,
        "clip-norm": 3.0,
        "workers": 0,
        "max-steps": steps,
        "skip-bad-images": True,
        "seed": 0,
    }
    if arm.weights:
        flags["init"] = arm.weights
    elif statistics:
        flags |= {"mean": list(statistics.mean), "std": list(statistics.std)}
    target = folder or pretraining_folder(options, arm)
    assert target is not None
    return GridRun("pretrain", target, flags)
