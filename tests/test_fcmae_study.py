"""Studies: verdicts that are right about planted truth, label subsets, plans, and the page."""

from __future__ import annotations

import csv
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from backbones.errors import InputError
from fcmae.grids.study import Study, run_study
from fcmae.grids.study_labels import read_labels, split_labels
from fcmae.grids.study_plan import Arm, StudyOptions
from fcmae.grids.study_report import write_study
from fcmae.grids.verdicts import LOOKS, verdict
from images.statistics import Statistics
from training.records.intervals import estimate


def test_an_interval_is_students_t_at_the_level_that_each_look_gets():
    differences = [3.0, 5.0, 4.0]
    found = verdict(differences, questions=2)
    seen = estimate(differences, 0.05 / (2 * len(LOOKS)))
    assert (found.low, found.high) == (seen.mean - seen.half_width, seen.mean + seen.half_width)
    assert found.pairs == 3


def test_nothing_is_decided_between_the_looks_and_a_decision_stands():
    clear = [5.0, 5.1, 4.9]
    assert verdict(clear[:2], 1).answer == "cannot tell"
    assert verdict(clear[:2], 1).low is None
    assert verdict(clear, 1).answer == "better"
    assert verdict([*clear, -90.0, -90.0], 1).answer == "better"
    assert verdict([-d for d in clear], 1).answer == "worse"
    four = verdict([1.0, -1.0, 0.5, 30.0], 1)
    assert four.pairs == 3


def test_false_verdicts_stay_under_5_percent_of_studies_whenever_one_stops():
    """Two identical arms, three questions, a look at every number of pairs: planted truth is 0."""
    generator = np.random.default_rng(0)
    studies, questions = 2000, 3
    wrong = 0
    for differences in generator.normal(0, 5, (studies, questions, max(LOOKS))):
        wrong += any(verdict(list(d), questions).answer != "cannot tell" for d in differences)
    assert wrong / studies < 0.05
    # the interval of one look at 5% each, looked at as often, is wrong far more often
    naive = sum(
        any(
            abs((e := estimate(list(d[:look]))).mean) > e.half_width
            for d in differences
            for look in LOOKS
        )
        for differences in generator.normal(0, 5, (300, questions, max(LOOKS)))
    )
    assert naive / 300 > 0.15


def test_a_handicapped_arm_is_found():
    generator = np.random.default_rng(1)
    found = [verdict(list(generator.normal(-9, 4, 8)), 3).answer for _ in range(100)]
    assert found.count("worse") > 80
    assert "better" not in found


class Ended:
    """A process that has done its work when it is asked."""

    def poll(self):
        return 0

    def wait(self):
        return 0

    def terminate(self): ...

    def kill(self): ...


class Machine:
    """Stands in for this project's command lines: a run takes planned seconds and has planned AP.

    Args:
        gains: AP of each arm above the first.
    """

    def __init__(self, **gains: float) -> None:
        self.gains, self.now, self.commands, self.shares = gains, 0.0, [], []

    def clock(self) -> float:
        return self.now

    def start(self, command, log, share):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"$ {shlex.join(command)}\n", encoding="utf-8")
        self.commands.append(command)
        self.shares.append(share)

        def given(name):
            return command[command.index(name) + 1] if name in command else None

        folder = Path(given("--output-dir") or given("OUTPUT_DIR"))
        (folder / "inference").mkdir(parents=True, exist_ok=True)
        if "pretrain_fcmae" in command[1]:
            steps = int(given("--max-steps"))
            (folder / "encoder.safetensors").write_bytes(b"weights")
            line = {"iteration": steps, "time": 0.1, "total_loss": 0.5}
            self.now += 0.1 * steps
        else:
            steps = int(given("SOLVER.MAX_ITER") or given("--max-steps"))
            arm = folder.name.rsplit("_seed_")[0].rsplit("_", 1)[0]
            seed = int(given("SEED") or given("--seed"))
            noise = np.random.default_rng([seed, *folder.name.encode()]).normal(0, 1)
            subset = np.random.default_rng(seed).normal(0, 4)  # the same for a pair
            value = 30 + subset + noise + self.gains.get(arm, 0.0)
            name, summary = {
                "train_net": ("inference/", {"bbox": {"AP": value}, "segm": {"AP": value / 2}}),
                "train_segmentation": ("inference/", {"sem_seg": {"mIoU": value, "pACC": 90.0}}),
                "finetune_classifier": ("", {"trained": {"top1": value, "top5": 99.0}}),
            }[Path(command[1]).stem]
            (folder / f"{name}metrics_summary.json").write_text(json.dumps(summary))
            (folder / "run.json").write_text(json.dumps({"train_seconds": steps * 0.2 + seed}))
            line = {"iteration": steps, "time": 0.2, "total_loss": 1.0 + noise / 10}
            self.now += 10 + 0.2 * steps
        (folder / "metrics.json").write_text(json.dumps(line) + "\n")
        return Ended()


def coco(path: Path, images: int, first: int = 0) -> Path:
    tree = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "height": 8, "width": 8}
            for n in range(first, first + images)
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [0, 0, 4, 4]}
            for n in range(first, first + images)
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


ARMS = (Arm("random", "random weights"), Arm("fcmae", "pretraining", pretrained=True))


def small_study(tmp_path, machine, hours=1.0, energy=None, **changes) -> Study:
    train, test = tmp_path / "train.json", tmp_path / "test.json"
    if not train.is_file():
        coco(train, 60)
        coco(test, 10, 100)
    options = StudyOptions(
        images=str(tmp_path),
        train=str(train),
        test=str(test),
        train_images=str(tmp_path),
        test_images=str(tmp_path),
        output_dir=str(tmp_path / "study"),
        hours=hours,
        labels=changes.pop("labels", (8, None)),
        arms=changes.pop("arms", ARMS),
        model="convnextv2_atto",
        config_file="x.yaml",
        iterations=100,
        max_seeds=8,
        **changes,
    )
    labels = read_labels(train)
    split = split_labels(labels, options.labels)
    return Study(options, labels, split, Path("tools"), machine.start, machine.clock, energy)


def test_identical_arms_cannot_be_told_apart_and_a_handicapped_one_is_found(tmp_path):
    for name, gain in (("same", 0.0), ("worse", -9.0), ("better", 9.0)):
        folder = tmp_path / name
        folder.mkdir()
        study = small_study(folder, Machine(fcmae=gain))
        page = run_study(study, write_study)
        answers = {found.answer for found in study.verdicts().values()}
        assert answers == {"cannot tell" if name == "same" else name}
        text = page.with_suffix(".md").read_text(encoding="utf-8")
        assert ("costs" in text) == (name == "worse")
        assert ("gives +" in text) == (name == "better")


def test_the_page_begins_with_the_answers_and_its_numbers_are_in_the_csv(tmp_path):
    study = small_study(tmp_path, Machine(fcmae=9.0))
    page = run_study(study, write_study)
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    first = text.split("\n## ")[1]
    assert first.startswith("Answers")
    assert "Start from pretraining: it is better here than random weights." in first
    rows = list(csv.DictReader((tmp_path / "study/study.csv").open(encoding="utf-8")))
    assert len(rows) == len(study.results)
    by_arm = {arm: [float(r["box AP"]) for r in rows if r["arm"] == arm and r["labels"] == "8"]
              for arm in ("random", "fcmae")}  # fmt: skip
    pairs = [b - a for a, b in zip(*by_arm.values(), strict=True)]
    found = study.verdicts()["fcmae", 8]
    assert found.mean == pytest.approx(np.mean(pairs[: found.pairs]))
    assert f"{found.mean:+.1f} AP" in first


def test_the_answers_say_whose_learning_rate_might_be_better_beyond_those_tried(tmp_path):
    study = small_study(tmp_path, Machine())
    for arm, chosen in (("random", 0.3), ("fcmae", 0.2)):
        study.rates[arm] = chosen
        study.state.setdefault("tried", {})[arm] = {"0.1": 1.0, "0.2": 2.0, "0.3": 3.0}
    text = write_study(study).with_suffix(".md").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if "of those tried" in line)
    assert "learning rate of random weights, 0.3, is the highest of those tried" in line


def test_what_starts_from_random_weights_is_normalised_by_the_images_own_statistics(tmp_path):
    published = Arm("published", "the encoder", "timm:convnextv2_atto")
    arms = (*ARMS, published, Arm("on", "on from it", published.weights, pretrained=True))
    machine = Machine()
    study = small_study(tmp_path, machine, arms=arms)
    study.find_statistics = lambda: Statistics((0.1, 0.2, 0.3), (0.01, 0.02, 0.03), "measured")
    run_study(study, write_study)
    by_arm = {}
    for command in machine.commands:
        folder = next(Path(a) for n, a in pairwise(command) if n in ("OUTPUT_DIR", "--output-dir"))
        arm = re.sub(r"(_(8|all)_seed_\d+|_[\d.]+)$", "", folder.name).removeprefix("pretrain_")
        tool = "pretrain" if "pretrain_fcmae" in command[1] else "train"
        by_arm.setdefault((arm, tool), []).append(command)
    assert all("MODEL.PIXEL_MEAN" in c for c in by_arm["random", "train"])
    (mean,) = {c[c.index("MODEL.PIXEL_MEAN") + 1] for c in by_arm["random", "train"]}
    assert json.loads(mean) == pytest.approx([25.5, 51.0, 76.5])
    for command in by_arm["fcmae", "pretrain"]:
        at = command.index("--std")
        assert command[at : at + 4] == ["--std", "0.01", "0.02", "0.03"]
    for arm, tool in (
        ("fcmae", "train"),
        ("published", "train"),
        ("on", "train"),
        ("on", "pretrain"),
    ):
        assert not any({"MODEL.PIXEL_MEAN", "--mean"} & set(c) for c in by_arm[arm, tool])
    again = small_study(tmp_path, machine, arms=arms)  # a study that goes on measures nothing
    assert again.statistics == study.statistics


def test_pairs_share_label_subsets_which_no_tuning_saw(tmp_path):
    machine = Machine()
    study = small_study(tmp_path, machine)
    run_study(study, write_study)
    tuned = {i["id"] for i in (*study.split.tune_train, *study.split.tune_test)}
    small, whole = study.split.subset(8, 3), study.split.subset(None, 3)
    assert small == whole[:8]
    assert not tuned & {image["id"] for image in whole}
    assert study.split.subset(8, 4) != small
    for command in machine.commands:
        if "/runs/" in " ".join(command):
            train = command[command.index("DATASETS.TRAIN") + 1].split(":")[1]
            used = {i["id"] for i in json.loads(Path(train).read_text())["images"]}
            assert not used & tuned


def test_the_time_is_kept_and_a_study_goes_on_where_it_ended(tmp_path):
    machine = Machine()
    short = small_study(tmp_path, machine, hours=0.4)
    run_study(short, write_study)
    assert machine.now < 0.4 * 3600 * 1.01
    runs, began = len(short.results), len(machine.commands)
    more = small_study(tmp_path, machine, hours=1.2)
    run_study(more, write_study)
    assert len(more.results) > runs
    new = [c for c in machine.commands[began:] if "--max-steps" in c]
    assert not new  # neither timed nor pretrained again
    with pytest.raises(InputError, match="begun with other arguments"):
        small_study(tmp_path, machine, labels=(16,))
    coco(tmp_path / "train.json", 61)
    with pytest.raises(InputError, match="data was"):
        small_study(tmp_path, machine)


def test_too_little_time_or_too_few_labels_are_told_before_hours_are_spent(tmp_path):
    with pytest.raises(InputError, match=r"is too little for one pair .* that takes about 0\.\d+"):
        run_study(small_study(tmp_path, Machine(), hours=0.01), write_study)
    labels = read_labels(coco(tmp_path / "few.json", 20))
    with pytest.raises(InputError, match=r"fewer than the 32 of --labels: ask for fewer"):
        split_labels(labels, (8, 32))


def test_what_tells_most_comes_first_and_answered_sizes_get_no_more_runs(tmp_path):
    study = small_study(tmp_path, Machine(fcmae=9.0), labels=(4, 8, None))
    run_study(study, write_study)
    seeds = {size: {r.seed for r in study.results if r.labels == size} for size in (4, 8, None)}
    assert all(len(found) < 8 for found in seeds.values())
    assert study.next_waves() == []


def test_the_command_refuses_leaks_and_unknown_names(tmp_path, run_tool):
    from PIL import Image

    train, test = coco(tmp_path / "train.json", 40), coco(tmp_path / "test.json", 5, 35)
    generator = np.random.default_rng(0)
    for number in range(40):
        pixels = generator.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    basic = ["--images", tmp_path, "--train", train, "--test", test]
    basic += ["--output-dir", tmp_path / "out", "--labels", 8]
    found = run_tool("study", *basic, "MODEL.MASK_ON", "False")
    assert found.code == 2
    assert "'MODEL.MASK_ON' is no number of images; give 2 or more, or all; KEY VALUE" in found.err
    assert "settings stand before all flags" in found.err
    found = run_tool("study", *basic)
    assert found.code == 1
    assert "5 test images are among the labelled ones" in found.err
    found = run_tool("study", *basic, "--continue", "imagenet", "--encoder", "a=nowhere.pt")
    assert found.code == 1
    assert "no --encoder has this name" in found.err
    found = run_tool("study", *basic, "--encoder", "a=nowhere.pt")
    assert "there is no file nowhere.pt" in found.err
    (tmp_path / "35.png").unlink()
    found = run_tool("study", *basic)
    assert found.code == 1
    assert (
        f"1 of the 40 images of --train are not there, such as {tmp_path / '35.png'}" in found.err
    )
    assert "1 of the 5 images of --test are not there" in found.err
