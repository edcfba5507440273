"""The torchvision engine: trains and runs what :mod:`detection.engines.torchvision.model` builds.

Training is :func:`training.loop.train`, so it runs by ``python``, ``torchrun`` or ``accelerate
launch``; schedules, parameter groups and files are those of the detectron2 engine.
"""

from __future__ import annotations

import json
import logging
import math
import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from fvcore.common.config import CfgNode
from torch import nn

from backbones.checkpoint import load_encoder
from backbones.errors import InputError
from backbones.normalization import GRNOptions
from detection.config import resolve_num_classes
from detection.data.repeats import repeats_of
from detection.data.tiles import resolve_tiles
from detection.data.transforms import DetectionSamples, collate
from detection.dataset import CocoDataset, load_watched_sets, result_parts
from detection.engines.interface import Detect
from detection.engines.overlays import overlays, overlays_due
from detection.engines.torchvision.model import MaskRCNN, build_mask_rcnn
from detection.engines.torchvision.predict import detector_of, write_predictions
from detection.engines.weights import (
    AVERAGE_FOLDER,
    encoder_licence,
    freeze_parts,
    read_detector,
    wanted_classes,
)
from detection.evaluate import AP_AT_LIMIT, flat_metrics, limit_of, metrics_of
from detection.evaluation.inputs import read_evaluation
from images.configured import with_statistics
from training.configured import (
    FINAL_AVERAGE,
    FINAL_WEIGHTS,
    build_adamw,
    build_average,
    configured_loop,
    newest_weights,
    point_to,
    resolve_device,
    save_model,
)
from training.data import seed_generators
from training.devices import find_device
from training.guards.checkpoints import list_checkpoints
from training.guards.processes import process_state
from training.guards.validation import BEST_WEIGHTS, Kind, Validation
from training.loop import train
from training.records.trackers import LoggedValues
from training.schedule import LrFactor

logger = logging.getLogger(__name__)

ENCODER_PREFIX = "backbone.body."


class TrainingSamples(DetectionSamples):
    """Samples that the training loop can name in its messages, and repeat.

    Attributes:
        repeats: how often each comes in an epoch; None for once.
    """

    def __init__(self, dataset: CocoDataset, config: CfgNode) -> None:
        super().__init__(dataset, config, training=True)
        self.repeats = repeats_of(config, self.records)

    def describe(self, index: int) -> str:
        return self.records[index]["file_name"]


class TorchvisionEngine:
    """See :class:`detection.engines.Engine`."""

    name = "torchvision"

    def train(
        self,
        config: CfgNode,
        dataset_train: CocoDataset,
        resume: bool,
        test_sets: Sequence[CocoDataset] | None = None,
    ) -> None:
        config = completed(config, dataset_train, continues=resume)
        test_sets = load_watched_sets(config) if test_sets is None else test_sets
        solver, output_dir = config.SOLVER, Path(config.OUTPUT_DIR)
        device = use_device(config)
        if config.SEED < 0:
            raise InputError(f"SEED is {config.SEED}: detection.run draws one; here give a number")
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            raise InputError("detection trains without FSDP: start its processes by torchrun")
        seed_generators(config.SEED)
        model = build_mask_rcnn(config)
        continues = resume and bool(list_checkpoints(output_dir))
        validation = Validation.of(config, continues)
        if not continues:
            load_initial_weights(config, model, dataset_train.class_names)
        freeze_parts(model, config.MODEL.FREEZE)
        ema = build_average(config, model)

        def after_step(step: int, model: nn.Module) -> LoggedValues:
            due = step % solver.CHECKPOINT_PERIOD == 0 or step == solver.MAX_ITER
            if due and PartialState().is_main_process:
                point_to(output_dir)
            if validation:
                validation.reach(step)
            if not (test_sets and overlays_due(config, step)):
                return {}
            metrics, average = {}, ema.module if ema else None
            # the final weights are evaluated on the test sets by who called train()
            if validation or step < solver.MAX_ITER:
                metrics = evaluate_in_training(config, test_sets, model, average, step)
            if validation and not validation.knows(step):

                def save(kind: Kind) -> None:
                    best = average if kind == "average" and average else model
                    save_detector(config, dataset_train, best, f"{BEST_WEIGHTS}.safetensors")

                validation.record(step, metrics, save)
            if not PartialState().is_main_process:
                return {}
            first = test_sets[0]
            return metrics | overlays(config, first, detector_of(model.eval(), first))

        trained = train(
            model,
            build_adamw(config, model, ENCODER_PREFIX),
            warmup_schedule(solver),
            TrainingSamples(dataset_train, config),
            collate,
            lambda model, batch: model(batch),
            configured_loop(config, resume, device),
            after_step,
            ema,
            is_over=lambda: validation is not None and validation.is_over,
        )
        if PartialState().is_main_process:
            if ema is not None:
                save_detector(config, dataset_train, ema.module, FINAL_AVERAGE)
            save_detector(config, dataset_train, trained, FINAL_WEIGHTS)
            point_to(output_dir, output_dir / FINAL_WEIGHTS)
        PartialState().wait_for_everyone()  # the others predict with what was just saved

    def predict(
        self,
        config: CfgNode,
        dataset: CocoDataset,
        weights: str | None,
        folder: str = "inference",
    ) -> Path:
        config = completed(config, dataset, continues=True)
        state = process_state(use_device(config))
        model = build_mask_rcnn(config)
        read_detector(weights or newest_weights(Path(config.OUTPUT_DIR)), model)
        return write_predictions(config, model.to(state.device), dataset, state, folder)

    def detector(self, config: CfgNode, dataset: CocoDataset, weights: str | None) -> Detect:
        config = completed(config, dataset, continues=True)
        device = use_device(config)
        model = build_mask_rcnn(config)
        read_detector(weights or newest_weights(Path(config.OUTPUT_DIR)), model)
        return detector_of(model.to(device).eval(), dataset)


def completed(config: CfgNode, dataset: CocoDataset, continues: bool) -> CfgNode:
    """A copy of the config with the data set's number of classes, mean and deviation.

    Raises:
        InputError: if the config contradicts the data set.
    """
    config, _ = with_statistics(config, dataset.image_paths(), continues)
    config = resolve_tiles(config, dataset.records).clone()
    config.defrost()
    config.MODEL.ROI_HEADS.NUM_CLASSES = resolve_num_classes(config, dataset)
    config.freeze()
    return config


def use_device(config: CfgNode) -> torch.device:
    """The device of ``MODEL.DEVICE``, made the current one.

    Raises:
        InputError: if there is no such GPU, or one is named for several processes.
    """
    return find_device(resolve_device(config), "MODEL.DEVICE")


def load_initial_weights(
    config: CfgNode, model: MaskRCNN, class_names: Sequence[str] | None = None
) -> None:
    """Load ``MODEL.WEIGHTS``, else ``MODEL.CONVNEXT.WEIGHTS`` (the encoder), and say what.

    Args:
        class_names: of the training data, by which a detector's rows are chosen; None where its
            classes must be the model's.

    Raises:
        FileNotFoundError, InputError: if the weights are not completely there.
    """
    if config.MODEL.WEIGHTS:
        classes = wanted_classes(config, class_names)
        adapt = config.MODEL.CONVNEXT.ADAPT_CHANNELS
        read_detector(config.MODEL.WEIGHTS, model, classes, adapt)
        return
    total = len(model.state_dict())
    if not (source := config.MODEL.CONVNEXT.WEIGHTS):
        logger.info("no weights given: all %d tensors start from scratch", total)
        return
    result = load_encoder(
        source,
        model.backbone.body,
        allow_other_grn=config.MODEL.CONVNEXT.ALLOW_OTHER_GRN,
        adapt_channels=config.MODEL.CONVNEXT.ADAPT_CHANNELS,
    )
    with_norms = sum(name.startswith("out_norms.") for name in model.backbone.body.state_dict())
    kept = result.loaded + with_norms - len(result.new)
    logger.info(
        "%d of %d encoder tensors from %s; %d new: %s",
        result.loaded,
        result.total,
        result.source,
        total - kept,
        ", ".join(
            [
                *(["grn"] if result.grn_new else []),
                *(["out_norms"] if result.new else []),
                *("fpn", "rpn", "roi_heads"),
            ]
        ),
    )


def warmup_schedule(solver: CfgNode) -> LrFactor:
    """detectron2's ``WarmupMultiStepLR`` or ``WarmupCosineLR`` as a factor by finished steps.

    The warm-up ends at the value that the schedule has there.
    """
    warmup = min(solver.WARMUP_ITERS, solver.MAX_ITER)

    def scheduled(step: int) -> float:
        if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
            return 0.5 * (1 + math.cos(math.pi * step / solver.MAX_ITER))
        return solver.GAMMA ** bisect_right(solver.STEPS, step)

    def factor(step: int) -> float:
        if step >= warmup:
            return scheduled(step)
        start = solver.WARMUP_FACTOR * scheduled(0)
        progress = step / warmup if solver.WARMUP_METHOD == "linear" else 0
        return start + progress * (scheduled(warmup) - start)

    return factor


def tasks(config: CfgNode) -> tuple[str, ...]:
    """What the config's model predicts, in COCO's words."""
    return ("bbox", "segm") if config.MODEL.MASK_ON else ("bbox",)


def evaluate_in_training(
    config: CfgNode,
    test_sets: Sequence[CocoDataset],
    model: nn.Module,
    average: nn.Module | None,
    step: int,
) -> dict[str, Any]:
    """Evaluate over all processes.

    Args:
        average: the model with averaged weights, whose metrics are named ``ema/...``.

    Returns:
        In the main process, the metrics by name (``bbox/AP``); empty in the others, and for a step
        whose metrics are in ``metrics.json`` already (of which a run was resumed).
    """
    metrics_file = Path(config.OUTPUT_DIR) / "metrics.json"
    lines = [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines()]
    if any(line["iteration"] == step and "bbox/AP" in line for line in lines):
        return {}
    found: dict[str, Any] = {}
    plain = ("", model, "inference")
    for prefix, detector, folder in (
        [plain] if average is None else [plain, ("ema/", average, AVERAGE_FOLDER)]
    ):
        for dataset, part in zip(test_sets, result_parts(test_sets), strict=True):
            state, where = PartialState(), f"{folder}/{part}".rstrip("/")
            results = write_predictions(config, detector, dataset, state, where)
            if state.is_main_process:
                evaluation = read_evaluation(dataset, results, tasks(config))
                metrics = metrics_of(evaluation, max_detections=limit_of(config, evaluation))
                found |= {
                    f"{prefix}{part}{'/' if part else ''}{task}/{name}": value
                    for task, values in flat_metrics(metrics, tasks(config)).items()
                    for name, value in values.items()
                }
    if found:
        headline = {
            name: value
            for name, value in found.items()
            if name.endswith(("/AP", f"/{AP_AT_LIMIT}"))
        }
        logger.info("step %d: %s", step, headline)
    return found


def save_detector(config: CfgNode, dataset: CocoDataset, model: nn.Module, name: str) -> None:
    """Write a whole detector into ``OUTPUT_DIR``, with what made it as metadata."""
    path = Path(config.OUTPUT_DIR) / name
    facts = {
        "grn": str(GRNOptions.of_config(config.MODEL.CONVNEXT.GRN)),
        "class_names": dataset.class_names,
        "category_ids": dataset.category_ids,
        "dataset_fingerprint": dataset.fingerprint,
        "licence": encoder_licence(path.parent),
    }
    save_model(config, model, path, "detection.engines.torchvision.model", facts)
    logger.info("wrote %s", path)
