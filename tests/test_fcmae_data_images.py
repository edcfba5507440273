"""Image files as arrays: what is read is compared with what was written."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from images.files import ImageError, Reading, open_picture

GENERATOR = np.random.default_rng(0)


def values(*shape: int, dtype=np.uint16) -> np.ndarray:
    return GENERATOR.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def tiff(array: np.ndarray, **settings) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **settings)
    return file.getvalue()


def saved(image: Image.Image, extension: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, extension, **settings)
    return file.getvalue()


def read(data: bytes, in_chans: int) -> np.ndarray:
    picture = open_picture(io.BytesIO(data))
    pixels = picture.pixels()
    assert pixels.shape == (picture.height, picture.width, picture.channels)
    assert picture.eight_bit == (pixels.dtype == np.uint8)
    return Reading(in_chans).read(picture)


@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
def test_thirteen_bands_of_16_bits_are_read_whole_in_any_layout(layout):
    bands = values(13, 5, 7)
    bands_last = bands.transpose(1, 2, 0)
    if layout == "pages":
        data = tiff(bands, photometric="minisblack")
    else:
        data = tiff(
            bands_last if layout == "contig" else bands,
            photometric="minisblack",
            planarconfig=layout,
            compression="zlib",
        )
    np.testing.assert_array_equal(read(data, 13), bands_last.astype(np.float32) / 65535)


def test_many_bands_of_8_bits_stay_8_bits():
    bands = values(5, 7, 6, dtype=np.uint8)
    data = tiff(bands, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(read(data, 6), bands)


@pytest.mark.parametrize("kind", ["tiff", "big-endian tiff", "png"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_sixteen_bit_greys_lose_nothing(kind, in_chans):
    grey = values(6, 9)
    if kind == "png":
        data = cv2.imencode(".png", grey)[1].tobytes()
    else:
        data = tiff(grey, byteorder=">" if "big" in kind else "<")
    expected = grey.astype(np.float32)[..., None].repeat(in_chans, -1) / 65535
    np.testing.assert_array_equal(read(data, in_chans), expected)


@pytest.mark.parametrize("kind", ["tiff", "png"])
@pytest.mark.parametrize("alpha", [False, True])
def test_sixteen_bit_colours_lose_nothing_but_a_declared_alpha(kind, alpha):
    colours = values(6, 9, 3 + alpha)
    if kind == "tiff":
        extra = {"extrasamples": ["unassalpha"]} if alpha else {}
        data = tiff(colours, photometric="rgb", **extra)
    else:
        data = cv2.imencode(".png", colours[..., [2, 1, 0, 3][: 3 + alpha]])[1].tobytes()
    np.testing.assert_array_equal(read(data, 3), colours[..., :3].astype(np.float32) / 65535)
    if alpha:
        np.testing.assert_array_equal(read(data, 4), colours.astype(np.float32) / 65535)


def test_a_fourth_band_that_is_no_alpha_is_not_dropped():
    near_infrared = values(6, 9, 4, dtype=np.uint8)
    data = tiff(near_infrared, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(read(data, 4), near_infrared)
    with pytest.raises(ImageError, match=r"has 4 channel\(s\), not the 3 of --in-chans"):
        read(data, 3)


def test_alpha_is_dropped_without_touching_the_colours_under_it():
    rgba = values(6, 9, 4, dtype=np.uint8)
    rgba[:3, :, 3] = 0
    for extension in ("png", "tiff"):
        data = saved(Image.fromarray(rgba, "RGBA"), extension)
        np.testing.assert_array_equal(read(data, 3), rgba[..., :3])
        np.testing.assert_array_equal(read(data, 4), rgba)


def test_signed_and_floating_point_tiffs_keep_their_values():
    heights = GENERATOR.normal(size=(6, 9)).astype(np.float32)
    np.testing.assert_array_equal(read(tiff(heights), 1)[..., 0], heights)
    half = heights.astype(np.float16)
    np.testing.assert_array_equal(read(tiff(half), 1)[..., 0], half.astype(np.float32))
    signed = np.array([[-32767, 0, 32767]], dtype=np.int16)
    np.testing.assert_array_equal(read(tiff(signed), 1)[0, :, 0], [-1, 0, 1])
    heights[2, 2] = np.nan
    with pytest.raises(ImageError, match="holds NaN or infinite values"):
        read(tiff(heights), 1)


def test_three_channels_become_one_by_luma():
    rgb = values(20, 30, 3, dtype=np.uint8)
    by_pillow = np.asarray(Image.fromarray(rgb).convert("L")).astype(int)
    luma = read(saved(Image.fromarray(rgb), "png"), 1)
    assert luma.dtype == np.uint8
    assert abs(luma[..., 0].astype(int) - by_pillow).max() <= 1
    exact = read(tiff(rgb.astype(np.float32) / 255, photometric="rgb"), 1)
    np.testing.assert_allclose(exact[..., 0] * 255, luma[..., 0], atol=0.51)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "1"])
def test_grey_palette_and_print_colours_become_rgb(mode):
    image = Image.fromarray(values(6, 9, 3, dtype=np.uint8)).convert(mode)
    data = saved(image, "tiff" if mode == "CMYK" else "png")
    np.testing.assert_array_equal(read(data, 3), np.asarray(image.convert("RGB")))


def test_tiffs_of_8_bits_are_read_with_pillows_compressions():
    rgb = values(6, 9, 3, dtype=np.uint8)
    data = saved(Image.fromarray(rgb), "tiff", compression="tiff_lzw")
    np.testing.assert_array_equal(read(data, 3), rgb)


def test_pages_of_colour_are_refused():
    with pytest.raises(ImageError, match=r"cannot be read: a TIFF of axes .*YXS"):
        read(tiff(values(2, 6, 9, 3, dtype=np.uint8), photometric="rgb"), 3)


@pytest.mark.parametrize("in_chans", [2, 4, 13])
def test_channels_that_no_rule_makes_are_refused(in_chans):
    data = saved(Image.new("RGB", (8, 8)), "png")
    with pytest.raises(
        ImageError, match=rf"3 channel\(s\), not the {in_chans} of --in-chans; only"
    ):
        read(data, in_chans)


@pytest.mark.parametrize("data", [b"", b"no image at all", b"II*\0garbage", b"II*\0\x08\0\0\0"])
def test_what_is_no_image_is_an_image_error(data):
    with pytest.raises(ImageError, match="cannot be read"):
        open_picture(io.BytesIO(data))


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "16-bit png"])
def test_pixels_that_are_cut_off_are_an_image_error(kind):
    array = values(60, 80, 3, dtype=np.uint8)
    if kind == "tiff":
        data = tiff(values(60, 80, 13), photometric="minisblack", planarconfig="contig")
        assert open_picture(io.BytesIO(data)).channels == 13
        data = data[: len(data) // 2] if data[4:8] < (len(data) // 2).to_bytes(4, "little") else b""
    elif kind == "16-bit png":
        data = cv2.imencode(".png", values(60, 80, 3))[1].tobytes()[:3000]
    else:
        data = saved(Image.fromarray(array), kind)[:3000]
    with pytest.raises(ImageError, match=r"does not decode|cannot be read"):
        open_picture(io.BytesIO(data)).pixels()


def test_a_shrunk_jpeg_is_the_same_picture():
    rows, columns = np.mgrid[:128, :192]
    smooth = np.stack([rows, columns, rows + columns], -1) * 255 // 320
    data = saved(Image.fromarray(smooth.astype(np.uint8)), "jpeg", quality=95)
    whole, half = (open_picture(io.BytesIO(data)).pixels(shrink) for shrink in (1, 2))
    assert half.shape == (64, 96, 3)
    by_average = whole.reshape(64, 2, 96, 2, 3).mean((1, 3))
    assert abs(half - by_average).max() < 4
