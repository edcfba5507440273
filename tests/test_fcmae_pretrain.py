from __future__ import annotations

import json
import shlex
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from tracked import logged_pictures

from backbones.checkpoint import OWN_WEIGHTS, load_encoder, save_encoder
from backbones.convnext import build_convnext
from backbones.errors import InputError
from fcmae.pretrain import pretrain
from fcmae.pretrain_options import PretrainOptions, parse_image_size
from training.records.trackers import PROJECT


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
    path = pretrain(options(image_folder, run, trackers=("tensorboard",), panel_every=2))
    encoder = build_convnext("convnextv2_atto")
    before = encoder.state_dict()["stages.3.1.pwconv2.weight"].clone()
    result = load_encoder(path, encoder)
    assert result.loaded == result.total == len(encoder.state_dict())
    assert not torch.equal(before, encoder.state_dict()["stages.3.1.pwconv2.weight"])
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["image_size"] == [64, 96]
    assert config["derived"]["images"] == 12
    assert config["derived"]["command"] == shlex.join(sys.argv)
    assert result.licence == OWN_WEIGHTS
    lines = [json.loads(line) for line in (run / "metrics.json").open()]
    assert [line["iteration"] for line in lines] == [2, 4]
    assert all(line["total_loss"] == line["loss_reconstruction"] > 0 for line in lines)
    panels = sorted((run / "reconstructions").glob("*.png"))
    assert panels[-1].name == "step_00000004.png"
    width, height = Image.open(panels[-1]).size
    assert width == 2 * (3 * 96 + 2 * 6) + 12
    assert height > 3 * 64
    shown = logged_pictures(run / "tensorboard" / PROJECT)
    assert list(shown) == [("reconstructions", 2), ("reconstructions", 4)]
    for path, picture in zip(panels, shown.values(), strict=True):
        assert np.array_equal(picture, np.asarray(Image.open(path)))


@pytest.mark.parametrize("licence", ["CC BY-NC 4.0", None])
def test_the_licence_of_the_first_weights_stays_with_the_encoder(image_folder, tmp_path, licence):
    given = tmp_path / "given.safetensors"
    save_encoder(build_convnext("convnextv2_atto"), given, {"licence": licence} if licence else {})
    path = pretrain(options(image_folder, tmp_path / "run", init=str(given), max_steps=1))
    assert metadata_of(path).get("licence") == licence


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


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("160x96", (160, 96))])
def test_image_size_is_parsed(text, size):
    assert parse_image_size(text) == size


@pytest.mark.parametrize("text", ["", "a", "1x2x3", "-32", "32x"])
def test_image_size_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="image size is"):
        parse_image_size(text)


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_measured_statistics_are_stored_and_a_resumed_run_keeps_them(image_folder, tmp_path):
    run = tmp_path / "run"
    path = pretrain(options(image_folder, run, in_chans=1, max_steps=2))
    stored = yaml.safe_load((run / "config.yaml").read_text())["derived"]["statistics"]
    assert stored["origin"] == "measured over 12 of 12 images"
    assert json.loads(metadata_of(path)["mean"]) == stored["mean"]
    assert json.loads(metadata_of(path)["std"]) == stored["std"]
    assert metadata_of(path)["in_chans"] == "1"
    (image_folder / "part0/white.png").write_bytes((image_folder / "part0/00.png").read_bytes())
    pretrain(options(image_folder, run, in_chans=1, max_steps=2), resume=True)
    assert yaml.safe_load((run / "config.yaml").read_text())["derived"]["statistics"] == stored
    with pytest.raises(ValueError, match=r"contradicts the run .*--mean is \[0\.5\], the run's is"):
        pretrain(options(image_folder, run, in_chans=1, mean=(0.5,), std=(0.2,)), resume=True)
    with pytest.raises(ValueError, match="--in-chans is 3, the run's is 1"):
        pretrain(options(image_folder, run), resume=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_of_a_run_are_counted_and_listed(image_folder, tmp_path, caplog, workers):
    caplog.set_level("INFO", "fcmae")
    (image_folder / "part0/00.png").write_bytes(b"")
    victim = image_folder / "part1/03.png"  # of no panel: a worker meets it in a batch
    victim.write_bytes(victim.read_bytes()[:400])
    run = tmp_path / "run"
    pretrain(options(image_folder, run, skip_bad_images=True, workers=workers))
    listed = [line.split("\t") for line in (run / "bad_images.txt").read_text().splitlines()]
    assert [name.rpartition("/")[2] for name, _ in listed] == ["00.png", "03.png"]
    assert listed[1][1].startswith("does not decode")
    assert "2 of 12 images could not be used" in caplog.text


@pytest.mark.parametrize("wrong", ["probe", "init"])
def test_what_is_refused_leaves_no_run_behind(image_folder, tmp_path, wrong):
    run = tmp_path / "run"
    with pytest.raises((InputError, OSError)):
        pretrain(options(image_folder, run, **{wrong: str(tmp_path / "nowhere")}))
    pretrain(options(image_folder, run))  # the right command is not told that a run is there


def test_resume_refuses_and_names_what_changes_the_learning_and_says_what_does_not(
    image_folder, tmp_path, caplog
):
    run = tmp_path / "run"
    pretrain(options(image_folder, run, max_steps=2))
    before = {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (64, 64)).save(other / "a.png")
    wrong = {"base_lr": 1e-3, "batch_size": 2, "mask_ratio": 0.75, "seed": 5, "decoder_dim": 48,
             "model": "convnextv2_femto", "init": "x.safetensors"}  # fmt: skip
    with pytest.raises(InputError, match="cannot continue a run with other settings") as caught:
        pretrain(options(image_folder, run, max_steps=3, **wrong), resume=True)
    for name in wrong:
        assert f"\n  {name} was " in str(caught.value)
    assert "max_steps" not in str(caught.value)
    with pytest.raises(InputError, match=f"data was .*, is '{other}'"):
        pretrain(options(other, run, max_steps=3), resume=True)
    with pytest.raises(InputError, match="a run of 2 steps, which cannot be continued to 1"):
        pretrain(options(image_folder, run, max_steps=1), resume=True)
    assert {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()} == before
    moved = tmp_path / "moved"
    shutil.copytree(image_folder, moved)
    pretrain(options(moved, run, max_steps=3, log_every=1), resume=True)
    said = [r.getMessage() for r in caplog.records if "changed since" in r.getMessage()]
    assert [line.split(":")[1].split()[0] for line in said] == ["data", "log_every", "max_steps"]


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "encoder.safetensors"])
def test_a_folder_with_any_file_of_a_run_is_not_written(image_folder, tmp_path, name):
    run = tmp_path / "run"
    run.mkdir()
    (run / name).write_text("an earlier run's")
    with pytest.raises(InputError, match=f"holds a run already .found: {name}.; continue it with"):
        pretrain(options(image_folder, run))
    assert [p.name for p in run.iterdir()] == [name]


def test_a_run_of_one_step_at_a_rate_of_0_is_said_before_it_trains(image_folder, tmp_path, caplog):
    pretrain(options(image_folder, tmp_path / "run", max_steps=1))
    assert "this run of one step has a learning rate of 0: it learns nothing" in caplog.text
