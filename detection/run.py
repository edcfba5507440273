"""One detection run: check everything, train, predict, evaluate, report.

All that a run leaves lies in ``OUTPUT_DIR``, in standard formats and under detectron2's names;
evaluation and report read these files and know no engine.
"""

from __future__ import annotations

import logging
import os
import random
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from fvcore.common.config import CfgNode

from backbones.errors import InputError
from backbones.whole_files import write_text
from detection.config import resolve_num_classes
from detection.dataset import CocoDataset, load_dataset, warn_of_shared_images
from detection.engines import Engine, load_engine
from detection.engines.optimizer import warn_of_solver
from detection.engines.weights import AVERAGE_FOLDER, averaged_weights
from detection.evaluate import coco_metrics, write_metrics_summary
from detection.evaluation.diagnosis import diagnose, write_diagnosis
from detection.report import write_report
from detection.run_record import collect_facts, log_header, write_facts
from training.checkpoints import checkpoint_step, list_checkpoints
from training.cli import is_main_process, log_to
from training.config_files import flatten
from training.environment import peak_memory_mb
from training.metrics import train_seconds
from training.resume import compare_settings, say_changes
from training.run_folder import held, refuse_existing_run, refuse_fewer_steps
from training.trackers import tracker_problems

logger = logging.getLogger(__name__)

# With these changed, a resumed run's weights and optimizer state would not fit.
FIXED_ON_RESUME = (
    "MODEL.",
    "ENGINE",
    "SEED",
    "SOLVER.OPTIMIZER",
    "SOLVER.LAYER_DECAY",
    "SOLVER.EMA.ENABLED",
)
FREE_ON_RESUME = (".WEIGHTS", ".DEVICE", "_TEST")


def run(
    config: CfgNode, resume: bool = False, eval_only: bool = False, config_file: str = ""
) -> dict[str, Any]:
    """Train (unless ``eval_only``), then predict and evaluate on ``DATASETS.TEST``, and report.

    Every process of a distributed run calls it; the main one writes.

    Args:
        config: as :func:`detection.config.load_config` gives it.
        resume: continue the run in ``OUTPUT_DIR``, where there is one.
        eval_only: evaluate ``MODEL.WEIGHTS``, or where that is empty the run's newest checkpoint.
        config_file: where the config came from, for the records.

    Returns:
        What :func:`detection.evaluate.coco_metrics` gives; empty without ``DATASETS.TEST`` and in
        processes that are not the main one.

    Raises:
        InputError: for a config, data or weights that cannot be used, before training wherever it
            can be known before; and for an ``OUTPUT_DIR`` that holds a run when not resuming.
        FileNotFoundError: for files that do not exist.
    """
    with held(Path(config.OUTPUT_DIR)):
        return _run(config, resume, eval_only, config_file)


def _run(config: CfgNode, resume: bool, eval_only: bool, config_file: str) -> dict[str, Any]:
    engine = load_engine(config.ENGINE)
    if problems := tracker_problems(["wandb"] if config.WANDB else []):
        raise InputError(f"WANDB is True, but {problems[0]}")
    output_dir, is_main = Path(config.OUTPUT_DIR), is_main_process()
    changes = check_output_dir(config, resume, eval_only)
    log_to(output_dir if is_main else None, logging.INFO if is_main else logging.ERROR)
    if config.ENGINE == "detectron2" and is_main:
        logging.getLogger("detectron2").setLevel(logging.INFO)
    say_changes(changes)
    train_set, test_set = load_datasets(config, eval_only)
    config = complete(config, [train_set, test_set], resume)
    if is_main:
        facts = collect_facts(config, train_set, test_set, eval_only, config_file)
        log_header(config, facts)
        if not eval_only:
            write_text(output_dir / "config.yaml", config.dump())
        write_facts(output_dir, facts)

    if train_set:
        if is_main:
            warn_of_solver(config.SOLVER)
        try:
            engine.train(config, train_set, resume)
        finally:  # an interrupted session has trained, too
            if is_main:
                facts["train_seconds"] = train_seconds(output_dir / "metrics.json")
                write_facts(output_dir, facts)
    metrics: dict[str, Any] = {}
    if test_set:
        began = time.perf_counter()
        given = config.MODEL.WEIGHTS if eval_only else ""
        metrics = predict_and_evaluate(engine, config, test_set, given)
        if is_main:
            facts["predict_seconds"] = time.perf_counter() - began
        if not given and (average := averaged_weights(output_dir)):
            logger.info("the averaged weights (SOLVER.EMA), %s:", average.name)
            predict_and_evaluate(engine, config, test_set, str(average), AVERAGE_FOLDER)
    if is_main:
        write_facts(output_dir, facts | {"peak_memory_mb": peak_memory_mb()})
        write_report([output_dir], output_dir / "report.html")
    return metrics


def check_output_dir(config: CfgNode, resume: bool, eval_only: bool) -> list[str]:
    """Refuse to train over a run, to resume it as another, and to evaluate what is not there.

    Returns:
        What else has changed since the run that is to be resumed began.

    Raises:
        InputError: in these cases.
    """
    output_dir = Path(config.OUTPUT_DIR)
    holds_run = (output_dir / "last_checkpoint").is_file() or bool(list_checkpoints(output_dir))
    if eval_only:
        if not config.MODEL.WEIGHTS and not holds_run:
            raise InputError(
                f"nothing to evaluate: {output_dir} holds no run and MODEL.WEIGHTS is empty; "
                "give MODEL.WEIGHTS a detector, or OUTPUT_DIR a run's folder"
            )
    elif not resume:
        refuse_existing_run(output_dir)
    elif holds_run and (output_dir / "config.yaml").is_file():
        refuse_fewer_steps(output_dir, config.SOLVER.MAX_ITER, steps_done(output_dir))
        return _changes(output_dir / "config.yaml", config)
    return []


def is_free_on_resume(name: str) -> bool:
    return not name.startswith(FIXED_ON_RESUME) or name.endswith(FREE_ON_RESUME)


def _changes(earlier: Path, config: CfgNode) -> list[str]:
    """What has changed since an earlier part of the run wrote its ``config.yaml``.

    A seed of -1 and a class number of 0 stand for whatever the earlier part found.

    Raises:
        InputError: for what may not change.
    """
    old, new = (
        dict(flatten(yaml.safe_load(text)))
        for text in (earlier.read_text(encoding="utf-8"), config.dump())
    )
    for name, unset in (("SEED", -1), ("MODEL.ROI_HEADS.NUM_CLASSES", 0)):
        if new[name] == unset:
            new[name] = old.get(name, unset)
    new["OUTPUT_DIR"] = old.get("OUTPUT_DIR")  # the folder may have been moved
    return compare_settings(old, new, is_free_on_resume)


def steps_done(output_dir: Path) -> int:
    """The steps behind a run's newest checkpoint, of either engine; 0 where there is none."""
    done = [checkpoint_step(folder) for folder in list_checkpoints(output_dir)[-1:]]
    # detectron2 counts from 0 in its files' names
    done += [int(p.stem[6:]) + 1 for p in output_dir.glob("model_*.pth") if p.stem[6:].isdigit()]
    config = output_dir / "config.yaml"
    if any(output_dir.glob("model_final.*")) and config.is_file():
        done.append(yaml.safe_load(config.read_text(encoding="utf-8"))["SOLVER"]["MAX_ITER"])
    return max(done, default=0)


def load_datasets(
    config: CfgNode, eval_only: bool
) -> tuple[CocoDataset | None, CocoDataset | None]:
    """The checked training and test sets; the first is None in an evaluation.

    Raises:
        InputError: for problems in the data, a set that is not named, or two sets that do not have
            the same classes.
    """
    needed = "TEST" if eval_only else "TRAIN"
    if not config.DATASETS[needed]:
        raise InputError(
            f"DATASETS.{needed} is empty: give DATASETS.{needed} json:ANNOTATIONS:IMAGE_FOLDER"
        )
    problems, found = [], []
    for names in (
        ((), config.DATASETS.TEST)
        if eval_only
        else (
            config.DATASETS.TRAIN,
            config.DATASETS.TEST,
        )
    ):
        dataset = None
        if names:
            try:
                dataset = load_dataset(
                    names[0], config.MODEL.MASK_ON, check_images=is_main_process()
                )
            except ValueError as error:
                problems.append(str(error))
        found.append(dataset)
    if problems:
        raise InputError("\n".join(problems))
    train_set, test_set = found
    if train_set and test_set:
        classes = [list(zip(s.category_ids, s.class_names, strict=True)) for s in found if s]
        if classes[0] != classes[1]:
            raise InputError(
                f"the classes of {train_set.annotations} and {test_set.annotations} differ: "
                f"{classes[0]} and {classes[1]}; give both files the same categories"
            )
        if is_main_process():
            warn_of_shared_images(train_set, test_set)
    return train_set, test_set


def complete(config: CfgNode, datasets: list[CocoDataset | None], resume: bool) -> CfgNode:
    """The config with the number of classes from the data and a seed that is drawn if it is -1.

    Raises:
        InputError: if the config contradicts the data, or several processes should draw a seed.
    """
    config = config.clone()
    config.defrost()
    for dataset in datasets:
        if dataset:
            config.MODEL.ROI_HEADS.NUM_CLASSES = resolve_num_classes(config, dataset)
    earlier = Path(config.OUTPUT_DIR) / "config.yaml"
    if config.SEED < 0 and resume and earlier.is_file():
        config.SEED = yaml.safe_load(earlier.read_text(encoding="utf-8"))["SEED"]
    if config.SEED < 0:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 or torch.distributed.is_initialized():
            raise InputError(
                "SEED is -1, a random one, but several processes must share it: give a SEED"
            )
        config.SEED = random.SystemRandom().randrange(2**31)
    config.freeze()
    return config


def predict_and_evaluate(
    engine: Engine, config: CfgNode, dataset: CocoDataset, weights: str, folder: str = "inference"
) -> dict[str, Any]:
    """Predict in all processes; the main one evaluates, those with test-time augmentation, too.

    Returns:
        The metrics without test-time augmentation; empty in processes that are not the main one.
    """
    results = engine.predict(config, dataset, weights or None, folder)
    if not is_main_process():
        return {}
    metrics = evaluate(config, dataset, results)
    if config.TEST.AUG.ENABLED:
        logger.info("with test-time augmentation (TEST.AUG):")
        evaluate(config, dataset, results.parent.with_name(f"{folder}_TTA") / results.name)
    return metrics


def evaluate(config: CfgNode, dataset: CocoDataset, results: Path) -> dict[str, Any]:
    """COCO metrics of a results file, logged and written to ``metrics_summary.json``."""
    tasks = ("bbox", "segm") if config.MODEL.MASK_ON else ("bbox",)
    metrics = coco_metrics(dataset.annotations, results, tasks)
    write_metrics_summary(metrics, results.parent / "metrics_summary.json")
    found = diagnose(dataset.annotations, results, tasks)
    write_diagnosis(found, results.parent / "diagnosis.json")
    for task in tasks:
        row = "  ".join(f"{k} {'-' if v is None else f'{v:.2f}'}" for k, v in metrics[task].items())
        logger.info("%s: %s", task, row)
    return metrics
