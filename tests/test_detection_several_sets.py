"""Runs on several data sets: classes are one by their names, files are read once, facts stay."""

import builtins
import io
import json
import logging
from pathlib import Path

import pytest
from small_coco import small_coco, write_small_coco
from small_detector import small_config

from detection.config import load_config
from detection.dataset import join_datasets, joined_classes, load_dataset
from detection.engines import load_engine
from detection.evaluate import coco_metrics
from detection.export import class_facts, load_run
from detection.predict import read_run
from detection.run import run

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]


def named(folder, names, tree=None):
    """A data set whose category ids 2 and 9 have these names: its name in a config."""
    tree = tree or small_coco()
    tree["categories"] = [{"id": key, "name": name} for key, name in names.items()]
    annotations, images = write_small_coco(folder, tree)
    return f"json:{annotations}:{images}"


def configure(output_dir, train, test, **changes):
    base = {
        "MODEL.ROI_HEADS.NUM_CLASSES": 0,
        "DATASETS.TRAIN": train,
        "DATASETS.TEST": test,
        "OUTPUT_DIR": str(output_dir),
        "SOLVER.MAX_ITER": 2,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    }
    return small_config(base | changes)


def test_classes_of_one_name_are_one_class_whatever_their_ids(tmp_path):
    first = load_dataset(named(tmp_path / "a", {2: "box", 9: "disc"}))
    second = load_dataset(named(tmp_path / "b", {2: "disc", 9: "ring"}))
    classes = joined_classes([first, second])
    assert classes == {2: "box", 9: "disc", 10: "ring"}
    joined = join_datasets([first, second], classes)
    assert joined.class_names == ("box", "disc", "ring")
    assert len(joined.records) == 8
    labels = [
        [joined.class_names[item["category_id"]] for item in joined.records[place]["annotations"]]
        for place in (0, 4)
    ]
    assert labels == [["box", "disc"], ["disc", "ring"]]
    assert joined.fingerprint not in (first.fingerprint, second.fingerprint)
    alone = second.with_classes(("box", "disc", "ring"))
    assert alone.category_ids == [None, 2, 9]
    assert alone.category_names == {2: "disc", 9: "ring"}
    fewer = second.with_classes(("disc",))
    assert (fewer.class_names, fewer.beyond) == (("disc",), ("ring",))
    assert fewer.category_names == {2: "disc", 9: "ring"}


@pytest.mark.parametrize("engine", ENGINES)
def test_each_test_set_gets_its_metrics_and_its_row(tmp_path, engine):
    train = (
        named(tmp_path / "a", {2: "box", 9: "disc"}),
        named(tmp_path / "b", {2: "disc", 9: "box"}),
    )
    other = small_coco()
    other["annotations"] = [item for item in other["annotations"] if item["category_id"] == 9]
    few = named(tmp_path / "few", {9: "disc"}, other)
    out = tmp_path / "run"
    changes = {"ENGINE": engine, "TEST.EVAL_PERIOD": 1}
    metrics = run(configure(out, train, (train[1], few), **changes))
    assert metrics == coco_metrics(
        train[1].split(":")[1], out / "inference/coco_instances_results.json"
    )
    folder = out / "inference" / "annotations-2"
    results = folder / "coco_instances_results.json"
    summary = json.loads((folder / "metrics_summary.json").read_text())
    assert summary == coco_metrics(few.split(":")[1], results, ("bbox", "segm"))
    assert {result["category_id"] for result in json.loads(results.read_text())} == {9}
    facts = json.loads((out / "run.json").read_text())
    assert facts["categories"] == [{"id": 2, "name": "box"}, {"id": 9, "name": "disc"}]
    assert facts["datasets"]["train"]["images"] == 8
    assert [row["label"] for row in facts["datasets"]["tests"]] == ["annotations", "annotations-2"]
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert any({"bbox/AP", "annotations-2/bbox/AP"} <= line.keys() for line in lines)
    assert "annotations-2" in (out / "report.md").read_text()


@pytest.mark.parametrize("engine", ENGINES)
def test_each_file_is_read_once_by_a_run_with_an_evaluation_in_training(
    tmp_path, monkeypatch, engine
):
    train = named(tmp_path / "a", {2: "box", 9: "disc"})
    test = named(tmp_path / "b", {2: "box", 9: "disc"})
    opened: list[str] = []

    def spied(original):
        def open_file(file, mode="r", *args, **kwargs):
            if "r" in mode and "+" not in mode:
                opened.append(str(file))
            return original(file, mode, *args, **kwargs)

        return open_file

    monkeypatch.setattr(builtins, "open", spied(builtins.open))
    monkeypatch.setattr(io, "open", spied(io.open))
    config = configure(
        tmp_path / "run", (train,), (test,), **{"ENGINE": engine, "TEST.EVAL_PERIOD": 1}
    )
    run(config)
    read = [Path(file).name for file in opened]
    for name in (train, test):
        assert opened.count(name.split(":")[1]) == 1
    # one results file is written after step 1, and another by the final weights
    assert read.count("coco_instances_results.json") == 2


def test_a_run_with_averaged_weights_and_few_classes_in_the_test_set(tmp_path, caplog):
    other = small_coco()
    other["annotations"] = [item for item in other["annotations"] if item["category_id"] == 9]
    train = named(tmp_path / "a", {2: "box", 9: "disc"})
    test = named(tmp_path / "b", {9: "disc"}, other)
    config = configure(tmp_path / "run", (train,), (test,), **{"SOLVER.EMA.ENABLED": True})
    with caplog.at_level(logging.WARNING):
        metrics = run(config)
    assert set(metrics["per_class"]) == {"disc"}
    assert "lacks the classes box: detections of them are left out" in caplog.text


def test_a_training_set_may_lack_a_class_that_the_test_set_has(tmp_path, caplog):
    tree = small_coco()
    tree["annotations"] = [item for item in tree["annotations"] if item["category_id"] == 2]
    train = named(tmp_path / "a", {2: "box"}, tree)
    test = named(tmp_path / "b", {2: "box", 9: "disc"})
    with caplog.at_level(logging.WARNING):
        metrics = run(configure(tmp_path / "run", (train,), (test,)))
    assert "has classes that no training set has, which are never found: disc" in caplog.text
    assert set(metrics["per_class"]) == {"box", "disc"}


@pytest.mark.parametrize("engine", ENGINES)
def test_an_evaluation_rewrites_nothing_of_the_training_and_compares_classes_by_name(
    tmp_path, engine
):
    train = named(tmp_path / "a", {2: "box", 9: "disc"})
    out = tmp_path / "run"
    run(configure(out, (train,), (train,), **{"ENGINE": engine, "SEED": 3}))
    before = json.loads((out / "run.json").read_text())
    expected = json.loads((out / "inference/coco_instances_results.json").read_text())

    swapped = named(tmp_path / "b", {2: "disc", 9: "box"})
    changes = {"ENGINE": engine, "SEED": 4}
    run(configure(out, (), (swapped,), **changes), eval_only=True)
    after = json.loads((out / "run.json").read_text())
    assert after.pop("evaluation")["seed"] == 4
    assert after["datasets"].pop("test")["name"] == swapped
    assert before["datasets"].pop("test")["name"] == train
    after.pop("predict_seconds")
    before.pop("predict_seconds")
    assert after == before
    assert read_run(out)[1].category_names == {2: "box", 9: "disc"}
    # the same objects are found under the other id
    found = json.loads((out / "inference/coco_instances_results.json").read_text())
    assert [one["category_id"] for one in found] == [
        {2: 9, 9: 2}[one["category_id"]] for one in expected
    ]
    assert [one["bbox"] for one in found] == [one["bbox"] for one in expected]


def test_resume_refuses_other_classes_and_says_other_data(tmp_path, caplog):
    train = named(tmp_path / "a", {2: "box", 9: "disc"})
    out = tmp_path / "run"
    run(configure(out, (train,), (), **{"SOLVER.MAX_ITER": 1}))
    facts = (out / "run.json").read_text()
    named(tmp_path / "a", {2: "disc", 9: "box"})
    with pytest.raises(ValueError, match=r"--resume cannot continue a run with other classes"):
        run(configure(out, (train,), ()), resume=True)
    assert (out / "run.json").read_text() == facts
    tree = small_coco()
    del tree["annotations"][0]
    named(tmp_path / "a", {2: "box", 9: "disc"}, tree)
    with caplog.at_level(logging.WARNING):
        run(configure(out, (train,), ()), resume=True)
    assert "the training data changed since the run began" in caplog.text
    after = json.loads((out / "run.json").read_text())["datasets"]
    assert after["train"] == json.loads(facts)["datasets"]["train"]
    assert after["train_resumed"]["instances"] == 4


def test_weights_are_evaluated_elsewhere_with_the_classes_of_their_training(tmp_path):
    train = named(tmp_path / "a", {2: "box", 9: "disc"})
    out = tmp_path / "run"
    metrics = run(configure(out, (train,), (train,)))
    swapped = small_coco()
    for item in swapped["annotations"]:
        item["category_id"] = {2: 9, 9: 2}[item["category_id"]]
    other = named(tmp_path / "b", {2: "disc", 9: "box"}, swapped)
    weights = str(out / "model_final.safetensors")
    config = configure(tmp_path / "else", (), (other,), **{"MODEL.WEIGHTS": weights})
    assert run(config, eval_only=True)["bbox"] == metrics["bbox"]


@pytest.mark.parametrize("engine", ENGINES)
def test_train_called_with_test_sets_reads_none(tmp_path, engine, monkeypatch):
    train = named(tmp_path / "a", {2: "box", 9: "disc"})
    config = configure(
        tmp_path / "run", (train,), ("json:not:there",), **{"ENGINE": engine, "TEST.EVAL_PERIOD": 1}
    )
    dataset = load_dataset(train, for_evaluation=True)
    load_engine(engine).train(config, dataset, False, [dataset])
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    assert any("bbox/AP" in line for line in lines)


@pytest.mark.detectron2
def test_settings_of_training_alone_keep_no_detectron2_run_from_the_other_engine(tmp_path):
    tree = small_coco()
    tree["annotations"] = [
        item for item in tree["annotations"] if isinstance(item["segmentation"], list)
    ]
    train = named(tmp_path / "a", {2: "box", 9: "disc"}, tree)
    out = tmp_path / "run"
    changes = {
        "ENGINE": "detectron2",
        "INPUT.MASK_FORMAT": "polygon",
        "DATALOADER.ASPECT_RATIO_GROUPING": True,
        "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": False,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm",
    }
    metrics = run(configure(out, (train,), (train,), **changes))
    config, model = load_run(out)
    assert class_facts(config, {}, out) == (["box", "disc"], [2, 9])
    assert sum(value.numel() for value in model.state_dict().values()) > 0
    config, _ = read_run(out, ["ENGINE", "torchvision"])
    assert run(config, eval_only=True)["bbox"]["AP"] == pytest.approx(metrics["bbox"]["AP"])
    with pytest.raises(ValueError, match="MASK_FORMAT is 'polygon', but ENGINE torchvision"):
        load_config(out / "config.yaml", ["ENGINE", "torchvision"])
