"""Encodes pictures as JPEG for a page."""

from __future__ import annotations

import cv2
import numpy as np

THUMBNAIL_SIDE, THUMBNAIL_BYTES = 224, 30_000


def thumbnail(image: np.ndarray) -> bytes:
    """An RGB image as a JPEG whose longer side has ``THUMBNAIL_SIDE`` pixels."""
    factor = THUMBNAIL_SIDE / max(image.shape[:2])
    size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
    smooth = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    return encode_jpeg(cv2.resize(image, size, interpolation=smooth), THUMBNAIL_BYTES)


def encode_jpeg(image: np.ndarray, max_bytes: int) -> bytes:
    """An RGB image as JPEG of at most ``max_bytes``, by lower quality, then by a smaller size."""
    while True:
        for quality in (88, 80, 70, 60, 50):
            options = [cv2.IMWRITE_JPEG_QUALITY, quality]
            done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
            assert done
            if data.size <= max_bytes or max(image.shape[:2]) < 64:
                return data.tobytes()
        image = cv2.resize(image, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
