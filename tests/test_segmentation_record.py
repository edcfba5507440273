"""What a segmentation run records stays true: classes by name, licences, the training's facts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_scenes import NAMES, write_scenes
from test_segmentation_run import config_of

from backbones.checkpoint import save_encoder
from backbones.convnext import build_convnext
from backbones.errors import InputError
from backbones.weight_files import read_metadata, read_state_dict
from segmentation.config import build_segmenter
from segmentation.dataset import load_segmentation
from segmentation.engine import load_initial_weights
from segmentation.published import ADE20K
from segmentation.run import run, trained_names


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, scenes):
    """A run from an encoder under a licence, with a stated range of values."""
    folder = tmp_path_factory.mktemp("licensed")
    encoder = folder / "encoder.safetensors"
    told = {"mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.5, 0.6]", "value_range": "[0, 300]"}
    save_encoder(build_convnext("convnextv2_atto"), encoder, told | {"licence": "of a friend"})
    output = folder / "run"
    config = config_of(output, scenes, "MODEL.CONVNEXT.WEIGHTS", encoder, "SOLVER.MAX_ITER", "2")
    return output, run(config)


def permuted(name, folder, names):
    """The data set with its classes file, and the values of its maps, in another order."""
    _, images, labels, _ = name.split(":")
    folder.mkdir()
    values = np.array([names.index(own) for own in NAMES], np.uint8)
    for number in range(6):
        with Image.open(f"{labels}/{number:02d}.png") as image:
            Image.fromarray(values[np.asarray(image)]).save(folder / f"{number:02d}.png")
    (folder / "classes.json").write_text(json.dumps(names), encoding="utf-8")
    return f"masks:{images}:{folder}:{folder / 'classes.json'}"


def facts_of(output):
    return json.loads((output / "run.json").read_text(encoding="utf-8"))


def test_an_evaluation_tells_classes_by_name_not_by_number(tmp_path, finished, scenes):
    output, metrics = finished
    record = facts_of(output)
    other = permuted(scenes, tmp_path / "other", ["square", "ground", "disc"])
    found = run(
        config_of(tmp_path / "eval", other, "MODEL.WEIGHTS", output / "model_final.safetensors"),
        eval_only=True,
    )
    assert found["per_class"] == metrics["per_class"]
    assert found["confusion"] == metrics["confusion"]
    assert facts_of(output) == record


def test_an_evaluation_on_another_set_leaves_the_trainings_facts(tmp_path, finished, scenes):
    output, _ = finished
    before = facts_of(output)
    other = permuted(scenes, tmp_path / "other", ["disc", "square", "ground"])
    run(config_of(output, other), eval_only=True)
    after = facts_of(output)
    assert after["datasets"]["test"]["name"] == other
    assert after.pop("evaluation")["command"]
    before["datasets"].pop("test"), after["datasets"].pop("test")
    assert after == before
    run(config_of(output, scenes), eval_only=True)  # as the other tests find it


def test_the_authors_ade20k_files_have_the_classes_of_ade20k(tmp_path):
    """mmsegmentation's list, which lies in each file of theirs, says ``"bed "``."""
    theirs = ["bed " if name == "bed" else name for name in ADE20K]
    content = {"state_dict": {"a.weight": torch.zeros(1)}, "meta": {"CLASSES": tuple(theirs)}}
    torch.save(content, tmp_path / "upernet_convnext_tiny_1k_512x512.pth")
    found = trained_names(str(tmp_path / "upernet_convnext_tiny_1k_512x512.pth"))
    assert found == list(ADE20K)


def test_a_training_from_a_model_takes_the_rows_of_its_classes_by_name(tmp_path, finished):
    output, _ = finished
    file = output / "model_final.safetensors"
    before, names = read_state_dict(file), ["square", "ground", "disc"]
    more = ("MODEL.WEIGHTS", file, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3)
    config = config_of(tmp_path, "masks:a:b", *more)
    model = build_segmenter(config)
    load_initial_weights(config, model, names)
    for name, tensor in model.state_dict().items():
        rows = [NAMES.index(one) for one in names] if ".conv_seg." in name else ...
        assert torch.equal(tensor, before[name][rows]), name


def test_a_class_that_the_model_lacks_is_refused_by_name(tmp_path, finished, scenes):
    output, _ = finished
    names = tmp_path / "classes.json"
    names.write_text(json.dumps(["ground", "disc", "star"]), encoding="utf-8")
    other = f"{scenes.rpartition(':')[0]}:{names}"
    with pytest.raises(InputError, match=r"has the classes star, .* ground, disc, square"):
        run(config_of(output, other), eval_only=True)


def test_other_classes_are_not_resumed(tmp_path, finished, scenes):
    output, _ = finished
    other = permuted(scenes, tmp_path / "other", ["square", "ground", "disc"])
    with pytest.raises(InputError, match="continue a run with other classes"):
        run(config_of(output, other, "SOLVER.MAX_ITER", "3"), resume=True)


def test_a_test_set_that_lacks_a_class_is_brought_to_the_trainings(tmp_path, scenes):
    _, images, labels, _ = scenes.split(":")
    few = tmp_path / "few"
    few.mkdir()
    for number in range(6):
        with Image.open(f"{labels}/{number:02d}.png") as image:
            Image.fromarray(np.asarray(image) % 2).save(few / f"{number:02d}.png")
    config = config_of(tmp_path / "run", f"masks:{images}:{labels}", "SOLVER.MAX_ITER", "1")
    config.defrost()
    config.DATASETS.TEST = (f"masks:{images}:{few}",)
    assert list(run(config)["per_class"]) == ["0", "1", "2"]


def test_licence_range_and_statistics_of_the_encoder_travel(finished):
    output, _ = finished
    assert read_metadata(output / "model_final.safetensors")["licence"] == "of a friend"
    assert facts_of(output)["licence"] == "of a friend"
    config = (output / "config.yaml").read_text(encoding="utf-8")
    assert "VALUE_RANGE:\n  - 0\n  - 300" in config


def test_several_processes_do_not_each_draw_a_seed(tmp_path, scenes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="several processes need the same"):
        run(config_of(tmp_path / "run", scenes, "SEED", "-1"))


def test_half_precision_is_refused_on_a_cpu(tmp_path, scenes):
    amp = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "fp16")
    with pytest.raises(InputError, match="fp16, which needs a GPU"):
        run(config_of(tmp_path / "run", scenes, *amp))


def test_reordered_values_keep_what_is_ignored(tmp_path, scenes):
    dataset = load_segmentation(scenes, ignore_label=2)
    ordered = dataset.with_classes(["square", "disc", "ground"])
    table = ordered.classes.table()
    assert table[[0, 1, 2]].tolist() == [2, 1, 255]
    reduced = load_segmentation(scenes, reduce_zero_label=True).with_classes(NAMES[::-1])
    assert reduced.classes.table()[[0, 1, 2, 3]].tolist() == [255, 2, 1, 0]
