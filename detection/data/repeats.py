"""How often each image is drawn in an epoch: more often with a rare class (LVIS).

Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", arXiv 1908.03195,
appendix B.2: a class that a part ``f`` of the images shows repeats its images
``max(1, sqrt(threshold / f))`` times; an image takes the largest number of its classes.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from detection.data.records import Records

logger = logging.getLogger(__name__)


def repeat_factors(records: Records, threshold: float, square_root: bool = True) -> Tensor:
    """float32 ``[len(records)]``, each 1 or more, as detectron2's sampler computes them.

    Crowds count as objects of their class, as there.
    """
    shown = [{item["category_id"] for item in record["annotations"]} for record in records]
    factors = _of_classes(Counter(key for keys in shown for key in keys), len(shown), threshold)
    if square_root:
        factors = {key: math.sqrt(value) for key, value in factors.items()}
    return torch.tensor([max((factors[key] for key in keys), default=1.0) for keys in shown])


def _of_classes(images: Counter[int], total: int, threshold: float) -> dict[int, float]:
    return {key: max(1.0, threshold / (count / total)) for key, count in images.items()}


def repeats_of(config: Any, records: Records) -> Tensor | None:
    """How often each record comes in an epoch, and a line about it; None for once.

    A record that comes several times already, for an image's tiles, is one image: how rare a class
    is goes by images, and all tiles of one are repeated alike.
    """
    options = config.DATALOADER
    if options.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        return None
    images, places = records.distinct()
    factors = repeat_factors(images, options.REPEAT_THRESHOLD, options.REPEAT_SQRT)
    factors = factors[torch.from_numpy(places)]
    if factors.max() == 1:
        logger.warning(
            "RepeatFactorTrainingSampler repeats no image: each class is on at least the part "
            "DATALOADER.REPEAT_THRESHOLD %g of the images; raise it above the rarest class's part",
            options.REPEAT_THRESHOLD,
        )
    else:
        logger.info(
            "images with a class that less than %g of the images show are repeated, up to %.1f "
            "times: an epoch has %.0f %s instead of %d",
            options.REPEAT_THRESHOLD,
            factors.max(),
            factors.sum(),
            "images" if len(images) == len(records) else "tiles",
            len(factors),
        )
    return factors
