"""Small videos by PyAV: a grey that says which frame it is, at any times."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np


def write(path, times, *, codec="mpeg4", size=(48, 64), clock=1000, container=None, **options):
    """Write a video whose frame ``i`` has the grey ``8 * i`` and is shown from ``times[i]`` on."""
    height, width = size
    with av.open(f"file:{path}", "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, clock)
        for index, time in enumerate(times):
            pixels = np.full((height, width, 3), 8 * index, np.uint8)
            pixels[: height // 2, : width // 2] = 255  # the upper left corner tells a rotation
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * clock), Fraction(1, clock)
            for packet in stream.encode(frame):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)
    return path


def turn(path):
    """Say in an MP4's header that it is shown turned by 90 degrees clockwise, as phones do."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 4 + 36
    turned = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    data[matrix : matrix + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in turned)
    path.write_bytes(data)
    return path


def greys(frames):
    """Which frames these are, by their grey."""
    return [round(float(frame.pixels[-8:, -8:].mean()) / 8) for frame in frames]
