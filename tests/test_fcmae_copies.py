"""Shrunk copies of large images: exact means, no crop enlarged, bounded, made anew on a change."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from fcmae import copies
from fcmae.copies import HEADERS, shrink_factor
from fcmae.data import CROP_RATIO, CROP_SCALE, pretraining_samples
from training.data import SampleKey, SeededSamples

HEIGHT, WIDTH = 480, 600  # a factor of 6 for samples of 32 pixels


def write_images(folder: Path, count: int = 2, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}{suffix}")
    return folder


def samples_of(folder: Path, cache: Path | None, **options):
    return pretraining_samples(str(folder), [32, 32], 0.5, cache=cache, **options)


@pytest.mark.parametrize("size", [(480, 640), (3000, 4000), (5000, 700), (300, 4000), (100, 100)])
def test_no_crop_that_training_draws_from_a_copy_is_enlarged(size):
    factor = shrink_factor(*size, (32, 32))
    image = torch.empty((1, size[0] // factor, size[1] // factor), device="meta")
    for _ in range(500):
        crop = RandomResizedCrop.get_params(image, CROP_SCALE, CROP_RATIO)
        assert min(crop[2:]) >= 31  # 32, but for the rounding of its sides


def test_a_copy_is_the_mean_of_whole_squares_of_the_image(tmp_path):
    folder = write_images(tmp_path / "images", 1)
    samples = samples_of(folder, tmp_path / "cache")
    copy = samples.copies.open(0)
    factor = shrink_factor(HEIGHT, WIDTH, (32, 32))
    assert factor == 6
    pixels = np.asarray(Image.open(folder / "0.png")).astype(float)
    means = pixels.reshape(HEIGHT // factor, factor, WIDTH // factor, factor, 3).mean((1, 3))
    assert copy.dtype == np.uint8
    assert np.abs(copy - means).max() <= 0.5 + 1e-6


def test_samples_come_from_the_copy_and_without_it_from_the_image(tmp_path):
    folder = write_images(tmp_path / "images", 1)
    samples = SeededSamples(samples_of(folder, tmp_path / "cache"), seed=0)
    plain = SeededSamples(samples_of(folder, None), seed=0)
    copy = samples.samples.copies._paths[0]
    found = samples[SampleKey(0, 0)][1]
    np.save(copy, np.full_like(np.load(copy), 7))
    assert (samples[SampleKey(0, 0)][1][0] == 7).all()
    copy.unlink()
    again = samples[SampleKey(0, 0)][1]
    assert torch.equal(again[0], plain[SampleKey(0, 0)][1][0])
    assert torch.equal(again[1], found[1])  # masks are the same with and without


@pytest.mark.parametrize(("dtype", "value_range"), [(np.uint16, None), (np.uint16, (0.0, 4095.0))])
def test_deep_images_keep_their_scale_in_copies(dtype, value_range, tmp_path):
    (tmp_path / "images").mkdir()
    top = 65535 if value_range is None else 4095
    np.save(tmp_path / "images" / "a.npy", np.full((HEIGHT, WIDTH, 3), top // 3, dtype))
    samples = samples_of(tmp_path / "images", tmp_path / "cache", value_range=value_range)
    assert samples.copies.open(0) is not None
    image, _, _ = samples[0]
    torch.testing.assert_close(image, torch.full_like(image, (top // 3) / top))


def test_a_second_start_makes_nothing_and_a_changed_file_makes_its_copy_anew(tmp_path, monkeypatch):
    folder, cache = write_images(tmp_path / "images"), tmp_path / "cache"
    samples_of(folder, cache)
    first = set(cache.rglob("*.npy"))
    opened = []
    monkeypatch.setattr(copies, "open_windows", lambda *a: pytest.fail("made again"))
    monkeypatch.setattr("fcmae.data.opened_picture", lambda *a: opened.append(a))
    samples_of(folder, cache)
    assert not opened  # headers are remembered
    monkeypatch.undo()
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(folder / "0.png")
    os.utime(folder / "0.png", ns=(1, 1))
    samples = samples_of(folder, cache)
    assert len(set(cache.rglob("*.npy")) - first) == 1
    assert (samples.copies.open(0)[..., 0] == 255).all()


def test_small_images_have_no_copy_and_a_full_folder_is_said(tmp_path, caplog):
    folder, cache = write_images(tmp_path / "images", 3), tmp_path / "cache"
    Image.new("RGB", (40, 40)).save(folder / "small.png")
    one = (HEIGHT // 6) * (WIDTH // 6) * 3 / 1e9
    with caplog.at_level(logging.WARNING):
        samples = samples_of(folder, cache, cache_gb=2.5 * one)
    assert "1 image without a copy" in caplog.text
    assert [samples.copies.open(index) is not None for index in range(4)] == [True, True] + [
        False
    ] * 2
    assert samples[2][0].shape == (3, 32, 32)


def test_a_bad_file_is_refused_on_every_start_and_never_remembered_as_good(tmp_path):
    folder, cache = write_images(tmp_path / "images"), tmp_path / "cache"
    (folder / "bad.png").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"bad\.png"):
            samples_of(folder, cache)
    samples = samples_of(folder, cache, skip_bad_images=True)
    assert list(samples.bad) == [2]
    known = json.loads((cache / HEADERS).read_text(encoding="utf-8"))["files"]
    assert sorted(Path(name).name for name in known) == ["0.png", "1.png"]


def test_a_damaged_cache_file_of_headers_is_read_as_none(tmp_path):
    folder, cache = write_images(tmp_path / "images", 1), tmp_path / "cache"
    cache.mkdir()
    for text in ("{", "[]", '{"of": 1}'):
        (cache / HEADERS).write_text(text, encoding="utf-8")
        assert not samples_of(folder, cache).bad


def test_copies_of_shards_are_refused(tmp_path):
    import tarfile

    folder = write_images(tmp_path / "images", 1)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder / "0.png", "0.png")
    with pytest.raises(ValueError, match=r"--cache .* keeps copies of files"):
        samples_of(tmp_path / "a.tar", tmp_path / "cache")


def test_large_tiffs_give_the_same_crops_by_parts(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "images", 1, ".tif")
    samples = SeededSamples(samples_of(folder, None), seed=0)
    whole = samples[SampleKey(0, 0)][1][0]
    monkeypatch.setattr("fcmae.data.LARGE", 0)
    assert torch.equal(samples[SampleKey(0, 0)][1][0], whole)
