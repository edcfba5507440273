"""One segmentation run: check everything, train, predict, evaluate, report.

All that a run leaves lies in ``OUTPUT_DIR``, under the names that detection's runs use.
"""

from __future__ import annotations

import logging
import random
import shlex
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from backbones.errors import InputError
from backbones.whole_files import write_json, write_text
from segmentation.check import Checked, checked_or_refused, class_shares
from segmentation.config import reading, resolve_device, resolve_num_classes
from segmentation.dataset import SegmentationDataset, load_segmentation
from segmentation.engine import newest_weights, predict_segmenter, train_segmenter
from segmentation.report import write_report
from segmentation.statistics import with_statistics
from training.cli import is_main_process, log_to
from training.guards.checkpoints import list_checkpoints
from training.guards.resume import compare_settings, is_free_key, say_changes
from training.guards.run_folder import held, refuse_existing_run, refuse_fewer_steps
from training.records.environment import device_name, git_commit, peak_memory_mb, versions
from training.records.metrics import train_seconds
from training.schedule import warn_of_schedule

logger = logging.getLogger(__name__)


def run(
    config: CfgNode, resume: bool = False, eval_only: bool = False, config_file: str = ""
) -> dict[str, Any]:
    """Train (unless ``eval_only``), then predict and evaluate on ``DATASETS.TEST``, and report.

    Args:
        config: as :func:`segmentation.config.load_config` gives it.
        resume: continue the run in ``OUTPUT_DIR``, where there is one.
        eval_only: evaluate ``MODEL.WEIGHTS``, or where that is empty the run's newest checkpoint.
        config_file: where the config came from, for the records.

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
    holds_run = (output_dir / "last_checkpoint").is_file() or bool(list_checkpoints(output_dir))
    if eval_only and not config.MODEL.WEIGHTS and not holds_run:
        raise InputError(
            f"nothing to evaluate: {output_dir} holds no run and MODEL.WEIGHTS is empty"
        )
    if not eval_only and not resume:
        refuse_existing_run(output_dir)
    changes: list[str] = []
    if resume and holds_run and not eval_only:
        refuse_fewer_steps(output_dir, config.SOLVER.MAX_ITER)
        changes = _changes(output_dir / "config.yaml", config)
    log_to(output_dir if is_main else None, logging.INFO if is_main else logging.ERROR)
    say_changes(changes)
    datasets = load_datasets(config, eval_only)
    config = complete(config, datasets, resume)
    checked = checked_or_refused(datasets, reading(config)) if is_main else {}
    first = next(iter(datasets.values()))
    config, origin = with_statistics(config, first, resume or eval_only)
    facts: dict[str, Any] = {}
    if is_main:
        facts = collect_facts(config, datasets, checked, config_file)
        facts["statistics"] = origin
        logger.info("full config:\n%s", config.dump())
        if not eval_only:
            write_text(output_dir / "config.yaml", config.dump())
            write_json(output_dir / "run.json", facts, indent=1)
    if not eval_only:
        if is_main:
            warn_of_schedule(
                config.SOLVER.MAX_ITER,
                config.SOLVER.WARMUP_ITERS,
                first_factor=config.SOLVER.WARMUP_FACTOR,
            )
        try:
            train_segmenter(config, datasets["train"], datasets.get("test"), resume)
        finally:  # an interrupted session has trained, too
            if is_main:
                facts["train_seconds"] = train_seconds(output_dir / "metrics.json")
                write_json(output_dir / "run.json", facts, indent=1)
    metrics: dict[str, Any] = {}
    if test_set := datasets.get("test"):
        weights = Path(config.MODEL.WEIGHTS) if eval_only and config.MODEL.WEIGHTS else None
        began = time.perf_counter()
        metrics = predict_segmenter(config, test_set, weights or newest_weights(output_dir))
        facts["predict_seconds"] = time.perf_counter() - began
    if is_main:
        if not eval_only:
            write_json(
                output_dir / "run.json", facts | {"peak_memory_mb": peak_memory_mb()}, indent=1
            )
        write_report([output_dir], output_dir / "report.html")
    return metrics


def _changes(earlier: Path, config: CfgNode) -> list[str]:
    """What has changed since an earlier part of the run wrote its ``config.yaml``.

    Raises:
        InputError: for what may not change.
    """
    if not earlier.is_file():
        return []
    old = yaml.safe_load(earlier.read_text(encoding="utf-8"))
    new = yaml.safe_load(config.dump())
    old.pop("OUTPUT_DIR", None)
    if new["SEED"] < 0:
        new.pop("SEED")
    for name in ("PIXEL_MEAN", "PIXEL_STD"):
        if not new["MODEL"][name]:
            new["MODEL"].pop(name)
            old["MODEL"].pop(name, None)
    if not new["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"]:
        new["MODEL"]["SEM_SEG_HEAD"].pop("NUM_CLASSES")
    return compare_settings(old, new, is_free_key)


def load_datasets(config: CfgNode, eval_only: bool) -> dict[str, SegmentationDataset]:
    """Role -> data set, of those that the run needs.

    Raises:
        InputError: where one that it needs is not named.
    """
    needed = "TEST" if eval_only else "TRAIN"
    if not config.DATASETS[needed]:
        raise InputError(f"DATASETS.{needed} is empty: give DATASETS.{needed} masks:IMAGES:LABELS")
    options = config.INPUT.IGNORE_LABEL, config.INPUT.REDUCE_ZERO_LABEL
    return {
        role: load_segmentation(config.DATASETS[key][0], *options)
        for role, key in (("train", "TRAIN"), ("test", "TEST"))
        if config.DATASETS[key] and not (eval_only and role == "train")
    }


def complete(config: CfgNode, datasets: dict[str, SegmentationDataset], resume: bool) -> CfgNode:
    """The config with the number of classes from the data and a seed that is drawn if it is -1."""
    config = config.clone()
    config.defrost()
    for dataset in datasets.values():
        config.MODEL.SEM_SEG_HEAD.NUM_CLASSES = resolve_num_classes(config, dataset)
    earlier = Path(config.OUTPUT_DIR) / "config.yaml"
    if config.SEED < 0 and resume and earlier.is_file():
        config.SEED = yaml.safe_load(earlier.read_text(encoding="utf-8"))["SEED"]
    if config.SEED < 0:
        config.SEED = random.SystemRandom().randrange(2**31)
    config.freeze()
    return config


def collect_facts(
    config: CfgNode,
    datasets: dict[str, SegmentationDataset],
    checked: dict[str, Checked],
    config_file: str,
) -> dict[str, Any]:
    """What ``run.json`` records."""
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
    return {
        "task": "segmentation",
        "engine": config.ENGINE,
        "versions": versions(),
        "git_commit": git_commit(),
        "command": shlex.join(sys.argv),
        "config_file": config_file,
        "device": device_name(resolve_device(config)),
        "seed": config.SEED,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "encoder": config.MODEL.WEIGHTS or config.MODEL.CONVNEXT.WEIGHTS or None,
        "classes": list(next(iter(datasets.values())).classes.names),
        "datasets": sets,
    }
