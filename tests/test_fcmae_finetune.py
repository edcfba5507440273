"""Fine-tuning, evaluation and their data against timm's, the published tables and plain rules."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from small_detector import small_config
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.utils import accuracy as timm_accuracy

from backbones.checkpoint import OWN_WEIGHTS, load_encoder, save_encoder, save_ours
from backbones.convnext import GRNOptions, build_convnext
from backbones.errors import InputError
from backbones.key_adapters import from_ours
from backbones.weights.sources import read_source
from detection.engines.torchvision.engine import load_initial_weights
from detection.engines.torchvision.model import build_mask_rcnn
from fcmae.classification.accuracy import evaluate_classifier
from fcmae.classification.classifier import classifier_export, load_classifier
from fcmae.classification.data import labelled_data, set_apart
from fcmae.classification.finetune import (
    FinetuningStep,
    balanced_weights,
    check_batch,
    finetune,
)
from fcmae.classification.head import choose_rows, read_classifier
from fcmae.classification.options import FinetuneOptions
from fcmae.classification.recipes import RECIPES, choose_recipe, schedule, step_of_chain
from fcmae.classification.setup import set_up
from fcmae.classification.transforms import evaluation_transform, training_transform
from fcmae.features.analysis import analyze
from fcmae.features.collapse import measured_history
from fcmae.features.models import load_model
from images.configured import shown_bands
from images.files import Reading
from training.data import seed_generators

PLAIN = {"rand_augment": "", "random_erasing": 0.0, "drop_path": 0.0, "label_smoothing": 0.0}
COLOURS = {"blue": (40, 40, 220), "green": (40, 200, 60), "red": (220, 50, 40)}


@pytest.fixture
def coloured(tmp_path):
    """Six pictures of each of three colours, with noise: ``coloured/COLOUR/N.png``."""
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        folder = tmp_path / "coloured" / name
        folder.mkdir(parents=True)
        for number in range(6):
            noise = generator.integers(-40, 40, (40, 56, 3))
            picture = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / f"{number}.png")
    return tmp_path / "coloured"


def options(data, output_dir, **changes):
    values = {
        "model": "convnextv2_atto",
        "data": str(data),
        "output_dir": str(output_dir),
        "val_fraction": 0.3,
        "image_size": (32, 32),
        "batch_size": 4,
        "max_steps": 4,
        "workers": 0,
        "log_every": 2,
        "checkpoint_every": 2,
        "eval_every": 4,
        "device": "cpu",
        "trackers": (),
        **changes,
    }
    return FinetuneOptions(**values)


def classifier_file(path, classes, seed=0, names=None, **metadata):
    """A classifier with a head of distinct rows."""
    torch.manual_seed(seed)
    model = build_convnext("convnextv2_atto", num_classes=classes)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(0.05 * torch.randn_like(tensor))
    extra = {"classes": json.dumps(names)} if names else {}
    save_ours(model.state_dict(), path, {**extra, **metadata})
    return path


def test_fine_tuning_learns_and_leaves_everything_that_others_read(coloured, tmp_path):
    run = tmp_path / "run"
    values = {**PLAIN, "base_lr": 0.1, "head_init_scale": 1.0}
    path = finetune(
        options(coloured, run, max_steps=10, eval_every=5, checkpoint_every=10, overrides=values)
    )
    summary = json.loads((run / "metrics_summary.json").read_text())
    assert summary["images"] == 6
    assert summary["trained"]["top1"] == 100
    assert summary["averaged"]["top5"] == 100
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["classes"]) == ["blue", "green", "red"]
    assert metadata["weights"] == "trained"
    assert metadata["licence"] == OWN_WEIGHTS
    assert json.loads(metadata["image_size"]) == [32, 32]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["derived"]["recipe"]["weight_decay"] == RECIPES["in1k"]["atto"].weight_decay
    assert config["derived"]["recipe"]["base_lr"] == 0.1
    assert config["derived"]["learning_rate"] == pytest.approx(0.1 * 4 / 256)
    lines = [json.loads(line) for line in (run / "metrics.json").open()]
    evaluated = [line for line in lines if "trained/top1" in line]
    assert [line["iteration"] for line in evaluated] == [5, 10]
    assert evaluated[-1]["averaged/loss"] == summary["averaged"]["loss"]
    # what was written is what was evaluated, for both weights
    for name, kind in (("classifier", "trained"), ("classifier_ema", "averaged")):
        again = evaluate_classifier(
            options(coloured, tmp_path / kind, init=str(run / f"{name}.safetensors"))
        )
        assert again["images"] == 18  # all of a folder without val/
        assert again["top1"] >= summary[kind]["top1"] * 6 / 18
    assert json.loads((tmp_path / "trained/evaluation.json").read_text())["top5"] == 100


def test_resumed_fine_tuning_is_bit_identical(coloured, tmp_path):
    """With mixup, cutmix, RandAug, erasing, drop path and averaged weights, and other workers."""
    values = {"mixup": 0.8, "cutmix": 1.0, "drop_path": 0.2}
    whole = finetune(options(coloured, tmp_path / "whole", overrides=values, workers=1))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")  # a run that was cut after step 2
    shutil.rmtree(tmp_path / "cut/checkpoints/step_00000004")
    resumed = finetune(options(coloured, tmp_path / "cut", overrides=values), resume=True)
    for name in ("classifier.safetensors", "classifier_ema.safetensors"):
        first, _ = read_source(whole.with_name(name))
        second, _ = read_source(resumed.with_name(name))
        assert set(first) == set(second)
        assert all(torch.equal(first[key], second[key]) for key in first)
    for name in ("metrics_summary.json",):
        assert (whole.with_name(name)).read_text() == (resumed.with_name(name)).read_text()
    with pytest.raises(ValueError, match="holds a run already"):
        finetune(options(coloured, tmp_path / "whole"))
    others = {
        r"recipe\.layer_decay was 0\.9, is 0\.5": {"overrides": {**values, "layer_decay": 0.5}},
        r"recipe\.mixup was 0\.8, is 0\.0": {"overrides": {"cutmix": 1.0, "drop_path": 0.2}},
        r"grn was None, is \{'grn\.": {"overrides": values, "grn": GRNOptions(aggregate="l1")},
    }
    for said, changes in others.items():
        with pytest.raises(InputError, match=said):
            finetune(options(coloured, tmp_path / "cut", max_steps=6, **changes), resume=True)


def test_the_diversity_of_features_is_measured_where_asked_for_and_changes_nothing(
    coloured, tmp_path
):
    plain = finetune(options(coloured, tmp_path / "plain"))
    watched = finetune(options(coloured, tmp_path / "watched", measure_features_every=0.1))
    first, second = (read_source(path)[0] for path in (plain, watched))
    assert all(torch.equal(first[key], second[key]) for key in first)
    history = measured_history(tmp_path / "watched")
    assert [measured.step for measured in history] == [2, 4]
    assert history[1].epoch == pytest.approx(4 * 4 / 12)
    setup = set_up(options(coloured, tmp_path))
    setup.data.val.transform = setup.evaluation()
    images = torch.stack([image for image, _, _ in setup.data.val])
    model = build_convnext("convnextv2_atto", num_classes=3)
    model.load_state_dict(second)
    for block in analyze(model.eval(), [(images, None)]):
        assert history[1].distances[block.block] == pytest.approx(block.cosine_distance, abs=1e-6)
    with pytest.raises(ValueError, match="finetune_classifier's default"):
        measured_history(tmp_path / "plain")


@pytest.mark.parametrize(
    ("size", "crop_pct", "crop_mode"), [(64, 0.875, "center"), (384, 1.0, "squash")]
)
def test_evaluation_equals_timms(coloured, tmp_path, size, crop_pct, crop_mode):
    """timm's model, data set, transforms, loader and accuracy, on the same weights and images."""
    names = ["red", "other", "blue", "green", "a", "b", "c"]
    path = classifier_file(tmp_path / "c.safetensors", 7, names=names)
    images = coloured if size < 384 else coloured.parent / "few"
    if size == 384:
        for name in COLOURS:
            (images / name).mkdir(parents=True)
            shutil.copy(coloured / name / "0.png", images / name)
    ours = evaluate_classifier(
        options(images, tmp_path / "eval", init=str(path), image_size=(size, size), batch_size=5)
    )

    rows = torch.tensor([names.index(name) for name in sorted(COLOURS)])
    tensors, _ = read_source(path)
    model = timm.create_model("convnextv2_atto", num_classes=7)
    model.load_state_dict(from_ours(tensors, "timm")[0])
    model.eval()
    loader = create_loader(
        create_dataset("", root=str(images), split="validation"),
        input_size=(3, size, size),
        batch_size=4,
        use_prefetcher=False,
        interpolation="bicubic",
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    with torch.no_grad():
        logits, labels = (
            torch.cat(parts)
            for parts in zip(*((model(x), rows[y]) for x, y in loader), strict=True)
        )
    top1, top5 = timm_accuracy(logits, labels, topk=(1, 5))
    assert 0 < top1 < 100 or size == 384
    assert ours["top1"] == pytest.approx(float(top1), abs=1e-5)
    assert ours["top5"] == pytest.approx(float(top5), abs=1e-5)
    assert ours["loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-5
    )


def test_logits_equal_timms_to_1e_5(tmp_path):
    path = classifier_file(tmp_path / "c.safetensors", 9)
    tensors, _ = read_source(path)
    ours = build_convnext("convnextv2_atto", num_classes=9).eval()
    ours.load_state_dict(tensors)
    theirs = timm.create_model("convnextv2_atto", num_classes=9).eval()
    theirs.load_state_dict(from_ours(tensors, "timm")[0])
    images = torch.randn(3, 3, 96, 64)
    with torch.no_grad():
        expected = theirs(images)
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(images), expected, atol=1e-5, rtol=1e-5)


# --- recipes: the values that arXiv 2301.00808 prints, entered here a second time


@pytest.mark.parametrize(
    ("step", "model", "expected"),
    [
        ("in1k", "convnextv2_atto", (2e-4, 0.3, 0.9, "single", 600, 0, 0.2, 0, 0, 0.1)),
        ("in1k", "convnextv2_femto", (2e-4, 0.05, 0.9, "single", 600, 0, 0.2, 0.3, 0.3, 0)),
        ("in1k", "convnextv2_pico", (2e-4, 0.3, 0.9, "single", 600, 0, 0.2, 0.3, 0.3, 0)),
        ("in1k", "convnextv2_nano", (2e-4, 0.3, 0.9, "single", 600, 0, 0.2, 0.5, 0.5, 0.1)),
        ("in1k", "convnextv2_tiny", (8e-4, 0.05, 0.9, "single", 300, 40, 0.1, 0.8, 1, 0.2)),
        ("in1k", "convnextv2_base", (6.25e-4, 0.05, 0.6, "group", 100, 20, 0.1, 0.8, 1, 0.1)),
        ("in1k", "convnextv2_large", (6.25e-4, 0.05, 0.6, "group", 100, 20, 0.1, 0.8, 1, 0.2)),
        ("in1k", "convnextv2_huge", (1.25e-3, 0.05, 0.75, "group", 50, 10, 0.1, 0.8, 1, 0.3)),
        ("in1k", "convnext_small", (8e-4, 0.05, 0.9, "single", 300, 40, 0.1, 0.8, 1, 0.2)),
        ("in22k", "convnextv2_nano", (2.5e-4, 0.05, 0.9, "single", 90, 5, 0.1, 0.8, 1, 0)),
        ("in22k", "convnextv2_tiny", (2.5e-4, 0.05, 0.9, "single", 90, 5, 0.1, 0.8, 1, 0)),
        ("in22k", "convnextv2_base", (2.5e-4, 0.05, 0.8, "group", 90, 5, 0.1, 0.8, 1, 0.1)),
        ("in22k", "convnextv2_large", (2.5e-4, 0.05, 0.8, "group", 90, 5, 0.1, 0.8, 1, 0.1)),
        ("in22k", "convnextv2_huge", (2.5e-4, 0.05, 0.8, "group", 90, 5, 0.1, 0.8, 1, 0.3)),
        ("in22k_in1k", "convnextv2_nano", (2.5e-5, 1e-8, 0.9, "single", 90, 0, 0.1, 0, 0, 0.1)),
        ("in22k_in1k", "convnextv2_tiny", (2.5e-5, 1e-8, 0.9, "single", 90, 0, 0.1, 0, 0, 0.1)),
        ("in22k_in1k", "convnextv2_base", (2.5e-5, 1e-8, 0.8, "group", 30, 0, 0.1, 0, 0, 0.2)),
        ("in22k_in1k", "convnextv2_large", (2.5e-5, 1e-8, 0.8, "group", 30, 0, 0.1, 0, 0, 0.3)),
        ("in22k_in1k", "convnextv2_huge", (2.5e-5, 1e-8, 0.85, "group", 30, 0, 0.1, 0, 0, 0.5)),
    ],
)
def test_recipes_are_the_published_ones(step, model, expected):
    recipe = choose_recipe(step, model, {})
    names = ["base_lr", "weight_decay", "layer_decay", "layer_decay_type", "epochs"]
    names += ["warmup_epochs", "label_smoothing", "mixup", "cutmix", "drop_path"]
    assert tuple(getattr(recipe, name) for name in names) == expected
    assert recipe.ema_decay == (0 if step == "in22k" else 0.9999)
    assert (recipe.random_erasing, recipe.head_init_scale) == (0.25, 0.001)


def test_the_table_in_the_docs_is_the_recipes():
    docs = (Path(__file__).parents[1] / "docs/classification.md").read_text()
    for step, sizes in RECIPES.items():
        for size, r in sizes.items():
            row = (step, size, f"{r.base_lr:g}", f"{r.weight_decay:g}")
            row += (f"{r.layer_decay:g} {r.layer_decay_type}", f"{r.epochs}, {r.warmup_epochs:g}")
            row += (f"{r.label_smoothing:g}", f"{r.mixup:g}, {r.cutmix:g}", f"{r.drop_path:g}")
            assert f"| {' | '.join(row)} |" in docs


def test_auto_takes_the_step_that_classes_and_head_imply():
    assert step_of_chain(1000, 0) == step_of_chain(10, 1000) == "in1k"
    assert step_of_chain(21841, 0) == "in22k"
    assert step_of_chain(1000, 21841) == "in22k_in1k"


def test_wrong_values_are_named_all_at_once():
    with pytest.raises(ValueError, match=r"no recipe in22k .* for convnextv2_atto; it has nano, "):
        choose_recipe("in22k", "convnextv2_atto", {})
    wrong = {"drop_path": 1.0, "mixup": -1.0, "layer_decay": 0.0, "epochs": 10}
    with pytest.raises(ValueError, match="drop_path is") as caught:
        choose_recipe("in1k", "convnextv2_tiny", wrong)
    for text in (
        "mixup is -1.0",
        "layer_decay is 0.0",
        "warmup_epochs is 40; the whole run has 10",
    ):
        assert text in str(caught.value)
    with pytest.raises(ValueError, match=r"recipe is 'x'.*recipes have no lr.*at least 32x32"):
        options("data", "run", recipe="x", overrides={"lr": 1}, image_size=(16, 64))


def test_a_shortened_run_keeps_the_recipes_share_of_warm_up():
    base = RECIPES["in1k"]["base"]  # 20 of 100 epochs
    assert schedule(base, 1_281_167, 1024, None) == (125_114, 25_023)
    assert schedule(base, 1_281_167, 1024, 1000) == (1000, 200)
    assert schedule(RECIPES["in1k"]["atto"], 10, 64, None) == (94, 0)


def test_the_loss_is_timms_of_mixed_images_and_smoothed_targets():
    recipe = choose_recipe("in1k", "convnextv2_tiny", {})
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    images, targets = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 4])
    seed_generators(7)
    loss = FinetuningStep(recipe, 5)(model, (images.clone(), targets, {}))["loss_classification"]
    seed_generators(7)
    mixed, soft = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=5)(images.clone(), targets)
    assert not torch.equal(mixed, images)
    assert loss == SoftTargetCrossEntropy()(model(mixed), soft)
    plain = choose_recipe("in1k", "convnextv2_atto", {"label_smoothing": 0.2})
    smoothed = FinetuningStep(plain, 5)(model, (images, targets, {}))["loss_classification"]
    expected = torch.nn.functional.cross_entropy(model(images), targets, label_smoothing=0.2)
    assert float(smoothed.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_mixing_needs_an_even_batch(coloured, tmp_path):
    with pytest.raises(ValueError, match=r"mixup and cutmix pair .* 6 / 2 images: make it even"):
        finetune(
            options(
                coloured, tmp_path / "run", batch_size=6, accumulate=2, overrides={"mixup": 1.0}
            )
        )


def test_mixing_needs_an_even_batch_in_each_process(coloured, tmp_path):
    mixed = choose_recipe("in1k", "convnextv2_tiny", {})
    check_batch(options(coloured, tmp_path, batch_size=1000), mixed, processes=1)
    check_batch(options(coloured, tmp_path, batch_size=1000), mixed, processes=4)
    with pytest.raises(
        ValueError, match=r"of one process, which has 1000 / 8 images: make it even"
    ):
        check_batch(options(coloured, tmp_path, batch_size=1000), mixed, processes=8)
    plain = choose_recipe("in1k", "convnextv2_atto", {})
    check_batch(options(coloured, tmp_path, batch_size=1000), plain, processes=8)


def test_a_samples_augmentation_depends_on_the_seed_alone_and_never_fails():
    transform = training_transform(RECIPES["in1k"]["atto"], (48, 32), (0.5,) * 3, (0.25,) * 3)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 50, 3), np.uint8))
    drawn = []
    for seed in [*range(250), 3]:
        seed_generators(0, 0, 0, seed)
        drawn.append(transform(image))
    assert drawn[0].shape == (3, 48, 32)
    assert torch.equal(drawn[-1], drawn[3])
    assert not torch.equal(drawn[-1], drawn[4])


# --- heads


def test_a_head_is_taken_over_by_names_and_by_a_class_list(coloured, tmp_path):
    names = ["green", "x", "red", "y", "blue"]
    source = read_classifier(str(classifier_file(tmp_path / "c.safetensors", 5, names=names)))
    assert choose_rows(source, ["blue", "green", "red"], None) == [4, 0, 2]
    assert choose_rows(source, ["blue", "pink"], None) is None
    assert choose_rows(source, ["4", "3", "2", "1", "0"], None) == [4, 3, 2, 1, 0]
    listed = tmp_path / "list.txt"
    listed.write_text("3\nred\n\n1\n")
    assert choose_rows(source, ["blue", "green", "red"], str(listed)) == [3, 2, 1]
    run = tmp_path / "run"
    values = {**PLAIN, "base_lr": 1e-12}
    chosen = options(
        *(coloured, run), init=source.name, class_list=str(listed), overrides=values, max_steps=1
    )
    tensors, _ = read_source(finetune(chosen))
    torch.testing.assert_close(tensors["head.weight"], source.head["head.weight"][[3, 2, 1]])
    torch.testing.assert_close(tensors["head.bias"], source.head["head.bias"][[3, 2, 1]])
    torch.testing.assert_close(tensors["norm.weight"], source.head["norm.weight"])
    listed.write_text("5\nred\npink\n0\n")
    with pytest.raises(
        ValueError, match=r"4 lines for 3 classes.*2 line\(s\) name no row.*1: 5, line 3: pink"
    ):
        choose_rows(source, ["blue", "green", "red"], str(listed))


def test_imagenet_22k_heads_become_1k_heads_by_the_synsets_that_timm_knows(tmp_path):
    """By the numbers of classes alone, as the authors' files and timm's have no names."""
    info22k, info1k = timm.data.ImageNetInfo("imagenet-22k"), timm.data.ImageNetInfo("imagenet-1k")
    model = build_convnext("convnextv2_atto", num_classes=21841)
    save_ours(model.state_dict(), tmp_path / "c.safetensors", {})
    source = read_classifier(str(tmp_path / "c.safetensors"))
    classes = [name for name in info1k.label_names() if name in info22k.label_names()]
    assert len(classes) > 990
    rows = choose_rows(source, classes, None)
    assert [info22k.index_to_label_name(row) for row in rows] == classes


def test_the_next_size_keeps_the_head_and_a_new_head_is_scaled(coloured, tmp_path):
    names = sorted(COLOURS)
    init = classifier_file(tmp_path / "c.safetensors", 3, names=names, image_size="[32, 32]")
    values = {**PLAIN, "base_lr": 1e-12}
    larger = finetune(
        options(
            *(coloured, tmp_path / "larger"),
            **{"init": str(init), "image_size": (64, 64), "overrides": values, "max_steps": 1},
        )
    )
    tensors, metadata = read_source(larger)
    before, _ = read_source(init)
    torch.testing.assert_close(tensors["head.weight"], before["head.weight"])
    assert json.loads(metadata["image_size"]) == [64, 64]
    encoder = build_convnext("convnextv2_atto")
    save_encoder(
        encoder, tmp_path / "e.safetensors", {"mean": "[0.1, 0.2, 0.3]", "std": "[1, 1, 2]"}
    )
    fresh = finetune(
        options(
            *(coloured, tmp_path / "fresh"),
            **{"init": str(tmp_path / "e.safetensors"), "overrides": values, "max_steps": 1},
        )
    )
    tensors, metadata = read_source(fresh)
    assert float(tensors["head.weight"].std()) == pytest.approx(0.02 * 0.001, rel=0.1)
    assert json.loads(metadata["mean"]) == [0.1, 0.2, 0.3]  # those of pretraining
    result = load_encoder(tmp_path / "e.safetensors", build_convnext("convnextv2_atto"))
    own = load_encoder(fresh, build_convnext("convnextv2_atto"))
    assert own.loaded == own.total == result.total


def test_the_form_of_grn_comes_from_the_checkpoint(coloured, tmp_path):
    grn = GRNOptions(aggregate="l1", normalize="sum")
    save_encoder(build_convnext("convnextv2_atto", grn=grn), tmp_path / "e.safetensors", {})
    assert read_classifier(str(tmp_path / "e.safetensors")).grn() == grn
    values = {"overrides": PLAIN, "max_steps": 1, "init": str(tmp_path / "e.safetensors")}
    path = finetune(options(coloured, tmp_path / "run", **values))
    assert read_classifier(str(path)).grn() == grn
    evaluate_classifier(options(coloured, tmp_path / "eval", init=str(path)))
    other = options(coloured, tmp_path / "eval", init=str(path), grn=GRNOptions())
    with pytest.raises(ValueError, match=r"was trained with .*'l1'.*; the model has .*'l2'"):
        evaluate_classifier(other)
    # and of the run's checkpoints, whose files do not tell it
    (step,) = (tmp_path / "run/checkpoints").iterdir()
    assert load_model("step", str(step / "model.safetensors")).model.grn == grn


def test_grn_can_be_in_pretraining_alone_if_that_is_asked_for(coloured, tmp_path):
    save_encoder(build_convnext("convnextv2_atto"), tmp_path / "e.safetensors", {})
    values = {"overrides": PLAIN, "max_steps": 1, "init": str(tmp_path / "e.safetensors")}
    values |= {"grn": GRNOptions(kind="none")}
    with pytest.raises(ValueError, match=r"was trained with GRNOptions.*the model has none"):
        finetune(options(coloured, tmp_path / "run", **values))
    path = finetune(options(coloured, tmp_path / "run", **values, allow_other_grn=True))
    assert not [name for name in read_source(path)[0] if ".grn." in name]
    assert read_classifier(str(path)).grn() == GRNOptions(kind="none")
    evaluate_classifier(options(coloured, tmp_path / "eval", init=str(path)))


def test_evaluation_refuses_a_classifier_without_the_datas_classes(coloured, tmp_path):
    path = classifier_file(tmp_path / "c.safetensors", 2, names=["blue", "pink"])
    with pytest.raises(ValueError, match=r"no row for 2 of 3 classes \(green, red\)"):
        evaluate_classifier(options(coloured, tmp_path / "eval", init=str(path)))
    with pytest.raises(FileNotFoundError, match=r"classifier\.safetensors"):
        evaluate_classifier(options(coloured, tmp_path / "eval"))


def test_all_classes_of_a_classifier_compete_whatever_the_folder_has(coloured, tmp_path):
    """One class in the folder made top-1 100 and the loss 0, for any weights."""
    names = ["a", "b", "blue", "green", "red"]
    path = classifier_file(tmp_path / "c.safetensors", 5, names=names)
    whole = evaluate_classifier(options(coloured, tmp_path / "whole", init=str(path)))
    assert (whole["classes"], whole["classes_of_data"]) == (5, 3)
    apart = []
    for name in COLOURS:
        shutil.copytree(coloured / name, tmp_path / "one" / name / name)
        apart.append(
            evaluate_classifier(options(tmp_path / "one" / name, tmp_path / name, init=str(path)))
        )
    for key in ("top1", "top5", "loss"):  # classes of six images each
        assert whole[key] == pytest.approx(sum(each[key] for each in apart) / 3, abs=1e-4)
    assert all(each["loss"] > 0 for each in apart)
    alone = evaluate_classifier(
        options(tmp_path / "one/red", tmp_path / "e", init=str(path), eval_classes="data")
    )
    assert (alone["top1"], alone["loss"], alone["classes"]) == (100, 0, 1)  # where asked for


def test_a_run_is_evaluated_on_the_images_that_it_set_apart_whatever_the_flags(coloured, tmp_path):
    run = tmp_path / "run"
    finetune(options(coloured, run, val_fraction=0.5, split_seed=3, max_steps=1))
    summary = json.loads((run / "metrics_summary.json").read_text())
    again = evaluate_classifier(options(coloured, run, val_fraction=0.1, split_seed=0))
    assert again["images"] == 9
    assert {k: again[k] for k in ("top1", "top5", "loss")} == summary["trained"]


def test_accuracy_reaches_the_trackers(coloured, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    finetune(options(coloured, run, max_steps=2, eval_every=1, trackers=("tensorboard",)))
    board = EventAccumulator(str(next((run / "tensorboard").glob("*/events*"))))
    board.Reload()
    lines = [json.loads(line) for line in (run / "metrics.json").open()]
    for name in ("trained/top1", "averaged/loss"):
        shown = [(event.step, event.value) for event in board.Scalars(name)]
        expected = [(line["iteration"], line[name]) for line in lines if name in line]
        assert [step for step, _ in shown] == [step for step, _ in expected] == [1, 2]
        assert [v for _, v in shown] == pytest.approx([v for _, v in expected])


# --- images that are not RGB of 8 bits, and bad ones


def test_float_and_12_bit_images_are_seen_with_all_their_levels(tmp_path):
    """They were white, and of 17 greys."""
    tifffile = pytest.importorskip("tifffile")
    generator = np.random.default_rng(0)
    for label in ("dark", "light"):
        low, high = (1, 120) if label == "dark" else (130, 255)
        for kind in ("float", "deep"):
            (tmp_path / kind / label).mkdir(parents=True)
        for number in range(4):
            values = generator.uniform(low, high, (40, 48))
            tifffile.imwrite(tmp_path / "float" / label / f"{number}.tif", values.astype("f4"))
            deep = (values * 16).astype(np.uint16)
            tifffile.imwrite(tmp_path / "deep" / label / f"{number}.tif", deep)
    for kind in ("float", "deep"):
        setup = set_up(options(tmp_path / kind, tmp_path, in_chans=1))
        setup.data.val.transform = setup.evaluation()
        image, label, _ = setup.data.val[0]
        assert image.shape == (1, 32, 32)
        assert len(image.unique()) > 900  # of 1,024 pixels
        assert float(image.mean()) * (1 if setup.data.classes[label] == "light" else -1) > 0.5
        assert "measured" in setup.statistics.origin
        values = {"base_lr": 0.1, "head_init_scale": 1.0, **PLAIN}
        run = tmp_path / f"run_{kind}"
        finetune(options(tmp_path / kind, run, in_chans=1, max_steps=8, overrides=values))
        summary = json.loads((run / "metrics_summary.json").read_text())
        assert summary["trained"]["top1"] == 100


def test_an_encoder_of_any_channels_becomes_a_classifier_with_its_statistics(tmp_path):
    generator = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 4000, (40, 40, 13), dtype=np.uint16)
            np.save(tmp_path / f"data/{label}/{number}.npy", pixels)
    stored = {"mean": json.dumps([0.03] * 13), "std": json.dumps([0.02] * 13)}
    stored["show_bands"] = "[12, 7, 2]"
    save_encoder(build_convnext("convnextv2_atto", in_chans=13), tmp_path / "e.safetensors", stored)
    values = {"init": str(tmp_path / "e.safetensors"), "max_steps": 1}
    path = finetune(options(tmp_path / "data", tmp_path / "run", **values))
    tensors, metadata = read_source(path)
    assert tensors["downsample_layers.0.0.weight"].shape[1] == 13
    assert json.loads(metadata["mean"]) == [0.03] * 13
    assert json.loads(metadata["show_bands"]) == [12, 7, 2]
    assert shown_bands(tmp_path / "run") == [12, 7, 2]
    assert load_classifier(path).reading.show_bands == (12, 7, 2)
    assert set_up(options(tmp_path / "data", tmp_path / "no", **values)).data.val.reading == (
        Reading(13, show_bands=(12, 7, 2))
    )
    with pytest.raises(ValueError, match="--show-bands is 14; give one or three of the channels"):
        finetune(options(tmp_path / "data", tmp_path / "no", show_bands=(14,), **values))
    tensors, metadata = read_source(path)
    save_file(tensors, tmp_path / "stated.safetensors", metadata | {"value_range": "[0, 4000]"})
    for file, stated in ((path, []), (tmp_path / "stated.safetensors", [0, 4000])):
        assert json.loads(classifier_export(file).metadata["value_range"]) == stated
    assert evaluate_classifier(options(tmp_path / "data", tmp_path / "run"))["images"] == 2
    with pytest.raises(ValueError, match=r"has 13 channel\(s\), not the 3 of --in-chans"):
        finetune(options(tmp_path / "data", tmp_path / "no", in_chans=3, **values))


def test_nan_and_values_beyond_a_stated_range_are_told_before_training(tmp_path):
    """All of them, those to evaluate on, too, though their statistics are not measured."""
    for number, label in enumerate("aabb"):
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        values = np.full((40, 40, 3), 0.5, np.float32)
        values[3, 4] = (0.5, np.nan, 0.7, 2.0)[number]
        np.save(tmp_path / f"data/{label}/{number}.npy", values)
    stated = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "value_range": (0.0, 1.0)}
    with pytest.raises(InputError) as caught:
        finetune(options(tmp_path / "data", tmp_path / "run", **stated))
    assert "2 of 4 images cannot be used" in str(caught.value)
    assert "1.npy: holds NaN or infinite values" in str(caught.value)
    assert "3.npy: holds values from 0.5 to 2.0, beyond the 0 to 1 of --value" in str(caught.value)
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_classifier_whose_images_were_resized_bilinearly_is_evaluated_so(tmp_path):
    """Hugging Face's ``resample`` 2; the file that fine-tuning or ``--to ours`` writes keeps it."""
    path = classifier_file(tmp_path / "c.safetensors", 3)
    tensors, metadata = read_source(path)
    save_file(tensors, path, {**metadata, "interpolation": '"bilinear"', "image_size": "[64, 64]"})
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    transform = timm.data.create_transform(64, interpolation="bilinear", crop_pct=0.875)
    classifier = load_classifier(path)
    seen = classifier.transform(pixels)
    torch.testing.assert_close(seen, transform(Image.fromarray(pixels)))
    deep = classifier.transform(pixels.astype(np.float32) / 255)
    torch.testing.assert_close(deep, seen, atol=2 / 255 / 0.2, rtol=0)
    assert json.loads(classifier_export(path).metadata["interpolation"]) == "bilinear"


@pytest.mark.parametrize("squashed", [False, True])
def test_other_images_are_seen_as_rgb_of_8_bits_is(squashed):
    """The tensors' evaluation against timm's, on the same picture, to Pillow's rounding."""
    size, crop_pct = ((400, 400), None) if squashed else ((32, 48), 0.9)
    transform = evaluation_transform(size, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), crop_pct)
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 255, (5, 6, 3), np.uint8))
    pixels = np.asarray(small.resize((90, 70), Image.Resampling.BICUBIC))
    theirs = transform(pixels)
    ours = transform(pixels.astype(np.float32) / 255)
    assert ours.shape == theirs.shape == (3, *size)
    torch.testing.assert_close(ours, theirs, atol=2 / 255 / 0.2, rtol=0)


def test_bad_images_are_replaced_in_training_left_out_in_evaluation_and_listed(coloured, tmp_path):
    whole = (coloured / "red/0.png").read_bytes()
    (coloured / "red/cut.png").write_bytes(whole[: len(whole) // 2])
    (coloured / "blue/none.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"(?s)1 of 20 images cannot be used.*none\.png"):
        finetune(options(coloured, tmp_path / "no"))
    values = {"skip_bad_images": True, "max_steps": 6, "overrides": PLAIN, "batch_size": 8}
    finetune(options(coloured, tmp_path / "run", split_seed=1, **values))
    listed = (tmp_path / "run/bad_images.txt").read_text().splitlines()
    assert sorted(Path(line.partition("\t")[0]).name for line in listed) == ["cut.png", "none.png"]
    assert all(line.count("cut.png") <= 1 for line in listed)
    result = evaluate_classifier(
        options(
            *(coloured, tmp_path / "eval"),
            init=str(tmp_path / "run/classifier.safetensors"),
            skip_bad_images=True,
        )
    )
    (coloured / "red/cut.png").unlink()
    (coloured / "blue/none.png").unlink()
    clean = evaluate_classifier(
        options(coloured, tmp_path / "clean", init=str(tmp_path / "run/classifier.safetensors"))
    )
    assert (result["left_out"], result["images"], clean["images"]) == (1, 19, 18)
    assert result["loss"] == pytest.approx(clean["loss"])


# --- class weights


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_balanced_class_weights_are_scikit_learns_and_weigh_the_loss(smoothing):
    labels = [0] * 6 + [1] * 3 + [2]
    weights = balanced_weights(labels, 4)
    assert weights.tolist() == pytest.approx([10 / 24, 10 / 12, 10 / 4, 1])
    recipe = choose_recipe("in1k", "convnextv2_atto", {"label_smoothing": smoothing})
    torch.manual_seed(0)
    logits, targets = torch.randn(10, 4), torch.tensor(labels)
    step = FinetuningStep(recipe, 4, weights=weights)
    loss = step(torch.nn.Identity(), (logits, targets, {}))["loss_classification"]
    # torch's own divides by the weights of the batch's classes
    expected = torch.nn.functional.cross_entropy(
        logits, targets, weights, reduction="sum", label_smoothing=smoothing
    )
    assert float(loss) == pytest.approx(float(expected) / 10, rel=1e-5)


# --- into detection


def test_classifiers_and_encoders_go_into_a_detector_alike(tmp_path, caplog):
    """``MODEL.CONVNEXT.WEIGHTS`` takes both; the log says the same of both."""
    caplog.set_level("INFO", "detection")
    classifier = classifier_file(tmp_path / "classifier.safetensors", 4)
    whole = build_convnext("convnextv2_atto", num_classes=4)
    whole.load_state_dict(read_source(classifier)[0])
    save_encoder(whole, tmp_path / "encoder.safetensors", {})
    said = []
    for file in (classifier, tmp_path / "encoder.safetensors"):
        config = small_config({"MODEL.CONVNEXT.WEIGHTS": str(file)})
        model = build_mask_rcnn(config)
        load_initial_weights(config, model)
        said.append(caplog.messages[-1].replace(str(file), "FILE"))
        body = model.backbone.body.state_dict()
        encoder = {n: t for n, t in whole.state_dict().items() if n.startswith(("st", "down"))}
        assert len(encoder) > 100
        assert all(torch.equal(body[name], tensor) for name, tensor in encoder.items())
    assert said[0] == said[1]
    assert f"{len(encoder)} of {len(encoder)} encoder tensors from FILE" in said[0]


# --- data


def test_an_images_place_in_the_split_depends_on_its_name_alone():
    names = [f"{label}/{n}.png" for label in "ab" for n in range(20)] + ["c/only.png"]
    labels = [0] * 20 + [1] * 20 + [2]
    chosen = set_apart(names, labels, 0.25, seed=0)
    assert [sum(labels[i] == label for i in chosen) for label in range(3)] == [5, 5, 0]
    again = set_apart(names[::-1], labels[::-1], 0.25, seed=0)
    assert {names[i] for i in chosen} == {names[::-1][i] for i in again}
    assert chosen != set_apart(names, labels, 0.25, seed=1)
    tiny = set_apart(["a/1", "a/2", "b/1"], [0, 0, 1], 0.01, seed=0)
    assert len(tiny) == 1
    assert tiny <= {0, 1}
    with pytest.raises(ValueError, match="no class has a second image"):
        set_apart(["a/1", "b/1"], [0, 1], 0.5, seed=0)


def test_train_and_val_folders_are_found_and_share_their_classes(coloured, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(coloured, root / "train")
    shutil.copytree(coloured / "red", root / "val/red")
    data = labelled_data(str(root))
    assert (len(data.train), len(data.val)) == (18, 6)
    assert set(data.val.labels) == {2}
    assert len(labelled_data(str(root), only_val=True).val) == 6
    theirs = create_dataset("", root=str(root), split="train")
    assert data.classes == list(theirs.reader.class_to_idx)
    assert data.train.labels == [label for _, label in theirs.reader.samples]
    shutil.copytree(coloured / "red", root / "val/pink")
    with pytest.raises(ValueError, match=r"has 1 class\(es\) that part train of .* lacks: pink"):
        labelled_data(str(root))


def test_folders_without_classes_are_refused(coloured):
    with pytest.raises(ValueError, match=r"6 of 6 images have no label .*: 0\.png, 1\.png"):
        labelled_data(str(coloured / "red"))
    for name in ("blue", "green"):
        shutil.rmtree(coloured / name)
    with pytest.raises(ValueError, match=r"has 1 class \('red'\); a classifier needs at least two"):
        labelled_data(str(coloured))
    (coloured / "red/bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"(?s)1 of 7 images cannot be used.*bad\.png"):
        labelled_data(str(coloured))


def test_shards_have_their_folders_or_webdatasets_cls_as_labels(coloured, tmp_path):
    with tarfile.open(tmp_path / "folders.tar", "w") as archive:
        archive.add(coloured, ".")
    assert labelled_data(str(tmp_path / "folders.tar")).classes == sorted(COLOURS)
    (tmp_path / "wds").mkdir()
    with tarfile.open(tmp_path / "wds/s-000.tar", "w") as archive:
        for number in range(12):
            archive.add(coloured / f"red/{number % 6}.png", f"{number}.png")
            text = str((7 * number) % 11).encode()
            if number != 5:
                info = tarfile.TarInfo(f"{number}.cls")
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text))
    with pytest.raises(ValueError, match=r"1 of 12 images have no label .*: 5\.png"):
        labelled_data(f"wds/{tmp_path}/wds/s-000.tar")
    with tarfile.open(tmp_path / "wds/s-000.tar", "a") as archive:
        info = tarfile.TarInfo("5.cls")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"2"))
    data = labelled_data(f"wds/{tmp_path}/wds/s-000.tar", only_val=True)
    assert data.classes == [str(number) for number in range(11)]
    assert data.val.labels == [(7 * number) % 11 for number in range(12)]


def test_a_hugging_face_data_sets_column_of_classes_is_its_labels(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    monkeypatch.setenv("TIMM_DATA_DIR", str(tmp_path / "cache"))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "blue"])}
    )
    png = io.BytesIO()
    Image.new("RGB", (40, 40)).save(png, "png")
    image = {"bytes": png.getvalue(), "path": None}
    table = pyarrow.table({"image": [image] * 4, "label": [0, 1, 0, 1]})
    (tmp_path / "rows").mkdir()
    parquet.write_table(table.cast(features.arrow_schema), str(tmp_path / "rows/train.parquet"))
    data = labelled_data(f"hfds/{tmp_path}/rows", val_fraction=0.5)
    assert data.classes == ["blue", "red"]
    assert sorted(data.train.labels) == sorted(data.val.labels) == [0, 1]
    assert list(data.val.labels) == [[1, 0, 1, 0][row] for row in data.val.indices]
