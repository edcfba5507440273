"""One segmentation run: check everything, train, predict, evaluate, report.

All files of a run are in ``OUTPUT_DIR``, with the names of detection's runs.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from backbones.checkpoint import OWN_WEIGHTS, open_encoder
from backbones.errors import InputError
from backbones.whole_files import write_json, write_text
from images.configured import reading_of, with_statistics, with_weights_statistics
from segmentation.check import Checked, checked_or_refused, class_shares
from segmentation.config import resolve_num_classes
from segmentation.dataset import SegmentationDataset, load_segmentation
from segmentation.engine import predict_segmenter, train_segmenter
from segmentation.report import write_report
from segmentation.weights import trained_names
from training.cli import is_main_process, log_to
from training.command_line.tasks import read_facts
from training.configured import (
    check_output_dir,
    command_facts,
    holds_run,
    newest_weights,
    resolve_seed,
    warn_of_solver,
)
from training.guards.resume import say_changes
from training.guards.run_folder import held
from training.records.environment import peak_memory_mb
from training.records.metrics import train_seconds

logger = logging.getLogger(__name__)


def run(
    config: CfgNode, resume: bool = False, eval_only: bool = False, config_file: str = ""
) -> dict[str, Any]:
    """Train (unless ``eval_only``), then predict and evaluate on ``DATASETS.TEST``, and report.

    Args:
        resume: continue the run in ``OUTPUT_DIR``, if there is one.
        eval_only: evaluate ``MODEL.WEIGHTS``, or if that is empty, the run's newest checkpoint.

    Returns:
        The metrics, see :func:`segmentation.engine.evaluate_model`; empty without a test set.

    Raises:
        InputError: for a config, data or weights that cannot be used, and for an ``OUTPUT_DIR``
            that holds a run when not resuming.
    """
    with held(Path(config.OUTPUT_DIR)):
        return _run(config, resume, eval_only, config_file)


def _run(config: CfgNode, resume: bool, eval_only: bool, config_file: str) -> dict[str, Any]:
    output_dir, is_main = Path(config.OUTPUT_DIR), is_main_process()
    changes = check_output_dir(config, resume, eval_only)
    log_to(output_dir if is_main else None, logging.INFO if is_main else logging.ERROR)
    say_changes(changes)
    continues = not eval_only and resume and holds_run(output_dir)
    earlier = read_facts(output_dir) if eval_only or continues else {}
    config, told = with_weights_statistics(config, continues or eval_only)
    datasets = with_trained_classes(load_datasets(config, eval_only), config, eval_only, earlier)
    config = complete(config, datasets, resume)
    checked = checked_or_refused(datasets, reading_of(config)) if is_main else {}
    images = [record.image for record in next(iter(datasets.values())).records]
    config, origin = with_statistics(config, images)
    facts: dict[str, Any] = {}
    if is_main:
        facts = collect_facts(config, datasets, checked, config_file, eval_only, earlier)
        facts.setdefault("statistics", told or origin)
        logger.info("full config:\n%s", config.dump())
        if not eval_only:
            write_text(output_dir / "config.yaml", config.dump())
        write_json(output_dir / "run.json", facts, indent=1)
    if not eval_only:
        if is_main:
            warn_of_solver(config.SOLVER)
        try:
            train_segmenter(config, datasets["train"], datasets.get("test"), resume)
        finally:  # also after an interruption
            if is_main:
                facts["train_seconds"] = train_seconds(output_dir / "metrics.json")
                write_json(output_dir / "run.json", facts, indent=1)
    metrics: dict[str, Any] = {}
    if test_set := datasets.get("test"):
        weights = Path(config.MODEL.WEIGHTS) if eval_only and config.MODEL.WEIGHTS else None
        began = time.perf_counter()
        metrics = predict_segmenter(config, test_set, weights or newest_weights(output_dir))
        if not eval_only:
            facts["predict_seconds"] = time.perf_counter() - began
    if is_main:
        if not eval_only:
            facts["peak_memory_mb"] = peak_memory_mb()
        write_json(output_dir / "run.json", facts, indent=1)
        write_report([output_dir], output_dir / "report.html")
    return metrics


def load_datasets(config: CfgNode, eval_only: bool) -> dict[str, SegmentationDataset]:
    """The data sets that the run needs, by role.

    Raises:
        InputError: if one is not named, or cannot be read.
    """
    needed = "TEST" if eval_only else "TRAIN"
    if not config.DATASETS[needed]:
        raise InputError(f"DATASETS.{needed} is empty: give DATASETS.{needed} masks:IMAGES:LABELS")
    options = config.INPUT.IGNORE_LABEL, config.INPUT.REDUCE_ZERO_LABEL
    found: dict[str, SegmentationDataset] = {}
    problems: dict[str, list[str]] = {}  # what is wrong -> the keys of the sets that it is of
    for role, key in (("train", "TRAIN"), ("test", "TEST")):
        if config.DATASETS[key] and not (eval_only and role == "train"):
            try:
                found[role] = load_segmentation(config.DATASETS[key][0], *options)
            except (InputError, FileNotFoundError) as error:
                problems.setdefault(str(error), []).append(f"DATASETS.{key}")
    if problems:
        raise InputError("\n".join(f"{', '.join(keys)}: {e}" for e, keys in problems.items()))
    return found


def with_trained_classes(
    datasets: dict[str, SegmentationDataset],
    config: CfgNode,
    eval_only: bool,
    earlier: dict[str, Any],
) -> dict[str, SegmentationDataset]:
    """The data sets with the model's classes in the model's order; classes are matched by name.

    Args:
        earlier: the ``run.json`` of the run that this command continues or evaluates.

    Raises:
        InputError: for a class that the model lacks, and for other classes on resuming.
    """
    trained = trained_names(config.MODEL.WEIGHTS) if eval_only else []
    trained = trained or earlier.get("classes") or list(next(iter(datasets.values())).classes.names)
    if "train" in datasets and list(datasets["train"].classes.names) != trained:
        raise InputError(
            f"--resume cannot continue a run with other classes: they were {trained}, and are "
            f"{list(datasets['train'].classes.names)} now; restore the labels, or train into "
            "another OUTPUT_DIR"
        )
    return {role: dataset.with_classes(trained) for role, dataset in datasets.items()}


def complete(config: CfgNode, datasets: dict[str, SegmentationDataset], resume: bool) -> CfgNode:
    """The config with the data's number of classes, and a random seed in place of -1."""
    config = config.clone()
    config.defrost()
    for dataset in datasets.values():
        config.MODEL.SEM_SEG_HEAD.NUM_CLASSES = resolve_num_classes(config, dataset)
    config.SEED = resolve_seed(config, resume)
    config.freeze()
    return config


def collect_facts(
    config: CfgNode,
    datasets: dict[str, SegmentationDataset],
    checked: dict[str, Checked],
    config_file: str,
    eval_only: bool,
    earlier: dict[str, Any],
) -> dict[str, Any]:
    """The content of ``run.json``.

    Args:
        earlier: the ``run.json`` of the training that this command continues or evaluates; its
            facts stay. For an evaluation on another test set, ``evaluation`` records that command.
    """
    sets = {
        role: {
            "name": dataset.name,
            "images": len(dataset.records),
            "class_shares": dict(class_shares(dataset, checked[role])),
            "ignored_pixels": checked[role].ignored,
            "values": dataset.classes.said(),
            "label_options": [config.INPUT.IGNORE_LABEL, config.INPUT.REDUCE_ZERO_LABEL],
        }
        for role, dataset in datasets.items()
    }
    of_command = command_facts(config, config_file)
    if eval_only and earlier:
        before = earlier.get("datasets", {})
        if before.get("test") == sets["test"]:
            return earlier
        return earlier | {"datasets": before | sets, "evaluation": of_command}
    source = config.MODEL.WEIGHTS or config.MODEL.CONVNEXT.WEIGHTS or None
    facts = of_command | {
        "task": "segmentation",
        "encoder": source,
        "licence": licence_of(source, config.MODEL.CONVNEXT.IN_CHANS),
        "classes": list(next(iter(datasets.values())).classes.names),
        "datasets": sets,
    }
    for name in ("started", "encoder", "licence", "statistics"):
        if name in earlier:
            facts[name] = earlier[name]
    trained_on = earlier.get("datasets", {}).get("train")
    if trained_on and trained_on != sets["train"]:
        logger.warning(
            "the training data changed since the run began: it was %s with %d images, and is %s "
            "with %d images, or other labels",
            *(trained_on["name"], trained_on["images"]),
            *(sets["train"]["name"], sets["train"]["images"]),
        )
        facts["datasets"] = sets | {"train": trained_on, "train_resumed": sets["train"]}
    return facts


def licence_of(weights: str | None, in_chans: int) -> str | None:
    """The licence of the weights that a training starts from; None if unknown."""
    return open_encoder(weights, in_chans).metadata.get("licence") if weights else OWN_WEIGHTS
