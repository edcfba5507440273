"""Evaluates a classifier: top-1 and top-5 by timm's definition, in float32."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, Subset

from backbones.errors import counted
from fcmae.classification.data import LabelledSamples, Sample, collate
from images.files import ImageError
from training.data import guarded_loader
from training.progress import progress

logger = logging.getLogger(__name__)

TOP = 5


@dataclass(frozen=True)
class Evaluation:
    """The predictions of a classifier for each usable image, in their order."""

    left_out: int  # how many images could not be used
    places: list[int]  # positions of the others in the samples
    # truth, predicted: class numbers
    truth: list[int]
    predicted: list[int]
    probability: list[float]  # of the predicted class
    loss: list[float]  # the cross-entropy of each
    # whether the true class is among the five most probable ones (always, with five classes or
    # fewer, as in timm)
    in_top: list[bool]

    def figures(self) -> dict[str, float]:
        """``top1`` and ``top5`` in percent, mean ``loss``, and ``left_out`` if it is not 0."""
        used = len(self.places)
        right = sum(a == b for a, b in zip(self.truth, self.predicted, strict=True))
        figures = {
            "top1": 100 * right / used,
            "top5": 100 * sum(self.in_top) / used,
            "loss": math.fsum(self.loss) / used,
        }
        return figures | ({"left_out": self.left_out} if self.left_out else {})


@torch.no_grad()
def evaluate(
    model: nn.Module, samples: LabelledSamples, batch_size: int, workers: int = 0
) -> Evaluation:
    """Evaluate on every usable image exactly once; several processes share the images.

    Args:
        model: takes images ``[B, C, H, W]``, returns logits; its mode is restored afterwards.
        samples: with an evaluation transform. Bad images that are skipped are left out and logged,
            not replaced.

    Returns:
        The whole evaluation, in every process.

    Raises:
        ImageError: for a bad image if they are not skipped, or if no image can be used.
    """
    world, rank = 1, 0
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    total = len(samples)
    # Every process runs equally many batches, because FSDP gathers weights in each; the last one
    # may count no image.
    places = [place % total for place in range(rank, -(-total // world) * world, world)]
    own = len(range(rank, total, world))
    mine = Subset(_Dataset(samples), places)
    loader = guarded_loader(mine, workers, batch_size=batch_size, collate_fn=collate)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    rows: list[tuple[int, int, int, float, float, bool]] = []
    bad: dict[int, str] = {}
    seen = 0
    for images, truth, met in progress(loader, "evaluating", unit="batch"):
        logits = model(images.to(device)).float().cpu()
        best = logits.topk(min(TOP, logits.shape[1])).indices
        usable = truth.clamp(min=0)
        columns = (
            truth,
            best[:, 0],
            logits.softmax(-1).amax(-1),
            F.cross_entropy(logits, usable, reduction="none"),
            (best == truth[:, None]).any(-1),
        )
        batch = zip(places[seen : seen + len(truth)], *(c.tolist() for c in columns), strict=True)
        rows += [row for row in list(batch)[: max(0, own - seen)] if row[1] >= 0]
        seen += len(truth)
        bad |= met
    model.train(was_training)
    for index, why in bad.items():
        logger.warning("left out of the evaluation: %s: %s", samples.reader.name(index), why)
    if world > 1:
        shares: list[Any] = [None] * world
        torch.distributed.all_gather_object(shares, rows)
        rows = [row for share in shares for row in share]
    if not rows:
        raise ImageError(f"none of the {counted(total, 'image')} to evaluate can be used")
    by_column: Any = [list(column) for column in zip(*sorted(rows), strict=True)]
    return Evaluation(total - len(rows), *by_column)


class _Dataset(Dataset):
    def __init__(self, samples: LabelledSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> Sample:
        image, label, met = self.samples[place]
        return image, -1 if met else label, met
