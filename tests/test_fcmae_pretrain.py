from __future__ import annotations

import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from backbones.checkpoint import load_encoder
from backbones.convnext import build_convnext
from fcmae.data import ImageError, open_images, pretraining_samples, to_rgb
from fcmae.pretrain import PretrainOptions, parse_image_size, pretrain
from training.data import seed_generators


def options(data, output_dir, **changes):
    values = {
        "model": "convnextv2_atto",
        "data": str(data),
        "output_dir": str(output_dir),
        "image_size": (64, 96),
        "batch_size": 4,
        "max_steps": 4,
        "decoder_dim": 32,
        "workers": 0,
        "log_every": 2,
        "checkpoint_every": 2,
        "device": "cpu",
        "trackers": (),
        **changes,
    }
    return PretrainOptions(**values)


def test_a_run_leaves_everything_behind_that_others_read(image_folder, tmp_path):
    run = tmp_path / "run"
    path = pretrain(options(image_folder, run))
    encoder = build_convnext("convnextv2_atto")
    before = encoder.state_dict()["stages.3.1.pwconv2.weight"].clone()
    result = load_encoder(path, encoder)
    assert result.loaded == result.total == len(encoder.state_dict())
    assert not torch.equal(before, encoder.state_dict()["stages.3.1.pwconv2.weight"])
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["image_size"] == [64, 96]
    assert config["derived"]["images"] == 12
    lines = [json.loads(line) for line in (run / "metrics.json").open()]
    assert [line["iteration"] for line in lines] == [2, 4]
    assert all(line["total_loss"] == line["loss_reconstruction"] > 0 for line in lines)
    panels = sorted((run / "reconstructions").glob("*.png"))
    assert panels[-1].name == "step_00000004.png"
    width, height = Image.open(panels[-1]).size
    assert width == 2 * (3 * 96 + 2 * 6) + 12
    assert height > 3 * 64


def test_resumed_pretraining_is_bit_identical(image_folder, tmp_path):
    whole = pretrain(options(image_folder, tmp_path / "whole", workers=1))
    # a run that was cut after step 2: the whole one without what came later
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step_00000004")
    (tmp_path / "cut/encoder.safetensors").unlink()
    resumed = pretrain(options(image_folder, tmp_path / "cut"), resume=True)
    first, second = build_convnext("convnextv2_atto"), build_convnext("convnextv2_atto")
    load_encoder(whole, first)
    load_encoder(resumed, second)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_packed_and_masked_dense_runs_train_the_same(image_folder, tmp_path):
    losses = {}
    for encoder in ("packed", "masked-dense"):
        run = tmp_path / encoder
        pretrain(options(image_folder, run, encoder=encoder, base_lr=0.1))
        losses[encoder] = [json.loads(line)["total_loss"] for line in (run / "metrics.json").open()]
    assert losses["packed"] == pytest.approx(losses["masked-dense"], rel=1e-4)


def test_a_sample_depends_on_its_seed_alone(image_folder):
    samples = pretraining_samples(str(image_folder), (64, 64), 0.6)
    seed_generators(0, 1, 2)
    image, mask = samples[3]
    seed_generators(9)
    assert not torch.equal(samples[3][0], image)
    seed_generators(0, 1, 2)
    again, mask_again = samples[3]
    assert torch.equal(image, again)
    assert torch.equal(mask, mask_again)


def test_flat_and_nested_folders_and_archives_are_read(image_folder, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in image_folder.rglob("*.png"):
        (flat / file.name).write_bytes(file.read_bytes())
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(flat, "flat")
    for source in (image_folder, flat, tmp_path / "images.tar"):
        samples = pretraining_samples(str(source), (32, 32), 0.6)
        assert len(samples) == 12
        assert samples[0][0].shape == (3, 32, 32)


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"no images in .*\.jpg"):
        open_images(str(tmp_path))


def test_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the image folder .*missing does not exist"):
        open_images(str(tmp_path / "missing"))


def test_every_unreadable_image_is_named_before_training(image_folder):
    (image_folder / "part0" / "00.png").write_bytes(b"not an image")
    (image_folder / "part1" / "zz.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match=r"2 of 13 images cannot be read") as caught:
        pretraining_samples(str(image_folder), (64, 64), 0.6)
    assert "00.png" in str(caught.value)
    assert "zz.jpg" in str(caught.value)


def test_image_damaged_behind_its_header_is_named_when_used(image_folder):
    victim = image_folder / "part0" / "00.png"
    noise = np.random.default_rng(0).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(victim)
    victim.write_bytes(victim.read_bytes()[:4000])
    samples = pretraining_samples(str(image_folder), (64, 64), 0.6)
    index = [samples.describe(i) for i in range(len(samples))].index(str(victim))
    with pytest.raises(ImageError, match=r"00\.png does not decode"):
        samples[index]


def test_grey_palette_and_alpha_images_become_rgb(tmp_path):
    for mode in ("L", "P", "RGBA", "CMYK"):
        extension = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (64, 64)).save(tmp_path / f"{mode}.{extension}")
    samples = pretraining_samples(str(tmp_path), (32, 32), 0.6)
    assert {tuple(samples[i][0].shape) for i in range(4)} == {(3, 32, 32)}


def test_sixteen_bit_tiff_keeps_its_greys(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.tif")
    rgb = np.asarray(to_rgb(Image.open(open_images(str(tmp_path))[0][0])))
    assert rgb.shape == (64, 64, 3)
    assert (rgb == (ramp // 257)[..., None]).all()


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("160x96", (160, 96))])
def test_image_size_is_parsed(text, size):
    assert parse_image_size(text) == size


@pytest.mark.parametrize("text", ["", "a", "1x2x3", "-32", "32x"])
def test_image_size_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="image size is"):
        parse_image_size(text)
