"""Masks that remove what the model finds hard to predict, besides patches drawn at random.

Images of small objects are mostly background that is predicted with ease, and random masks spend
their loss there. Hard masks remove the patches with the largest reconstruction error instead (the
idea of arXiv 2512.06981, and of Hard Patches Mining, arXiv 2304.05919, which trains a predictor of
that error). Neither's code was at hand, and this is this project's definition:

  1. the model, as it is, predicts the patches that a random mask removes, and then those that it
     left (with the easiest of the first, so that both masks remove equally many): two passes
     without gradients give every patch its error;
  2. of the patches to remove, ``share`` are those with the largest errors, the others random.

So nothing is remembered from step to step, and a resumed run is bit-identical. A step takes two
forward passes more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fcmae.masking import PATCH, upsample_mask
from fcmae.model import FCMAE


class HardPatches:
    """Draws hard masks for images; see this module's header.

    Args:
        fcmae: the model that is trained, bare of any wrapper.
        share: of the removed patches, those that are the hardest; in (0, 1].
    """

    def __init__(self, fcmae: FCMAE, share: float) -> None:
        self.fcmae, self.share = fcmae, share

    @torch.no_grad()
    def __call__(self, model: nn.Module, images: Tensor, mask: Tensor) -> Tensor:
        """A mask that removes as many patches of each image as the given one.

        Args:
            model: the model as the loop calls it, in whatever wrapper.
            images: ``[B, C, H, W]``, normalised.
            mask: bool ``[B, H/32, W/32]``, True = removed, drawn at random.
        """
        factor = self.fcmae.patch_size // PATCH
        first = mask[:, ::factor, ::factor].flatten(1)
        removed = int(first[0].sum())
        if removed == 0:
            return mask
        shape = (len(mask), mask.shape[1] // factor, mask.shape[2] // factor)

        def as_mask(flat: Tensor) -> Tensor:
            return upsample_mask(flat.view(shape), factor)

        errors = torch.zeros(first.shape, device=images.device)
        found = self._errors(model, images, as_mask(first))
        errors[first] = found[first]
        second = ~first
        # as many as before: the easiest of those that were removed are removed again, or, where
        # more were left than are to be removed, the rest keeps an error of 0 in this step
        easiest = errors.masked_fill(second, torch.inf)
        lacking = removed - int(second[0].sum())
        if lacking > 0:
            second = second | top(-easiest, lacking)
        elif lacking < 0:
            second = top(torch.rand(first.shape, device=images.device) * second, removed)
        found = self._errors(model, images, as_mask(second))
        fresh = second & ~first
        errors[fresh] = found[fresh]
        hard = top(errors, max(1, round(self.share * removed)))
        # the others at random, of those that the random mask removed
        left = removed - int(hard[0].sum())
        order = torch.rand(first.shape, device=images.device).masked_fill(hard, -1)
        order = torch.where(first & ~hard, order + 1, order)
        torch.clear_autocast_cache()  # whose copies of the weights have no gradients
        return as_mask(hard | top(order, left) if left else hard)

    def _errors(self, model: nn.Module, images: Tensor, mask: Tensor) -> Tensor:
        """The mean squared error of each patch, ``[B, patches]``; of those that stay, no matter."""
        prediction = model(images, mask).prediction
        target, _, _ = self.fcmae.targets(images)
        errors = (prediction.to(target.dtype) - target).square().mean(1, keepdim=True)
        pooled = torch.nn.functional.avg_pool2d(errors, self.fcmae.patch_size // PATCH)
        return pooled.flatten(1)


def top(values: Tensor, count: int) -> Tensor:
    """Where the ``count`` largest of each row are: bool, as ``values`` ``[B, N]``."""
    chosen = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    return chosen.scatter_(1, values.topk(count, dim=1).indices, True)
