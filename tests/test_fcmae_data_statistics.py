from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torchvision.transforms.v2.functional import normalize

from fcmae.data import pretraining_samples
from fcmae.pretrain_options import PretrainOptions
from images.statistics import IMAGENET, Statistics, choose_statistics, measure

GENERATOR = np.random.default_rng(0)


def write_bands(folder, images=5, bands=13):
    """TIFFs of 16 bits and different sizes; returns all their pixels, ``[N, bands]`` in 0..1."""
    folder.mkdir()
    pixels = []
    for number in range(images):
        shape = (20 + 8 * number, 30, bands)
        array = GENERATOR.integers(0, 400 * np.arange(1, bands + 1), shape).astype(np.uint16)
        array += np.uint16(1000 * number)
        tifffile.imwrite(
            folder / f"{number}.tif", array, photometric="minisblack", planarconfig="contig"
        )
        pixels.append(array.reshape(-1, bands) / 65535)
    return np.concatenate(pixels)


def samples_of(folder, in_chans, **options):
    return pretraining_samples(str(folder), (32, 32), 0.6, in_chans, **options)


def chosen(samples, mean=None, std=None, choice="auto"):
    return choose_statistics(samples, mean, std, choice, images=100, seed=0, workers=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_measured_statistics_are_those_of_all_pixels(tmp_path, workers):
    pixels = write_bands(tmp_path / "bands")
    statistics = measure(samples_of(tmp_path / "bands", 13), images=100, seed=0, workers=workers)
    np.testing.assert_allclose(statistics.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(statistics.std, pixels.std(0), rtol=1e-6)
    assert statistics.origin == "measured over 5 of 5 images"


def test_eight_bit_values_are_measured_on_the_scale_of_0_to_1(image_folder):
    pixels = [np.array(Image.open(f)).reshape(-1, 3) / 255 for f in image_folder.rglob("*.png")]
    statistics = measure(samples_of(image_folder, 3), images=100, seed=0)
    np.testing.assert_allclose(statistics.mean, np.concatenate(pixels).mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, np.concatenate(pixels).std(0), rtol=1e-12)


def test_a_sample_of_the_images_is_drawn_by_the_seed_and_said(image_folder):
    samples = samples_of(image_folder, 3)
    first, again, other = (measure(samples, images=4, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.origin == "measured over 4 of 12 images"


def test_bad_images_are_not_measured(tmp_path):
    pixels = write_bands(tmp_path / "bands")
    (tmp_path / "bands/9.tif").write_bytes(b"")
    samples = samples_of(tmp_path / "bands", 13, skip_bad_images=True)
    statistics = measure(samples, images=100, seed=0)
    np.testing.assert_allclose(statistics.mean, pixels.mean(0), rtol=1e-6)
    assert statistics.origin == "measured over 5 of 6 images"


def test_a_constant_channel_cannot_be_normalised(tmp_path):
    array = GENERATOR.integers(0, 65536, (32, 32, 3)).astype(np.uint16)
    array[..., 1] = 7
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb")
    with pytest.raises(ValueError, match=r"channel\(s\) 1 \(from 0\) have the same value in all 1"):
        measure(samples_of(tmp_path, 3), images=9, seed=0)


def test_auto_is_imagenets_for_rgb_of_8_bits_alone(image_folder, tmp_path, caplog):
    caplog.set_level("INFO", "images")
    assert chosen(samples_of(image_folder, 3)) == IMAGENET
    assert chosen(samples_of(image_folder, 1)).origin == "measured over 12 of 12 images"
    assert "these images have 1 of 8 bits" in caplog.text
    write_bands(tmp_path / "rgb16", bands=3)
    assert chosen(samples_of(tmp_path / "rgb16", 3)).origin == "measured over 5 of 5 images"
    assert chosen(samples_of(tmp_path / "rgb16", 3), choice="imagenet") == IMAGENET
    assert chosen(samples_of(image_folder, 3), choice="measure").origin.startswith("measured")


def test_given_statistics_must_be_on_the_scale_of_0_to_1(image_folder):
    samples = samples_of(image_folder, 3)
    given = chosen(samples, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert given == Statistics((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "given")
    with pytest.raises(ValueError, match=r"--mean 123\.7 .* divide values of 8 bits by 255"):
        chosen(samples, [123.7, 116.3, 103.5], [58.4, 57.1, 57.4])


def test_normalised_images_are_torchvisions():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = normalize(images / 255, IMAGENET.mean, IMAGENET.std)
    before = images.clone()
    torch.testing.assert_close(IMAGENET.normalise(images), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(images, before)
    scaled = images / 255
    kept = scaled.clone()
    torch.testing.assert_close(IMAGENET.normalise(scaled), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(scaled, kept)


def test_faint_images_are_shown_with_their_contrast():
    assert IMAGENET.shown() == (IMAGENET.mean, IMAGENET.std)
    assert Statistics((0.03,) * 4, (0.01,) * 4, "measured").shown() == ((0.5,) * 4, (0.25,) * 4)


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({"mean": (0.5,)}, ["--mean is given without --std", "--mean has 1 value(s) for 3"]),
        ({"std": (0.2, 0.2, 0.2)}, ["--std is given without --mean; give both or neither"]),
        (
            {"mean": (0.5,) * 3, "std": (0.2, 0.0, 0.2), "statistics": "measure"},
            ["--std is 0.2 0.0 0.2; each value must be positive", "--statistics measure asks for"],
        ),
        ({"in_chans": 13, "statistics": "imagenet"}, ["has 3 channels; --in-chans is 13: measure"]),
        (
            {"in_chans": 0, "batch_size": 0, "image_size": (100, 64), "mask_ratio": 1.5},
            ["in_chans is 0", "batch_size is 0", "image height is 100", "mask ratio is 1.5"],
        ),
        (
            {"precision": "fp16", "device": "cpu", "epochs": 0},
            ["fp16 needs an NVIDIA GPU", "epochs is 0"],
        ),
    ],
)
def test_all_contradicting_options_are_named_at_once(options, messages):
    with pytest.raises(ValueError, match=r".") as caught:
        PretrainOptions(model="m", data="d", output_dir="o", **options)
    for message in messages:
        assert message in str(caught.value)
