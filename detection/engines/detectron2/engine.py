"""The detectron2 engine: detectron2's DefaultTrainer, hooks, checkpointer and inference.

This file starts the processes and adapts a config to this machine. ``detectron2.model_zoo`` is
never imported: it fails with setuptools 81 and later.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from torch import nn

from detection.config import resolve_num_classes, to_detectron2
from detection.data.tiles import resolve_tiles
from detection.dataset import CocoDataset, load_watched_sets
from detection.engines.detectron2.results import (
    detector_of,
    write_augmented_predictions,
    write_predictions,
)
from detection.engines.detectron2.trainer import Trainer, build_detector
from detection.engines.interface import Detect
from images.configured import with_statistics
from training.configured import newest_weights, resolve_device
from training.devices import find_device
from training.guards.processes import check_joined


class Detectron2Engine:
    """See :class:`detection.engines.Engine`."""

    name = "detectron2"

    def train(
        self,
        config: CfgNode,
        dataset_train: CocoDataset,
        resume: bool,
        test_sets: Sequence[CocoDataset] | None = None,
    ) -> None:
        test_sets = load_watched_sets(config) if test_sets is None else test_sets
        Trainer(prepare(config, dataset_train, resume), dataset_train, resume, test_sets).train()
        comm.synchronize()  # until the main process has written the last checkpoint

    def predict(
        self,
        config: CfgNode,
        dataset: CocoDataset,
        weights: str | None,
        folder: str = "inference",
    ) -> Path:
        """With ``TEST.AUG.ENABLED`` detect once more and write the same file in ``FOLDER_TTA``."""
        cfg, model = trained_detector(config, dataset, weights)
        if cfg.TEST.AUG.ENABLED:
            write_augmented_predictions(cfg, model, dataset, f"{folder}_TTA")
        return write_predictions(cfg, model, dataset, folder)

    def detector(self, config: CfgNode, dataset: CocoDataset, weights: str | None) -> Detect:
        """Without test-time augmentation."""
        _, model = trained_detector(config, dataset, weights)
        return detector_of(model.eval(), dataset)


def trained_detector(
    config: CfgNode, dataset: CocoDataset, weights: str | None
) -> tuple[Any, nn.Module]:
    """detectron2's config, and the detector with its weights on its device."""
    cfg = prepare(config, dataset)
    return cfg, build_detector(cfg, weights or str(newest_weights(Path(cfg.OUTPUT_DIR))))


def join_process_group(on_gpu: bool) -> None:
    """Join the processes that ``torchrun`` started, if it did and nobody has joined yet."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or torch.distributed.is_initialized():
        return
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    check_joined(comm.get_world_size())
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()


def prepare(config: CfgNode, dataset: CocoDataset, continues: bool = True) -> Any:
    """The config in detectron2's form, checked against the data set and this machine.

    Args:
        continues: whether ``OUTPUT_DIR`` holds the run that this belongs to.
    """
    join_process_group(on_gpu=resolve_device(config).startswith("cuda"))
    level = logging.INFO if comm.is_main_process() else logging.WARNING
    logging.getLogger("detectron2").setLevel(level)
    config, _ = with_statistics(config, dataset.image_paths(), continues)
    cfg = to_detectron2(resolve_tiles(config, dataset.records))
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = resolve_num_classes(config, dataset)
    # detectron2 accepts a step at the very end, where its scheduler then fails.
    cfg.SOLVER.STEPS = tuple(step for step in cfg.SOLVER.STEPS if step < cfg.SOLVER.MAX_ITER)
    find_device(cfg.MODEL.DEVICE, "MODEL.DEVICE")
    cfg.freeze()
    return cfg
