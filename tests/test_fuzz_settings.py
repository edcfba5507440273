"""Typing errors in configs and grids: a message, and never an error of Python's or a library's."""

from __future__ import annotations

import copy
import datetime

import pytest
import yaml

from backbones.errors import InputError
from detection.config import load_config
from detection.schema import SCHEMA
from fcmae.grids.grid import load_grid
from fcmae.grids.run import plan

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
