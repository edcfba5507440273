from __future__ import annotations

import pytest


def base(data, output_dir):
    return ["--model", "convnextv2_atto", "--data", data, "--output-dir", output_dir]


def test_a_run_from_the_command_line_resumes_and_refuses_to_overwrite(
    run_tool, image_folder, tmp_path
):
    command = base(image_folder, tmp_path / "run")
    command += ["--image-size", "32", "--batch-size", 4, "--max-steps", 2, "--workers", 0]
    command += ["--decoder-dim", 16, "--device", "cpu"]
    result = run_tool("pretrain_fcmae", *command)
    assert result.code == 0, result.err
    assert (tmp_path / "run/encoder.safetensors").is_file()
    assert list((tmp_path / "run/tensorboard").rglob("events*"))
    config = (tmp_path / "run/config.yaml").read_bytes()
    again = run_tool("pretrain_fcmae", *command, "--seed", 1)
    assert (tmp_path / "run/config.yaml").read_bytes() == config
    assert again.code == 1
    assert "holds a run already" in again.err
    assert run_tool("pretrain_fcmae", *command, "--resume").code == 0


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--image-size", "100"], "multiple of 32: use 96 or 128"),
        (["--mask-ratio", "1.2"], "mask ratio is 1.2"),
        (["--init", "missing.safetensors"], "missing.safetensors"),
        (["--batch-size", "0"], "batch_size is 0"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_1(run_tool, image_folder, tmp_path, extra, message):
    result = run_tool(
        "pretrain_fcmae", *base(image_folder, tmp_path / "run"), "--device", "cpu", *extra
    )
    assert result.code == 1
    assert "Traceback" not in result.err
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_wrong_usage_is_exit_code_2_and_help_shows_commands(run_tool):
    assert run_tool("pretrain_fcmae", "--model", "convnextv2_atto").code == 2
    shown = run_tool("pretrain_fcmae", "--help")
    assert shown.code == 0
    assert "torchrun" in shown.out
