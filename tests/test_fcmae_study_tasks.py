"""Studies of each task, their table, energy, several runs at a time, and what is refused."""

from __future__ import annotations

import csv
import ctypes
import json
import math
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from segmentation_scenes import write_scenes
from test_fcmae_study import ARMS, Ended, Machine, coco, small_study

from backbones.checkpoint import save_ours
from backbones.convnext import build_convnext
from backbones.errors import InputError
from fcmae.grids.study import Study, run_study
from fcmae.grids.study_labels import read_class_folders, split_labels
from fcmae.grids.study_plan import Arm, Measured, Question, StudyOptions, make_plan
from fcmae.grids.study_report import _page, write_study
from fcmae.grids.study_table import study_rows
from reporting.blocks import Charts, Number, Paragraph, Table
from segmentation.dataset import load_segmentation
from segmentation.subsets import read_class_maps
from training.records.energy import EnergyShares, nvml_counters, rapl_counters

PUBLISHED = (*ARMS, Arm("imagenet", "the encoder imagenet", __file__))


def write_classes(folder, counts, first=0):
    """Class folders of small pictures: the classes differ in brightness."""
    generator = np.random.default_rng(first)
    for level, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(100 * level, 100 * level + 50, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{first + number}.png")
    return folder


def study_of(tmp_path, task, machine, labels, train, test, sizes=(4, None)):
    options = StudyOptions(
        images=str(tmp_path), train=train, test=test, train_images=str(tmp_path),
        test_images=str(tmp_path), output_dir=str(tmp_path / "study"), hours=1.0, labels=sizes,
        arms=ARMS, model="convnextv2_atto", config_file="x.yaml", task=task, iterations=100,
        max_seeds=3,
    )  # fmt: skip
    split = split_labels(labels, sizes)
    return Study(options, labels, split, Path("tools"), machine.start, machine.clock)


def test_segmentation_trains_on_parts_of_the_maps_with_all_their_classes(tmp_path):
    name = write_scenes(tmp_path / "scenes", 20)
    machine = Machine(fcmae=40.0)
    study = study_of(tmp_path, "segmentation", machine, read_class_maps(name), name, name)
    page = run_study(study, write_study)
    assert "gives +" in page.with_suffix(".md").read_text(encoding="utf-8")
    runs = [c for c in machine.commands if "/runs/" in " ".join(c)]
    assert {Path(c[1]).stem for c in runs} == {"train_segmentation"}
    for command in runs:
        used = load_segmentation(command[command.index("DATASETS.TRAIN") + 1])
        whole = load_segmentation(name)
        assert used.classes.names == whole.classes.names
        size = len(used.records)
        assert size == 4 or size == len(study.split.pool)
        for record in used.records:  # each image has its own map
            (own,) = [r for r in whole.records if r.image == record.image]
            assert np.array_equal(used.class_map(record), whole.class_map(own))
    rows = list(csv.DictReader((tmp_path / "study/study.csv").open(encoding="utf-8")))
    assert {row["pixel accuracy"] for row in rows} == {"90.0"}
    with pytest.raises(InputError, match=r"give masks:IMAGES:LABELS:CLASSES.json \(with"):
        read_class_maps("masks:a:b")


def test_every_part_of_class_folders_has_every_class(tmp_path):
    train = write_classes(tmp_path / "train", {"dark": 30, "light": 4})
    test = write_classes(tmp_path / "test", {"dark": 3, "light": 3}, first=100)
    machine = Machine(fcmae=9.0)
    labels = read_class_folders(train)
    study = study_of(tmp_path, "classification", machine, labels, str(train), str(test))
    run_study(study, write_study)
    runs = [c for c in machine.commands if "/runs/" in " ".join(c) or "/rates/" in " ".join(c)]
    assert {Path(c[1]).stem for c in runs} == {"finetune_classifier"}
    for command in runs:
        used = read_class_folders(Path(command[command.index("--data") + 1]))
        assert {used.kind(image) for image in used.images} == {"dark", "light"}
        for image in used.images:
            assert used.file(image).read_bytes() == (train / image).read_bytes()
    apart = {*study.split.tune_train, *study.split.tune_test}
    assert not apart & {*study.split.pool}
    assert {image.partition("/")[0] for image in study.split.tune_test} == {"dark", "light"}
    for size, seed in ((4, 0), (4, 1)):
        assert len(study.split.subset(size, seed)) == size
    few = read_class_folders(write_classes(tmp_path / "few", {"a": 2, "b": 9, "c": 9}))
    with pytest.raises(InputError) as refused:
        split_labels(few, (2, None))
    assert "class a has 2 images; 3 are needed" in str(refused.value)
    assert "--labels 2 cannot hold an image of each of 3 classes" in str(refused.value)


def numbers_of(page):
    """Every number that a page's tables, charts and answers show, in full where there are digits;
    and those of sentences, as they are written."""
    exact, said = [], []
    for section in page.sections:
        for block in section.blocks:
            if isinstance(block, Table):
                cells = [cell for row in block.rows for cell in row]
                exact += [c.value for c in cells if isinstance(c, Number) and c.value is not None]
                if block.prose:
                    said += re.findall(r"\d+\.\d", " ".join(map(str, cells)))
            if isinstance(block, Charts):
                for chart in block.charts:
                    for series in chart.series:
                        exact += [v for point in (*series.points, *series.band) for v in point]
            if isinstance(block, Paragraph) and section.key == "answers":
                said += re.findall(r"\d+\.\d", block.text)
    return exact, said


def test_every_number_of_the_page_is_in_the_csv(tmp_path):
    energy = EnergyShares([iter_counter(5.0)])
    study = small_study(tmp_path, Machine(fcmae=3.0), arms=PUBLISHED, hours=1.5, energy=energy)
    run_study(study, write_study)
    with (tmp_path / "study/study.csv").open(encoding="utf-8") as stream:
        titles, *rows = csv.reader(stream)
    assert len(rows) == len(study.results)
    found = {float(v) for row in rows for v in row if re.fullmatch(r"-?[\d.]+(e-?\d+)?", v)}
    found |= {float(n) for title in titles if (n := title.rpartition(" at ")[2]).isdigit()}
    found |= {0.0}  # of what there is none
    exact, said = numbers_of(_page(study, study_rows(study), None))
    assert len(exact) > 100
    assert len(said) > 20
    lacking = [v for v in exact if not any(math.isclose(v, f, abs_tol=1e-9) for f in found)]
    assert not lacking
    assert not {v for v in said if v not in {f"{abs(f):.1f}" for f in found}} - {"95"}


def iter_counter(step):
    """A counter of energy that rises by a step each time it is read."""
    total = 0.0

    def read():
        nonlocal total
        total += step
        return total

    return read


def test_pretraining_here_is_compared_with_published_encoders_too(tmp_path):
    study = small_study(tmp_path, Machine(fcmae=9.0, imagenet=9.0), arms=PUBLISHED, hours=3.0)
    page = run_study(study, write_study)
    asked = study.options.questions()
    assert Question("fcmae", "imagenet", 8) in asked
    assert len(asked) == 6  # three pairs of starts at two sizes, and each pays for all
    answers = study.answers()
    assert answers[Question("fcmae", "imagenet", 8)].answer == "cannot tell"
    assert answers[Question("imagenet", "random", 8)].answer == "better"
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "pretraining against the encoder imagenet: cannot tell" in text
    assert re.search(r"Better than random weights is (pretraining|the encoder imagenet), too", text)
    assert "That is shown with 8 labels and all labels." in text


@pytest.mark.skipif(sys.platform == "win32", reason="Linux's names have colons")
def test_energy_is_divided_among_what_runs_and_counters_turn_over(tmp_path):
    package = tmp_path / "intel-rapl:0"
    for folder in (package, tmp_path / "intel-rapl:0:0"):
        folder.mkdir()
        (folder / "max_energy_range_uj").write_text("10000000")
        (folder / "energy_uj").write_text("4000000")
    (counter,) = rapl_counters(tmp_path)  # the part is in the package
    assert counter() == 4.0
    (package / "energy_uj").write_text("1000000")
    assert counter() == 11.0
    used = EnergyShares([counter])
    used.begin("a")
    (package / "energy_uj").write_text("3000000")  # 2 J of a
    used.begin("b")
    (package / "energy_uj").write_text("9000000")  # 3 J each
    assert used.end("a") == 5.0
    (package / "energy_uj").write_text("9500000")
    assert used.end("b") == 3.5
    assert EnergyShares([]).end("a") is None
    assert rapl_counters(tmp_path / "nowhere") == []


def test_gpus_count_millijoules_and_those_that_cannot_are_left_out():
    class Library:
        def nvmlInit_v2(self):
            return 0

        def nvmlDeviceGetCount_v2(self, count):
            count._obj.value = 2
            return 0

        def nvmlDeviceGetHandleByIndex_v2(self, index, device):
            device._obj.value = index + 1
            return 0

        def nvmlDeviceGetTotalEnergyConsumption(self, device, found):
            if device.value == 1:
                return 3  # NVML_ERROR_NOT_SUPPORTED
            found._obj.value = 7500
            return 0

    (counter,) = nvml_counters(Library())
    assert counter() == 7.5
    assert nvml_counters(ctypes.pythonapi) == []  # a library without such functions


def test_energy_that_cannot_be_read_is_said(tmp_path):
    study = small_study(tmp_path, Machine(), energy=EnergyShares([]))
    page = run_study(study, write_study)
    assert "not readable here" in page.with_suffix(".md").read_text(encoding="utf-8")


def test_the_plan_counts_what_runs_side_by_side_in_wall_clock_time(tmp_path):
    options = small_study(tmp_path, Machine()).options
    seconds = Measured(pretraining_step=0.1, iteration=0.2, overhead=10)
    alone = make_plan(options, seconds)
    for at_once in (2, 4):
        plan = make_plan(StudyOptions(**{**vars(options), "at_once": at_once}), seconds)
        # one pretraining runs on one part of the machine, however many there are
        assert plan.pretraining_steps == alone.pretraining_steps
        assert plan.waves == pytest.approx(alone.waves * at_once, rel=0.15)
        assert sum(plan.seconds[:2]) + plan.seconds[2] * plan.waves / (at_once / 2) <= 3600


def test_several_runs_at_a_time_share_the_machine_and_answer_the_same(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("training.command_line.jobs.usable_cores", lambda: 8)
    machine = Machine(fcmae=9.0)
    study = small_study(tmp_path, machine, at_once=4)
    run_study(study, write_study)
    assert {v.answer for v in study.verdicts().values()} == {"better"}
    of_runs = [
        share for command, share in zip(machine.commands, machine.shares, strict=True)
        if "/runs/" in " ".join(command)
    ]  # fmt: skip
    assert {share["OMP_NUM_THREADS"] for share in of_runs} == {"2"}


def test_weights_that_do_not_load_and_pictures_of_its_own_are_told_at_once(tmp_path, run_tool):
    images = tmp_path / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    for number in (*range(30), *range(100, 104)):
        pixels = generator.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    train, test = coco(tmp_path / "train.json", 30), coco(tmp_path / "test.json", 4, 100)
    wrong = tmp_path / "pico.safetensors"
    save_ours(build_convnext("convnextv2_pico").state_dict(), wrong, {})
    given = ["--images", images, "--train", train, "--test", test, "--labels", 8]
    found = run_tool("study", *given, "--output-dir", images / "out", "--encoder", f"p={wrong}")
    assert found.code == 1
    assert "the start p does not load" in found.err
    assert "lies in --images" in found.err
    assert not (images / "out").exists()
    found = run_tool("study", *given[:-1], 80, "--output-dir", images / "out")
    assert "fewer than the 80 of --labels" in found.err
    assert "lies in --images" in found.err
    found = run_tool("study", *given[:4], "--test", f"json:{test}:{images}", "--output-dir", "o")
    assert "is for detection" in found.err
    found = run_tool("study", "--images", images, "--train", images, "--test", images,
                     "--output-dir", "o", "batchsize", "3")  # fmt: skip
    assert "no flag batchsize; the closest is batch-size" in found.err


def test_a_whole_model_that_does_not_load_is_told_before_anything_is_pretrained(tmp_path):
    class Refusing(Machine):
        def start(self, command, log, share):
            if "MODEL.WEIGHTS" not in command:
                return super().start(command, log, share)
            log.write_text("$ command\nerror: x.pth has no backbone\n", encoding="utf-8")
            failed = Ended()
            failed.poll = lambda: 1
            return failed

    machine = Refusing()
    arms = (*ARMS, Arm("coco", "the detector coco", detector=__file__))
    with pytest.raises(InputError, match=r"train_coco failed:\n(.*\n)*.*x.pth has no backbone"):
        run_study(small_study(tmp_path, machine, arms=arms), write_study)
    assert not [c for c in machine.commands if f"{tmp_path}/study/pretrain/" in " ".join(c)]


def test_a_study_on_images_that_changed_is_refused(tmp_path):
    small_study(tmp_path, Machine())
    (tmp_path / "new.png").write_bytes(b"another image")
    with pytest.raises(InputError, match=f"data was changed since: {re.escape(str(tmp_path))}\n"):
        small_study(tmp_path, Machine())


def in_this_process(command, log, share, cwd=None):
    """In place of a process of its own, whose imports take long."""
    log.write_text(f"$ {shlex.join(command)}\n", encoding="utf-8")
    earlier = sys.argv
    sys.argv = command[1:]
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(command[1], run_name="__main__")
    sys.argv = earlier
    assert not ended.value.code
    return Ended()


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_a_real_study_of_one_pair(tmp_path, run_tool, monkeypatch, task):
    """Two starts, one wave: this project's own command lines end to end."""
    waves = [[(4, 0)], []]
    monkeypatch.setattr(Study, "next_waves", lambda self, count: waves.pop(0))
    monkeypatch.setattr("fcmae.grids.study.start_process", in_this_process)
    weights = tmp_path / "encoder.safetensors"
    save_ours(build_convnext("convnextv2_atto").state_dict(), weights, {})
    if task == "segmentation":
        train = write_scenes(tmp_path / "train", 13)
        test = write_scenes(tmp_path / "test", 2, seed=1)
        more = ["INPUT.CROP.SIZE", "[32,32]", "INPUT.SCALE", "[64,48]", "TEST.SCALE", "[64,48]",
                "SOLVER.IMS_PER_BATCH", 2, "SOLVER.WARMUP_ITERS", 1]  # fmt: skip
    else:
        train = str(write_classes(tmp_path / "train", {"dark": 6, "light": 6}))
        test = str(write_classes(tmp_path / "test", {"dark": 2, "light": 2}, first=50))
        more = ["batch-size", 4]
    found = run_tool(
        "study", "--images", tmp_path / "train", "--train", train, "--test", test,
        "--output-dir", tmp_path / "study", "--labels", 4, "--no-pretraining", "--hours", 1,
        "--encoder", f"file={weights}", "--iterations", 2, "--image-size", 32, "--jobs", 1, *more,
    )  # fmt: skip
    assert found.code == 0, found.err
    assert "cannot tell" in found.out
    rows = list(csv.DictReader((tmp_path / "study/study.csv").open(encoding="utf-8")))
    assert {row["arm"] for row in rows} == {"random", "file"}
    page = (tmp_path / "study/report.html").read_text(encoding="utf-8")
    assert "What changed most" in page
    state = json.loads((tmp_path / "study/study.json").read_text(encoding="utf-8"))
    assert state["asked"]["task"] == task
    assert not state.get("notes")
