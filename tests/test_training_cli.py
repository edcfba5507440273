from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal
from unittest import mock

import pytest
import torch
from torch.utils.data import DataLoader

from backbones.errors import InputError, counted, listed
from fcmae.classification.options import FinetuneOptions
from fcmae.pretrain_options import PretrainOptions
from training.cli import OptionsParser, ToolParser, log_to, run_tool
from training.options import LoopOptions, TrainingOptions, option


class Damaged(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise OSError("broken data stream")
        except OSError as error:
            raise InputError("images/7.png does not decode;\nreplace it") from error


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_its_own_sentence_also_from_a_loaders_worker(capsys, workers):
    code = run_tool(lambda: list(DataLoader(Damaged(), num_workers=workers)) and 0)
    assert code == 1
    assert capsys.readouterr().err == "error: images/7.png does not decode;\nreplace it\n"


def test_one_of_a_kind_has_no_plural():
    words = [
        counted(n, noun) for noun in ("image", "class", "box", "label size") for n in (0, 1, 2)
    ]
    assert words[:3] == ["0 images", "1 image", "2 images"]
    assert words[3:] == ["0 classes", "1 class", "2 classes", "0 boxes", "1 box", "2 boxes",
                         "0 label sizes", "1 label size", "2 label sizes"]  # fmt: skip
    assert listed(["a"], "b").startswith("1 problem in b")


def test_exit_codes(capsys):
    assert run_tool(lambda: None) == 0
    assert run_tool(lambda: 3) == 3
    assert run_tool(lambda: open("missing/file").close()) == 1
    assert capsys.readouterr().err == "error: No such file or directory: missing/file\n"

    def interrupted():
        raise KeyboardInterrupt

    assert run_tool(interrupted) == 130


def test_an_error_of_the_system_is_one_line_with_its_path_and_what_to_do(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run_tool(lambda: (tmp_path / "file/run").mkdir()) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: Not a directory: {tmp_path}/file/run; a part of this path")

    def library():
        raise RuntimeError("while serializing: No space left on device (os error 28)")

    assert run_tool(library) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: while serializing: No space left")
    assert "make room" in said
    assert said.count("\n") == 1


def test_our_own_mistakes_keep_their_traceback_and_ask_to_be_reported(capsys):
    def mistaken():
        raise ValueError("shapes do not match")

    assert run_tool(mistaken) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert "shapes do not match" in said
    assert "Please report it" in said.splitlines()[-1]
    assert run_tool(lambda: 1 // 0) == 1


def test_log_goes_to_the_runs_folder_once(tmp_path):
    log_to(tmp_path / "a")
    log_to(tmp_path / "b")
    logging.getLogger("training").info("a line")
    assert not (tmp_path / "a").exists()  # which its first line would have made
    assert (tmp_path / "b/log.txt").read_text().count("a line") == 1


def tool_parser() -> ToolParser:
    parser = ToolParser(prog="tool")
    parser.add_argument("--model", choices=["atto", "base"], required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("opts", nargs="*")
    return parser


@pytest.mark.parametrize("parse", ["parse_args", "parse_intermixed_args"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--model atto --epoch 5", None),
        ("--model atto --epochss 5", ["unknown flag --epochss; the closest is --epochs"]),
        ("--model atto --epochss=5 --qqqqq", ["the closest is --epochs", "unknown flag --qqqqq\n"]),
        (
            "--modle atto --epochs many --eposch 3",
            [
                "4 problems:\n",
                "unknown flag --modle; the closest is --model\n",
                "unknown flag --eposch; the closest is --epochs\n",
                "argument --epochs: invalid int value: 'many'\n",
                "the following arguments are required: --model\n",
            ],
        ),
        (
            "--model alto --epochs many",
            ["argument --model: invalid choice: 'alto'", "invalid int value: 'many'"],
        ),
    ],
)
def test_all_that_is_wrong_with_the_flags_is_said_at_once(capsys, parse, arguments, said):
    parsing = getattr(tool_parser(), parse)
    if said is None:
        assert parsing(arguments.split()).model == "atto"
        return
    with pytest.raises(SystemExit) as ended:
        parsing(arguments.split())
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert [text for text in said if text not in error] == []


def test_what_stands_behind_two_dashes_is_no_flag():
    assert tool_parser().parse_args(["--model", "atto", "--", "--modle"]).opts == ["--modle"]


def test_every_tool_says_its_misspelt_flags(run_tool):
    result = run_tool("check_dataset", "a.json", "--image", "images", "--masks-no", "--jason")
    assert result.code == 2
    assert "unknown flag --jason; the closest is --json\n" in result.err
    assert "unknown flag --masks-no; the closest is --no-masks\n" in result.err
    for tool in sorted((Path(__file__).parent.parent / "tools").glob("*.py")):
        assert "argparse.ArgumentParser(" not in tool.read_text(), f"{tool} names no closest flag"


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    shape: Literal["round", "square"] = option("of the thing", "round")
    sides: tuple[float, ...] | None = option("their lengths", None)
    dry: bool = option("without water", False)
    unflagged: int = 3


def test_flags_are_made_from_the_options_fields(capsys):
    def given(line):
        with mock.patch("sys.argv", ["tool", *line.split()]):
            return OptionsParser(Options, "text", "examples").parse_options()

    values, resume = given("--output-dir o")
    assert not resume
    assert Options(**values) == Options(output_dir="o")
    values, resume = given(
        "--output-dir o --shape square --sides 1 2.5 --dry --max-steps 7 --wandb --resume"
    )
    assert resume
    assert Options(**values) == Options(
        output_dir="o", shape="square", sides=(1.0, 2.5), dry=True, max_steps=7,
        trackers=("tensorboard", "wandb"),
    )  # fmt: skip
    for line in ("--shape round", "--output-dir o --shape flat", "--output-dir o --unflagged 4"):
        with pytest.raises(SystemExit):
            given(line)
    assert "required: --output-dir" in capsys.readouterr().err


def test_training_options_are_written_once_and_shared_by_all_trainings():
    shared = {f.name for f in fields(TrainingOptions)}
    for options in (PretrainOptions, FinetuneOptions, LoopOptions):
        assert issubclass(options, TrainingOptions)
    for options in (PretrainOptions, FinetuneOptions):
        assert not shared & vars(options)["__annotations__"].keys()
