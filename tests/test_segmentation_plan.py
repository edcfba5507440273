"""The plan of a segmentation training: each rule on data whose answer is known in advance."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from segmentation_scenes import NAMES, write_scenes

import segmentation.plan as planning
from backbones.errors import InputError
from images.files import Reading
from images.plans import Encoder, Request
from segmentation.check import check_segmentation
from segmentation.config import load_config
from segmentation.dataset import load_segmentation
from segmentation.plan import (
    Survey,
    base_values,
    decide,
    frame_sides,
    side_for_time,
    survey,
    write_part,
)
from segmentation.run import run
from training.plans import ON_TIME, Machine, Timing, timed

CPU = Machine("cpu", 2, 8192.0)


def drawn(short=480, region=0.1, images=40, **changes) -> Survey:
    values = {
        "sizes": np.tile((short, short * 4 // 3), (images, 1)),
        "regions": np.full(100, region),
        "images": images,
        "test_images": 10,
        "names": ("ground", "thing"),
        "shares": (0.9, 0.1),
        "channels": 3,
        "depth": "8 bits",
    }
    return Survey(**values | changes)


def planned(numbers, minutes=10.0, step=0.5, encoder=None):
    request = Request(("masks:a:b",), ("masks:c:d",), minutes, encoder, CPU)
    return decide(request, numbers, lambda plan: Timing(step, 0.2, 30.0, 1000.0))


def test_a_panorama_is_measured_by_what_it_is_resized_to():
    """At 4 x 1 the longer side decides: 4000 x 100 pixels become 512 x 13 for a side of 128."""
    assert frame_sides(np.array([(100, 4000), (4000, 100), (480, 640)])).tolist() == [
        1000,
        1000,
        480,
    ]


def test_a_survey_measures_the_regions_that_are_drawn(tmp_path):
    dataset = load_segmentation(write_scenes(tmp_path))
    found = survey(dataset, check_segmentation(dataset, Reading(channels=None)), 3)
    assert found.names == tuple(NAMES)
    assert sum(found.shares) == pytest.approx(1)
    assert found.short == 64
    # a disc of radius 11 and a square of 14 pixels an image, where neither hides the other
    assert 12 / 64 < np.median(found.regions) < 20 / 64
    assert "6 images of 3 classes" in found.sentence()


@pytest.mark.parametrize(("region", "side"), [(0.5, 128), (0.17, 192), (0.1, 320), (0.01, 448)])
def test_half_of_the_regions_get_thirty_two_pixels_without_enlarging(region, side):
    plan, _ = planned(drawn(region=region))
    assert plan["INPUT.SCALE"] == [4 * side, side] == plan["TEST.SCALE"]
    assert plan["INPUT.CROP.SIZE"][0] == max(128, round(side * 5 / 6 / 32) * 32)


def test_few_minutes_take_pixels_away_and_many_add_some():
    numbers = drawn()
    assert side_for_time(320, planning.WANTED_STEPS, numbers) == 320
    assert side_for_time(320, planning.WANTED_STEPS // 2, numbers) == 256
    assert side_for_time(320, 0, numbers) == 160
    assert side_for_time(320, 10**6, numbers) == 448


def test_iterations_are_what_is_left_of_the_minutes():
    plan, _ = planned(drawn(images=400), minutes=10, step=0.5)
    assert plan["SOLVER.MAX_ITER"] == int((600 * ON_TIME - 30 - 2) / 0.5)
    with pytest.raises(InputError, match="too little here"):
        planned(drawn(), minutes=0.5)


def test_colours_are_distorted_in_photographs_alone():
    assert planned(drawn())[0]["INPUT.DISTORT"] is True
    plan, _ = planned(drawn(channels=1, depth="16 bits"))
    assert (plan["INPUT.FORMAT"], plan["INPUT.DISTORT"]) == ("L", False)
    with pytest.raises(InputError, match="the images have 5"):
        planned(drawn(channels=5), encoder=Encoder("e", "convnextv2_atto", 3, True))


def test_a_part_has_the_same_classes_and_values(tmp_path):
    dataset = load_segmentation(write_scenes(tmp_path / "all"))
    part = load_segmentation(write_part(dataset, tmp_path / "part", 3))
    assert part.classes.names == dataset.classes.names
    for mine, theirs in zip(part.records, dataset.records[::2], strict=True):
        if mine is part.records[0]:
            assert np.array_equal(part.class_map(mine), dataset.class_map(theirs))
    assert len(part.records) == 3


def test_the_command_plans_class_maps_and_its_config_trains(fcmae, tmp_path, monkeypatch):
    monkeypatch.setattr("images.plans.timed", lambda *of, **how: timed(*of, steps=3, **how))
    monkeypatch.setattr(planning, "side_for_time", lambda wanted, steps, numbers: wanted)
    name = write_scenes(tmp_path / "data")
    out = tmp_path / "plan.yaml"
    flags = ["--test", name, "--minutes", 20, "--output", out, "--device", "cpu"]
    result = fcmae("plan", name, *flags)
    assert result.code == 0, result.err
    assert f"now: fcmae segment --config-file {out}" in result.out
    header = " ".join(line.lstrip("# ") for line in out.read_text().splitlines())
    assert "Planned by fcmae plan for 20 minutes" in header
    assert f"Command: fcmae segment --config-file {out}" in " ".join(header.split())
    changes = ["SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "cpu"]
    config = load_config(out, [*changes, "DATALOADER.NUM_WORKERS", "0"])
    assert config.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3
    assert list(run(config)["per_class"]) == NAMES


def test_faulty_maps_are_told_before_anything_is_timed(run_tool, tmp_path):
    name = write_scenes(tmp_path / "data", images=2)
    Image.new("L", (10, 10)).save(tmp_path / "data/labels/00.png")
    result = run_tool("plan_training", name, "--output", tmp_path / "plan.yaml")
    assert result.code == 1
    assert "another size than their image" in result.err
    assert not (tmp_path / "plan.yaml").exists()


def test_the_file_holds_what_differs_from_the_base(tmp_path):
    plan, _ = planned(drawn())
    file = tmp_path / "plan.yaml"
    file.write_text(plan.text(["a test"], base_values(plan)), encoding="utf-8")
    config = load_config(file)
    assert list(config.INPUT.CROP.SIZE) == plan["INPUT.CROP.SIZE"]
    assert plan["SOLVER.MAX_ITER"] == config.SOLVER.MAX_ITER
