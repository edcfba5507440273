"""Reads videos frame by frame, with the times that their containers state.

FFmpeg reads them, through PyAV: every container and codec in its wheels, whatever the file's
ending; frame rates that vary; rotation. (OpenCV's reader counts frames and needs a fixed rate.)
Pillow reads animated GIF, WebP, PNG and AVIF, because it composes their pictures. Of a file that
was cut off, the readable frames are read, and a warning says how many.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from backbones.errors import InputError
from images.formats import image_endings
from images.size_limit import refuse_absurd_size

logger = logging.getLogger(__name__)

# fmt: off
VIDEOS = frozenset([  # endings taken from folders; a file named by the user may have any
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts", ".mts",
    ".m2ts", ".flv", ".3gp", ".3g2", ".ogv", ".vob", ".asf", ".mxf", ".y4m", ".mjpeg", ".mjpg",
])
# fmt: on
ANIMATED = frozenset([".gif", ".webp", ".png", ".apng", ".avif"])
LISTS = {"hls", "dash", "concat", "concatf", "sdp", "rtsp", "rtp"}  # they only list addresses
FRAME_RATE = 25.0  # for a video that does not state its own
SHORTEST, INSTEAD = 11, 100  # ms; browsers show shorter pictures of an animation for 100 ms
MISSING = 0.5  # seconds; a video that ends earlier than stated by more was cut off
TS_PACKETS = (188, 192, 204)  # bytes of a packet of MPEG-TS and its two variants
MOST_FAULTS = 1000


class Frame(NamedTuple):
    """An image, or a frame of a video.

    Attributes:
        pixels: ``[H, W, C]``: uint8 RGB, or of deep images float32 in 0..1.
        number: the frame's number, from 0.
        rate: average frames per second of the video.
        seconds: when it is shown, from the video's start.
        duration: how long it is shown, in seconds.
    """

    pixels: np.ndarray
    number: int = 0
    rate: float = FRAME_RATE
    seconds: float = 0.0
    duration: float = 1 / FRAME_RATE


def refuse_live(name: str) -> None:
    """Refuse cameras and streams, which have no end.

    Raises:
        InputError: if this is the address of a stream, a device, a camera's number or a pipe.
    """
    path = Path(name)
    remedy = "record it to a file first, and give that"
    if "://" in name or name == "-":
        raise InputError(f"{name} is a stream, and streams are not read: {remedy}")
    if name.isdecimal() and not path.exists():
        raise InputError(f"{name} is a camera's number, and cameras are not read: {remedy}")
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise InputError(f"{name} is a device, such as a camera, which is not read: {remedy}")
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        raise InputError(f"{name} is a pipe, that is a stream, which is not read: {remedy}")


@lru_cache(maxsize=1 << 16)
def is_video(path: Path) -> bool:
    """Whether a file has several pictures over time, by its ending or, if need be, its header."""
    ending = path.suffix.lower()
    if ending in ANIMATED:
        return _is_animated(path)
    if ending in image_endings():
        return False
    return ending in VIDEOS or _is_animated(path) or _has_video(path)


def _is_animated(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return f".{image.format}".lower() in ANIMATED and getattr(image, "n_frames", 1) > 1
    except (OSError, ValueError, SyntaxError):
        return False


def _has_video(path: Path) -> bool:
    """For a file with another ending: whether FFmpeg finds a video in it, and Pillow no image."""
    try:
        with Image.open(path):
            return False
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        pass
    try:
        with av.open(f"file:{path}") as container:
            return bool(container.streams.video) and container.format.name not in ("tty", "image2")
    except (av.FFmpegError, OSError, ValueError):
        return False


def video_frames(path: Path, every: int = 1) -> Iterator[Frame]:
    """Yield each ``every``-th frame of a video, rotated as its container says.

    A frame is yielded after the next one is read, because only then its duration is known.

    Raises:
        InputError: if no frame can be read; for a list of addresses (HLS, DASH).
    """
    shown, end, number, rate = None, 0.0, -1, FRAME_RATE
    read = _animation_pictures if _is_animated(path) else _decoded_pictures
    for number, (picture, seconds, duration, rate) in enumerate(read(path)):
        end = seconds + duration
        if number % every == 0:
            if shown is not None:
                yield shown._replace(duration=seconds - shown.seconds)
            shown = Frame(_upright(picture), number, rate, seconds)
    if shown is None:
        raise InputError(f"{path} does not decode: no frame of a video can be read")
    yield shown._replace(duration=end - shown.seconds)


# a picture, its time, how long it is shown (both in seconds), frames per second
Timed = tuple[Image.Image | av.VideoFrame, float, float, float]


def _animation_pictures(path: Path) -> Iterator[Timed]:
    """Pillow's pictures of an animation, each as long as browsers show it."""
    with Image.open(path) as image:
        refuse_absurd_size(image.height, image.width)
        total, begun, number = getattr(image, "n_frames", 1), 0.0, 0  # begun: milliseconds
        try:
            for picture in ImageSequence.Iterator(image):
                picture.load()
                told = float(picture.info.get("duration", 0))
                duration = told if told >= SHORTEST else INSTEAD
                yield picture, begun / 1000, duration / 1000, 1000 / duration
                begun, number = begun + duration, number + 1
        except (OSError, ValueError, SyntaxError, EOFError):
            logger.warning("%s: %d of %d frames could be read", path, number, total)


def _decoded_pictures(path: Path) -> Iterator[Timed]:
    try:
        container = av.open(f"file:{path}", metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise InputError(
            f"{path} does not decode: no frame of a video can be read ({error.strerror}); it is "
            "cut off, damaged or no video"
        ) from None
    with container:
        if set(container.format.name.split(",")) & LISTS:
            raise InputError(f"{path} is a list of addresses, a stream, which is not read")
        if not container.streams.video:
            raise InputError(f"{path} does not decode: no frame of a video can be read")
        stream = container.streams.video[0]
        refuse_absurd_size(stream.codec_context.height, stream.codec_context.width)
        stream.thread_type = "AUTO"
        rate = float(stream.guessed_rate or stream.average_rate or FRAME_RATE)
        first, end, number = None, 0.0, 0
        faults: list[str] = []
        for frame in _sound_frames(container.demux(stream), faults):
            seconds = end
            if frame.time is not None:
                first = frame.time if first is None else first
                seconds = frame.time - first
            told = float((frame.duration or 0) * (frame.time_base or 0))
            duration = told if told > 0.5 / rate else 1 / rate  # a coarse clock states too little
            yield frame, seconds, duration, rate
            end, number = seconds + duration, number + 1
        if container.format.name == "mpegts" and all(path.stat().st_size % n for n in TS_PACKETS):
            faults.append("the last packet is cut off")  # the only sign in such a file
        lasts = (stream.duration or 0) * float(stream.time_base or 1)
        if not lasts and container.duration:
            lasts = container.duration / av.time_base
        if number < stream.frames:
            logger.warning("%s: %d of %d frames could be read", path, number, stream.frames)
        elif faults or end < lasts - max(MISSING, 2 / rate):
            logger.warning(
                "%s: %d frames could be read, up to %.2f of %.2f s%s",
                *(path, number, end, max(end, lasts)),
                f"; {len(faults)} parts could not: {faults[0]}" if faults else "",
            )


def _sound_frames(packets: Iterator[av.Packet], faults: list[str]) -> Iterator[av.VideoFrame]:
    """Yield the frames that can be decoded; FFmpeg's errors for the others go to ``faults``."""
    while len(faults) < MOST_FAULTS:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.FFmpegError, OSError) as error:
            faults.append(str(error.strerror))
            return
        try:
            frames = packet.decode()
        except (av.FFmpegError, OSError) as error:
            faults.append(str(error.strerror))
            continue
        for frame in frames:
            if frame.is_corrupt:
                faults.append("a damaged frame")
            yield frame


def _upright(picture: Image.Image | av.VideoFrame) -> np.ndarray:
    """The pixels ``[H, W, 3]``, RGB, rotated by the frame's display matrix."""
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    pixels = picture.to_ndarray(format="rgb24")
    quarters = round(picture.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels
