"""One detection run: check everything, train, predict, evaluate, report.

All output files lie in ``OUTPUT_DIR``, in standard formats and under detectron2's names. Evaluation
and report read only these files, so they do not depend on the engine.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from backbones.errors import InputError
from backbones.whole_files import write_json, write_text
from detection.config import resolve_num_classes
from detection.data.records import Records
from detection.data.tiles import COUNTS_FILE, resolve_tiles, tiles_sentence
from detection.dataset import CocoDataset, result_parts
from detection.engines import Engine, load_engine
from detection.engines.weights import AVERAGE_FOLDER, averaged_weights
from detection.evaluate import evaluate_run, tasks_of
from detection.evaluation.diagnosis import diagnosis_of
from detection.evaluation.inputs import Evaluation
from detection.report import write_report
from detection.reporting.run import EvaluatedRun
from detection.run_data import load_datasets
from detection.run_record import (
    check_resumed_data,
    check_resumed_validation,
    collect_facts,
    log_header,
    validation_facts,
    write_facts,
)
from images.configured import with_statistics, with_weights_statistics
from training.cli import is_main_process, log_to
from training.command_line.tasks import read_facts
from training.configured import (
    check_output_dir,
    holds_run,
    resolve_seed,
    warn_of_solver,
)
from training.guards.resume import say_changes
from training.guards.run_folder import held
from training.guards.validation import read_record
from training.records.environment import peak_memory_mb
from training.records.metrics import train_seconds
from training.records.trackers import tracker_problems

logger = logging.getLogger(__name__)


def run(
    config: CfgNode, resume: bool = False, eval_only: bool = False, config_file: str = ""
) -> dict[str, Any]:
    """Train (unless ``eval_only``), predict and evaluate on each ``DATASETS.TEST``, and report.

    Every process of a distributed run calls it; the main one writes.

    Args:
        config: as :func:`detection.config.load_config` gives it.
        resume: continue the run in ``OUTPUT_DIR``, where there is one.
        eval_only: evaluate ``MODEL.WEIGHTS``, or where that is empty the run's newest checkpoint.
        config_file: where the config came from, for the records.

    Returns:
        What :func:`detection.evaluate.coco_metrics` gives for the first test set; empty without
        ``DATASETS.TEST`` and in processes that are not the main one.

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
    continues = not eval_only and resume and holds_run(output_dir)
    config, told = with_weights_statistics(config, continues or eval_only)
    train_set, val_sets, test_sets = load_datasets(config, eval_only)
    earlier = read_facts(output_dir) if eval_only or continues else {}
    if continues and train_set:
        check_resumed_data(earlier, train_set)
        check_resumed_validation(config, earlier, val_sets)
    config = complete(config, [train_set, *val_sets, *test_sets], resume, eval_only)
    of_pixels = train_set or next(iter(test_sets), None)
    config, origin = with_statistics(config, of_pixels.image_paths() if of_pixels else None)
    facts: dict[str, Any] = {}
    if is_main:
        facts = collect_facts(config, train_set, test_sets, eval_only, config_file, earlier)
        facts["datasets"] |= validation_facts(val_sets)
        facts.setdefault("pixel_statistics", told or origin)
        log_header(config, facts, eval_only)
        if not eval_only:
            write_text(output_dir / "config.yaml", config.dump())
        write_facts(output_dir, facts)

    if train_set:
        if is_main:
            warn_of_solver(config.SOLVER)
        try:
            engine.train(config, train_set, resume, val_sets or test_sets)
        finally:  # an interrupted session has trained, too
            if is_main:
                facts["train_seconds"] = train_seconds(output_dir / "metrics.json")
                if val_sets:
                    record = read_record(output_dir)
                    facts["validation"] = {k: record[k] for k in ("metric", "best", "stopped")}
                write_facts(output_dir, facts)
    given = config.MODEL.WEIGHTS if eval_only else ""
    average = None if given else averaged_weights(output_dir)
    metrics: dict[str, Any] = {}
    evaluations: dict[str, Evaluation] = {}
    for dataset, part in zip(test_sets, result_parts(test_sets), strict=True):
        began = time.perf_counter()
        if len(test_sets) > 1:
            logger.info("evaluating on %s:", dataset.name)
        found, evaluation = predict_and_evaluate(engine, config, dataset, given, "inference", part)
        if is_main and not part:
            facts["predict_seconds"] = time.perf_counter() - began
            metrics = found
        if evaluation is not None:
            evaluations[part] = evaluation
        if average:
            logger.info("the averaged weights (SOLVER.EMA), %s:", average.name)
            predict_and_evaluate(engine, config, dataset, str(average), AVERAGE_FOLDER, part)
    if is_main:
        if train_set or not earlier:
            facts["peak_memory_mb"] = peak_memory_mb()
        write_facts(output_dir, facts)
        read = EvaluatedRun(output_dir, evaluations[""]) if evaluations else output_dir
        write_report([read], output_dir / "report.html")
    return metrics


def complete(
    config: CfgNode,
    datasets: Sequence[CocoDataset | None],
    resume: bool,
    eval_only: bool = False,
) -> CfgNode:
    """The config with the values taken from the data: number of classes, size of tiles, the seed.

    Tiles are fitted to the objects of the training set. A seed of -1 is replaced by a drawn one.
    Values that an earlier part of the run recorded are kept.

    Raises:
        InputError: if the config contradicts the data, or several processes should draw a seed.
    """
    config = config.clone()
    config.defrost()
    for dataset in datasets:
        if dataset:
            config.MODEL.ROI_HEADS.NUM_CLASSES = resolve_num_classes(config, dataset)
    config.SEED = resolve_seed(config, resume)
    earlier = Path(config.OUTPUT_DIR) / "config.yaml"
    if (resume or eval_only) and config.INPUT.TILES.ENABLED and earlier.is_file():
        _take_tiles(config, yaml.safe_load(earlier.read_text(encoding="utf-8")))
    config.freeze()
    # By the training set only: an evaluation must not depend on the labels of its test set.
    train_set = None if eval_only else next(iter(datasets), None)
    return resolve_tiles(config, train_set.records if train_set else Records())


def _take_tiles(config: CfgNode, earlier: dict[str, Any]) -> None:
    """Take over the size and the overlap that an earlier part of the run found."""
    tiles, before = config.INPUT.TILES, earlier.get("INPUT", {}).get("TILES", {})
    if before.get("ENABLED"):
        tiles.SIZE = tiles.SIZE or before["SIZE"]
        tiles.OVERLAP = before["OVERLAP"] if tiles.OVERLAP < 0 else tiles.OVERLAP


def predict_and_evaluate(
    engine: Engine,
    config: CfgNode,
    dataset: CocoDataset,
    weights: str,
    folder: str = "inference",
    part: str = "",
) -> tuple[dict[str, Any], Evaluation | None]:
    """Predict in all processes; the main one evaluates, those with test-time augmentation, too.

    Args:
        part: subfolder of ``folder``, for test sets after the first.

    Returns:
        The metrics without test-time augmentation and what they were computed from; nothing in
        processes that are not the main one.
    """
    folder = f"{folder}/{part}".rstrip("/")
    results = engine.predict(config, dataset, weights or None, folder)
    if not is_main_process():
        return {}, None
    metrics, evaluation = evaluate(config, dataset, results)
    if config.TEST.AUG.ENABLED:
        logger.info("with test-time augmentation (TEST.AUG):")
        augmented = Path(config.OUTPUT_DIR) / f"{folder}_TTA" / results.name
        evaluate(config, dataset, augmented)
    return metrics, evaluation


def evaluate(
    config: CfgNode, dataset: CocoDataset, results: Path
) -> tuple[dict[str, Any], Evaluation]:
    """COCO metrics and the diagnosis of a results file, logged and written beside it."""
    metrics, evaluation = evaluate_run(config, dataset, results)
    if (tiles := results.with_name(COUNTS_FILE)).is_file() and config.INPUT.TILES.ENABLED:
        metrics["tiles"] = json.loads(tiles.read_text(encoding="utf-8"))
        logger.info("%s", tiles_sentence(metrics["tiles"]))
    write_json(results.parent / "metrics_summary.json", metrics, indent=2, allow_nan=False)
    write_json(results.parent / "diagnosis.json", diagnosis_of(evaluation), allow_nan=False)
    for task in tasks_of(config):
        row = "  ".join(f"{k} {'-' if v is None else f'{v:.2f}'}" for k, v in metrics[task].items())
        logger.info("%s: %s", task, row)
        if limit := metrics.get("at_limit"):
            count, value = limit["max_detections"], limit[task]["AP"]
            logger.info(
                "%s: AP %s with %d detections of a class and image in place of COCO's 100",
                task,
                "-" if value is None else f"{value:.2f}",
                count,
            )
    return metrics, evaluation
