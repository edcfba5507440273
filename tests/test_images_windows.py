"""Images part by part: every part is that of the whole image, and memory stays bounded."""

import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from images.files import ImageError, Reading, read_image
from images.windows import open_windows

HEIGHT, WIDTH = 150, 230
PARTS = [(0, 0, WIDTH, HEIGHT), (17, 33, 64, 50), (200, 100, 30, 50), (63, 64, 1, 1)]


def pixels(channels, dtype=np.uint8, seed=0):
    top = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    values = np.random.default_rng(seed).random((HEIGHT, WIDTH, channels)) * top
    return values.astype(dtype).squeeze()


TIFFS = {
    "rgb tiles": (pixels(3), {"tile": (32, 48), "compression": "zlib"}),
    "rgb strips": (pixels(3), {"rowsperstrip": 13, "compression": "zlib", "predictor": True}),
    "rgb contiguous": (pixels(3), {}),
    "rgb one strip": (pixels(3), {"rowsperstrip": HEIGHT, "compression": "zlib"}),
    "rgba": (pixels(4), {"tile": (32, 48), "photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "premultiplied": (
        pixels(4),
        {"tile": (32, 48), "photometric": "rgb", "extrasamples": ["assocalpha"]},
    ),
    "grey": (pixels(1), {"tile": (64, 64), "compression": "lzw"}),
    "white is 0": (pixels(1), {"tile": (64, 64), "photometric": "miniswhite"}),
    "white is 0, 16 bits": (
        pixels(1, np.uint16),
        {"rowsperstrip": 9, "photometric": "miniswhite", "compression": "zlib"},
    ),
    "grey 16 bits": (pixels(1, np.uint16), {"tile": (64, 64)}),
    "rgb 16 bits, big endian": (pixels(3, np.uint16), {"tile": (64, 64), "byteorder": ">"}),
    "16 bits contiguous, big endian": (pixels(1, np.uint16), {"byteorder": ">"}),
    "7 bands": (
        pixels(7, np.uint16),
        {"tile": (64, 64), "photometric": "minisblack", "planarconfig": "contig"},
    ),
    "7 bands by planes": (
        pixels(7, np.uint16).transpose(2, 0, 1),
        {"photometric": "minisblack", "planarconfig": "separate", "compression": "zlib"},
    ),
    "5 pages": (pixels(5, np.uint16).transpose(2, 0, 1), {"photometric": "minisblack"}),
    "5 compressed pages": (
        pixels(5).transpose(2, 0, 1),
        {"photometric": "minisblack", "tile": (64, 64), "compression": "zlib"},
    ),
    "real numbers": (pixels(1, np.float32), {"tile": (64, 64)}),
    "jpeg": (pixels(3), {"tile": (64, 64), "compression": "jpeg"}),
    "palette": (
        pixels(1),
        {"photometric": "palette", "colormap": np.arange(768, dtype=np.uint16).reshape(3, 256)},
    ),
    "big": (pixels(3), {"tile": (64, 64), "bigtiff": True}),
    "imagej": (pixels(3, np.uint16).transpose(2, 0, 1), {"imagej": True}),
}
WHOLE = {"premultiplied", "palette"}  # have no parts


@pytest.mark.parametrize("name", TIFFS)
def test_parts_of_a_tiff_are_those_of_the_whole(tmp_path, name):
    array, options = TIFFS[name]
    byteorder = options.pop("byteorder", None)
    how = {"byteorder": byteorder} if byteorder else {}
    big, imagej = options.pop("bigtiff", False), options.pop("imagej", False)
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=big, imagej=imagej, **how) as writer:
        writer.write(array, **options)
    grey_or_rgb = array.ndim == 2 or array.shape[-1] in (3, 4)
    for reading in (Reading(None), Reading(3) if grey_or_rgb else Reading(None)):
        whole = read_image(tmp_path / "a.tif", reading)
        with open_windows(tmp_path / "a.tif", reading) as image:
            assert (image.height, image.width) == (HEIGHT, WIDTH)
            assert image.by_parts is (name not in WHOLE)
            for x, y, width, height in PARTS:
                part = image.read(x, y, width, height)
                assert part.dtype == whole.dtype
                np.testing.assert_array_equal(part, whole[y : y + height, x : x + width])
            np.testing.assert_array_equal(np.concatenate(list(image.bands(31))), whole)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".npy", ".bmp"])
def test_parts_of_other_formats_are_those_of_the_whole(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, pixels(4, np.uint16))
    else:
        Image.fromarray(pixels(3)).save(path)
    whole = read_image(path, Reading(None))
    with open_windows(path, Reading(None)) as image:
        assert image.by_parts is (suffix == ".npy")
        for x, y, width, height in PARTS:
            part = image.read(x, y, width, height)
            np.testing.assert_array_equal(part, whole[y : y + height, x : x + width])


def test_a_turned_image_is_read_as_shown(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels(3), extratags=[(274, "H", 1, 6, True)])
    whole = read_image(tmp_path / "a.tif", Reading(None))
    with open_windows(tmp_path / "a.tif", Reading(None)) as image:
        assert (image.height, image.width) == (WIDTH, HEIGHT)
        np.testing.assert_array_equal(image.read(9, 20, 40, 50), whole[20:70, 9:49])


def test_segments_that_the_file_leaves_out_are_black(tmp_path):
    def tiles():
        yield from (pixels(3)[:64, :64] if place == 0 else None for place in range(12))

    shape = (192, 256, 3)
    tifffile.imwrite(
        tmp_path / "a.tif",
        tiles(),
        shape=shape,
        dtype=np.uint8,
        tile=(64, 64),
        photometric="rgb",
        compression="zlib",
    )
    with open_windows(tmp_path / "a.tif", Reading(3)) as image:
        whole = image.read(0, 0, 256, 192)
    assert not whole[:, 64:].any()
    assert not whole[64:].any()
    np.testing.assert_array_equal(whole[:64, :64], pixels(3)[:64, :64])


def test_a_shrunk_image_is_the_mean_over_squares(tmp_path):
    array = pixels(3)[:, :224]
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(32, 48))
    with open_windows(tmp_path / "a.tif", Reading(3)) as image:
        shrunk = image.shrunk(array.shape[0] * array.shape[1] // 4)
    means = array[:150].reshape(75, 2, 112, 2, 3).mean((1, 3))
    assert np.abs(shrunk - means).max() <= 1
    with open_windows(tmp_path / "a.tif", Reading(3)) as image:
        np.testing.assert_array_equal(image.shrunk(array.size), array)


def test_a_damaged_part_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels(3), tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[1]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 40)
    with open_windows(path, Reading(3)) as image:
        image.read(0, 0, 50, 50)
    with (
        pytest.raises(ImageError, match=r"a\.tif does not decode"),
        open_windows(path, Reading(3)) as image,
    ):
        image.read(60, 0, 50, 50)


def test_what_is_too_large_to_be_whole_is_read_by_parts(tmp_path):
    path = tmp_path / "a.tif"
    side = 16384  # 268 million pixels, most of them left out
    tifffile.imwrite(
        path,
        (np.full((512, 512), 7, np.uint8) if place in (0, 33) else None for place in range(1024)),
        shape=(side, side),
        dtype=np.uint8,
        tile=(512, 512),
        compression="zlib",
        photometric="minisblack",
    )
    with pytest.raises(ImageError, match=r"16384 x 16384 pixels.*part by part"):
        read_image(path, Reading(1))
    with open_windows(path, Reading(1)) as image:
        assert image.by_parts
        part = image.read(512, 511, 3, 3)
        assert part[..., 0].tolist() == [[0, 0, 0], [7, 7, 7], [7, 7, 7]]


def test_memory_of_parts_does_not_grow_with_the_image(tmp_path):
    code = f"""
    import numpy as np, tifffile, tracemalloc
    from images import windows
    from images.decoders import tiff_segments
    from images.files import Reading
    from images.windows import open_windows
    tiff_segments.KEPT, windows.BAND_VALUES = 2**24, 2**22
    path = {str(tmp_path / "a.tif")!r}
    tile = np.full((512, 512, 3), 777, np.uint16)
    for side in (3072, 6144):
        tiles = (tile for _ in range((side // 512) ** 2))
        tifffile.imwrite(path, tiles, shape=(side, side, 3), dtype=np.uint16, tile=(512, 512),
                         compression="zlib", photometric="rgb")
        tracemalloc.start()
        with open_windows(path, Reading(3)) as image:
            for y in range(0, side - 1023, 1024):
                for x in range(0, side - 1023, 1024):
                    image.read(x, y, 1024, 1024)
            image.shrunk(2**20)
        print(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    small, large = map(int, subprocess.check_output(run).split())
    assert large < 1.3 * small
    assert large < 6144**2 * 6 / 2  # of the whole, as it is stored


@pytest.mark.parametrize("side", [14_000, 20_000])  # Pillow warns of the one, refuses the other
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_too_large_to_be_decoded_whole_is_told_the_format_that_is_read_by_parts(
    tmp_path, side
):
    head = b"IHDR" + struct.pack(">II5B", side, side, 8, 0, 0, 0, 0)
    parts = [
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (head, b"IDAT" + zlib.compress(b""), b"IEND")
    ]
    file = tmp_path / "large.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    words = r"large.png cannot be read: it claims .*limit of 178956970 pixels; .*save it as a TIFF"
    with pytest.raises(ImageError, match=words), open_windows(file, Reading(1, by_parts=True)):
        pass
