"""What a step of a classifier's training computes: mixing and losses by timm, class weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from backbones.errors import InputError
from fcmae.classification.data import Batch
from fcmae.classification.options import FinetuneOptions
from fcmae.classification.recipes import Recipe
from images.bad_images import BadImages


class FinetuningStep:
    """What a training step computes, from (images, classes) to a named loss.

    Args:
        recipe: says how batches are mixed and targets smoothed.
        classes: how many there are.
        bad_images: notes those that the loader's workers met.
        weights: of each class in the loss, see :func:`balanced_weights`.
    """

    def __init__(
        self,
        recipe: Recipe,
        classes: int,
        bad_images: BadImages | None = None,
        weights: Tensor | None = None,
    ) -> None:
        self.bad_images, self.weights = bad_images, weights
        self.smoothing, self.classes = recipe.label_smoothing, classes
        self.mixup: Mixup | None = None
        self.criterion: nn.Module
        if recipe.mixup or recipe.cutmix:
            self.mixup = Mixup(
                recipe.mixup,
                recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=classes,
            )
            self.criterion = SoftTargetCrossEntropy()
        elif recipe.label_smoothing:
            self.criterion = LabelSmoothingCrossEntropy(recipe.label_smoothing)
        else:
            self.criterion = nn.CrossEntropyLoss()

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        images, targets, met = batch
        if self.bad_images is not None:
            self.bad_images.add(met)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        logits = model(images).float()
        if self.weights is None:
            return {"loss_classification": self.criterion(logits, targets)}
        # a mean over the batch, not over its weights: as large whatever the batch holds
        shares = targets if targets.is_floating_point() else F.one_hot(targets, self.classes)
        if self.mixup is None:  # which smooths by itself
            shares = shares * (1 - self.smoothing) + self.smoothing / self.classes
        weights = self.weights.to(logits.device)
        return {"loss_classification": F.cross_entropy(logits, shares.float(), weights)}


def balanced_weights(labels: Sequence[int], classes: int) -> Tensor:
    """A weight for each class, by which all count alike: images / (classes x its images).

    scikit-learn's ``class_weight="balanced"``; 1 on average over the images. A class without
    images has 1.
    """
    counts = torch.bincount(torch.tensor(labels), minlength=classes)
    return torch.where(counts > 0, len(labels) / (classes * counts.clamp(min=1)), 1.0)


def check_batch(options: FinetuneOptions, recipe: Recipe, processes: int) -> None:
    """Refuse a batch that mixing cannot pair.

    Raises:
        InputError: if mixup or cutmix is to pair an odd number of images.
    """
    shares = options.accumulate * processes
    if (recipe.mixup or recipe.cutmix) and options.batch_size // shares % 2:
        raise InputError(
            "mixup and cutmix pair the images of a micro-batch of one process, which has "
            f"{options.batch_size} / {shares} images: make it even, or give --mixup 0 --cutmix 0"
        )
