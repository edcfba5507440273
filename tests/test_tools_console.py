"""The console command ``fcmae``: from a clone, and from the built wheel in an empty folder."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from training.cli import ToolParser, log_to, run_tool, say
from training.command_line import commands, console
from training.command_line.shipped_files import ABLATIONS, DET_CONFIGS, find_shipped

ROOT = Path(__file__).resolve().parent.parent
NAMES = {
    "pretrain": "pretrain_fcmae",
    "train": "train_net",
    "predict": "predict",
    "check": "check_dataset",
    "report": "make_report",
    "quickstart": "quickstart",
    "finetune": "finetune_classifier",
    "convert": "convert_checkpoint",
    "analyze": "analyze_features",
    "ablate": "ablate",
    "benchmark": "benchmark",
    "compare": "compare_arms",
    "export": "export",
    "import": "import_dataset",
    "plan": "plan_training",
    "segment": "train_segmentation",
    "study": "study",
    "embed": "embed",
    "reconstruct": "reconstruct",
}
MISSPELT = "quick/mask_rcnn_convnextv2_ato_fcmae_quick.yaml"


def test_every_file_of_tools_is_a_subcommand_under_the_name_that_is_promised():
    files = {path.stem for path in (ROOT / "tools").glob("*.py")}
    found = {name: file.stem for name, file in commands.commands().items()}
    assert sorted(found.values()) == sorted(files)  # none is hidden by another of the same name
    promised = {name: tool for name, tool in NAMES.items() if tool in files}
    assert promised.items() <= found.items()
    assert all(console.load_command(file).main for file in commands.commands().values())


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fcmae", *arguments])
    try:
        return console.main()
    except SystemExit as ended:
        return ended.code


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_the_help_has_a_line_for_each_subcommand(monkeypatch, capsys, arguments):
    assert call(monkeypatch, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in commands.commands():
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(line.split()) > 3


def test_a_misspelt_subcommand_names_the_closest(monkeypatch, capsys):
    assert call(monkeypatch, "pretrian") == 2
    said = capsys.readouterr().err
    assert "there is no command 'pretrian'; the closest is pretrain;" in said


def test_the_version_is_said(monkeypatch, capsys):
    assert call(monkeypatch, "--version") == 0
    assert re.match(r"fcmae (\d+\.\d+|\(not installed\)).*, Python 3\.", capsys.readouterr().out)


@pytest.mark.parametrize("name", [name for name in NAMES if name in commands.commands()])
def test_help_and_errors_of_a_subcommand_speak_of_fcmae_and_of_no_file_of_tools(
    monkeypatch, capsys, name
):
    assert call(monkeypatch, name, "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: fcmae {name} ")
    assert f"  fcmae {name} " in shown
    assert "tools/" not in shown
    assert call(monkeypatch, name, "--no-such-flag") == 2
    assert f"fcmae {name}: error: " in capsys.readouterr().err


def test_files_of_tools_still_speak_of_themselves():
    shown = subprocess.run(
        [sys.executable, "tools/check_dataset.py", "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.startswith("usage: check_dataset.py ")
    assert "python tools/check_dataset.py train.json --images images" in shown


def test_a_file_of_a_clone_beside_an_installed_wheel_keeps_its_name(monkeypatch, tmp_path):
    monkeypatch.setattr(commands, "TOOLS", tmp_path / "fcmae_commands")
    (tmp_path / "fcmae_commands").mkdir()
    (tmp_path / "fcmae_commands" / "train_net.py").touch()
    file = "/somewhere/clone/tools/train_net.py"
    monkeypatch.setattr(sys, "argv", [file])
    assert ToolParser().format_help().startswith("usage: train_net.py ")
    assert commands.as_called(f"{file}: python tools/train_net.py") == f"{file}: fcmae train"


def test_texts_name_commands_as_they_were_called(monkeypatch, capsys):
    text = (
        "python tools/train_net.py X; torchrun --nproc-per-node 8 tools/pretrain_fcmae.py Y\n"
        "tools/check_dataset.py lists all"
    )
    monkeypatch.setattr(sys, "argv", ["tools/train_net.py"])
    assert commands.as_called(text) == text
    monkeypatch.setattr(sys, "argv", ["fcmae train", "--resume", "a b"])
    assert commands.as_called(text) == (
        "fcmae train X; torchrun --nproc-per-node 8 -m fcmae pretrain Y\nfcmae check lists all"
    )
    assert commands.own_command() == "fcmae train --resume 'a b'"
    assert commands.shown_command([*commands.child_command("pretrain"), "--data", "a b"]) == (
        "fcmae pretrain --data 'a b'"
    )

    log_to()
    logging.getLogger("training").warning("tools/train_net.py goes on")
    say("see tools/check_dataset.py")
    shown = capsys.readouterr()
    assert "training: fcmae train goes on" in shown.err
    assert shown.out == "see fcmae check\n"

    def fails():
        raise OSError("tools/check_dataset.py lists all")

    assert run_tool(fails) == 1
    assert capsys.readouterr().err == "error: fcmae check lists all\n"
    assert ToolParser().prog == "fcmae train"


@pytest.mark.parametrize("prefix", ["", "det_configs/"])
def test_config_files_are_found_by_name_from_any_folder(tmp_path, monkeypatch, prefix):
    monkeypatch.chdir(tmp_path)
    name = "quick/mask_rcnn_convnextv2_atto_fcmae_quick.yaml"
    shipped = ROOT / "det_configs" / name
    assert find_shipped(prefix + name, DET_CONFIGS, "config file").samefile(shipped)
    last = Path(name).name
    assert find_shipped(last, DET_CONFIGS, "config file").samefile(shipped)
    own = tmp_path / (prefix + name)
    own.parent.mkdir(parents=True)
    own.touch()
    assert find_shipped(prefix + name, DET_CONFIGS, "config file").samefile(own)  # goes before


def test_grids_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("grn_aggregation.yaml", "ablations/grn_aggregation.yaml"):
        assert find_shipped(name, ABLATIONS, "grid").samefile(
            ROOT / "ablations/grn_aggregation.yaml"
        )


def test_a_missing_config_names_the_closest():
    with pytest.raises(FileNotFoundError, match=r"no config file quick/.*; the closest is quick/m"):
        find_shipped(MISSPELT, DET_CONFIGS, "config file")
    with pytest.raises(FileNotFoundError, match=r"; the closest is quick/mask_rcnn"):
        find_shipped(f"elsewhere/{Path(MISSPELT).name}", DET_CONFIGS, "config file")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of the programs of a new virtual environment, with the built wheel alone in it;
    all other packages are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(
        *(".*", "build", "dist", "*.egg-info", "tests", "docs", "__pycache__")
    )
    shutil.copytree(ROOT, folder / "source", ignore=left_out)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder / "dist"]
    subprocess.run([*pip, *build, folder / "source"], check=True)
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    variables = {"base": str(environment), "platbase": str(environment)}
    packages = Path(sysconfig.get_path("purelib", vars=variables))
    lines = [f"import site; site.addsitedir({folder!r})" for folder in site.getsitepackages()]
    (packages / "all_others.pth").write_text("\n".join(lines), encoding="utf-8")
    programs = Path(sysconfig.get_path("scripts", vars=variables))
    python = programs / Path(sys.executable).name
    (wheel,) = (folder / "dist").glob("*.whl")
    subprocess.run([*pip, "--python", python, "install", "-q", "--no-deps", wheel], check=True)
    return programs


def run_installed(programs, folder, *arguments):
    """Run a program of the environment in a folder, with no other path to this project."""
    hidden = ("PYTHONPATH", "PYTHONHOME")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    return subprocess.run(
        [programs / arguments[0], *arguments[1:]],
        cwd=folder,
        env=environment | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder_of_namesakes(tmp_path) -> Path:
    """A folder with packages of its own that are named as ours, or as detectron2's."""
    for name in ("tools", "detection", "training", "backbones"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    return tmp_path


def test_the_wheel_brings_the_commands_but_no_package_called_tools(installed, tmp_path):
    script = (
        "import importlib.util, json, backbones, fcmae_commands as c; spec = importlib.util."
        "find_spec('tools'); print(json.dumps([backbones.__file__, list(c.__path__), "
        "list(spec.submodule_search_locations) if spec else []]))"
    )
    done = run_installed(installed, tmp_path, Path(sys.executable).name, "-c", script)
    assert done.returncode == 0, done.stderr
    backbone, ours, theirs = json.loads(done.stdout)
    packages = Path(backbone).parent.parent
    assert packages.is_relative_to(installed.parent)
    assert ours[0] == str(packages / "fcmae_commands")  # an editable install around it comes after
    assert str(packages / "tools") not in theirs


def test_the_wheels_quickstart_runs_among_namesakes(installed, folder_of_namesakes):
    arguments = ["--train", "2", "--val", "1", "--unlabelled", "2", "--pretraining-steps", "1"]
    arguments += ["--iterations", "1", "--output-dir", "out"]
    done = run_installed(installed, folder_of_namesakes, "fcmae", "quickstart", *arguments)
    assert done.returncode == 0, done.stderr
    out = folder_of_namesakes / "out"
    assert f"report: {out / 'report.html'}   box AP: scratch " in done.stdout
    written = (out / "commands.txt").read_text()
    assert re.findall(r"^fcmae (\w+) --", written, re.MULTILINE) == ["pretrain", "train", "train"]
    record = json.loads((out / "fcmae/run.json").read_text())
    assert record["command"].startswith("fcmae train --config-file quick/mask_rcnn_")


def test_the_wheels_commands_find_grids_by_name(installed, tmp_path):
    grid = ["ablate", "ablations/grn_aggregation.yaml", "--output-dir", "out", "--rows", "l3"]
    unknown = run_installed(installed, tmp_path, "fcmae", *grid)
    assert unknown.returncode == 1
    assert "no row is named l3" in unknown.stderr
