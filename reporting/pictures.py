"""Pictures as files for a page."""

from __future__ import annotations

import cv2
import numpy as np


def encode_jpeg(image: np.ndarray, max_bytes: int) -> bytes:
    """An RGB image as JPEG of at most ``max_bytes``: first the quality falls, then the size."""
    while True:
        for quality in (88, 80, 70, 60, 50):
            options = [cv2.IMWRITE_JPEG_QUALITY, quality]
            done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
            assert done
            if data.size <= max_bytes or max(image.shape[:2]) < 64:
                return data.tobytes()
        image = cv2.resize(image, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
