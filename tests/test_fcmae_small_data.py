"""Pretraining for small data: hard patches, crops that keep small objects, samples without colour,
and reconstructions of new images."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_fcmae_pretrain import options

from backbones.convnext import build_convnext
from backbones.errors import InputError
from fcmae.data import augmented, pretraining_samples
from fcmae.hard_patches import HardPatches
from fcmae.masking import draw_mask
from fcmae.model import FCMAE
from fcmae.pretrain import pretrain
from images.files import Reading, open_picture


def hard_model(share, patch_size=32):
    torch.manual_seed(0)
    model = FCMAE(build_convnext("convnextv2_atto"), 32, patch_size=patch_size)
    return model, HardPatches(model, share)


@pytest.mark.parametrize("ratio", [0.6, 0.3, 0.9])
def test_as_many_patches_are_removed_as_at_random_and_the_hardest_are_among_them(ratio):
    """One patch of each image is of noise on a plain ground: nothing predicts it. Of plain patches
    the normalised target is 0, and so is, nearly, an untrained decoder's prediction."""
    model, hard = hard_model(0.25)
    images = torch.zeros(6, 3, 128, 128)
    places = [(0, 1), (2, 3), (3, 3), (1, 1), (0, 0), (2, 0)]
    for image, (row, column) in zip(images, places, strict=True):
        image[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32].normal_()
    mask = draw_mask(6, (128, 128), ratio, 32, torch.Generator().manual_seed(1))
    found = hard(model, images, mask)
    assert found.dtype == torch.bool
    assert found.shape == mask.shape
    assert torch.equal(found.flatten(1).sum(1), mask.flatten(1).sum(1))
    seen = [bool(found[i][place]) for i, place in enumerate(places)]
    if ratio >= 0.5:  # every patch gets its error; with fewer removed, some do not
        assert all(seen)
    else:
        assert sum(seen) >= sum(bool(mask[i][place]) for i, place in enumerate(places))


def test_what_is_not_hard_is_of_the_random_mask_and_larger_patches_go_together():
    model, hard = hard_model(0.5, patch_size=64)
    images = torch.randn(4, 3, 256, 256)
    mask = draw_mask(4, (256, 256), 0.6, 64, torch.Generator().manual_seed(0))
    found = hard(model, images, mask)
    whole = found.view(4, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).flatten(3)
    assert torch.equal(whole.all(-1), whole.any(-1))
    removed = int(mask[0, ::2, ::2].sum())
    # half are the hardest wherever they lie; of the others as many as there are, were removed
    kept = (found & mask)[:, ::2, ::2].flatten(1).sum(1)
    assert (kept >= removed - round(0.5 * removed)).all()


def test_the_passes_that_measure_leave_gradients_and_half_precision_as_they_are():
    """Autocast keeps copies of the weights that were made without gradients."""
    model, hard = hard_model(0.5)
    images = torch.randn(2, 3, 64, 64)
    mask = draw_mask(2, (64, 64), 0.6, 32, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        chosen = hard(model, images, mask)
        model(images, chosen).loss.backward()
    measured = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        model(images, chosen).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, measured[name]), name
    assert len(measured) > 100


def test_a_resumed_run_with_hard_patches_is_bit_identical(image_folder, tmp_path):
    given = {"hard_patches": 0.5, "grey_share": 0.5, "crop_scale": (0.5, 1.0)}
    whole = pretrain(options(image_folder, tmp_path / "whole", **given))
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(cut / "checkpoints/step_00000004")
    (cut / whole.name).unlink()
    first, resumed = (
        load_file(whole),
        load_file(pretrain(options(image_folder, cut, **given), True)),
    )
    assert all(torch.equal(first[name], resumed[name]) for name in first)
    given["hard_patches"] = 0.0
    random = load_file(pretrain(options(image_folder, tmp_path / "random", **given)))
    assert any(not torch.equal(first[name], random[name]) for name in first)


def test_crops_have_the_share_that_is_asked_for(tmp_path):
    rows, columns = np.mgrid[:200, :200]
    picture = np.stack([rows, columns, rows * 0], -1).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "ramp.png")
    shares = []
    for seed in range(60):
        torch.manual_seed(seed)
        with (tmp_path / "ramp.png").open("rb") as file:
            image = augmented(open_picture(file), Reading(3), (64, 64), (0.5, 1.0)).float()
        height, width = (float(c.max() - c.min()) + 1 for c in image[:2])
        shares.append(height * width / 200**2)
    assert min(shares) > 0.45
    assert max(shares) > 0.85
    assert np.mean(np.array(shares) < 0.75) > 0.25


def test_samples_without_colour_have_one_value_in_three_channels(image_folder):
    samples = pretraining_samples(str(image_folder), (64, 64), 0.6, grey_share=0.5)
    coloured = pretraining_samples(str(image_folder), (64, 64), 0.6)
    grey = 0
    for index in range(len(samples)):
        torch.manual_seed(index)
        image, mask, _ = samples[index]
        torch.manual_seed(index)
        whole, same_mask, _ = coloured[index]
        assert torch.equal(mask, same_mask)
        if torch.equal(image, whole):
            continue
        grey += 1
        luma = (whole.float() * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(0)
        assert torch.allclose(image.float(), luma.expand(3, -1, -1), atol=1.0)
    assert 0 < grey < len(samples)


def test_shares_that_cannot_be_are_told_at_once():
    with pytest.raises(InputError) as refused:
        options("d", "o", hard_patches=1.5, crop_scale=(0.9, 0.5), grey_share=0.5, in_chans=4)
    text = str(refused.value)
    assert "hard_patches is 1.5" in text
    assert "crop_scale is (0.9, 0.5)" in text
    assert "grey_share is for 3 channels" in text


def test_new_images_are_reconstructed_by_a_finished_run(image_folder, tmp_path, run_tool):
    run = tmp_path / "run"
    pretrain(options(image_folder, run, image_size=(64, 64)))
    new = tmp_path / "new"
    new.mkdir()
    generator = np.random.default_rng(0)
    for number, size in enumerate(((100, 70, 3), (40, 64, 3))):
        pixels = generator.integers(0, 256, size).astype(np.uint8)
        Image.fromarray(pixels).save(new / f"{number}.png")
    out = tmp_path / "out"
    found = run_tool("reconstruct", "--run", run, "--input", new, "--output-dir", out)
    assert found.code == 0, found.err
    for number in (0, 1):
        assert Image.open(out / f"{number}.png").width >= 3 * 64
    with (out / "losses.csv").open(encoding="utf-8") as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream)]
    assert len(losses) == 2
    assert all(0.5 < loss < 3 for loss in losses)  # of noise, whose normalised variance is 1
    found = run_tool("reconstruct", "--run", new, "--input", new, "--output-dir", out)
    assert found.code == 1
    assert "holds no pretraining" in found.err
