"""One decoder: 16 bits, grey, colour and rotation, the same for both engines."""

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from small_coco import small_coco, write_small_coco
from small_detector import small_config

from detection.data.transforms import DetectionSamples
from detection.dataset import load_dataset
from images.decode import bits_per_channel, decode_image

GREY = (np.arange(24 * 20, dtype=np.uint16) * 136).reshape(24, 20)  # 0 to 65144
COLOUR = np.stack([GREY, GREY[::-1], 65535 - GREY], -1)  # RGB


def save_png(path, pixels):
    """By OpenCV, for Pillow writes no colour of 16 bits."""
    cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("a.png", save_png),
        ("a.tif", lambda path, pixels: tifffile.imwrite(path, pixels)),
        ("a.tif", lambda path, pixels: tifffile.imwrite(path, pixels, compression="zlib")),
    ],
    ids=["png", "tiff", "compressed tiff"],
)
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_of_16_bits_the_upper_8_are_read_in_grey_as_in_colour(tmp_path, name, save, pixels):
    save(tmp_path / name, pixels)
    expected = (pixels // 256).astype(np.uint8)
    if expected.ndim == 2:
        expected = np.stack([expected] * 3, -1)
    assert np.array_equal(decode_image(tmp_path / name), expected)
    assert np.array_equal(decode_image(tmp_path / name, "BGR"), expected[..., ::-1])
    with Image.open(tmp_path / name) as file:
        assert bits_per_channel(file) == 16


def test_8_bits_are_read_as_they_are_and_turned_as_shown(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned right
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode_image(tmp_path / "a.png"), np.rot90(pixels, -1))
    luma = np.rot90(pixels, -1) @ [0.299, 0.587, 0.114]
    assert np.abs(decode_image(tmp_path / "a.png", "L") - luma).max() <= 1
    with Image.open(tmp_path / "a.png") as file:
        assert bits_per_channel(file) == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (GREY.astype(np.float32), "floating-point values"),
        (GREY.astype(np.int32) - 1, "values from -1 to"),
        (GREY.astype(np.int32) + 1000, "values from 1000 to 66144, beyond 16 bits"),
    ],
)
def test_values_without_a_stated_white_are_refused(tmp_path, values, message):
    tifffile.imwrite(tmp_path / "a.tif", values)
    with pytest.raises(ValueError, match=rf"a\.tif does not decode \(ValueError: {message}"):
        decode_image(tmp_path / "a.tif")


@pytest.mark.detectron2
@pytest.mark.parametrize("channels", ["RGB", "L"])
def test_both_engines_see_the_same_16_bit_image(tmp_path, channels):
    from detection.config import to_detectron2
    from detection.engines.detectron2.data import Mapper

    annotations, images = write_small_coco(tmp_path, small_coco())
    save_png(images / "20.png", np.tile(GREY, (2, 2))[:40, :40])
    dataset = load_dataset(f"json:{annotations}:{images}")
    changes = {"INPUT.FORMAT": channels, "INPUT.MIN_SIZE_TEST": 0}
    if channels == "L":
        changes |= {"MODEL.PIXEL_MEAN": [100.0], "MODEL.PIXEL_STD": [50.0]}
        changes |= {"MODEL.CONVNEXT.IN_CHANS": 1}
    config = small_config(changes)
    ours = DetectionSamples(dataset, config, training=False)[3]["image"]
    theirs = Mapper(to_detectron2(config), is_train=False)(dataset.records[3])["image"]
    assert ours.tolist() == theirs.tolist()
    assert np.array_equal(ours[0], np.tile(GREY, (2, 2))[:40, :40] // 256)
