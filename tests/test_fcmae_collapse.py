"""Pretraining's watch over its features."""

from __future__ import annotations

import json
import logging
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from backbones.convnext import ConvNeXt, Size
from fcmae.features.analysis import analyze
from fcmae.features.collapse import CollapseWatch, measured_history, steps_between_measures
from fcmae.model import FCMAE
from fcmae.packed import ENCODERS
from fcmae.pretrain import pretrain
from fcmae.pretrain_options import PretrainOptions
from images.statistics import IMAGENET

TINY = Size((4, 6, 8, 10), (1, 1, 2, 1), 2)
IMAGES = torch.randint(0, 256, (3, 3, 64, 96), generator=torch.Generator().manual_seed(0)).byte()
MASKS = torch.zeros(3, 2, 3, dtype=torch.bool)


def small_model(encoder="packed"):
    torch.manual_seed(0)
    model = FCMAE(ConvNeXt(TINY, drop_path_rate=0.5), decoder_dim=8, encoder_mode=encoder)
    for name, parameter in model.named_parameters():
        if ".grn." in name:
            torch.nn.init.normal_(parameter)
    return model


def watch(every=2, last=9):
    return CollapseWatch((IMAGENET.normalise(IMAGES), MASKS), every, last)


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_the_watch_measures_what_the_analysis_does_on_the_same_images(encoder):
    model = small_model(encoder).train()
    found = watch()(4, model)
    assert model.training
    blocks = analyze(model.encoder, [(IMAGENET.normalise(IMAGES), None)])
    for block in blocks:
        key = f"block_distance/{block.block}"
        assert found[key] == pytest.approx(block.cosine_distance, abs=1e-6)
    distances = [block.cosine_distance for block in blocks]
    assert found["feature_distance/mean"] == pytest.approx(sum(distances) / 5, abs=1e-6)
    assert found["feature_distance/lowest"] == pytest.approx(min(distances), abs=1e-6)
    assert found["feature_dead/highest"] == pytest.approx(max(block.dead for block in blocks))


def test_only_its_steps_and_the_last_are_measured():
    model = small_model()
    assert [step for step in range(1, 10) if watch(4, 9)(step, model)] == [4, 8, 9]
    assert not watch(0, 9)(9, model)


@pytest.mark.parametrize(
    ("every_epochs", "epoch_steps", "steps", "wanted"),
    [
        (None, 10, 5000, 100),  # fifty times
        (None, 40.3, 100, 40),  # but at most once an epoch
        (1.5, 40, 100_000, 60),
        (0.01, 40, 100_000, 20),  # at least one line
        (0, 40, 1000, 0),
    ],
)
def test_measures_fall_on_lines_of_the_metrics(every_epochs, epoch_steps, steps, wanted):
    assert steps_between_measures(every_epochs, epoch_steps, steps, log_every=20) == wanted


def test_collapse_is_warned_of_once_for_each_block(caplog):
    model, watched = small_model(), watch()
    with caplog.at_level(logging.WARNING, "fcmae.features.collapse"):
        watched(2, model)
        assert not caplog.records
        with torch.no_grad():  # all channels of one block become the same map
            block = model.encoder.stages[2][1]
            for parameter in (block.pwconv1.weight, block.pwconv1.bias):
                parameter.copy_(parameter[:1].expand_as(parameter))
            block.grn.gamma.zero_()
            block.grn.beta.zero_()
        found = watched(4, model)
        watched(6, model)
    assert found["block_distance/stages.2.1"] == pytest.approx(0, abs=1e-6)
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert message.startswith("step 4: features are collapsing: stages.2.1 has a cosine distance")
    assert "stages.2.0" not in message


def test_blocks_without_any_response_are_warned_of_as_dead(caplog):
    model = small_model()
    with torch.no_grad(), caplog.at_level(logging.WARNING, "fcmae.features.collapse"):
        block = model.encoder.stages[3][0]
        for parameter in (block.pwconv1.weight, block.pwconv1.bias, block.grn.beta):
            parameter.zero_()
        found = watch()(2, model)
    assert "stages.3.0 has 100% dead channels" in caplog.text
    assert found["feature_dead/highest"] == 1
    assert "block_distance/stages.3.0" not in found
    assert all(math.isfinite(value) for value in found.values())


def options(data, output_dir, **changes):
    values = {
        "image_size": (32, 64),
        "batch_size": 4,
        "max_steps": 4,
        "decoder_dim": 16,
        "workers": 0,
        "log_every": 2,
        "checkpoint_every": 2,
        "keep_checkpoints": 5,
        "measure_features_every": 0.1,
        "device": "cpu",
        "trackers": (),
        **changes,
    }
    return PretrainOptions(
        model="convnextv2_atto", data=str(data), output_dir=str(output_dir), **values
    )


@pytest.fixture
def watched_run(image_folder, tmp_path):
    pretrain(options(image_folder, tmp_path / "on"))
    return tmp_path / "on"


def curve(run):
    return [(m.step, m.distances) for m in measured_history(run)]


def test_training_is_bit_identical_with_the_watch_and_without_and_the_curve_survives_a_resume(
    image_folder, watched_run, tmp_path
):
    pretrain(options(image_folder, tmp_path / "off", measure_features_every=0))
    for step in ("step_00000002", "step_00000004"):
        on, off = (
            load_file(run / "checkpoints" / step / "model.safetensors")
            for run in (watched_run, tmp_path / "off")
        )
        assert all(torch.equal(on[name], off[name]) for name in on)
    with pytest.raises(ValueError, match="--measure-features-every 0"):
        measured_history(tmp_path / "off")

    whole = curve(watched_run)
    assert [step for step, _ in whole] == [2, 4]
    assert len(whole[0][1]) == 12
    assert measured_history(watched_run)[1].epoch == pytest.approx(4 * 4 / 12)
    shutil.rmtree(watched_run / "checkpoints/step_00000004")
    pretrain(options(image_folder, watched_run), resume=True)
    assert curve(watched_run) == whole
    lines = [json.loads(line) for line in (watched_run / "metrics.json").open()]
    assert [line["iteration"] for line in lines] == [2, 4]


def test_a_negative_interval_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"measure_features_every is -1; give a number of epochs"):
        options(tmp_path, tmp_path, measure_features_every=-1)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no run of a training: it has no config\.yaml"):
        measured_history(tmp_path)
