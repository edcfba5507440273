"""Makes masks that remove patches which the model predicts badly, besides random ones.

Images of small objects are mostly background, which is easy to predict, so with random masks most
of the loss comes from there. Hard masks remove the patches with the largest reconstruction error.
The idea is from arXiv 2512.06981 and from Hard Patches Mining (arXiv 2304.05919), which trains a
predictor of that error. Their code was not available; here it is done as follows:

  1. The model predicts the patches that a random mask removes, and then the patches that it left
     (with the easiest of the first ones, so that both masks remove equally many). These two passes,
     without gradients, give the error of every patch.
  2. A fraction ``share`` of the patches to remove are those with the largest errors; the others are
     random.

Nothing is stored from step to step, so a resumed run is bit-identical. A step costs two more
forward passes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fcmae.masking import PATCH, upsample_mask
from fcmae.model import FCMAE


class HardPatches:
    """Makes hard masks for images; see this module's header.

    Args:
        fcmae: the model that is trained, without wrappers.
        share: fraction of the removed patches that are the hardest ones, in (0, 1].
    """

    def __init__(self, fcmae: FCMAE, share: float) -> None:
        self.fcmae, self.share = fcmae, share

    @torch.no_grad()
    def __call__(self, model: nn.Module, images: Tensor, mask: Tensor) -> Tensor:
        """A mask that removes as many patches of each image as the given one.

        Args:
            model: the model as the loop calls it, with its wrapper.
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
        # the second mask removes as many patches as the first: the easiest of the first are removed
        # again; or, if more were left than are to be removed, the rest keeps an error of 0
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
        # the others are random ones among those that the random mask removed
        left = removed - int(hard[0].sum())
        order = torch.rand(first.shape, device=images.device).masked_fill(hard, -1)
        order = torch.where(first & ~hard, order + 1, order)
        torch.clear_autocast_cache()  # its copies of the weights were made without gradients
        return as_mask(hard | top(order, left) if left else hard)

    def _errors(self, model: nn.Module, images: Tensor, mask: Tensor) -> Tensor:
        """The mean squared error of each removed patch, ``[B, patches]``; others have any value."""
        prediction = model(images, mask).prediction
        target, _, _ = self.fcmae.targets(images)
        errors = (prediction.to(target.dtype) - target).square().mean(1, keepdim=True)
        pooled = torch.nn.functional.avg_pool2d(errors, self.fcmae.patch_size // PATCH)
        return pooled.flatten(1)


def top(values: Tensor, count: int) -> Tensor:
    """True at the ``count`` largest values of each row of ``[B, N]``."""
    chosen = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    return chosen.scatter_(1, values.topk(count, dim=1).indices, True)
