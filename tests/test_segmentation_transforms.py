"""Augmentation and inference: geometry, the recipe's rules, and windows against naive sums."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from segmentation.config import augmentation, load_config
from segmentation.inference import InferenceOptions, segment, starts, window_logits
from segmentation.transforms import (
    Augmentation,
    distorted,
    fitted,
    padded,
    resize_image,
    resize_labels,
)
from segmentation.upernet import IGNORED


def scene(height=120, width=200, channels=3, dtype=np.uint8):
    labels = np.zeros((height, width), np.uint8)
    labels[:, width // 2 :] = 1
    labels[height // 2 :, : width // 4] = 2
    image = np.repeat(labels[..., None] * 60 + 20, channels, 2)
    return image.astype(dtype), labels


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_image_and_labels_stay_on_each_other_for_any_channels(channels, dtype):
    image, labels = scene(channels=channels, dtype=dtype)
    augment = Augmentation((200, 120), (0.5, 2.0), (96, 96), distort=False)
    for seed in range(5):
        random.seed(seed)
        drawn, truth = augment(image, labels)
        assert drawn.shape == (96, 96, channels)
        assert drawn.dtype == dtype
        assert truth.shape == (96, 96)
        known = truth != IGNORED
        near = np.abs(drawn[..., 0].astype(float) - (truth.astype(float) * 60 + 20)) < 35
        assert near[known].mean() > 0.95  # but for edges, where colours mix
        assert (drawn[~known] == 0).all()


def test_a_crop_is_drawn_anew_while_one_class_fills_it(monkeypatch):
    labels = np.zeros((64, 640), np.uint8)
    labels[:, 600:] = 1
    image = np.zeros((64, 640, 3), np.uint8)
    augment = Augmentation((640, 64), (1.0, 1.0), (64, 64), distort=False)

    def share_of_mixed_crops() -> float:
        random.seed(0)
        crops = [augment(image, labels)[1] for _ in range(200)]
        return float(np.mean([(crop == 1).mean() > 0.25 for crop in crops]))

    drawn_anew = share_of_mixed_crops()
    monkeypatch.setattr("segmentation.transforms.CROP_TRIES", 1)
    assert share_of_mixed_crops() < 0.1  # by geometry 25 of 577 places
    assert drawn_anew > 0.25  # of ten tries one fits with a probability of 0.36


def test_samples_are_functions_of_the_seed():
    image, labels = scene()
    augment = Augmentation((200, 120), (0.5, 2.0), (96, 96))
    random.seed(3)
    first = augment(image, labels)
    random.seed(3)
    assert all(np.array_equal(a, b) for a, b in zip(first, augment(image, labels), strict=True))


def test_an_image_fits_into_long_and_short_side():
    assert fitted((480, 640), (2048, 512)) == (512, 683)
    assert fitted((300, 3000), (2048, 512)) == (205, 2048)
    assert fitted((3000, 300), (2048, 512)) == (2048, 205)


def test_distortion_keeps_type_and_range_and_changes_pixels():
    image, _ = scene()
    random.seed(0)
    results = [distorted(image) for _ in range(20)]
    assert all(r.dtype == np.uint8 and r.shape == image.shape for r in results)
    assert sum(not np.array_equal(r, image) for r in results) > 10


def test_deep_images_are_distorted_as_those_of_8_bits_and_no_value_is_cut():
    """The same draws give the same picture, but for what uint8 rounds and cuts."""
    image = np.arange(60, 180, dtype=np.uint8).reshape(6, 20, 1)
    for seed in range(20):
        random.seed(seed)
        expected = distorted(image).astype(float)
        random.seed(seed)
        found = distorted(image.astype(np.float32))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.clip(0, 255), expected, atol=2)
    faint = np.linspace(-3, 3, 4 * 4 * 13, dtype=np.float32).reshape(4, 4, 13)
    spread = []
    for seed in range(20):
        random.seed(seed)
        found = distorted(faint, brightness=1.0)
        assert len(np.unique(found)) == faint.size
        spread.append(float(found.mean()))
    assert 0.3 < np.ptp(spread) <= 3
    deviations = ["MODEL.PIXEL_MEAN", "[2.0]", "MODEL.PIXEL_STD", "[1.0]"]
    grey = ["INPUT.FORMAT", "L", "MODEL.CONVNEXT.IN_CHANS", "1", *deviations]
    config = load_config("quick/upernet_convnextv2_atto_scratch_quick.yaml", grey)
    assert augmentation(config).brightness == pytest.approx(32 / 57.63, rel=1e-3)


def test_labels_are_resized_without_new_values():
    _, labels = scene()
    assert set(np.unique(resize_labels(labels, (77, 131)))) == {0, 1, 2}
    assert resize_image(np.zeros((5, 6, 1), np.uint8), (10, 12)).shape == (10, 12, 1)
    assert padded(labels, (130, 210), IGNORED)[125, 205] == IGNORED


class Mean(torch.nn.Module):
    """Logits that depend on where a pixel lies in what the model is shown."""

    def forward(self, inputs):
        (item,) = inputs
        image = item["image"].float()
        ramp = torch.arange(image.shape[2]).float().expand(image.shape[1:])
        return [torch.stack([image[0], ramp])]


def test_windows_cover_the_image_and_their_logits_are_averaged():
    assert starts(512, 512, 341) == [0]
    assert starts(853, 512, 341) == [0, 341]
    assert starts(854, 512, 341) == [0, 341, 342]
    assert starts(100, 512, 341) == [0]
    image = torch.rand(1, 70, 100)
    testing = InferenceOptions(window=(40, 40), stride=(30, 30))
    found = window_logits(Mean(), image, testing)
    total, seen = torch.zeros(2, 70, 100), torch.zeros(70, 100)
    for top in (0, 30):
        for left in (0, 30, 60):
            part = image[:, top : top + 40, left : left + 40]
            total[:, top : top + 40, left : left + 40] += Mean()([{"image": part}])[0]
            seen[top : top + 40, left : left + 40] += 1
    torch.testing.assert_close(found, total / seen)


def test_flips_come_back_to_their_place_and_scales_to_the_images_size():
    class Bright(torch.nn.Module):
        def forward(self, inputs):
            image = inputs[0]["image"].float() / 255
            return [torch.stack([1 - image[0], image[0]]) * 9]

    image, labels = scene()
    image = (labels[..., None] == 1).astype(np.uint8).repeat(3, 2) * 255
    testing = InferenceOptions(scale=None, scales=(0.5, 1.0, 1.5), flip=True)
    scores = segment(Bright(), image, testing)
    assert scores.shape == (2, *labels.shape)
    torch.testing.assert_close(scores.sum(0), torch.ones(labels.shape))
    assert (scores.argmax(0).numpy() == (labels == 1)).mean() > 0.99
