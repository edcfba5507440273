"""Videos: every frame, at its container's time, the right way up; and what is written plays so."""

from __future__ import annotations

import av
import numpy as np
import pytest
from PIL import Image
from videos import greys, turn, write

from backbones.errors import InputError
from images.inputs import find_files, read_frames
from images.video import is_video
from images.video_writer import VideoWriter

STEADY = [index / 25 for index in range(10)]
UNEVEN = [0, 0.04, 0.08, 1.08, 2.08, 5.08]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {"codec": "libx264"}),
        ("a.mkv", {"codec": "mpeg4"}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("a.webm", {"codec": "libvpx", "live": "1"}),  # as browsers record: no duration
        ("a.ts", {"codec": "mpeg2video", "clock": 25}),
        ("a.recording", {"codec": "libx264", "container": "mp4"}),
        ("a", {"codec": "mpeg4", "container": "avi", "clock": 25}),
        ("a,b: 100%.mp4", {"codec": "mpeg4"}),
    ],
)
def test_every_container_gives_all_frames_at_their_times(tmp_path, name, settings):
    times = STEADY if settings.get("clock") == 25 else UNEVEN
    path = write(tmp_path / name, times, **settings)
    frames = list(read_frames(path))
    assert is_video(path)
    assert [frame.seconds for frame in frames] == pytest.approx(times, abs=0.0011)
    assert greys(frames) == list(range(len(times)))
    durations = [frame.duration for frame in frames[:-1]]
    assert durations == pytest.approx(np.diff(times), abs=0.0011)
    assert 0.02 < frames[-1].duration < 1.1


def test_av1_is_read(tmp_path):
    try:
        av.codec.Codec("libsvtav1", "w")
    except Exception:
        pytest.skip("this FFmpeg writes no AV1")
    path = write(tmp_path / "a.mp4", STEADY, codec="libsvtav1", size=(64, 64))
    assert greys(read_frames(path)) == list(range(10))


def test_each_nth_frame_is_shown_until_the_next_one_of_them(tmp_path):
    path = write(tmp_path / "a.mkv", UNEVEN)
    frames = list(read_frames(path, every=4))
    assert [frame.number for frame in frames] == [0, 4]
    assert [frame.seconds for frame in frames] == pytest.approx([0, 2.08])
    assert frames[0].duration == pytest.approx(2.08)
    assert frames[1].duration >= 3


def test_a_turned_video_is_upright(tmp_path):
    path = turn(write(tmp_path / "a.mp4", STEADY, size=(48, 80)))
    pixels = next(read_frames(path)).pixels
    assert pixels.shape == (80, 48, 3)
    bright = pixels.mean(-1) > 128
    assert bright[:36, 28:].mean() > 0.95  # the upper left corner has gone to the upper right
    assert bright[44:].mean() < 0.05


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_an_animations_pictures_are_frames_and_a_single_picture_is_an_image(tmp_path, ending):
    pictures = [Image.new("L", (20, 10), 40 * index).convert("RGB") for index in range(4)]
    path = tmp_path / f"a.{ending}"
    durations = [100, 300, 50, 200]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    frames = list(read_frames(path))
    assert is_video(path)
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.1, 0.4, 0.45])
    assert [frame.duration for frame in frames] == pytest.approx([0.1, 0.3, 0.05, 0.2])
    assert [round(frame.pixels.mean() / 40) for frame in frames] == [0, 1, 2, 3]
    pictures[1].save(tmp_path / f"still.{ending}")
    assert not is_video(tmp_path / f"still.{ending}")


@pytest.mark.parametrize("ending", ["mkv", "ts", "avi"])
def test_a_cut_file_gives_what_can_be_read_and_says_so(tmp_path, ending, caplog):
    codec = "mpeg2video" if ending == "ts" else "mpeg4"
    noise = np.random.default_rng(0).integers(0, 256, (10, 48, 64, 3), np.uint8)
    path = tmp_path / f"a.{ending}"
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pixels in noise:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    whole = list(read_frames(path))
    assert len(whole) == 10
    assert not caplog.records
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 7])
    cut = list(read_frames(path))
    assert 2 <= len(cut) < 8
    assert np.array_equal(cut[0].pixels, whole[0].pixels)
    assert "could be read" in caplog.text


def test_a_cut_header_is_an_error_that_says_what_it_may_be(tmp_path):
    path = write(tmp_path / "a.mp4", STEADY)
    path.write_bytes(path.read_bytes()[:-400])  # an MP4's index is at its end
    with pytest.raises(InputError, match=r"a\.mp4 does not decode: no frame .* cut off"):
        find_files([str(path)])


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("rtsp://host/stream1", "stream"),
        ("https://host/a.mp4", "stream"),
        ("-", "stream"),
        ("0", "camera"),
        ("/dev/null", "camera"),
    ],
)
def test_cameras_and_streams_are_refused_by_that_word(name, word):
    with pytest.raises(InputError, match=rf"{name} is a.*{word}.* record it to a file first"):
        find_files([name])


def test_a_playlist_is_refused_as_a_stream(tmp_path):
    write(tmp_path / "a.ts", STEADY, codec="mpeg2video", clock=25)
    path = tmp_path / "a.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.4,\na.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(InputError, match="a list of addresses, a stream"):
        find_files([str(path)])


def test_what_is_written_is_h264_with_every_frames_own_duration(tmp_path):
    durations = [0.04, 0.04, 1.0, 1000 / 12 / 1000, 3.0]
    with VideoWriter(tmp_path / "new/o.mp4") as video:
        for index, duration in enumerate(durations):
            video.write(np.full((33, 41, 3), 8 * index, np.uint8), duration)
    frames = list(read_frames(tmp_path / "new/o.mp4"))
    assert greys(frames) == [0, 1, 2, 3, 4]
    assert frames[0].pixels.shape == (32, 40, 3)  # H.264 has even sides
    begins = np.cumsum([0, *durations[:-1]])
    assert [frame.seconds for frame in frames] == pytest.approx(begins, abs=1e-4)
    with av.open(str(tmp_path / "new/o.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.duration * stream.time_base) == pytest.approx(sum(durations), abs=1e-3)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["o.mp4"]


def test_an_error_leaves_no_video_and_what_was_there_as_it_was(tmp_path):
    path = tmp_path / "o.mp4"
    path.write_text("earlier")
    video = VideoWriter(path)
    video.write(np.zeros((32, 32, 3), np.uint8), 1.0)
    video.__exit__(RuntimeError, RuntimeError(), None)
    assert path.read_text() == "earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["o.mp4"]
