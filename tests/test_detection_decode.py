"""Images of any number of channels and any depth: read, resized and trained on by both engines."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tifffile
import torch
from image_formats import image_bytes
from PIL import Image
from small_coco import small_coco, write_small_coco
from small_detector import prediction_sample, small_config

from detection.data.pixels import read_record
from detection.data.transforms import DetectionSamples
from detection.dataset import load_dataset
from images.display import read_shown, shown
from images.resizing import resized
from training.data import seed_generators

GENERATOR = np.random.default_rng(0)
GREY = (np.arange(24 * 20, dtype=np.uint16) * 136).reshape(24, 20)  # 0 to 65144
COLOUR = np.stack([GREY, GREY[::-1], 65535 - GREY], -1)  # RGB
PLAIN = {"INPUT.MIN_SIZE_TEST": 0}
RAW4 = {
    "INPUT.FORMAT": "raw",
    "MODEL.CONVNEXT.IN_CHANS": 4,
    "MODEL.PIXEL_MEAN": [100.0, 110.0, 120.0, 130.0],
    "MODEL.PIXEL_STD": [50.0, 51.0, 52.0, 53.0],
}


def record_of(path, height=24, width=20):
    return {"file_name": str(path), "height": height, "width": width, "image_id": 1}


def save_png(path, pixels):
    """By OpenCV, for Pillow writes no colour of 16 bits."""
    cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)


def save_bands(path, pixels):
    if pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    planes = "contig" if pixels.ndim == 3 else None
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig=planes)


def write_bands(folder, channels=4, dtype=np.float32):
    """The small data set, its images with this number of bands; values of floats are in 0..1."""
    annotations, images = write_small_coco(folder)
    for image in small_coco()["images"]:
        path = images / image["file_name"]
        values = GENERATOR.random((image["height"], image["width"], channels))
        whole = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
        save_bands(path, (values * whole).astype(dtype))  # the name's ending does not matter
    return f"json:{annotations}:{images}"


@pytest.mark.parametrize("ending", ["png", "tif", "compressed tif"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_of_16_bits_every_level_is_read_in_grey_as_in_colour(tmp_path, ending, pixels):
    path = tmp_path / "a"
    if ending == "png":
        path = tmp_path / "a.png"
        save_png(path, pixels)
    else:
        settings = {"compression": "zlib"} if "compressed" in ending else {}
        tifffile.imwrite(path, pixels, **settings)
    expected = np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels
    found = read_record(record_of(path), small_config())
    np.testing.assert_array_equal(np.rint(found * 65535), expected)
    for channels in ("RGB", "BGR"):
        config = small_config(PLAIN | {"INPUT.FORMAT": channels})
        image = DetectionSamples(one_image(path), config, training=False)[0]["image"]
        order = expected if channels == "RGB" else expected[..., ::-1]
        np.testing.assert_allclose(image, order.transpose(2, 0, 1) / 257, rtol=1e-6)


def one_image(path):
    return SimpleNamespace(records=[record_of(path) | {"annotations": []}])


def test_8_bits_are_read_as_they_are_and_turned_as_shown(tmp_path):
    pixels = GENERATOR.integers(0, 256, (24, 20, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned right
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    record = record_of(tmp_path / "a.png", 20, 24)
    found = read_record(record, small_config())
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.rot90(pixels, -1))
    grey = {"INPUT.FORMAT": "L", "MODEL.CONVNEXT.IN_CHANS": 1}
    luma = np.asarray(Image.fromarray(np.ascontiguousarray(np.rot90(pixels, -1))).convert("L"))
    np.testing.assert_array_equal(read_record(record, small_config(grey))[..., 0], luma)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_floats_and_many_bands_are_resized_as_8_bit_grey_is(channels, resample):
    eight = GENERATOR.integers(64, 192, (37, 53, channels), dtype=np.uint8)  # nothing is cut
    bands = [
        np.asarray(Image.fromarray(np.ascontiguousarray(eight[..., c])).resize((30, 21), resample))
        for c in range(channels)
    ]
    np.testing.assert_array_equal(resized(eight, 21, 30, resample), np.stack(bands, -1))
    deep = resized(eight.astype(np.float32) / 255, 21, 30, resample)
    assert deep.dtype == np.float32
    worst = np.abs(deep.clip(0, 1) * 255 - np.stack(bands, -1)).max()
    assert worst < 1.01  # 8 bits are rounded between the two directions
    assert len(np.unique(deep)) > 256


def test_a_stated_range_is_read_as_0_to_255(tmp_path):
    save_png(tmp_path / "a.png", (GREY // 16) % 4096)
    config = small_config(PLAIN | {"INPUT.VALUE_RANGE": [0, 4095]})
    image = DetectionSamples(one_image(tmp_path / "a.png"), config, training=False)[0]["image"]
    np.testing.assert_allclose(image[0] * 4095 / 255, (GREY // 16) % 4096, atol=1e-3)


def test_a_16_bit_copy_of_an_8_bit_image_is_the_same_sample(tmp_path):
    pixels = GENERATOR.integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "eight.png")
    save_png(tmp_path / "deep.png", pixels.astype(np.uint16) * 257)
    eight, deep = (
        DetectionSamples(one_image(tmp_path / name), small_config(PLAIN), training=False)[0]
        for name in ("eight.png", "deep.png")
    )
    assert eight["image"].dtype == torch.uint8
    torch.testing.assert_close(deep["image"], eight["image"].float(), atol=2e-5, rtol=0)


def test_an_array_is_predicted_on_as_its_file(tmp_path):
    pixels = GENERATOR.integers(0, 65536, (24, 20, 4)).astype(np.uint16)
    (tmp_path / "a.npy").write_bytes(image_bytes(".npy", pixels))
    config = small_config(RAW4)
    sample = DetectionSamples(one_image(tmp_path / "a.npy"), config, training=False)[0]
    assert torch.equal(prediction_sample(pixels, config, 1)["image"], sample["image"])
    with pytest.raises(ValueError, match=r"has 4 channel\(s\), not the 3 of INPUT.FORMAT 'RGB'.*"):
        prediction_sample(pixels, small_config(), 1)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda v: np.where(v > 0.5, np.nan, v), "holds NaN or infinite values"),
        (lambda v: v[..., :3], r"has 3 channel\(s\), not the 4 of INPUT.FORMAT 'raw'"),
        (lambda v: v * 9000, "holds values from .* to 8.*, beyond the 0 to 1 of INPUT.VALUE_RANGE"),
    ],
    ids=["NaN", "bands", "range"],
)
def test_bad_values_are_one_message_before_a_training(tmp_path, write, said):
    from detection.run import run

    name = write_bands(tmp_path)
    images = name.rpartition(":")[2]
    values = tifffile.imread(f"{images}/7.png")
    save_bands(f"{images}/7.png", write(values).astype(np.float32))
    config = small_config(
        RAW4
        | {"INPUT.VALUE_RANGE": [0, 1], "DATASETS.TRAIN": (name,)}
        | {"OUTPUT_DIR": str(tmp_path / "run"), "MODEL.ROI_HEADS.NUM_CLASSES": 0}
    )
    with pytest.raises(ValueError, match=said) as caught:
        run(config)
    assert "7.png" in str(caught.value)
    assert not (tmp_path / "run/metrics.json").exists()


def test_a_set_of_several_band_counts_and_depths_is_named_by_the_check(tmp_path, run_tool):
    name = write_bands(tmp_path)
    _, annotations, images = name.split(":")
    values = tifffile.imread(f"{images}/7.png")
    save_bands(f"{images}/7.png", (values[..., :2] * 65535).astype(np.uint16))
    done = run_tool("check_dataset", annotations, "--images", images)
    assert done.code == 1
    assert "has 2 channel(s), but 3 other images have 4" in done.out
    assert "has 16 bits a channel, but 3 other images have real numbers" in done.out


def test_pictures_of_deep_images_are_stretched_and_show_chosen_bands(tmp_path):
    pixels = np.zeros((24, 20, 5), np.float32)
    pixels[..., 4] = np.linspace(0.2, 0.21, 480).reshape(24, 20)
    picture = shown(pixels, [5, 1, 1])
    assert picture.dtype == np.uint8
    assert (picture[..., 0].min(), picture[..., 0].max()) == (0, 255)
    assert not picture[..., 1:].any()
    save_bands(tmp_path / "a.tif", pixels)
    np.testing.assert_array_equal(read_shown(tmp_path / "a.tif", [5, 1, 1]), picture)
    np.testing.assert_array_equal(shown(pixels, [5]), picture[..., :1].repeat(3, -1))
    with pytest.raises(ValueError, match=r"has 5 channel\(s\), but bands to show are \[6\]"):
        shown(pixels, [6])
    eight = GENERATOR.integers(0, 256, (24, 20, 3), dtype=np.uint8)
    np.testing.assert_array_equal(shown(eight), eight)
    assert shown(np.flip(eight, 1)).flags.c_contiguous  # OpenCV draws on no other
    rgba = np.dstack([eight, eight[..., 0]])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_shown(tmp_path / "a.png"), eight)


@pytest.mark.detectron2
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        RAW4,
        RAW4 | {"INPUT.LSJ.ENABLED": True, "INPUT.LSJ.SIZE": 64},
        {"INPUT.FORMAT": "BGR"},
        {"INPUT.FORMAT": "L", "MODEL.CONVNEXT.IN_CHANS": 1}
        | {"MODEL.PIXEL_MEAN": [100.0], "MODEL.PIXEL_STD": [50.0]},
    ],
    ids=["4 floats", "4 floats with jitter", "BGR", "L"],
)
def test_both_engines_see_the_same_deep_images(tmp_path, changes, training):
    from detection.config import to_detectron2
    from detection.engines.detectron2.data import Mapper

    config = small_config(changes)
    channels = config.MODEL.CONVNEXT.IN_CHANS
    name = write_bands(tmp_path, channels, np.float32 if channels == 4 else np.uint16)
    dataset = load_dataset(name)
    ours = DetectionSamples(dataset, config, training)
    theirs = Mapper(to_detectron2(config), is_train=training)
    for index in range(3):
        seed_generators(index)
        image = ours[index]["image"]
        seed_generators(index)
        record = ours.records[index]
        assert image.dtype == torch.float32
        assert torch.equal(image, theirs(record)["image"])


@pytest.mark.detectron2
@pytest.mark.parametrize(("channels", "dtype"), [(4, torch.uint8), (13, torch.uint8), (3, None)])
def test_test_time_augmentation_keeps_every_channel_and_level(channels, dtype):
    from detection.config import to_detectron2
    from detection.engines.detectron2.results import AugmentAny

    changes = {"TEST.AUG.MIN_SIZES": (20, 50), "ENGINE": "detectron2"}
    image = torch.from_numpy(GENERATOR.integers(64, 192, (channels, 40, 30))).to(torch.uint8)
    if dtype is None:
        image = image + torch.from_numpy(GENERATOR.random((channels, 40, 30))).float()
    sample = {"image": image, "height": 40, "width": 30}
    found = AugmentAny(to_detectron2(small_config(changes)))(sample)
    assert [tuple(s["image"].shape) for s in found] == [
        *[(channels, 27, 20)] * 2, *[(channels, 67, 50)] * 2
    ]  # fmt: skip
    for plain, flipped in (found[:2], found[2:]):
        size = plain["image"].shape[1:]
        pixels = image.permute(1, 2, 0).numpy()
        expected = resized(pixels, *size, Image.Resampling.BILINEAR).transpose(2, 0, 1)
        np.testing.assert_array_equal(plain["image"], expected)
        np.testing.assert_array_equal(flipped["image"], expected[..., ::-1])
        assert plain["image"].dtype == image.dtype
