"""The tables that come with a mask: right by a naive loop, made by the loader and never twice."""

from __future__ import annotations

import os

import pytest
import torch
from test_fcmae_model import small_fcmae

from fcmae import packed, packed_mask
from fcmae.data import collate, pretraining_samples
from fcmae.masking import random_mask
from fcmae.packed_mask import PackedMask
from fcmae.pretrain import PretrainingStep
from images.bad_images import BadImages
from images.statistics import Statistics
from training.data import BatchOrder, build_loader, to_device


@pytest.fixture
def no_tables(monkeypatch):
    """A call after which this process cannot make tables any more."""

    def refuse(*_):
        raise AssertionError("index tables are made")

    def stop():
        monkeypatch.setattr(packed_mask.Places, "of_stage", refuse)
        monkeypatch.setattr(packed_mask, "visible_patches", refuse)

    return stop


def test_places_of_every_stage_by_a_naive_loop():
    mask = random_mask(2, (3, 4), 0.6)
    stages = PackedMask.of(mask).places()
    for places, p in zip(stages, (8, 4, 2, 1), strict=True):
        patches, rows = [], []
        for b in range(2):
            for i in range(3):
                for j in range(4):
                    if mask[b, i, j]:
                        continue
                    patches.append(b * 12 + i * 4 + j)
                    # the map [B, H, W, C] in runs of p sites: 4 runs to a line of the image
                    rows += [(b * 3 * p + i * p + r) * 4 + j for r in range(p)]
        assert places.shape == (2, 3, 4)
        assert places.patches.tolist() == patches
        assert places.rows.tolist() == rows


@pytest.mark.parametrize("mode", ["packed", "masked-dense", "mask-token"])
@pytest.mark.parametrize("decoder", ["convnext", "unet-skips"])
def test_tables_that_come_with_the_mask_change_no_bit(mode, decoder, no_tables):
    images, mask = torch.randn(2, 3, 64, 96), random_mask(2, (2, 3), 0.5)
    with_tables = PackedMask.of(mask)
    found = []
    for given in (mask, with_tables):
        model = small_fcmae(encoder_mode=mode, decoder=decoder)
        output = model(images, given)
        output.loss.backward()
        assert torch.equal(output.mask, mask)
        found.append([*output[:2], *(p.grad for p in model.parameters() if p.grad is not None)])
        no_tables()
    assert len(found[0]) > 100
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_step_makes_no_tables(image_folder, tmp_path, workers, no_tables, monkeypatch):
    """They come from the loader: with workers, this process never makes any."""
    of = PackedMask.of
    monkeypatch.setattr(
        PackedMask, "of", lambda mask: (tmp_path / f"{os.getpid()}").touch() or of(mask)
    )
    samples = pretraining_samples(str(image_folder), (64, 96), 0.6)
    loader = build_loader(samples, BatchOrder(12, 4, seed=0), collate, workers)
    _, batch = next(iter(loader))
    assert (tmp_path / f"{os.getpid()}").exists() == (workers == 0)
    no_tables()
    images, masks, _ = batch = to_device(batch, torch.device("cpu"))
    statistics = Statistics((0.5,) * 3, (0.25,) * 3, "given")
    step = PretrainingStep(statistics, BadImages(tmp_path, samples.reader))
    model = small_fcmae()
    loss = step(model, batch)["loss_reconstruction"]
    monkeypatch.undo()
    assert torch.equal(loss, model(statistics.normalise(images), masks.mask).loss)


def test_tables_move_with_their_mask():
    """As a batch does to the training's device, and into pinned memory."""
    moved = to_device(PackedMask.of(random_mask(1, (2, 2), 0.5)), torch.device("meta"))
    assert isinstance(moved, PackedMask)
    assert {tensor.device.type for tensor in moved} == {"meta"}


def test_tables_of_other_images_are_refused():
    model = small_fcmae()
    tables = PackedMask.of(random_mask(2, (2, 3), 0.5))
    with pytest.raises(ValueError, match=r"\[2, 2, 3\]; for images \[2, 3, 96, 64\] it must"):
        packed.PackedEncoder(model.encoder)(torch.randn(2, 3, 96, 64), tables)
