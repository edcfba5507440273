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
from detection.dataset import CocoDataset, load_watched_sets
from detection.engines.interface import Detect
from detection.engines.overlays import overlays, overlays_due
from detection.engines.results import evaluate_in_training
from detection.engines.torchvision.model import MaskRCNN, build_mask_rcnn
from detection.engines.torchvision.predict import detector_of, write_predictions
from detection.engines.weights import (
    encoder_licence,
    freeze_parts,
    log_origin,
    read_detector,
    wanted_classes,
)
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
    """Samples that the training loop can name in its messages, and repeat."""

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

        def predict(model: nn.Module, dataset: CocoDataset, folder: str) -> Path:
            return write_predictions(config, model, dataset, PartialState(), folder)

        def after_step(step: int, model: nn.Module) -> LoggedValues:
            due = step % solver.CHECKPOINT_PERIOD == 0 or step == solver.MAX_ITER
            if due and PartialState().is_main_process:
                point_to(output_dir)
            if validation:
                validation.reach(step)
            if not (test_sets and overlays_due(config, step)):
                return {}
            metrics: dict[str, Any] = {}
            average = ema.module if ema else None
            # the final weights are evaluated on the test sets by who called train()
            if (validation or step < solver.MAX_ITER) and not is_evaluated(config, step):
                metrics = evaluate_in_training(config, test_sets, model, average, step, predict)
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
        config, model = trained_detector(config, dataset, weights)
        state = process_state(use_device(config))  # of several GPUs, that of this process
        return write_predictions(config, model.to(state.device), dataset, state, folder)

    def detector(self, config: CfgNode, dataset: CocoDataset, weights: str | None) -> Detect:
        config, model = trained_detector(config, dataset, weights)
        return detector_of(model.to(use_device(config)).eval(), dataset)


def trained_detector(
    config: CfgNode, dataset: CocoDataset, weights: str | None
) -> tuple[CfgNode, MaskRCNN]:
    """The config, completed, and the detector with its weights."""
    config = completed(config, dataset, continues=True)
    use_device(config)  # which may be missing: better now than after reading weights
    model = build_mask_rcnn(config)
    read_detector(weights or newest_weights(Path(config.OUTPUT_DIR)), model)
    return config, model


def completed(config: CfgNode, dataset: CocoDataset, continues: bool) -> CfgNode:
    """A copy of the config with the data set's number of classes, mean and deviation."""
    config, _ = with_statistics(config, dataset.image_paths(), continues)
    config = resolve_tiles(config, dataset.records).clone()
    config.defrost()
    config.MODEL.ROI_HEADS.NUM_CLASSES = resolve_num_classes(config, dataset)
    config.freeze()
    return config


def use_device(config: CfgNode) -> torch.device:
    """The device of ``MODEL.DEVICE``, made the current one."""
    return find_device(resolve_device(config), "MODEL.DEVICE")


def load_initial_weights(
    config: CfgNode, model: MaskRCNN, class_names: Sequence[str] | None = None
) -> None:
    """Load ``MODEL.WEIGHTS``, else ``MODEL.CONVNEXT.WEIGHTS`` (the encoder), and log it.

    Args:
        class_names: of the training data, by which a detector's rows are chosen; None where its
            classes must be the model's.
    """
    if config.MODEL.WEIGHTS:
        classes = wanted_classes(config, class_names)
        adapt = config.MODEL.CONVNEXT.ADAPT_CHANNELS
        read_detector(config.MODEL.WEIGHTS, model, classes, adapt)
        return
    result = None
    if source := config.MODEL.CONVNEXT.WEIGHTS:
        result = load_encoder(
            source,
            model.backbone.body,
            allow_other_grn=config.MODEL.CONVNEXT.ALLOW_OTHER_GRN,
            adapt_channels=config.MODEL.CONVNEXT.ADAPT_CHANNELS,
        )
    log_origin(model, result, ENCODER_PREFIX)


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


def is_evaluated(config: CfgNode, step: int) -> bool:
    """Whether ``metrics.json`` already holds the metrics of the step that a run resumes from."""
    metrics = Path(config.OUTPUT_DIR) / "metrics.json"
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return any(line["iteration"] == step and "bbox/AP" in line for line in lines)


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
