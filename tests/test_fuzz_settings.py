"""Typing errors in configs and grids: a message, and never an error of Python's or a library's."""

from __future__ import annotations

import copy
import datetime

import pytest
import yaml

from backbones.errors import InputError
from detection.config import load_config
from detection.schema import SCHEMA
from fcmae.classification.recipes import choose_recipe
from fcmae.features.run import AnalysisOptions, analyze_models
from fcmae.grids.grid import load_grid
from fcmae.grids.run import plan
from fcmae.pretrain_options import PretrainOptions

ODD = [
    None, 5, -1, 10**30, "x", "", "[1,", [], {}, [1], [[1]], ["x"], [[[1]]], {"a": 1}, {1: 2}, True,
    1.5, float("nan"), float("inf"), datetime.date(2020, 1, 1), [None], {"a": None},
]  # fmt: skip
GRID = {
    "title": "t",
    "source": "s",
    "baseline": "a",
    "seeds": [0, 1],
    "launcher": "torchrun --nproc-per-node 2",
    "pretrain": {"model": "convnextv2_atto", "data": "d", "epochs": 3},
    "classify": {"model": "convnextv2_atto", "data": "d"},
    "detect": {"config-file": "my.yaml", "SOLVER.MAX_ITER": 3},
    "rows": {
        "a": {"paper": {"top-1": 84.6}},
        "b": {"grn": {"aggregate": "l1"}, "pretrain": {"epochs": 2}, "classify": None},
    },
}
TEXTS = [
    "\t", "a: [", "- 1", "5", "\0", "a: !!python/name:os.system", "a: *b", "&a [*a]", "5: 6",
    "MODEL: &a {b: *a}", "rows: &a {b: *a}", "? [1]\n: 2", "? {a: 1}\n: 2", "? !!set {a}\n: 3",
    "a: 2020-13-45", "a: !!timestamp x", "a: !!bool x", "a: !!int x", "_BASE_: 5", "_BASE_: [5]",
    "_BASE_: {a: 1}", "_BASE_: .", "<<: 5",
]  # fmt: skip
SETTINGS = [
    "=", "seeds", "seeds=[0,", "seeds={a", "rows=1", "rows.a=1", "rows.a.pretrain=1", "launcher=3",
    "rows.a.pretrain.epochs=[", "pretrain=3", "baseline=[1]", "rows.b.grn=l1", "rows..=3",
    "pretrain.data=!!python/object:os.system",
]  # fmt: skip


def places(tree, path=()):
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield from places(value, (*path, key))


def changed(tree, path, value):
    if not path:
        return value
    tree = copy.deepcopy(tree)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return tree


def read_grid(path, settings=()):
    """Whether the grid was read; its commands, then, can be made."""
    try:
        grid = load_grid(path, settings)
    except (InputError, OSError):
        return False
    for runs in plan(grid, path.parent / "out").values():
        assert all(run.command(path.parent, grid.launcher) for run in runs)
    return True


def test_an_odd_value_anywhere_in_a_grid_is_a_message_or_a_grid_that_runs(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(GRID), encoding="utf-8")
    assert read_grid(file)
    read = 0
    for path in places(GRID):
        for value in ODD:
            file.write_text(yaml.safe_dump(changed(GRID, path, value)), encoding="utf-8")
            read += read_grid(file)
    assert 0 < read < 0.7 * len(ODD) * len(list(places(GRID)))


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_odd_setting_of_a_grid_is_a_message(tmp_path, setting):
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(GRID), encoding="utf-8")
    assert not read_grid(file, [setting])


@pytest.mark.parametrize("text", TEXTS)
def test_odd_yaml_is_a_message(tmp_path, text):
    file = tmp_path / "file.yaml"
    file.write_text(text, encoding="utf-8")
    assert not read_grid(file)
    with pytest.raises((InputError, OSError)):
        load_config(file)


def as_tree(values):
    tree: dict = {}
    for name, value in values.items():
        *sections, leaf = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def config_message(file, values, overrides=()):
    """What is wrong with a config of these values, in words; "" if nothing."""
    file.write_text(yaml.safe_dump(as_tree(values)), encoding="utf-8")
    try:
        load_config(file, overrides)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_an_odd_value_of_every_key_of_a_config_is_told_for_all_at_once(tmp_path, value):
    said = config_message(tmp_path / "file.yaml", dict.fromkeys(SCHEMA, value))
    assert len(said.splitlines()) > len(SCHEMA) / 4


def test_an_odd_value_of_any_key_of_a_config_is_a_message_or_allowed(tmp_path):
    """Alone, so that what contradicts it is asked, too."""
    for number, name in enumerate(SCHEMA):
        for place in (number, number + 7):
            value = ODD[place % len(ODD)]
            for values, overrides in (({name: value}, ()), ({}, (name, str(value)))):
                said = config_message(tmp_path / "file.yaml", values, overrides)
                assert not said or name.rpartition(".")[2] in said


@pytest.mark.parametrize("value", ["(" * 500, "1" + "+1" * 5000, "9" * 5000, "[" * 2000])
def test_an_endless_override_is_a_message(tmp_path, value):
    file = tmp_path / "file.yaml"
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="SEED"):
        load_config(file, ["SEED", value])


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1), ("seed", 2**63), ("base_lr", NAN), ("base_lr", INF), ("base_lr", -1.0),
        ("warmup_epochs", NAN), ("warmup_epochs", INF), ("warmup_epochs", -1.0), ("clip_norm", NAN),
        ("clip_norm", -1.0), ("weight_decay", -0.1), ("weight_decay", NAN), ("mask_ratio", NAN),
        ("measure_features_every", NAN), ("measure_features_every", INF), ("panel_every", -1),
        ("mean", (NAN, 0.1, 0.1)), ("workers", -1), ("device", "gpu"), ("output_dir", ""),
        ("data", ""), ("init", ""),
    ],
)  # fmt: skip
def test_a_pretrainings_number_that_cannot_be_is_named_before_anything_is_read(name, value):
    options = {"model": "convnextv2_atto", "data": "none", "output_dir": "none", name: value}
    if name == "mean":
        options["std"] = (0.1, 0.1, 0.1)
    with pytest.raises(InputError, match=name.replace("mask_ratio", "mask ratio")):
        PretrainOptions(**options)


@pytest.mark.parametrize("name", ["base_lr", "mixup", "cutmix", "warmup_epochs", "layer_decay"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_recipes_number_that_is_none_is_named(name, value):
    with pytest.raises(InputError, match=f"{name} is {value}"):
        choose_recipe("in1k", "convnextv2_atto", {name: value})


@pytest.mark.parametrize(
    "odd", [{"batch_size": 0}, {"seed": -1}, {"seed": 2**63}, {"images": -1}, {"workers": -1}]
)
def test_an_analysis_number_that_cannot_be_is_named(tmp_path, odd):
    (name,) = odd
    models = {"a": "random:convnextv2_atto"}
    with pytest.raises(InputError, match=f"{name} is"):
        analyze_models(AnalysisOptions(models, str(tmp_path), tmp_path / "out", **odd))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("quickstart", "--output-dir", "out", "--train", "0"), "--train: 0 is not at least 1"),
        (("quickstart", "--output-dir", "out", "--seed", "-1"), "--seed: -1 is not at least 0"),
        (("ablate", "mask_ratio.yaml", "--output-dir", "out", "--jobs", "0"), "--jobs: 0 is not"),
        (("benchmark", "encoder", "--rounds", "0"), "--rounds: 0 is not at least 1"),
    ],
)
def test_a_flags_number_that_cannot_be_is_wrong_usage(
    fcmae, monkeypatch, tmp_path, arguments, said
):
    monkeypatch.chdir(tmp_path)
    result = fcmae(*arguments)
    assert result.code == 2
    assert said in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--machine-rank", 2), "--machine-rank is 2 of 2 machine(s)"),
        (("--machine-rank", 1), "2 machines meet at tcp://HOST:PORT"),
    ],
)
def test_machines_that_cannot_meet_are_refused(fcmae, flags, said):
    config = "quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml"
    result = fcmae(
        *("train", "--config-file", config, "--engine", "detectron2", "--num-machines", 2), *flags
    )
    assert result.code == 1
    assert said in result.err
