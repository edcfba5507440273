from __future__ import annotations

import json
import tarfile

import numpy as np
import pytest
import tifffile
from safetensors import safe_open

from backbones.checkpoint import load_encoder
from backbones.convnext import build_convnext


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
    assert b"\nencoder: packed\n" in config  # the fast path, unasked
    assert b"\nkernels: auto\n" in config
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
        (["--mean", "0.5", "0.5", "0.5"], "--mean is given without --std"),
        (["--in-chans", "13"], "12 of 12 images cannot be used, more than half"),
        (["--skip-bad-images", "--in-chans", "13"], "12 of 12 images cannot be used"),
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


def test_thirteen_bands_in_webdataset_shards_become_an_encoder(run_tool, tmp_path):
    """Not square, 16 bits, statistics measured, and one bad image, all from the command line."""
    generator = np.random.default_rng(0)
    for shard in range(2):
        with tarfile.open(tmp_path / f"s-{shard:03d}.tar", "w") as archive:
            for key in range(3):
                bands = generator.integers(0, 10_000, (40, 70, 13)).astype(np.uint16)
                path = tmp_path / f"{key}.tif"
                tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig")
                if (shard, key) == (1, 1):
                    path.write_bytes(b"no image")
                archive.add(path, path.name)
                path.unlink()
    run = tmp_path / "run"
    result = run_tool(
        "pretrain_fcmae",
        *base(f"wds/{tmp_path}/s-{{000..001}}.tar", run),
        *("--in-chans", 13, "--image-size", "32x64", "--batch-size", 3, "--max-steps", 2),
        *("--workers", 2, "--decoder-dim", 16, "--device", "cpu", "--skip-bad-images"),
    )
    assert result.code == 0, result.err
    encoder = build_convnext("convnextv2_atto", in_chans=13)
    assert load_encoder(run / "encoder.safetensors", encoder).loaded > 0
    with safe_open(run / "encoder.safetensors", "pt") as file:
        mean = json.loads(file.metadata()["mean"])
    assert np.allclose(mean, 5000 / 65535, rtol=0.02)
    assert len(mean) == 13
    assert "s-001.tar/1.tif\tcannot be read" in (run / "bad_images.txt").read_text()


def test_five_bands_are_normalised_by_the_statistics_that_are_given(run_tool, tmp_path):
    (tmp_path / "bands").mkdir()
    generator, given = np.random.default_rng(0), [0.1, 0.2, 0.3, 0.4, 0.5]
    for number in range(2):
        bands = generator.integers(0, 65536, (40, 70, 5)).astype(np.uint16)
        path = tmp_path / f"bands/{number}.tif"
        tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig")
    result = run_tool(
        "pretrain_fcmae",
        *base(tmp_path / "bands", tmp_path / "run"),
        *("--in-chans", 5, "--mean", *given, "--std", *given, "--image-size", "32x64"),
        *("--batch-size", 2, "--max-steps", 1, "--workers", 0, "--decoder-dim", 16),
        *("--device", "cpu"),
    )
    assert result.code == 0, result.err
    with safe_open(tmp_path / "run/encoder.safetensors", "pt") as file:
        assert json.loads(file.metadata()["mean"]) == given
        assert json.loads(file.metadata()["std"]) == given


def test_wrong_usage_is_exit_code_2_and_help_shows_commands(run_tool):
    assert run_tool("pretrain_fcmae", "--model", "convnextv2_atto").code == 2
    shown = run_tool("pretrain_fcmae", "--help")
    assert shown.code == 0
    assert "torchrun" in shown.out
