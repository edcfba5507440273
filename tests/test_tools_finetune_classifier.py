from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image


@pytest.fixture
def two_classes(tmp_path):
    generator = np.random.default_rng(0)
    for name, brightness in (("dark", 60), ("light", 190)):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for number in range(3):
            picture = generator.integers(brightness - 50, brightness + 50, (32, 32, 3))
            Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "data"


def base(data, output_dir):
    command = ["--model", "convnextv2_atto", "--data", data, "--output-dir", output_dir]
    return [*command, "--device", "cpu"]


def test_a_run_from_the_command_line_is_evaluated_resumes_and_refuses_to_overwrite(
    run_tool, two_classes, tmp_path
):
    command = base(two_classes, tmp_path / "run")
    command += ["--image-size", "32", "--batch-size", 4, "--max-steps", 2, "--workers", 0]
    command += ["--mixup", 0.5, "--epochs", 7, "--rand-augment", "", "--val-fraction", 0.4]
    result = run_tool("finetune_classifier", *command)
    assert result.code == 0, result.err
    recipe = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["derived"]["recipe"]
    assert (recipe["mixup"], recipe["epochs"], recipe["rand_augment"]) == (0.5, 7, "")
    assert recipe["layer_decay"] == 0.9  # of the published one
    summary = json.loads((tmp_path / "run/metrics_summary.json").read_text())
    assert list((tmp_path / "run/tensorboard").rglob("events*"))
    again = run_tool("finetune_classifier", *command)
    assert again.code == 1
    assert "holds a run already" in again.err
    assert run_tool("finetune_classifier", *command, "--resume").code == 0
    # the run's own classifier, at its own size: on the images it set apart, then on all
    data = [*base(two_classes, tmp_path / "run"), "--workers", 0, "--eval-only"]
    for extra in (["--val-fraction", 0.4], ["--init", tmp_path / "run/classifier.safetensors"]):
        evaluated = run_tool("finetune_classifier", *data, *extra)
        assert evaluated.code == 0, evaluated.err
        found = json.loads((tmp_path / "run/evaluation.json").read_text())
        assert found["image_size"] == [32, 32]
        if "--init" in extra:
            assert found["images"] == 6
        else:
            assert found["images"] == summary["images"] == 2
            assert {k: found[k] for k in ("top1", "top5", "loss")} == summary["trained"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--init", "missing.safetensors"], "missing.safetensors"),
        (["--batch-size", "0", "--crop-pct", "2"], "batch_size is 0; it must be at least 1; crop_"),
        (["--recipe", "in22k"], "no recipe in22k was published for convnextv2_atto; it has nano"),
        (["--mixup", "0.5", "--batch-size", "3"], "make it even, or give --mixup 0 --cutmix 0"),
        (["--class-list", "list.txt"], "selects rows of a head, and there is no --init"),
        (["--drop-path", "1", "--label-smoothing", "2"], "label_smoothing is 2.0; it must be in"),
        (["--eval-only"], "no checkpoint file"),
        (["--image-size", "100y"], "image size is '100y'"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_1(
    run_tool, two_classes, tmp_path, monkeypatch, extra, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("0\n1\n")
    result = run_tool("finetune_classifier", *base(two_classes, tmp_path / "run"), *extra)
    assert result.code == 1
    assert "Traceback" not in result.err
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_wrong_usage_is_exit_code_2_and_help_shows_commands(run_tool):
    assert run_tool("finetune_classifier", "--model", "convnextv2_atto").code == 2
    shown = run_tool("finetune_classifier", "--help")
    assert shown.code == 0
    assert "--init runs/22k/classifier.safetensors" in shown.out


def test_validation_images_alone_are_not_trained_on(run_tool, two_classes, tmp_path):
    """val/ beside no train/ was the training set, validation images and all."""
    (tmp_path / "root").mkdir()
    two_classes.rename(tmp_path / "root/Val")
    result = run_tool("finetune_classifier", *base(tmp_path / "root", tmp_path / "run"))
    assert result.code == 1
    assert "has images to evaluate and none to train on: train/ is missing" in result.err
