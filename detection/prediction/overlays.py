"""Overlays: an image's picture, a video's video, or a folder of a video's frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from backbones.whole_files import write_files
from detection.drawing.instances import coco_instances, draw_instances, readable_scale
from images.inputs import Frame, is_video
from images.video_writer import VideoWriter

OVERLAYS = "overlays"
JPEG = {".jpg", ".jpeg"}


def draw(
    pixels: np.ndarray,
    results: Sequence[dict[str, Any]],
    names: Mapping[Any, str],
    size: tuple[int, int],
) -> np.ndarray:
    """The image with its detections, enlarged if it is too small for labels.

    Args:
        pixels: ``[h, w, 3]``; of a very large image shrunk.
        size: height and width of the image.
    """
    instances = coco_instances(results, names, *size)
    long_side = round(max(pixels.shape) * readable_scale(*pixels.shape[:2]))
    return draw_instances(pixels, instances, long_side, size=size).image


class OverlayWriter:
    """Writes the overlays of one file into ``overlays/``, each whole or not at all.

    Args:
        name: of the overlay, without its ending.
        frames: write a video's overlays as JPEG files.
    """

    def __init__(self, output_dir: Path, file: Path, name: str, frames: bool) -> None:
        of_video = is_video(file)
        self.root, self.as_frames = output_dir, frames and of_video
        suffix = ".jpg" if file.suffix.lower() in JPEG else ".png"
        if of_video:
            suffix = "" if frames else ".mp4"
        self.path = output_dir / OVERLAYS / f"{name}{suffix}"
        self.video = VideoWriter(self.path) if of_video and not frames else None

    def __enter__(self) -> OverlayWriter:
        return self

    def __exit__(self, *ending: Any) -> None:
        if self.video is not None:
            self.video.__exit__(*ending)

    def write(self, frame: Frame, overlay: np.ndarray) -> str:
        """Write one overlay ``[H, W, 3]`` RGB; its path relative to the output folder."""
        path = self.path / f"{frame.number:06d}.jpg" if self.as_frames else self.path
        if self.video is not None:
            self.video.write(overlay, frame.duration)
        else:
            pixels = cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR)
            _, data = cv2.imencode(path.suffix, pixels)  # imwrite fails on some systems' names
            write_files({path: data.tobytes()})
        return path.relative_to(self.root).as_posix()
