"""model_best, early stopping and the test set kept apart, on both engines."""

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_coco import small_coco, write_small_coco
from small_detector import small_config

from backbones.errors import InputError
from detection.config import load_config
from detection.engines import load_engine
from detection.reporting.facts import chosen_weights
from detection.reporting.run import read_run
from detection.run import run
from training.configured import newest_weights
from training.guards.validation import Validation, mean_of

ENGINES = pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)


def validation(tmp_path, patience=0):
    return Validation(tmp_path, "bbox/AP", patience)


def feed(found, values, saved=None):
    """One evaluation a step; which weights were saved as the best at each."""
    for step, value in enumerate(values, 1):
        model, average = value if isinstance(value, tuple) else (value, None)
        metrics = {"bbox/AP": model, "segm/AP": 99.0}
        if average is not None:
            metrics["ema/bbox/AP"] = average
        found.record(step, metrics, (saved if saved is not None else []).append)
        if found.is_over:
            return step
    return None


def test_the_best_is_the_first_of_the_highest_of_model_and_average(tmp_path):
    found, saved = validation(tmp_path), []
    feed(found, [(10.0, 5.0), (10.0, 12.0), (12.0, 11.0), (13.0, 13.0)], saved)
    assert saved == ["model", "average", "model"]
    assert found.best == {"iteration": 4, "value": 13.0, "weights": "model"}
    record = json.loads((tmp_path / "validation.json").read_text())
    assert record["best"] == found.best
    assert [each["average"] for each in record["evaluations"]] == [5.0, 12.0, 11.0, 13.0]


@pytest.mark.parametrize(
    ("patience", "values", "end"),
    [
        (0, [3, 2, 1, 1, 1], None),
        (1, [1, 2, 3], None),
        (1, [1, 2, 2, 3], 3),
        (2, [1, 3, 2, 3, 9], 4),
        (3, [5, 1, 2, 6, 1, 2, 3, 9], 7),
    ],
)
def test_it_is_over_after_as_many_evaluations_without_a_better_one(tmp_path, patience, values, end):
    assert feed(validation(tmp_path, patience), values) == end
    assert json.loads((tmp_path / "validation.json").read_text())["stopped"] == end


def test_a_resumed_run_forgets_what_came_later_and_ends_alike(tmp_path):
    whole = validation(tmp_path / "whole", 2)
    feed(whole, [1, 3, 2, 1])
    config = small_config({
        "DATASETS.VAL": ("json:a:b",), "OUTPUT_DIR": str(tmp_path / "whole"),
        "SOLVER.EARLY_STOPPING.PATIENCE": 2,
    })  # fmt: skip
    again = Validation.of(config, continues=True)
    assert again.is_over
    again.reach(2)
    assert not again.is_over
    assert again.best["value"] == 3
    assert not again.knows(3)
    for step, value in ((3, 2), (4, 1)):
        again.record(step, {"bbox/AP": value}, lambda _: pytest.fail("nothing better"))
    assert again.evaluations == whole.evaluations
    assert Validation.of(config, continues=False).evaluations == []
    assert Validation.of(small_config(), continues=True) is None


def test_the_best_beyond_the_resumed_step_stays_the_best_for_its_weights_are_written(tmp_path):
    found = validation(tmp_path, 2)
    feed(found, [5, 1, 9, 2])
    found.reach(2)
    assert found.best["iteration"] == 3
    assert [each["iteration"] for each in found.evaluations] == [1, 2, 3]
    assert not found.is_over
    assert found.knows(3)
    found.record(4, {"bbox/AP": 2}, lambda _: pytest.fail("nothing better"))
    found.record(5, {"bbox/AP": 3}, lambda _: pytest.fail("nothing better"))
    assert found.is_over


def test_the_value_is_the_mean_over_the_sets_of_the_right_weights_and_task():
    metrics = {
        "bbox/AP": 10.0, "bbox/AP50": 90.0, "segm/AP": 70.0, "second/bbox/AP": 30.0,
        "ema/bbox/AP": 1.0, "ema/second/bbox/AP": 2.0, "ema/bbox/AP50": 80.0,
    }  # fmt: skip
    assert mean_of(metrics, "", "bbox/AP") == 20
    assert mean_of(metrics, "ema/", "bbox/AP") == 1.5
    assert mean_of(metrics, "", "bbox/AP50") == 90
    assert mean_of({"bbox/AP": 1.0}, "ema/", "bbox/AP") is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("DATASETS.VAL ('json:v:i',)", "set it to 4000, say"),
        (
            "DATASETS.VAL ('json:v:i',) DATASETS.TEST ('json:v:i',) TEST.EVAL_PERIOD 10",
            "DATASETS.VAL and TEST both name json:v:i: its result would be too good",
        ),
        (
            "DATASETS.VAL ('json:v:i',) DATASETS.TRAIN ('json:v:i',) TEST.EVAL_PERIOD 10",
            "DATASETS.VAL and TRAIN both name json:v:i",
        ),
        ("SOLVER.EARLY_STOPPING.PATIENCE 3", "nothing tells when to stop"),
        (
            "DATASETS.VAL ('json:v:i',) TEST.EVAL_PERIOD 10 TEST.BEST_METRIC segm/AP "
            "MODEL.MASK_ON False",
            "but MODEL.MASK_ON is False: take bbox",
        ),
    ],
)
def test_a_validation_set_that_cannot_choose_is_refused_with_the_remedy(
    tmp_path, overrides, message
):
    path = tmp_path / "config.yaml"
    path.write_text("VERSION: 2\n")
    with pytest.raises(ValueError, match=r"VAL|PATIENCE|BEST_METRIC") as caught:
        load_config(path, overrides.split(" "))
    assert message in str(caught.value)


@pytest.fixture
def sets(tmp_path):
    """Three data sets of the same classes and other images, as configs name them."""
    found = {}
    for number, name in enumerate(("train", "val", "test")):
        annotations, images = write_small_coco(tmp_path / name, small_coco())
        for file in images.iterdir():  # the sets share no image
            with Image.open(file) as picture:
                turned = picture.point(lambda v, n=number: (v + 40 * n) % 256)
            turned.save(file)
        found[name] = f"json:{annotations}:{images}"
    return found


def configured(sets, output_dir, engine, changes=None):
    base = {
        "ENGINE": engine, "SEED": 3, "MODEL.ROI_HEADS.NUM_CLASSES": 0,
        "DATASETS.TRAIN": (sets["train"],), "DATASETS.VAL": (sets["val"],),
        "DATASETS.TEST": (sets["test"],), "OUTPUT_DIR": str(output_dir),
        "TEST.EVAL_PERIOD": 1, "SOLVER.CHECKPOINT_PERIOD": 9, "MODEL.MASK_ON": False,
        "SOLVER.MAX_ITER": 3,
    }  # fmt: skip
    return small_config(base | (changes or {}))


@pytest.fixture
def scored(monkeypatch):
    """Let evaluations in training find these values, one after the other."""

    def give(engine, values):
        remaining = iter(values)

        def evaluate_run(*_):
            value = next(remaining)
            if value is None:
                raise Interrupted
            return {task: {"AP": value, "AP50": value} for task in ("bbox", "segm")}, None

        monkeypatch.setattr("detection.engines.results.evaluate_run", evaluate_run)

    return give


class Interrupted(Exception):
    pass


def weights(path):
    if path.suffix == ".pth":
        return torch.load(path, weights_only=True)["model"]
    return load_file(path)


def same(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def final(folder):
    (path,) = folder.glob("model_final.*")
    return path


@ENGINES
def test_the_test_set_is_judged_once_by_the_weights_that_validation_chose(
    tmp_path, sets, engine, scored, caplog
):
    out = tmp_path / "run"
    scored(engine, [10, 30, 20])
    metrics = run(configured(sets, out, engine))
    best = newest_weights(out)
    assert best.stem == "model_best"
    # the same training, which ends where the best was found
    run(configured(sets, tmp_path / "two", engine,
                   {"SOLVER.MAX_ITER": 2, "DATASETS.VAL": (), "DATASETS.TEST": (),
                    "TEST.EVAL_PERIOD": 0}))  # fmt: skip
    assert same(best, final(tmp_path / "two"))
    assert not same(best, final(out))
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert [line["bbox/AP"] for line in lines if "bbox/AP" in line][-1] == 20
    # the test results are those of the best weights on the test set
    written = json.loads((out / "inference/coco_instances_results.json").read_text())
    config = configured(sets, out, engine)
    from detection.dataset import load_dataset

    path = load_engine(engine).predict(config, load_dataset(sets["test"]), str(best), "again")
    assert json.loads(path.read_text()) == written
    assert json.loads((out / "inference/metrics_summary.json").read_text()) == metrics
    facts = json.loads((out / "run.json").read_text())
    assert facts["validation"] == {
        "metric": "bbox/AP",
        "best": {"iteration": 2, "value": 30, "weights": "model"},
        "stopped": None,
    }
    assert [each["name"] for each in facts["datasets"]["val"]] == [sets["val"]]
    said = chosen_weights(read_run(out))
    assert said == "those after step 2: bbox/AP 30.00 on the validation data"
    assert said in (out / "report.html").read_text()
    # an evaluation alone takes them, too
    again = run(configured(sets, out, engine), eval_only=True)
    assert again == metrics


@ENGINES
def test_a_training_that_gets_no_better_ends_and_a_resume_leaves_it_so(
    tmp_path, sets, engine, scored
):
    out = tmp_path / "run"
    changes = {"SOLVER.EARLY_STOPPING.PATIENCE": 1, "SOLVER.MAX_ITER": 5}
    scored(engine, [30, 40, 20])
    run(configured(sets, out, engine, changes))
    facts = json.loads((out / "run.json").read_text())
    assert facts["validation"]["stopped"] == 3
    assert facts["validation"]["best"]["iteration"] == 2
    assert chosen_weights(read_run(out)).endswith("; stopped early at 3")
    facts["validation"]["stopped"] = 5  # of 5 steps: nothing was cut off
    (tmp_path / "last").mkdir()
    for name, text in (
        ("run.json", json.dumps(facts)),
        ("config.yaml", (out / "config.yaml").read_text()),
    ):
        (tmp_path / "last" / name).write_text(text)
    assert "stopped" not in chosen_weights(read_run(tmp_path / "last"))
    stopped = weights(final(out))
    three = {"SOLVER.MAX_ITER": 3, "DATASETS.VAL": (), "DATASETS.TEST": (), "TEST.EVAL_PERIOD": 0}
    run(configured(sets, tmp_path / "three", engine, three))
    assert same(final(out), final(tmp_path / "three"))
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    last = 3 if engine == "torchvision" else 2  # detectron2 counts from 0
    assert lines[-1]["iteration"] == last
    evaluated = [line for line in lines if "bbox/AP" in line]
    assert (evaluated[-1]["iteration"], evaluated[-1]["bbox/AP"]) == (last, 20)
    scored(engine, [])  # nothing more is evaluated
    run(configured(sets, out, engine, changes), resume=True)
    assert all(torch.equal(stopped[n], w) for n, w in weights(final(out)).items())
    assert json.loads((out / "run.json").read_text())["validation"]["stopped"] == 3
    # with more patience it goes on
    scored(engine, [50, 1])
    run(configured(sets, out, engine, changes | {"SOLVER.EARLY_STOPPING.PATIENCE": 2}), resume=True)
    record = json.loads((out / "validation.json").read_text())
    assert [each["model"] for each in record["evaluations"]] == [30, 40, 20, 50, 1]
    assert record["best"]["iteration"] == 4


@ENGINES
def test_a_resume_keeps_the_best_and_evaluates_what_was_cut_off(tmp_path, sets, engine, scored):
    out, whole = tmp_path / "cut", tmp_path / "whole"
    changes = {"SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.EMA.ENABLED": True, "SOLVER.EMA.DECAY": 0.5}
    values = [10, 5, 20, 40, 30, 35]  # of the weights and their average by turns
    scored(engine, values)
    run(configured(sets, whole, engine, changes))
    scored(engine, [*values[:4], None])  # the third evaluation does not come to its end
    with pytest.raises(Interrupted):
        run(configured(sets, out, engine, changes))
    assert [each["iteration"] for each in
            json.loads((out / "validation.json").read_text())["evaluations"]] == [1, 2]  # fmt: skip
    scored(engine, values[4:])
    run(configured(sets, out, engine, changes), resume=True)
    records = [(folder / "validation.json").read_text() for folder in (out, whole)]
    assert records[0] == records[1]
    assert json.loads(records[0])["best"] == {"iteration": 2, "value": 40, "weights": "average"}
    assert same(newest_weights(out), newest_weights(whole))
    assert same(final(out), final(whole))
    assert newest_weights(out).stem == "model_best"
    assert not (out / "inference_EMA/metrics_summary.json").exists()  # one verdict on the test set


def changed(name, folder, change):
    """A data set's name with other annotations."""
    annotations, _, images = name[5:].rpartition(":")
    tree = json.loads(Path(annotations).read_text(encoding="utf-8"))
    change(tree["annotations"])
    file = folder / "changed.json"
    file.write_text(json.dumps(tree), encoding="utf-8")
    return f"json:{file}:{images}"


def test_a_validation_set_without_an_object_is_refused_before_the_training(tmp_path, sets):
    def only_crowds(annotations):
        for item in annotations:
            item["iscrowd"] = 1

    empty = changed(sets["val"], tmp_path, only_crowds)
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"none of its 4 images shows an object .*DATASETS\.VAL"):
        run(configured(sets | {"val": empty}, out, "torchvision"))
    assert not (out / "metrics.json").exists()


def test_a_resume_does_not_choose_among_values_of_another_measure(tmp_path, sets, scored):
    """Of another metric, or other data: 20 on one is not worse than 30 on the other."""
    out, engine = tmp_path / "run", "torchvision"
    scored(engine, [30, 20])
    run(configured(sets, out, engine, {"SOLVER.MAX_ITER": 2}))
    other = changed(sets["val"], tmp_path, lambda annotations: annotations.pop())
    for changes, said in (
        ({"TEST.BEST_METRIC": "bbox/AP50"}, r"BEST_METRIC was bbox/AP, is bbox/AP50"),
        ({"DATASETS.VAL": (other,)}, r"DATASETS\.VAL was .*, is json:.*changed\.json"),
        ({"DATASETS.VAL": ()}, r"DATASETS\.VAL was .*, is none"),
    ):
        with pytest.raises(InputError, match=said):
            run(configured(sets, out, engine, changes), resume=True)
    # the same data at another place are the same
    moved = changed(sets["val"], tmp_path, lambda annotations: None)
    Path(moved[5:].rpartition(":")[0]).write_bytes(
        Path(sets["val"][5:].rpartition(":")[0]).read_bytes()
    )
    scored(engine, [40])
    run(configured(sets | {"val": moved}, out, engine), resume=True)
    record = json.loads((out / "validation.json").read_text())
    assert [each["model"] for each in record["evaluations"]] == [30, 20, 40]


def test_images_that_choose_and_measure_are_named(tmp_path, sets, caplog, scored):
    scored("torchvision", [1])
    # the same images under another name
    copy = tmp_path / "copy.json"
    annotations, _, images = sets["test"][5:].rpartition(":")
    copy.write_text(Path(annotations).read_text(encoding="utf-8"), encoding="utf-8")
    changes = {"DATASETS.VAL": (f"json:{copy}:{images}",), "SOLVER.MAX_ITER": 1}
    with caplog.at_level(logging.WARNING):
        run(configured(sets, tmp_path / "run", "torchvision", changes))
    assert "4 of the 4 images of" in caplog.text
    assert "so the results will look too good" in caplog.text
