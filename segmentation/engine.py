"""Training and prediction of a segmentation model, on the project's training loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from fvcore.common.config import CfgNode
from PIL import Image
from torch import nn

from backbones.checkpoint import load_encoder
from backbones.errors import InputError
from backbones.whole_files import write_atomically, write_json
from images.configured import in_order, reading_of
from images.files import EIGHT_BITS, read_image
from segmentation.config import augmentation, build_segmenter, inference_options
from segmentation.dataset import SegmentationDataset
from segmentation.inference import segment
from segmentation.metrics import ConfusionMatrix, segmentation_metrics
from segmentation.model import UPerNet
from segmentation.weights import load_segmenter
from training.cli import process_count
from training.command_line.tasks import read_facts
from training.configured import (
    FINAL_AVERAGE,
    FINAL_WEIGHTS,
    build_adamw,
    build_average,
    configured_loop,
    point_to,
    resolve_device,
    save_model,
)
from training.data import seed_generators
from training.devices import find_device
from training.guards.checkpoints import list_checkpoints
from training.loop import train
from training.progress import progress

logger = logging.getLogger(__name__)

ENCODER_PREFIX = "backbone."
MAPS = "maps"  # the folder of predicted class maps
PER_IMAGE = "per_image.json"


class TrainingSamples:
    """Samples of (image, labels), augmented anew at each access."""

    def __init__(self, dataset: SegmentationDataset, config: CfgNode) -> None:
        self.dataset, self.config = dataset, config
        self.augment = augmentation(config)

    def __len__(self) -> int:
        return len(self.dataset.records)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """``image`` ``[C, H, W]``, ``labels`` int64 ``[H, W]``."""
        record = self.dataset.records[index]
        image, labels = self.augment(
            read_pixels(record.image, self.config), self.dataset.class_map(record)
        )
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1),
            "labels": torch.from_numpy(np.ascontiguousarray(labels)).long(),
        }

    def describe(self, index: int) -> str:
        return self.dataset.records[index].image


def read_pixels(path: str | Path, config: CfgNode) -> np.ndarray:
    """An image file as the model takes it: ``[H, W, C]`` on the scale of 0 to 255.

    uint8, or float32 for files of more than 8 bits, in the order of ``INPUT.FORMAT``.

    Raises:
        FileNotFoundError, InputError: if it cannot be used.
    """
    return model_pixels(read_image(path, reading_of(config)), config)


def model_pixels(values: np.ndarray, config: CfgNode) -> np.ndarray:
    """Bring values read from an image, or a part of it, to the form of :func:`read_pixels`."""
    if values.dtype != np.uint8:
        values = values * np.float32(EIGHT_BITS)
    return in_order(values, config)


def collate(samples: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    return samples


def poly_schedule(solver: CfgNode) -> Callable[[int], float]:
    """``WarmupPolyLR``: from 1 to 0 by a power, linear warm-up from ``WARMUP_FACTOR``.

    As in mmsegmentation the warm-up's factor multiplies the schedule's value at that step.
    """
    warmup = min(solver.WARMUP_ITERS, solver.MAX_ITER)

    def factor(step: int) -> float:
        value = (1 - step / solver.MAX_ITER) ** solver.POLY_LR_POWER
        if step < warmup:
            value *= 1 - (1 - step / warmup) * (1 - solver.WARMUP_FACTOR)
        return value

    return factor


def train_segmenter(
    config: CfgNode,
    train_set: SegmentationDataset,
    test_set: SegmentationDataset | None,
    resume: bool,
) -> None:
    """Train; writes ``metrics.json``, ``model_final.safetensors`` and ``last_checkpoint``.

    Args:
        config: with ``NUM_CLASSES`` and ``SEED`` resolved.
        test_set: evaluated every ``TEST.EVAL_PERIOD`` steps.
    """
    solver, output_dir = config.SOLVER, Path(config.OUTPUT_DIR)
    device = find_device(resolve_device(config), "MODEL.DEVICE")
    refuse_shared_norm_on_cpus(config, device)
    seed_generators(config.SEED)
    model = build_segmenter(config)
    if not (resume and list_checkpoints(output_dir)):
        load_initial_weights(config, model, train_set.classes.names)
    ema = build_average(config, model)

    def after_step(step: int, model: nn.Module) -> dict[str, float]:
        last, period = step == solver.MAX_ITER, config.TEST.EVAL_PERIOD
        if PartialState().is_main_process and (last or step % solver.CHECKPOINT_PERIOD == 0):
            point_to(output_dir)
        if test_set is None or last or not period or step % period:
            return {}
        found: dict[str, float] = {}
        plain = [("", model)] + ([("ema/", ema.module)] if ema else [])
        for prefix, trained in plain:
            metrics = evaluate_model(config, trained, test_set)
            found |= {
                f"{prefix}sem_seg/{name}": value
                for name, value in metrics.get("sem_seg", {}).items()
                if value is not None
            }
        return found

    trained = train(
        model,
        build_adamw(config, model, ENCODER_PREFIX),
        poly_schedule(solver),
        TrainingSamples(train_set, config),
        collate,
        lambda model, batch: model(batch),
        configured_loop(config, resume, device),
        after_step,
        ema,
    )
    if PartialState().is_main_process:
        for name, whole in ((FINAL_WEIGHTS, trained), (FINAL_AVERAGE, ema and ema.module)):
            if whole is not None:
                save_segmenter(config, train_set, whole, output_dir / name)
        point_to(output_dir, output_dir / FINAL_WEIGHTS)
    PartialState().wait_for_everyone()


def refuse_shared_norm_on_cpus(config: CfgNode, device: torch.device) -> None:
    """Refuse SyncBN in several processes on CPUs, where PyTorch's does not work.

    Raises:
        InputError: for several processes on CPUs with ``NORM: SyncBN``.
    """
    shared = config.MODEL.SEM_SEG_HEAD.NORM == "SyncBN"
    if shared and device.type == "cpu" and process_count() > 1:
        raise InputError(
            "MODEL.SEM_SEG_HEAD.NORM is SyncBN, which needs GPUs for several processes: use GN"
        )


def load_initial_weights(
    config: CfgNode, model: UPerNet, class_names: Sequence[str] | None = None
) -> None:
    """Load ``MODEL.WEIGHTS`` (the whole model), else ``MODEL.CONVNEXT.WEIGHTS`` (the encoder)."""
    if config.MODEL.WEIGHTS:
        adapt = config.MODEL.CONVNEXT.ADAPT_CHANNELS
        load_segmenter(config.MODEL.WEIGHTS, model, adapt, class_names)
    elif source := config.MODEL.CONVNEXT.WEIGHTS:
        load_encoder(
            source,
            model.backbone,
            allow_other_grn=config.MODEL.CONVNEXT.ALLOW_OTHER_GRN,
            adapt_channels=config.MODEL.CONVNEXT.ADAPT_CHANNELS,
        )
    else:
        logger.info("no weights given: all %d tensors start from scratch", len(model.state_dict()))


def predict_segmenter(
    config: CfgNode, dataset: SegmentationDataset, weights: Path
) -> dict[str, Any]:
    """Predict every image of a data set, and evaluate; see :func:`evaluate_model`."""
    device = find_device(resolve_device(config), "MODEL.DEVICE")
    model = build_segmenter(config)
    load_segmenter(weights, model)
    return evaluate_model(config, model.to(device), dataset, Path(config.OUTPUT_DIR) / "inference")


@torch.no_grad()
def evaluate_model(
    config: CfgNode, model: nn.Module, dataset: SegmentationDataset, output: Path | None = None
) -> dict[str, Any]:
    """Metrics over all images, predicted by all processes together, in float32.

    Args:
        output: the folder for the maps (``maps/NUMBER.png``: class indices) and ``per_image.json``.

    Returns:
        The metrics of :func:`segmentation.metrics.segmentation_metrics`, with ``counts.images`` and
        ``confusion``; empty in all but the main process.
    """
    state, names = PartialState(), list(dataset.classes.names)
    matrix = ConfusionMatrix(len(names), config.TEST.BOUNDARY_IOU and output is not None)
    model.eval()
    per_image = []
    share = range(state.process_index, len(dataset.records), state.num_processes)
    for index in progress(share, "predicting", unit="image"):
        record = dataset.records[index]
        image = read_pixels(record.image, config)
        predicted = segment(model, image, inference_options(config)).argmax(0).to(torch.uint8)  # type: ignore[arg-type]
        prediction = predicted.cpu().numpy()
        counts = matrix.add(dataset.class_map(record), prediction)
        row = _image_row(index, record.image, counts)
        if output is not None:
            path = output / MAPS / f"{index:06d}.png"
            write_atomically(path, partial(_save_png, prediction))
            row["map"] = f"{MAPS}/{path.name}"
        per_image.append(row)
    if state.num_processes > 1:
        matrices, per_image = gather_object([matrix]), gather_object(per_image)
        matrix = matrices[0]
        for other in matrices[1:]:
            matrix += other
    if not state.is_main_process:
        return {}
    metrics = segmentation_metrics(matrix, names)
    metrics["counts"]["images"] = len(per_image)
    metrics["confusion"] = matrix.counts.tolist()
    if output is not None:
        rows = sorted(per_image, key=lambda row: row["index"])
        write_json(output / PER_IMAGE, rows, indent=1)
        write_json(output / "metrics_summary.json", metrics, indent=1, allow_nan=False)
    logger.info(
        "mIoU %s (detectron2's convention), %s (mmsegmentation's), pixel accuracy %s",
        *(_percent(metrics["sem_seg"][key]) for key in ("mIoU", "mIoU_mmseg", "pACC")),
    )
    return metrics


def _image_row(index: int, image: str, counts: np.ndarray) -> dict[str, Any]:
    """The mean IoU of one image, over the classes in its truth, and its pixel accuracy."""
    hits, truth = counts.diagonal(), counts.sum(1)
    union = truth + counts.sum(0) - hits
    present, total = truth > 0, int(counts.sum())
    return {
        "index": index,
        "image": image,
        "mIoU": float((100 * hits[present] / union[present]).mean()) if present.any() else None,
        "pACC": 100 * float(hits.sum()) / total if total else None,
    }


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def _save_png(labels: np.ndarray, path: Path) -> None:
    Image.fromarray(labels).save(path, format="PNG")


def save_segmenter(
    config: CfgNode, dataset: SegmentationDataset, model: nn.Module, path: Path
) -> None:
    """Write a whole model, with metadata about its training."""
    licence = read_facts(path.parent).get("licence")
    facts = {"class_names": dataset.classes.names, "licence": licence}
    save_model(config, model, path, "segmentation.model", facts)
    logger.info("wrote %s", path)
