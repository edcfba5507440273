"""Ablation grids: the shipped ones, a tiny one that really runs, and what is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from backbones.errors import InputError
from detection.config import load_config
from detection.schema import SCHEMA
from fcmae.grids.grid import Grid, Row, known_flags, load_grid
from fcmae.grids.run import plan, run_grid, shares, start_process
from fcmae.grids.table import write_tables
from training.records.intervals import estimate, paired_difference, t_quantile

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
GRIDS = sorted((ROOT / "ablations").glob("*.yaml"))
REPRODUCTION = sorted((ROOT / "ablations/reproduction/grids").glob("*.yaml"))
TINY = {
    "model": "convnextv2_atto",
    "image-size": 32,
    "batch-size": 6,
    "max-steps": 1,
    "workers": 0,
    "device": "cpu",
}
GRID = {
    "title": "A tiny grid",
    "source": "nobody's paper",
    "baseline": "both",
    "seeds": [0, 1],
    "pretrain": {**TINY, "decoder-dim": 16},
    "classify": TINY,
    "rows": {
        "both": {"paper": {"top-1": 84.6}},
        "pretraining only": {
            "paper": {"top-1": 78.8},
            "classify": {"grn": "none", "allow-other-grn": True},
        },
    },
}


class Process:
    """A process that ends when it has been asked so many times."""

    def __init__(self, code, asked=1, ended=lambda: None):
        self.code, self.asked, self.ended = code, asked, ended
        self.terminated = False

    def poll(self):
        self.asked -= 1
        if self.asked > 0:
            return None
        self.ended()
        return self.code

    def terminate(self):
        self.terminated = True

    def wait(self):
        return self.code


def in_this_process(monkeypatch, calls=None):
    """Run commands here: imports are slow."""

    def run(command, log, share):
        if calls is not None:
            calls.append(command)
        monkeypatch.setattr(sys, "argv", command[1:])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(command[1], run_name="__main__")
        return Process(int(ended.value.code or 0))

    return run


def folder_of(command):
    return Path(command[command.index("--output-dir") + 1])


def finish(folder):
    """What the tools leave of a pretraining or a classification."""
    folder.mkdir(parents=True)
    (folder / "encoder.safetensors").touch()
    (folder / "metrics.json").touch()
    (folder / "metrics_summary.json").write_text('{"trained": {"top1": 50.0}}')


def write_grid(folder, tree, **changes):
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**tree, **changes}, sort_keys=False))
    return path


def test_a_tiny_grid_runs_resumes_and_writes_its_table(image_folder, tmp_path, monkeypatch):
    settings = [f"pretrain.data={image_folder}", f"classify.data={image_folder}"]
    grid = load_grid(write_grid(tmp_path, GRID), settings)
    out, calls = tmp_path / "out", []
    table = run_grid(grid, out, TOOLS, start_command=in_this_process(monkeypatch, calls))
    names = [Path(command[1]).stem for command in calls]
    # the two rows of a seed share their pretraining
    assert names == ["pretrain_fcmae", "finetune_classifier", "finetune_classifier"] * 2
    with safe_open(out / "classify/pretraining_only_seed_1/classifier.safetensors", "pt") as file:
        assert file.metadata()["grn"] == "none"
    with safe_open(out / "classify/both_seed_1/classifier.safetensors", "pt") as file:
        assert file.metadata()["grn"].startswith("GRNOptions")
    text = table.read_text()
    assert "| pretraining only |" in text
    assert "| 78.8 | -5.8 |" in text
    with (out / "runs.csv").open() as file:
        runs = [row for row in csv.DictReader(file) if row["metric"] == "top-1"]
    assert [(row["row"], row["seed"]) for row in runs] == [
        ("both", "0"), ("both", "1"), ("pretraining only", "0"), ("pretraining only", "1"),
    ]  # fmt: skip
    # what is finished is skipped, what is not goes on
    (out / "classify/both_seed_0/metrics_summary.json").unlink()
    calls.clear()
    run_grid(grid, out, TOOLS, start_command=in_this_process(monkeypatch, calls))
    assert [folder_of(command) for command in calls] == [out / "classify/both_seed_0"]
    other = load_grid(write_grid(tmp_path, GRID), [*settings, "pretrain.mask-ratio=0.5"])
    with pytest.raises(ValueError, match=r"mask-ratio was None, is 0\.5"):
        run_grid(other, out, TOOLS)


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path):
    def run(command, log, share):
        folder = folder_of(command)
        if "pretrain" in command[1] and "both_seed_0" in str(folder):
            return Process(1)
        finish(folder)
        return Process(0)

    rows = {**GRID["rows"], "ratio": {"pretrain": {"mask-ratio": 0.5}}}
    grid = load_grid(write_grid(tmp_path, GRID, rows=rows))
    with pytest.raises(ValueError, match=r"1 run failed:\n.*both_seed_0: exit code 1, see .*log"):
        run_grid(grid, tmp_path / "out", TOOLS, start_command=run)
    with (tmp_path / "out/table.csv").open() as file:
        counts = {r["row"]: r["runs"] for r in csv.DictReader(file) if r["metric"] == "top-1"}
    assert counts == {"both": "1", "pretraining only": "1", "ratio": "2"}


def test_runs_at_once_wait_for_their_pretraining_and_share_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("training.command_line.jobs.POLL_SECONDS", 0)
    monkeypatch.setattr("training.command_line.jobs.usable_cores", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    events, shares_in_use = [], []

    def run(command, log, share):
        folder = folder_of(command)
        name = f"{folder.parent.name}/{folder.name}"
        events.append(f"start {name}")
        assert share not in shares_in_use
        shares_in_use.append(share)

        def ended():
            finish(folder)
            events.append(f"end {name}")
            shares_in_use.remove(share)

        return Process(0, 4 if name == "pretrain/both_seed_0" else 2, ended)

    grid = load_grid(write_grid(tmp_path, GRID))
    run_grid(grid, tmp_path / "out", TOOLS, at_once=2, start_command=run)
    assert events[:2] == ["start pretrain/both_seed_0", "start pretrain/both_seed_1"]
    assert events.index("start classify/both_seed_1") < events.index("end pretrain/both_seed_0")
    for seed in (0, 1):
        for row in ("both", "pretraining_only"):
            waited = events.index(f"end pretrain/both_seed_{seed}")
            assert events.index(f"start classify/{row}_seed_{seed}") > waited
    assert len(events) == 12
    # cores and GPUs in turn, but where they are given already
    assert shares(3) == [
        {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": gpu} for gpu in ("0", "1", "0")
    ]
    assert shares(1) == [{}]
    assert shares(2, whole_machine=True) == [{}, {}]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert shares(2) == [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "7"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert shares(2) == [{}, {}]
    with pytest.raises(ValueError, match="0 runs at once; give at least 1"):
        run_grid(grid, tmp_path / "out", TOOLS, at_once=0)


def test_what_runs_is_ended_when_the_grid_is(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    started = []

    def run(command, log, share):
        started.append(Process(0, 10))
        return started[-1]

    with pytest.raises(KeyboardInterrupt):
        run_grid(load_grid(write_grid(tmp_path, GRID)), tmp_path / "out", TOOLS, at_once=2,
                 start_command=run)  # fmt: skip
    assert [process.terminated for process in started] == [True, True]


def test_rows_are_deltas_and_grn_reaches_every_stage(tmp_path):
    tree = {
        **GRID,
        "detect": {"config-file": "c.yaml", "SOLVER.MAX_ITER": 7},
        "rows": {
            "both": None,
            "l1": {"grn": {"aggregate": "l1", "residual": False}, "pretrain": {"mask-ratio": 0.5}},
            "scratch": {"pretrain": None, "classify": None},
        },
    }
    path = write_grid(tmp_path, tree)
    grid = load_grid(path, ["detect.SOLVER.MAX_ITER=9", "rows.l1.pretrain.epochs=3", "seeds=[4]"])
    jobs = plan(grid, Path("out"))
    assert list(jobs) == [("both", 4), ("l1", 4), ("scratch", 4)]
    pretrain, classify, detect = (job.command(TOOLS, ["torchrun"]) for job in jobs["l1", 4])
    assert pretrain[:2] == ["torchrun", str(TOOLS / "pretrain_fcmae.py")]
    for command in (pretrain, classify):
        assert command[command.index("--grn-aggregate") + 1] == "l1"
        assert "--no-grn-residual" in command
    assert pretrain[pretrain.index("--mask-ratio") + 1] == "0.5"
    assert pretrain[pretrain.index("--epochs") + 1] == "3"
    assert classify[classify.index("--init") + 1] == "out/pretrain/l1_seed_4/encoder.safetensors"
    keys = dict(zip(detect[5::2], detect[6::2], strict=True))
    assert keys["MODEL.CONVNEXT.GRN.AGGREGATE"] == "l1"
    assert keys["MODEL.CONVNEXT.WEIGHTS"] == "out/pretrain/l1_seed_4/encoder.safetensors"
    assert (keys["SOLVER.MAX_ITER"], keys["SEED"]) == ("9", "4")
    (scratch,) = jobs["scratch", 4]
    assert "MODEL.CONVNEXT.WEIGHTS" not in scratch.command(TOOLS, [])


def test_a_seed_has_its_own_data_and_rows_without_pretraining_name_their_weights(tmp_path):
    tree = {
        **GRID,
        "pretrain": None,
        "classify": {**TINY, "data": "halves/seed_{seed}"},
        "detect": {"config-file": "c.yaml", "DATASETS.TRAIN": ["json:few_{seed}.json:images"]},
        "rows": {
            "both": {"classify": {"init": "a.pt"}, "detect": {"MODEL.CONVNEXT.WEIGHTS": "a.pt"}}
        },
    }
    jobs = plan(load_grid(write_grid(tmp_path, tree)), Path("out"))
    for seed in (0, 1):
        classify, detect = (job.command(TOOLS, []) for job in jobs["both", seed])
        assert classify[classify.index("--data") + 1] == f"halves/seed_{seed}"
        assert classify[classify.index("--init") + 1] == "a.pt"
        keys = dict(zip(detect[5::2], detect[6::2], strict=True))
        assert keys["DATASETS.TRAIN"] == f"['json:few_{seed}.json:images']"
        assert keys["MODEL.CONVNEXT.WEIGHTS"] == "a.pt"


def test_a_grid_builds_on_others_key_by_key(tmp_path):
    write_grid(tmp_path, GRID)
    (tmp_path / "scale.yaml").write_text("pretrain: {max-steps: 5}\nclassify: null\nseeds: [7]\n")
    own = tmp_path / "own.yaml"
    own.write_text(
        "_BASE_: [grid.yaml, scale.yaml]\n"
        "pretrain: {data: mine, image-size: 64}\n"
        "detect: {config-file: c.yaml}\n"
    )
    grid = load_grid(own, ["pretrain.image-size=96"])
    assert (grid.title, grid.baseline, grid.seeds) == ("A tiny grid", "both", [7])
    stages = grid.rows[0].stages
    assert stages["pretrain"] == {
        **TINY, "decoder-dim": 16, "max-steps": 5, "data": "mine", "image-size": 96,
    }  # fmt: skip
    assert "classify" not in stages
    assert stages["detect"] == {"config-file": "c.yaml"}
    assert [row.name for row in grid.rows] == ["both", "pretraining only"]
    own.write_text("_BASE_: grid.yaml\nbaseline: only\nrows: {only: {}}\n")
    assert [row.name for row in load_grid(own).rows] == ["only"]  # rows are one's own whole
    (tmp_path / "scale.yaml").write_text("_BASE_: own.yaml\n")
    own.write_text("_BASE_: scale.yaml\n")
    with pytest.raises(ValueError, match=r"_BASE_ goes in a circle: .*own\.yaml -> .*scale\.yaml"):
        load_grid(own)
    own.write_text("_BASE_: none.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load_grid(own)


@pytest.mark.parametrize("name", ["ablations/grn_aggregation.yaml", "grn_aggregation.yaml"])
def test_a_grid_in_any_folder_builds_on_one_of_the_projects(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "my_grid.yaml"
    own.write_text(f"_BASE_: {name}\nseeds: [5]\n")
    grid = load_grid(own)
    assert grid.seeds == [5]
    assert [row.name for row in grid.rows] == ["l2", "l1", "avg"]
    own.write_text("_BASE_: ablations/grn_agregation.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"grn_agregation\.yaml, which is the _BASE_ of"):
        load_grid(own)


def test_everything_wrong_in_a_grid_is_named_at_once(tmp_path):
    rows = {
        "d": {"classify": {"init": "a.pt"}},
        "a": {"pretrain": {"epoch": 3, "seed": 1}, "paper": {"top1": 1.0}},
        "b": {"grn": {"aggregate": "max"}},
        "c": {"classify": {"layer-decai": 0.9}, "detect": {"SOLVER.MAX_ITER": 1}},
        "e f": {"pretrain": {"norm-pix-loss": False}},
        "e+f": {},
    }
    path = write_grid(tmp_path, GRID, rows=rows, seeds=[1, 1], titel="x")
    with pytest.raises(ValueError, match="has problems") as caught:
        load_grid(path)
    for message in (
        "'titel' is unknown; did you mean 'title'?",
        "baseline is 'both'; name one of the rows: d, a, b, c, e f, e+f",
        "the rows 'e f', 'e+f' would share the folder 'e_f': rename them",
        "row e f: pretrain: 'norm-pix-loss' is unknown",
        "row d: classify: init is set for every run, leave it out",
        "seeds is [1, 1]; give a list of different integers",
        "row a: paper: 'top1' is unknown; did you mean 'top-1'?",
        "pretrain: seed is set for every run",
        "row b: GRNOptions.aggregate is 'max'",
        "row c: classify: 'layer-decai' is unknown; did you mean 'layer-decay'?",
        "row c: detect: it needs a config-file",
    ):
        assert message in str(caught.value), message


def test_a_pretraining_may_begin_from_weights_and_its_fine_tuning_from_no_others(tmp_path):
    rows = {"both": {}, "published": {"pretrain": {"init": "timm:convnextv2_atto.fcmae"}}}
    grid = load_grid(write_grid(tmp_path, GRID, rows=rows))
    assert grid.rows[1].stages["pretrain"]["init"] == "timm:convnextv2_atto.fcmae"


def test_segmentation_is_a_stage_of_a_config_and_its_keys(tmp_path):
    rows = {"scratch": {}, "other": {"segment": {"MODEL.CONVNEXT.WEIGHTS": "encoder.safetensors"}}}
    tree = {
        "baseline": "scratch",
        "seeds": [0],
        "segment": {"config-file": "u.yaml", "DATASETS.TRAIN": ["json:train_{seed}.json:images"]},
        "rows": rows,
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")

    def start(command, log, share):
        folder = Path(command[command.index("OUTPUT_DIR") + 1])
        (folder / "inference").mkdir(parents=True)
        better = 5.0 * ("MODEL.CONVNEXT.WEIGHTS" in command)
        summary = {"sem_seg": {"mIoU": 40 + better, "pACC": 90.0}}
        (folder / "inference/metrics_summary.json").write_text(json.dumps(summary))
        assert command[1].endswith("train_segmentation.py")
        assert command[command.index("DATASETS.TRAIN") + 1] == "['json:train_0.json:images']"
        assert command[command.index("SEED") + 1] == "0"
        return Process(0)

    table = run_grid(load_grid(path), tmp_path / "out", Path("tools"), start_command=start)
    text = table.read_text(encoding="utf-8")
    assert "| other | 45.00 |  | 1 | +5.00 |" in text
    assert "| pixel accuracy |" in text
    del tree["segment"]["config-file"]
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(InputError, match="row scratch: segment: it needs a config-file"):
        load_grid(path)


def test_a_job_runs_as_a_process_and_its_output_is_kept(tmp_path):
    log = tmp_path / "job.log"
    script = "import os, sys; print(os.environ['SEEN']); sys.exit(3)"
    assert start_process([sys.executable, "-c", script], log, {"SEEN": "yes"}).wait() == 3
    assert log.read_text().splitlines()[1] == "yes"


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_shipped_grids_are_valid_and_name_their_source(path):
    grid = load_grid(path)
    assert "2301.00808" in grid.source
    assert grid.seeds
    name = path.relative_to(ROOT)
    assert f"python tools/ablate.py {name} --output-dir" in path.read_text()
    # a row without a figure says so, or belongs to a grid for which the paper only tells its choice
    if "chooses" not in grid.source:
        assert all(bool(row.paper) != ("not in the paper" in row.name) for row in grid.rows)


@pytest.mark.parametrize("path", REPRODUCTION, ids=lambda path: path.stem)
def test_the_reproductions_grids_are_valid_and_name_their_files(path):
    grid = load_grid(path)
    assert not any(row.paper for row in grid.rows)
    for row in grid.rows:
        if "detect" in row.stages:
            assert (ROOT / row.stages["detect"]["config-file"]).is_file()


@pytest.mark.parametrize("name", ["nuclei", "coco_mini"])
def test_the_augmentations_grids_are_valid_and_so_is_each_rows_config(name):
    grid = load_grid(ROOT / f"ablations/augmentation/{name}.yaml")
    keys = set()
    for row in grid.rows:
        changes = dict(row.stages["detect"])
        config = ROOT / changes.pop("config-file")
        pairs = [text for key, value in changes.items() for text in (key, str(value))]
        assert load_config(config, pairs).SOLVER.EMA.ENABLED
        keys |= {key for key in changes if key.startswith(("INPUT.AUGMENTATION", "INPUT.CROP"))}
    off = {f"INPUT.AUGMENTATION.COPY_PASTE.{key}" for key in ("MIN_SCALE", "MAX_SCALE")}
    known = {key for key in SCHEMA if key.startswith(("INPUT.AUGMENTATION", "INPUT.CROP"))}
    assert keys == known - off - {"INPUT.CROP.TYPE"}  # every augmentation has its row


def test_the_augmentations_tables_pair_rows_by_seed_and_averages_by_run(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "ablations/augmentation", tmp_path / "ablations/augmentation")
    page = tmp_path / "docs/augmentation.md"
    page.parent.mkdir()
    shutil.copy(ROOT / "docs/augmentation.md", page)

    def start(command, log, share):
        folder = Path(command[command.index("OUTPUT_DIR") + 1])
        seed = int(command[command.index("SEED") + 1])
        ap = 10 + seed + (2 + seed) * ("horizontal" in command)
        for name, better in (("inference", 0), ("inference_EMA", 0.5)):
            (folder / name).mkdir(parents=True)
            summary = {task: {"AP": ap + better} for task in ("bbox", "segm")}
            (folder / name / "metrics_summary.json").write_text(json.dumps(summary))
        return Process(0)

    grid = load_grid(tmp_path / "ablations/augmentation/nuclei.yaml", ["seeds=[0,1,2]"])
    rows = [row for row in grid.rows if row.name in ("none", "flip")]
    grid = dataclasses.replace(grid, rows=rows)
    table = run_grid(grid, tmp_path / "runs/nuclei", Path("tools"), start_command=start)
    assert "| box AP (averaged) |" in table.read_text(encoding="utf-8")
    script = tmp_path / "ablations/augmentation/write_page.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "runs")])
    runpy.run_path(str(script), run_name="__main__")
    text = page.read_text(encoding="utf-8")
    half = 4.303 / math.sqrt(3)  # Student's t of two degrees of freedom; a deviation of 1
    assert f"| none | 3 | (11.00 ± {half:.2f}) | (11.00 ± {half:.2f}) | +0.50 ± 0.00 |" in text
    assert f"| flip | 3 | +3.00 ± {half:.2f} | +3.00 ± {half:.2f} | +0.50 ± 0.00 |" in text
    assert "| turn | not yet run |" in text
    assert "| rare classes repeated | not yet run |" in text  # the other grid's table stays


def test_shipped_grids_hold_every_figure_of_the_papers_tables():
    papers = {path.stem: [row.paper for row in load_grid(path).rows] for path in GRIDS}
    figures = {stem: [row.get("top-1") for row in rows] for stem, rows in papers.items()}
    for stem, values in {
        "grn_aggregation": {83.7, 84.3, 84.6},
        "grn_normalization": {84.5, 83.8, 84.6},
        "grn_residual": {84.0, 84.6},
        "normalization_layers": {83.7, 83.2, 80.5, 83.8, 84.6},
        "feature_gating": {84.4, 84.5, 84.6},
        "grn_stages": {78.8, 80.6, 84.6},
        "decoders": {83.7, 83.5, 83.4},
        "encoders": {79.3, 83.7},
    }.items():
        assert values <= set(figures[stem]), stem
    in_detection = {(row.get("box AP"), row.get("mask AP")) for row in papers["pretraining"]}
    assert {(50.3, 44.9), (51.0, 45.6), (52.9, 46.6), (54.4, 47.7), (55.7, 48.9)} <= in_detection


@pytest.mark.parametrize(
    ("stage", "tool"), [("pretrain", "pretrain_fcmae"), ("classify", "finetune_classifier")]
)
def test_flags_that_a_grid_may_set_are_the_tools(stage, tool, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [tool, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / f"tools/{tool}.py"))["main"]()
    flags = set(re.findall(r"--([a-z][\w-]*)", capsys.readouterr().out))
    assert set(known_flags(stage)) <= flags


def integrated(limit: float, degrees: int) -> float:
    """Student's t distribution function by Simpson's rule."""
    scale = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2) / math.sqrt(degrees * math.pi)
    steps = 4000
    width = limit / steps
    values = [
        scale * (1 + (i * width) ** 2 / degrees) ** (-(degrees + 1) / 2) for i in range(steps + 1)
    ]
    area = values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2])
    return 0.5 + area * width / 3


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 10, 11, 19, 100])
def test_quantiles_leave_two_and_a_half_percent_outside(degrees):
    assert integrated(t_quantile(degrees), degrees) == pytest.approx(0.975, abs=1e-4)


def test_intervals_follow_the_textbook():
    # 5 values of mean 3 and standard deviation sqrt(2.5): 2.7764 * sqrt(2.5 / 5)
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.runs) == (3.0, 5)
    assert found.half_width == pytest.approx(1.9633, abs=1e-4)
    assert estimate([7.0]).half_width is None
    apart = paired_difference({0: 5.0, 1: 7.0, 9: 100.0}, {0: 4.0, 1: 5.0, 2: -100.0})
    assert (apart.mean, apart.runs) == (1.5, 2)
    assert apart.half_width == pytest.approx(12.7062 * 0.5, abs=1e-4)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_the_table_pairs_by_seed_and_stands_beside_the_paper(tmp_path):
    rows = [Row("a", {"top-1": 84.6}, {}), Row("b", {"top-1": 83.0}, {}), Row("c", {}, {})]
    grid = Grid("T", "S", "a", [0, 1], [], rows)
    results = {"a": {"top-1": {0: 50.0, 1: 60.0}}, "b": {"top-1": {0: 49.0, 1: 58.0}}}
    write_tables(grid, results, tmp_path)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[-2] == "| a | 55.00 ± 63.53 | 7.07 | 2 |  | 84.6 |  |"
    assert lines[-1] == "| b | 53.50 ± 57.18 | 6.36 | 2 | -1.50 ± 6.35 | 83.0 | -1.6 |"


@pytest.mark.parametrize(("seeds", "said"), [([3], "over 1 seed, and"), ([0, 1], "over 2 seeds,")])
def test_the_table_counts_its_seeds(tmp_path, seeds, said):
    grid = Grid("T", "S", "a", seeds, [], [Row("a", {}, {})])
    write_tables(grid, {"a": {"top-1": dict.fromkeys(seeds, 50.0)}}, tmp_path)
    assert said in (tmp_path / "table.md").read_text()
