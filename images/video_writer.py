"""Writes videos that browsers play: H.264 in MP4, with a duration for each frame."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.stream import VideoStream

from backbones.errors import InputError

CODECS = ("libx264", "libopenh264", "h264_videotoolbox", "h264_mf")
CLOCK = 90_000  # ticks per second, MPEG's: fine enough for any frame rate
BITS_PER_PIXEL = 0.2  # for encoders without a quality setting


class VideoWriter:
    """Writes frames to a temporary file, which is renamed at the end.

    Args:
        path: the video to write, an ``.mp4``.

    Raises:
        InputError: if this FFmpeg cannot encode H.264.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.codec = next((name for name in CODECS if name in av.codecs_available), "")
        if not self.codec:
            raise InputError(
                f"this FFmpeg cannot write {path}: it has no encoder of H.264. Install PyAV's "
                "wheel (pip install av), or write frames by --frames"
            )
        self.beside = path.with_name(f".{os.getpid()}-{path.stem}.partial.mp4")
        self.container: av.container.OutputContainer | None = None
        self.begins = 0  # ticks
        self.lengths: dict[int | None, int] = {}  # start of a frame -> its duration, in ticks

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, pixels: np.ndarray, duration: float) -> None:
        """Add a frame ``[H, W, 3]``, uint8 RGB, that is shown for ``duration`` seconds.

        The first frame's size is the video's, cut to even sides; others are resized to it.
        """
        if self.container is None:
            self._begin(*pixels.shape[:2])
        height, width = self.stream.height, self.stream.width
        if pixels.shape[0] - height in (0, 1) and pixels.shape[1] - width in (0, 1):
            pixels = pixels[:height, :width]
        else:
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = self.begins, Fraction(1, CLOCK)
        self.lengths[self.begins] = max(1, round(duration * CLOCK))
        self.begins += self.lengths[self.begins]
        self._mux(frame)

    def _begin(self, height: int, width: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.container = av.open(
            f"file:{self.beside}", "w", format="mp4", options={"movflags": "+faststart"}
        )
        stream = self.container.add_stream(self.codec, rate=30)  # frames have times of their own
        assert isinstance(stream, VideoStream)
        self.stream = stream
        self.stream.width, self.stream.height = width - width % 2, height - height % 2
        self.stream.pix_fmt = "yuv420p"
        self.stream.time_base = self.stream.codec_context.time_base = Fraction(1, CLOCK)
        if self.codec == "libx264":
            self.stream.options = {"crf": "20", "preset": "veryfast", "bf": "0"}
        else:
            self.stream.bit_rate = int(BITS_PER_PIXEL * width * height * 25)

    def _mux(self, frame: av.VideoFrame | None) -> None:
        assert self.container is not None
        for packet in self.stream.encode(frame):
            packet.duration = self.lengths.pop(packet.pts, None)  # or the last frame has none
            self.container.mux(packet)

    def __exit__(self, _kind: object, error: BaseException | None, _at: object) -> None:
        if self.container is None:
            return
        try:
            if error is None:
                self._mux(None)
            self.container.close()
            if error is None:
                os.replace(self.beside, self.path)
        finally:
            self.beside.unlink(missing_ok=True)
