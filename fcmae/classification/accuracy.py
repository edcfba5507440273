"""Top-1 and top-5 of a classifier, by timm's definition and in float32."""

from __future__ import annotations

import logging
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from backbones.errors import InputError
from backbones.kernels import use_kernels
from fcmae.classification.data import LabelledSamples, Sample, collate
from fcmae.classification.head import build_classifier
from fcmae.classification.options import FinetuneOptions
from fcmae.classification.setup import set_up
from fcmae.run_files import CONFIG, write_json
from images.files import ImageError
from training.devices import find_device
from training.progress import progress
from training.run_folder import held
from training.workers import SigtermOnlyFromTrainer

logger = logging.getLogger(__name__)

CLASSIFIER, EVALUATION = "classifier.safetensors", "evaluation.json"
TOP = 5
SPLIT_OPTIONS = ("val_split", "val_fraction", "split_seed")


@torch.no_grad()
def accuracy(
    model: nn.Module, samples: LabelledSamples, batch_size: int, workers: int = 0
) -> dict[str, float]:
    """Evaluate on every usable image exactly once; each process of several takes its share.

    Args:
        model: from images ``[B, C, H, W]`` to logits; its mode is restored afterwards.
        samples: with an evaluation transform. Where bad images are skipped, none takes the place
            of one here: they are left out, which is logged.

    Returns:
        ``top1`` and ``top5`` in percent (with fewer than five classes the latter is 100, as in
        timm), and ``loss``, the mean cross-entropy.

    Raises:
        ImageError: for a bad image where they are not skipped, or if no image can be used.
    """
    world, rank = 1, 0
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    total = len(samples)
    # Every process runs as many batches (FSDP gathers weights in each): the last may count none.
    places = [place % total for place in range(rank, -(-total // world) * world, world)]
    counted = len(range(rank, total, world))
    loader = DataLoader(
        Subset(_Dataset(samples), places),
        batch_size,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=SigtermOnlyFromTrainer(os.getpid()),
    )
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)  # on the CPU: Apple's GPU knows no float64
    seen = 0
    bad: dict[int, str] = {}
    for images, labels, met in progress(loader, "evaluating", unit="batch"):
        number = max(0, min(len(labels), counted - seen))
        seen += len(labels)
        bad |= met
        truth = labels[:number]
        logits = model(images.to(device)).float().cpu()[:number][truth >= 0]
        truth = truth[truth >= 0]
        best = logits.topk(min(TOP, logits.shape[1])).indices == truth[:, None]
        losses = F.cross_entropy(logits, truth, reduction="sum")
        sums += torch.stack((best[:, 0].sum(), best.sum(), losses, torch.tensor(len(truth))))
    model.train(was_training)
    for index, why in bad.items():
        logger.warning("left out of the evaluation: %s: %s", samples.reader.name(index), why)
    if world > 1:
        on_device = sums.to(device)
        torch.distributed.all_reduce(on_device)
        sums = on_device.cpu()
    top1, top5, loss, used = sums.tolist()
    if not used:
        raise ImageError(f"none of the {total} images to evaluate can be used")
    left_out = {"left_out": total - used} if used < total else {}
    return {"top1": 100 * top1 / used, "top5": 100 * top5 / used, "loss": loss / used, **left_out}


def evaluate_classifier(options: FinetuneOptions) -> dict[str, Any]:
    """Evaluate a classifier: ``--eval-only``.

    Args:
        options: ``init`` is the classifier, evaluated on the validation images, or where there are
            none apart (``val_data``, a part val or test) on all of ``data``. Without ``init`` it is
            that of the run in ``output_dir``, on the images that the run set apart. All of the
            classifier's classes compete, those too that the data have no image of, unless
            ``eval_classes`` is "data".

    Returns:
        ``top1`` and ``top5`` in percent, ``loss``, ``images``, ``classes`` (that compete),
        ``classes_of_data`` and ``weights``; also written to ``evaluation.json``.

    Raises:
        InputError, FileNotFoundError: for bad options or images, or a classifier without rows for
            all classes of the data.
    """
    with held(Path(options.output_dir)):
        return _evaluate(options)


def _evaluate(options: FinetuneOptions) -> dict[str, Any]:
    output_dir = Path(options.output_dir)
    of_run = options.init is None
    if of_run:
        options = _as_the_run_split(replace(options, init=str(output_dir / CLASSIFIER)))
    setup = set_up(options, only_val=not of_run)
    if setup.rows is None:
        unknown = [name for name in setup.data.classes if name not in (setup.source.classes or ())]
        raise InputError(
            f"{options.init} has no head's row for {len(unknown)} of {len(setup.data.classes)} "
            f"classes ({', '.join(unknown[:10])}); give a classifier of these, or --class-list"
            + (f" (of its head: {problem})" if (problem := setup.source.head_problem) else "")
        )
    val, rows = setup.data.val, setup.rows
    if options.eval_classes == "all":
        val.labels = [rows[label] for label in val.labels]
        rows = list(range(setup.source.rows))
    if len(rows) < setup.source.rows:
        logger.warning(
            "only %d of the classifier's %d classes compete: figures are higher than those of all",
            *(len(rows), setup.source.rows),
        )
    model, _ = build_classifier(
        *(setup.source, options.model, len(rows), rows, 0.0),
        *(setup.in_chans, options.grn, options.allow_other_grn, options.adapt_channels),
    )
    val.transform = setup.evaluation()
    with use_kernels(options.kernels):
        figures = accuracy(
            model.to(find_device(options.device)), val, options.batch_size, options.workers
        )
    result = {
        **figures,
        "images": len(val),
        "classes": len(rows),
        "classes_of_data": len(setup.data.classes),
        "weights": options.init,
        **setup.vision(),
    }
    write_json(output_dir / EVALUATION, result)
    logger.info(
        "top-1 %.2f  top-5 %.2f  of %d images", figures["top1"], figures["top5"], result["images"]
    )
    return result


def _as_the_run_split(options: FinetuneOptions) -> FinetuneOptions:
    """With the run's own rule for its validation images, whatever the options are.

    Other values would evaluate it on images that it was trained on.
    """
    config = Path(options.output_dir) / CONFIG
    if not config.is_file():
        return options
    stored = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    own = {name: stored[name] for name in SPLIT_OPTIONS if name in stored}
    for name, value in own.items():
        if getattr(options, name) != value and getattr(options, name) != _default(name):
            logger.warning("%s is %s, as in the run's training", name, value)
    return replace(options, **own)


def _default(name: str) -> Any:
    return next(field.default for field in fields(FinetuneOptions) if field.name == name)


class _Dataset(Dataset):
    def __init__(self, samples: LabelledSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> Sample:
        image, label, met = self.samples[place]
        return image, -1 if met else label, met
