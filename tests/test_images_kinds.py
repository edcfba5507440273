"""Rare kinds of the formats that the docs name: right values, or one message, never other ones."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from images.files import ImageError, Reading, open_picture
from images.windows import Windows

GENERATOR = np.random.default_rng(0)
HEIGHT, WIDTH = 37, 53


def values(channels: int, dtype: type = np.uint8, most: int | None = None) -> np.ndarray:
    top = most or np.iinfo(dtype).max
    return GENERATOR.integers(0, top, (HEIGHT, WIDTH, channels), endpoint=True).astype(dtype)


def read(data: bytes, channels: int | None = None) -> np.ndarray:
    return Reading(channels).read(open_picture(io.BytesIO(data)))


def tiff(*images: np.ndarray, **settings: object) -> bytes:
    with tifffile.TiffWriter(stream := io.BytesIO()) as writer:
        for number, image in enumerate(images):
            own = settings.pop(f"of_{number}", {})
            writer.write(image, contiguous=False, **{**settings, **own})  # type: ignore[arg-type]
    return stream.getvalue()


def png(pixels: np.ndarray, kind: int, transparent: bytes = b"") -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    between = chunk(b"tRNS", transparent) if transparent else b""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + between
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("transparent", [False, True])
def test_every_kind_of_png_of_16_bits_keeps_its_channels(channels, transparent):
    pixels = values(channels, np.uint16)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    keyed = transparent and channels in (1, 3)  # one value is declared to be transparent
    data = png(pixels, kind, pixels[0, 0].astype(">u2").tobytes() if keyed else b"")
    np.testing.assert_array_equal(np.rint(read(data) * 65535), pixels)
    if channels == 2:
        np.testing.assert_array_equal(np.rint(read(data, 1) * 65535), pixels[..., :1])


@pytest.mark.parametrize("most", [1000, 4095, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pnm_of_text_is_read_without_a_line_end_behind_its_last_number(most, channels):
    pixels = values(channels, np.uint16, most)
    head = f"P{2 if channels == 1 else 3}\n# made by hand\n{WIDTH} {HEIGHT}\n{most}\n"
    data = (head + " ".join(map(str, pixels.ravel().tolist()))).encode()
    np.testing.assert_array_equal(np.rint(read(data) * most), pixels)


@pytest.mark.parametrize("compression", ["lzma", "png", "jpegxr", "jpeg2000"])
def test_tiffs_of_8_bits_that_pillow_cannot_decode_are_read(compression):
    pytest.importorskip("imagecodecs")
    pixels = values(3)
    lossless = {"compressionargs": {"level": 0, "reversible": True}}
    more = lossless if compression == "jpeg2000" else {}
    data = tiff(pixels, photometric="rgb", compression=compression, **more)
    np.testing.assert_array_equal(read(data, 3), tifffile.imread(io.BytesIO(data)))


@pytest.mark.parametrize("channels", [3, 4])
def test_signed_colours_of_8_bits_are_read(channels):
    pixels = values(channels, np.int8)
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    found = read(tiff(pixels, photometric="rgb", **extra))
    np.testing.assert_allclose(found, pixels / np.float32(127), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", [False, True])
def test_cmyk_becomes_rgb_at_any_depth_and_layout(dtype, planar):
    inks, white = values(4, dtype), np.iinfo(dtype).max
    stored = np.moveaxis(inks, -1, 0) if planar else inks
    layout = {"planarconfig": "separate"} if planar else {}
    found = read(tiff(stored, photometric="separated", **layout), 3)
    light = 1 - inks / white
    expected = light[..., :3] * light[..., 3:]
    if dtype == np.uint8:
        by_pillow = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"))
        assert np.abs(found.astype(int) - by_pillow).max() <= 1
    else:
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_colours_multiplied_by_alpha_are_divided_alike_at_8_and_16_bits():
    alpha = values(1, np.uint16, 254) + 1
    colours = np.minimum(values(3, np.uint16, 255), alpha)
    small = np.concatenate([colours, alpha], axis=-1).astype(np.uint8)
    settings = {"photometric": "rgb", "extrasamples": ["assocalpha"]}
    eight = read(tiff(small, **settings), 3) / 255
    sixteen = read(tiff(small.astype(np.uint16) * 257, **settings), 3)
    np.testing.assert_allclose(sixteen, colours / alpha, atol=1e-4)
    assert np.abs(sixteen - eight).max() < 1.01 / 255


@pytest.mark.parametrize("kind", ["cielab", "icclab"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_that_are_no_rgb_are_not_taken_for_it(kind, dtype):
    with pytest.raises(ImageError, match=f"a TIFF of {kind.upper()} colours of uint.*; save RGB"):
        read(tiff(values(3, dtype), photometric=kind), 3)


def test_pages_of_palette_numbers_are_not_taken_for_bands():
    colours = GENERATOR.integers(0, 65535, (3, 256)).astype(np.uint16)
    pages = [values(1)[..., 0] for _ in range(3)]
    with pytest.raises(ImageError, match="PALETTE colours"):
        read(tiff(*pages, photometric="palette", colormap=colours), 3)


def test_bits_are_black_and_white_in_colours_and_pages_too():
    bits = GENERATOR.random((HEIGHT, WIDTH, 3)) > 0.5
    expected = np.where(bits, 255, 0)
    colours = tiff(bits.astype(np.uint8), photometric="rgb", bitspersample=1)
    np.testing.assert_array_equal(read(colours, 3), expected)
    pages = tiff(np.ascontiguousarray(np.moveaxis(bits, -1, 0)))
    np.testing.assert_array_equal(read(pages, 3), expected)


def test_pages_written_one_by_one_are_bands():
    pixels = values(3, np.uint16)
    pages = [np.ascontiguousarray(pixels[..., band]) for band in range(3)]
    data = tiff(*pages, compression="zlib")
    np.testing.assert_array_equal(np.rint(read(data, 3) * 65535), pixels)
    windows = Windows(open_picture(io.BytesIO(data)), Reading(3))
    part = np.rint(windows.read(5, 7, 20, 10) * 65535)
    np.testing.assert_array_equal(part, pixels[7:17, 5:25])


def test_a_smaller_copy_before_or_behind_an_image_is_not_the_image():
    pixels = values(3)
    small = np.ascontiguousarray(pixels[::2, ::2])
    behind = tiff(pixels, small, photometric="rgb")
    before = tiff(small, pixels, photometric="rgb", of_0={"subfiletype": 1})
    np.testing.assert_array_equal(read(behind, 3), pixels)
    np.testing.assert_array_equal(read(before, 3), pixels)


@pytest.mark.parametrize("second", [np.zeros((37, 53), np.uint16), np.zeros((20, 53), np.uint8)])
def test_a_second_image_of_another_kind_is_not_left_out_in_silence(second):
    with pytest.raises(ImageError, match=r"of 2 images \(\[37, 53\] of uint8; \[.*save each"):
        read(tiff(values(1)[..., 0], second))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_integers_of_64_bits_need_a_stated_range(dtype):
    pixels = values(3, dtype, 255)
    np.save(array := io.BytesIO(), pixels)
    for data in (array.getvalue(), tiff(pixels, photometric="rgb")):
        with pytest.raises(ImageError, match=r"of 64 bits, .* white; save 8 to 32 .*--value-r"):
            read(data, 3)
        picture = open_picture(io.BytesIO(data))
        found = Reading(3, value_range=(0, 255)).read(picture)
        np.testing.assert_allclose(found, pixels / 255, atol=1e-7)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (b"\n<!DOCTYPE HTML>\n<html>", "is a web page"),
        (b"hello", "it is no image of a known format; replace or remove it"),
    ],
)
def test_what_stands_in_an_images_place_is_said(data, said):
    with pytest.raises(ImageError, match=said) as found:
        read(data)
    assert "object at 0x" not in str(found.value)
