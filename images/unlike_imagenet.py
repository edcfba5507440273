"""Say when ImageNet's mean and deviation do not suit the images that random weights learn from."""

from __future__ import annotations

import logging
from collections.abc import Callable

from backbones.errors import InputError
from images.files import EIGHT_BITS, ImageError
from images.statistics import IMAGENET, Images, Statistics, measure

logger = logging.getLogger(__name__)

GLANCE = 16  # images that are looked at
LEAST_DEVIATION = 0.25  # of a channel, as a share of the largest; chosen
UNLIKE = (
    "these images are not like ImageNet's: their mean is %s and their deviation %s of 0 to 255. "
    "Random weights may learn much better with %s (docs/transfer.md)"
)


def unlike_imagenet(samples: Images, images: int = GLANCE) -> Statistics | None:
    """The images' own mean and deviation, if random weights need them.

    That is if a channel's mean is further from ImageNet's than ImageNet's deviation, or its
    deviation is less than half or more than twice of ImageNet's (chosen limits). After a short
    training, dark images of nuclei had 14 box AP less with ImageNet's than with their own. Fruits
    and nuts, whose images are like ImageNet's, had more (docs/transfer.md).

    Args:
        images: measured at most.

    Returns:
        None for images like ImageNet's, and if they cannot be measured: reading them reports that.
    """
    try:
        found = measure(samples, images, 0, least_share=LEAST_DEVIATION)
    except (InputError, ImageError, OSError):
        return None
    pairs = zip(found.mean, IMAGENET.mean, found.std, IMAGENET.std, strict=True)
    far = any(abs(m - of_m) > of_s or not 0.5 < s / of_s < 2 for m, of_m, s, of_s in pairs)
    return found if far else None


def warn_if_unlike(samples: Images, remedy: Callable[[Statistics], str]) -> None:
    """Warn if random weights should not be trained with ImageNet's statistics on these images.

    Args:
        remedy: the setting that gives the images their own.
    """
    if (found := unlike_imagenet(samples)) is not None:
        shown = [" ".join(f"{EIGHT_BITS * v:.0f}" for v in vs) for vs in (found.mean, found.std)]
        logger.warning(UNLIKE, *shown, remedy(found))
