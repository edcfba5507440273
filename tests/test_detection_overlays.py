"""Predictions beside ground truth in the experiment trackers, from both engines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_detector import small_config
from tracked import StubWandb, logged_numbers, logged_pictures

from detection.dataset import load_dataset
from detection.engines import load_engine
from detection.engines.overlays import GAP, LONG_SIDE, overlays, overlays_due
from detection.engines.torchvision import engine as torchvision_engine
from training.records.trackers import PROJECT

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
LOGS = {"torchvision": f"tensorboard/{PROJECT}", "detectron2": "."}
WITH_OBJECTS = ["3.png", "7.png", "12.png"]


def configure(engine: str, data: str, folder: Path, **changes):
    return small_config(
        {
            "ENGINE": engine,
            "OUTPUT_DIR": str(folder),
            "DATASETS.TRAIN": (data,),
            "DATASETS.TEST": (data,),
            "MODEL.ROI_HEADS.NUM_CLASSES": 0,
            "SOLVER.MAX_ITER": 3,
            "SOLVER.STEPS": (),
            "TEST.EVAL_PERIOD": 2,
            **changes,
        }
    )


@pytest.fixture(autouse=True)
def small_overlays() -> None:
    """Not here: they are of their own size."""


def halves(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    width = (picture.shape[1] - GAP) // 2
    assert (picture[:, width : width + GAP] == 255).all()
    return picture[:, :width], picture[:, width + GAP :]


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_ground_truth_is_on_the_left_and_what_was_found_on_the_right(data, tmp_path):
    dataset = load_dataset(data)
    annotations = {record["image_id"]: record["annotations"] for record in dataset.records}

    def find_all(sample, score):
        return [
            {
                "image_id": sample["image_id"],
                "category_id": dataset.category_ids[annotation["category_id"]],
                "bbox": annotation["bbox"],
                "segmentation": annotation["segmentation"],
                "score": score,
            }
            for annotation in annotations[sample["image_id"]]
        ]

    config = configure("torchvision", data, tmp_path)
    found = overlays(config, dataset, lambda sample: find_all(sample, 0.9))
    missed = overlays(config, dataset, lambda sample: find_all(sample, 0.4))
    assert list(found) == list(missed) == [f"predictions/{name}" for name in WITH_OBJECTS]
    for name in WITH_OBJECTS:
        truth, right = halves(found[f"predictions/{name}"])
        plain = Image.open(tmp_path / "data/images" / name)
        size = [round(side * LONG_SIDE / max(plain.size)) for side in plain.size]
        assert truth.shape == right.shape == (size[1], size[0], 3)
        # what scores below a half is not drawn: the right side is the image alone
        enlarged = np.asarray(plain.resize(size, Image.Resampling.BICUBIC)).astype(int)
        alone = halves(missed[f"predictions/{name}"])[1]
        assert np.abs(alone - enlarged).mean() < 10
        assert np.array_equal(truth, halves(missed[f"predictions/{name}"])[0])
        # the same objects on both sides differ in their labels (and a crowd's filling) alone
        changed = [(side != alone).any(2).mean() for side in (truth, right)]
        assert min(changed) > 0.1
    truth, right = halves(found["predictions/3.png"])  # without crowds
    assert (truth != right).any(2).mean() < 0.1


def test_overlays_are_due_where_the_run_evaluates_and_at_its_end(data, tmp_path):
    config = configure("torchvision", data, tmp_path)
    assert [step for step in range(1, 4) if overlays_due(config, step)] == [2, 3]
    config = configure("torchvision", data, tmp_path, **{"TEST.EVAL_PERIOD": 0})
    assert [step for step in range(1, 4) if overlays_due(config, step)] == [3]
    config = configure("torchvision", data, tmp_path, **{"DATASETS.TEST": ()})
    assert not any(overlays_due(config, step) for step in range(1, 4))


@pytest.mark.parametrize("engine", ENGINES)
def test_tensorboard_shows_overlays_of_each_evaluation(engine, data, tmp_path):
    folder = tmp_path / "run"
    config = configure(engine, data, folder)
    load_engine(engine).train(config, load_dataset(data), resume=False)
    shown = logged_pictures(folder / LOGS[engine])
    steps = [2, 3] if engine == "torchvision" else [1, 2]  # detectron2 counts from 0
    assert sorted(shown) == sorted(
        (f"predictions/{name}", step) for name in WITH_OBJECTS for step in steps
    )
    numbers = logged_numbers(folder / LOGS[engine])
    assert next(step for name, step in numbers if name == "bbox/AP") == steps[0]
    line = next(x for x in read_lines(folder / "metrics.json") if "bbox/AP" in x)
    assert line["iteration"] == steps[0]
    assert numbers["bbox/AP", steps[0]] == pytest.approx(line["bbox/AP"])
    picture = shown["predictions/3.png", steps[-1]]  # of 80 x 60 pixels
    assert picture.shape == (LONG_SIDE * 60 // 80, 2 * LONG_SIDE + GAP, 3)


@pytest.mark.detectron2
def test_wandb_gets_detectron2s_scalars_and_pictures(data, tmp_path, wandb: StubWandb):
    config = configure("detectron2", data, tmp_path / "run", WANDB=True)
    load_engine("detectron2").train(config, load_dataset(data), resume=False)
    assert wandb.settings["project"] == PROJECT
    assert wandb.settings["config"]["SOLVER.MAX_ITER"] == 3
    assert wandb.is_finished
    values = {name: value for _, values in wandb.logged for name, value in values.items()}
    assert {"total_loss", "lr", "bbox/AP"} <= values.keys()
    picture = np.asarray(values["predictions/3.png"])
    assert np.array_equal(picture, logged_pictures(tmp_path / "run")["predictions/3.png", 2])
    steps = [step for step, _ in wandb.logged]
    assert steps == sorted(steps)


def test_wandb_is_among_the_torchvision_engines_trackers(data, tmp_path, wandb, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(*arguments, **named):
        (options,) = (a for a in arguments if hasattr(a, "trackers"))
        raise Stopped(*options.trackers, options.tracked_config["SOLVER.MAX_ITER"])

    monkeypatch.setattr(torchvision_engine, "train", stop)
    for asked, trackers in ((True, ("tensorboard", "wandb")), (False, ("tensorboard",))):
        config = configure("torchvision", data, tmp_path / "run", WANDB=asked)
        with pytest.raises(Stopped) as stopped:
            load_engine("torchvision").train(
                torchvision_engine.completed(config, load_dataset(data), continues=False),
                load_dataset(data),
                resume=False,
            )
        assert stopped.value.args == (*trackers, 3)
