"""The reader of the ONNX examples, against this project's own: the same values by the same rule."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from image_formats import PIXELS, image_bytes
from PIL import Image
from test_images_files import dicom

from images.files import EIGHT_BITS, Reading, read_image

ROOT = Path(__file__).parent.parent
GREY = PIXELS[..., 0]
BANDS = np.random.default_rng(0).integers(0, 4096, (24, 20, 13)).astype(np.uint16)


def example():
    spec = importlib.util.spec_from_file_location("onnx_images", ROOT / "examples/onnx_images.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiff(pixels, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **{"photometric": "minisblack", **options})
    return stream.getvalue()


def turned_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6
    return image_bytes(".jpg", exif=exif)


def bands(**options):
    return tiff(BANDS, planarconfig="contig", **options)


def png(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()


# file, order of channels, number, range
CASES = {
    "photo.png": (image_bytes(".png"), "RGB", 3, []),
    "turned.jpg": (turned_jpeg(), "RGB", 3, []),
    "turned_raw.jpg": (turned_jpeg(), "raw", 3, []),
    "bgr.png": (image_bytes(".png"), "BGR", 3, []),
    "grey_as_rgb.png": (png(GREY), "RGB", 3, []),
    "rgb_as_grey.png": (image_bytes(".png"), "L", 1, []),
    "deep_grey.png": (png(GREY.astype(np.uint16) * 257), "L", 1, []),
    "deep_grey_as_rgb.png": (png(GREY.astype(np.uint16) * 257), "RGB", 3, []),
    "deep_rgb.png": (image_bytes("16-bit.png"), "RGB", 3, []),
    "deep_rgb_as_bgr.tif": (image_bytes("16-bit.tif"), "BGR", 3, []),
    "12_bits.png": (png(GREY.astype(np.uint16) * 16), "L", 1, [0, 4095]),
    "real.tif": (tiff(np.float32(BANDS[..., :4] / 4095), planarconfig="contig"), "raw", 4, []),
    "bands.tif": (bands(), "raw", 13, []),
    "planes.tif": (tiff(np.moveaxis(BANDS, 2, 0), planarconfig="separate"), "raw", 13, [0, 4095]),
    "pages.tif": (tiff(np.moveaxis(BANDS, 2, 0)), "raw", 13, []),
    "one_band.tif": (tiff(BANDS[..., 0]), "raw", 1, [0, 4095]),
    "turned.tif": (bands(extratags=[(274, 3, 1, 8, True)]), "raw", 13, []),
    "bright_is_0.tif": (tiff(BANDS[..., 0], photometric="miniswhite"), "raw", 1, []),
    "wide.npy": (image_bytes(".npy", BANDS.astype(np.int32)), "raw", 13, [-10, 5000]),
    "8_bits.npy": (image_bytes(".npy"), "raw", 3, [0, 255]),
}


def facts(order, stated):
    return {"channels": order, "value_range": json.dumps(stated)}


@pytest.mark.parametrize("name", CASES)
def test_the_example_reads_a_file_as_training_does(name, tmp_path):
    data, order, channels, stated = CASES[name]
    (tmp_path / name).write_bytes(data)
    found = example().model_input(tmp_path / name, facts(order, stated), channels)
    reading = Reading(
        channels, converts=order != "raw", value_range=(stated[0], stated[1]) if stated else None
    )
    expected = read_image(tmp_path / name, reading)
    assert found.dtype == expected.dtype
    if expected.dtype != np.uint8:
        expected = expected * EIGHT_BITS
    if order == "BGR":
        expected = expected[..., ::-1]
    assert found.shape == expected.shape
    within = 2 if name.endswith(".jpg") or "as_grey" in name else 1e-3  # other decoders, other luma
    np.testing.assert_allclose(found.astype(float), expected, atol=within)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_the_example_reads_dicom_by_its_stored_bits(kind, tmp_path):
    (tmp_path / "a.dcm").write_bytes(dicom(BANDS[..., 0], 12, kind))
    found = example().model_input(tmp_path / "a.dcm", facts("raw", []), 1)
    np.testing.assert_allclose(
        found, EIGHT_BITS * read_image(tmp_path / "a.dcm", Reading(1)), atol=1e-3
    )


@pytest.mark.parametrize(
    ("pixels", "stated", "said"),
    [
        (np.full((4, 4, 3), np.nan, np.float32), [], "holds NaN or infinite values"),
        (BANDS, [0, 4000], "holds values from 0 to 409"),
        (BANDS[..., :2], [], "has 2 channels, not the 13 that the model takes"),
    ],
)
def test_the_example_says_what_it_cannot_take_and_cuts_nothing(pixels, stated, said, tmp_path):
    np.save(tmp_path / "a.npy", pixels)
    wanted = 3 if "NaN" in said else 13
    with pytest.raises(SystemExit, match=f"a.npy {said}"):
        example().model_input(tmp_path / "a.npy", facts("raw", stated), wanted)
