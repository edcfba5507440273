"""Top-1 and top-5 of a classifier, by timm's definition and in float32."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from backbones.errors import InputError
from backbones.kernels import use_kernels
from fcmae.classification.data import LabelledSamples, collate
from fcmae.classification.head import build_classifier
from fcmae.classification.options import FinetuneOptions
from fcmae.classification.setup import set_up
from fcmae.run_files import write_json
from training.devices import find_device, to_float64
from training.progress import progress

logger = logging.getLogger(__name__)

CLASSIFIER, EVALUATION = "classifier.safetensors", "evaluation.json"
TOP = 5


@torch.no_grad()
def accuracy(
    model: nn.Module, samples: LabelledSamples, batch_size: int, workers: int = 0
) -> dict[str, float]:
    """Evaluate on every image exactly once; each process of several takes its share.

    Args:
        model: from images ``[B, 3, H, W]`` to logits; its mode is restored afterwards.
        samples: with an evaluation transform.

    Returns:
        ``top1`` and ``top5`` in percent (with fewer than five classes the latter is 100, as in
        timm), and ``loss``, the mean cross-entropy.
    """
    world, rank = 1, 0
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    total = len(samples)
    # Every process runs as many batches (FSDP gathers weights in each): the last may count none.
    places = [place % total for place in range(rank, -(-total // world) * world, world)]
    counted = len(range(rank, total, world))
    loader = DataLoader(
        Subset(_Dataset(samples), places), batch_size, num_workers=workers, collate_fn=collate
    )
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums = []
    seen = 0
    for images, labels in progress(loader, "evaluating", unit="batch"):
        number = min(len(labels), counted - seen)
        seen += len(labels)
        logits = model(images.to(device)).float()[: max(0, number)]
        truth = labels.to(device)[: len(logits)]
        best = logits.topk(min(TOP, logits.shape[1])).indices == truth[:, None]
        losses = F.cross_entropy(logits, truth, reduction="sum")
        sums.append(torch.stack((best[:, 0].sum(), best.sum(), losses)))
    model.train(was_training)
    whole = to_float64(torch.stack(sums)).sum(0)
    if world > 1:
        torch.distributed.all_reduce(whole)
    top1, top5, loss = (whole / total).tolist()
    return {"top1": 100 * top1, "top5": 100 * top5, "loss": loss}


def evaluate_classifier(options: FinetuneOptions) -> dict[str, Any]:
    """Evaluate a classifier: ``--eval-only``.

    Args:
        options: ``init`` is the classifier, evaluated on the validation images, or where there are
            none apart (``val_data``, a ``val`` folder) on all of ``data``. Without ``init`` it is
            that of the run in ``output_dir``, on the images that the run set apart.

    Returns:
        ``top1`` and ``top5`` in percent, ``loss``, ``images``, ``classes`` and ``weights``; also
        written to ``evaluation.json``.

    Raises:
        InputError, FileNotFoundError: for bad options or images, or a classifier without rows for
            all classes of the data.
    """
    output_dir = Path(options.output_dir)
    of_run = options.init is None
    if of_run:
        options = replace(options, init=str(output_dir / CLASSIFIER))
    setup = set_up(options, only_val=not of_run)
    if setup.rows is None:
        unknown = [name for name in setup.data.classes if name not in (setup.source.classes or ())]
        raise InputError(
            f"{options.init} has no head's row for {len(unknown)} of {len(setup.data.classes)} "
            f"classes ({', '.join(unknown[:10])}); give a classifier of these, or --class-list"
        )
    model, _ = build_classifier(
        setup.source,
        options.model,
        setup.data.classes,
        setup.rows,
        0.0,
        options.grn,
        options.allow_other_grn,
    )
    setup.data.val.transform = setup.evaluation()
    with use_kernels(options.kernels):
        figures = accuracy(
            model.to(find_device(options.device)),
            setup.data.val,
            options.batch_size,
            options.workers,
        )
    result = {
        **figures,
        "images": len(setup.data.val),
        "classes": len(setup.data.classes),
        "weights": options.init,
        **setup.vision(),
    }
    write_json(output_dir / EVALUATION, result)
    logger.info(
        "top-1 %.2f  top-5 %.2f  of %d images", figures["top1"], figures["top5"], result["images"]
    )
    return result


class _Dataset(Dataset):
    def __init__(self, samples: LabelledSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return self.samples[place]
