"""Augmentation and resizing of an image with its class map, by the recipe of the ConvNeXt papers.

The recipe is mmsegmentation's for ADE20K: resize by a random ratio, crop so that one class fills
at most 0.75 of the crop, flip, distort colours. All random numbers come from ``random``, which the
loop seeds for each sample. Images are resized by OpenCV, bilinearly, as in mmsegmentation; class
maps by the nearest pixel. Images may have any number of channels: brightness and contrast are
distorted for all, saturation and hue only for RGB of 8 bits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import cv2
import numpy as np

from segmentation.upernet import IGNORED

CROP_TRIES = 10
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32, (0.5, 1.5), (0.5, 1.5), 18


@dataclass(frozen=True)
class Augmentation:
    """How training samples are augmented."""

    # long and short side, in pixels, that an image is fitted into before the ratio
    scale: tuple[int, int] = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)  # the range of the random ratio
    crop: tuple[int, int] = (512, 512)  # height and width of the sample
    # largest fraction of a crop's labelled pixels that one class may have; other crops are
    # drawn anew, up to ten times
    cat_max_ratio: float = 0.75
    flip: float = 0.5  # fraction of the samples that are mirrored
    distort: bool = True  # distort brightness, contrast and, of colour images, saturation and hue
    # largest brightness change for images of more than 8 bits, on the scale of 0 to 255, of which
    # they may use only a small part
    brightness: float = BRIGHTNESS

    def __call__(self, image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image ``[H, W, C]`` and labels ``[H, W]`` -> a sample of the size of ``crop``."""
        ratio = random.uniform(*self.ratio)
        height, width = fitted(image.shape[:2], (self.scale[0] * ratio, self.scale[1] * ratio))
        image, labels = resize_image(image, (height, width)), resize_labels(labels, (height, width))
        top, left = self._place(labels)
        rows, columns = slice(top, top + self.crop[0]), slice(left, left + self.crop[1])
        image, labels = image[rows, columns], labels[rows, columns]
        if random.random() < self.flip:
            image, labels = image[:, ::-1], labels[:, ::-1]
        if self.distort:
            image = distorted(image, self.brightness)
        return padded(image, self.crop, 0), padded(labels, self.crop, IGNORED)

    def _place(self, labels: np.ndarray) -> tuple[int, int]:
        """Top and left of a crop."""
        place = (0, 0)
        for _ in range(CROP_TRIES):
            place = (
                random.randint(0, max(labels.shape[0] - self.crop[0], 0)),
                random.randint(0, max(labels.shape[1] - self.crop[1], 0)),
            )
            part = labels[place[0] : place[0] + self.crop[0], place[1] : place[1] + self.crop[1]]
            counts = np.bincount(part[part != IGNORED].ravel())
            counts = counts[counts > 0]
            if len(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum():
                break
        return place


def fitted(size: tuple[int, int], box: tuple[float, float]) -> tuple[int, int]:
    """The largest size of the same shape that fits into (long side, short side)."""
    long, short = max(box), min(box)
    factor = min(long / max(size), short / min(size))
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def resize_image(image_hwc: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize bilinearly to this height and width; the type stays."""
    resized = cv2.resize(image_hwc, size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized.reshape(*size, image_hwc.shape[2])


def resize_labels(labels_hw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize to this height and width, each pixel from the nearest."""
    return cv2.resize(labels_hw, size[::-1], interpolation=cv2.INTER_NEAREST)


def padded(array: np.ndarray, size: tuple[int, int], value: int) -> np.ndarray:
    """The array, enlarged at the right and below to at least this height and width."""
    missing = [(0, max(0, want - have)) for want, have in zip(size, array.shape, strict=False)]
    missing += [(0, 0)] * (array.ndim - 2)
    return np.pad(array, missing, constant_values=value)


def distorted(image: np.ndarray, brightness: float = BRIGHTNESS) -> np.ndarray:
    """Brightness, contrast, saturation and hue, each in half of the samples.

    ``[H, W, C]`` on the scale of 0 to 255, uint8 or float32 (whose values are not cut). Contrast
    comes before or after the colours, at random.

    Args:
        brightness: see :class:`Augmentation`; for uint8 always ``BRIGHTNESS``.
    """
    image = np.ascontiguousarray(image)
    if _coin():
        most = BRIGHTNESS if image.dtype == np.uint8 else brightness
        image = _linear(image, beta=random.uniform(-most, most))
    first = _coin()
    if first and _coin():
        image = _linear(image, alpha=random.uniform(*CONTRAST))
    if image.shape[2] == 3 and image.dtype == np.uint8:
        if _coin():
            image = _in_hsv(image, 1, alpha=random.uniform(*SATURATION))
        if _coin():
            image = _in_hsv(image, 0, beta=random.randrange(-HUE, HUE))
    if not first and _coin():
        image = _linear(image, alpha=random.uniform(*CONTRAST))
    return image


def _coin() -> bool:
    return random.random() < 0.5


def _linear(image: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
    found = image.astype(np.float32) * np.float32(alpha) + np.float32(beta)
    return np.clip(found, 0, 255).astype(np.uint8) if image.dtype == np.uint8 else found


def _in_hsv(image: np.ndarray, channel: int, alpha: float = 1, beta: float = 0) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    if channel == 0:
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + beta) % 180
    else:
        hsv[:, :, 1] = _linear(hsv[:, :, 1], alpha)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
