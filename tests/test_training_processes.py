"""Several processes train the weights of one: as torchrun and accelerate launch them (gloo)."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file
from test_training_loop import small_model, small_training
from timm.utils import ModelEmaV3

from backbones.errors import InputError
from fcmae.pretrain import PretrainOptions, pretrain
from training.guards.checkpoints import list_checkpoints
from training.guards.processes import check_joined

ROOT = Path(__file__).resolve().parent.parent
STEPS = 10


def launch(module: str, *arguments: object) -> None:
    """Run a launcher of processes, from the project's root.

    The test is skipped where an old PyTorch was refused: it averages wrongly with FSDP on CPUs.
    """
    result = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if torch.__version__ < "2.14" and "instead of averaging them" in result.stderr:
        pytest.skip(f"torch {torch.__version__} averages wrongly with FSDP on CPUs")
    assert result.returncode == 0, result.stderr[-3000:]


def free_port() -> int:
    return random.SystemRandom().randint(20000, 60000)


def trainings(data: Path, folder: Path) -> None:
    """What is compared: FCMAE, the same accumulated, and a small model with averaged weights."""
    torch.set_num_threads(1)
    for accumulate in (1, 2):
        options = PretrainOptions(
            model="convnextv2_atto",
            data=str(data),
            output_dir=str(folder / f"fcmae{accumulate}"),
            image_size=(32, 64),
            batch_size=4,
            max_steps=STEPS,
            base_lr=0.064,
            decoder_dim=16,
            clip_norm=1.0,
            accumulate=accumulate,
            workers=0,
            device="cpu" if torch.cuda.is_available() else None,  # None: the best there is
            log_every=5,
            trackers=(),
        )
        pretrain(options)
    ema = ModelEmaV3(small_model(0.0), decay=0.8)
    small_training(folder / "ema", 6, dropout=0.0, ema=ema, accumulate=2)


def work(rank: int, port: int, data: Path, folder: Path) -> None:
    """What each of two processes does that torchrun started."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    place |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    trainings(data, folder)


def newest(folder: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(folder)[-1] / name)


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_two_processes_and_accumulation_train_the_weights_of_one(image_folder, tmp_path):
    port = free_port()
    ranks = [forked.start(work, r, port, image_folder, tmp_path / "two") for r in range(2)]
    trainings(image_folder, tmp_path / "one")
    for process in ranks:
        process.join(300)
        assert process.exitcode == 0
    one, two = tmp_path / "one", tmp_path / "two"
    alone = newest(one / "fcmae1")
    for other in (one / "fcmae2", two / "fcmae1", two / "fcmae2"):
        assert largest_difference(alone, newest(other)) < 1e-5, other
    for name in ("model.safetensors", "ema.safetensors"):
        assert largest_difference(newest(one / "ema", name), newest(two / "ema", name)) < 1e-5
    losses = [
        [json.loads(line)["total_loss"] for line in (run / "fcmae1/metrics.json").open()]
        for run in (one, two)
    ]
    assert len(losses[0]) == STEPS / 5
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


FSDP_SCRIPT = """
import runpy, shutil, sys
from pathlib import Path
import torch
sys.path[:0] = [".", "tests"]
from training.guards.checkpoints import list_checkpoints

folder = Path(sys.argv[sys.argv.index("--output-dir") + 1])
def run(*more):
    arguments = list(sys.argv)
    sys.argv += more
    try:
        runpy.run_path("tools/pretrain_fcmae.py")["main"]()
    finally:
        sys.argv = arguments
run()
if torch.distributed.get_rank() == 0:
    (folder / "encoder.safetensors").rename(folder / "first.safetensors")
    shutil.rmtree(list_checkpoints(folder)[-1])
torch.distributed.barrier()
run("--resume")
"""


def test_fsdp_trains_the_weights_of_one_process_and_resumes(image_folder, tmp_path, run_tool):
    """Trained and resumed in the same two processes, which are slow to start."""

    def arguments(folder):
        return (
            *("--model", "convnextv2_atto", "--data", image_folder, "--output-dir", folder),
            *("--image-size", "32x64", "--batch-size", 4, "--max-steps", 4, "--base-lr", 0.064),
            *("--decoder-dim", 16, "--clip-norm", 1, "--accumulate", 2, "--workers", 0),
            *("--panel-every", 2, "--checkpoint-every", 2, "--device", "cpu"),
        )

    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    assert run_tool("pretrain_fcmae", *arguments(alone)).code == 0
    script = tmp_path / "script.py"
    script.write_text(FSDP_SCRIPT)
    launch(
        "accelerate.commands.launch",
        *("--config_file", "training/fsdp.yaml", "--num_processes", 2),
        *("--main_process_port", free_port(), script, *arguments(sharded)),
    )
    assert (list_checkpoints(sharded)[-1] / "pytorch_model_fsdp.bin").is_file()
    encoder = load_file(sharded / "first.safetensors")
    assert largest_difference(load_file(alone / "encoder.safetensors"), encoder) < 1e-4
    panels = [sorted(p.name for p in (r / "reconstructions").iterdir()) for r in (alone, sharded)]
    assert panels[0] == panels[1]
    assert largest_difference(encoder, load_file(sharded / "encoder.safetensors")) == 0
    shutil.rmtree(list_checkpoints(sharded)[-1])
    refused = run_tool("pretrain_fcmae", *arguments(sharded), "--resume")
    assert refused.code == 1
    assert "a run with FSDP cannot be resumed without it" in refused.err


def test_processes_that_did_not_join_are_refused_before_they_write(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"WORLD_SIZE is 2, but 1 process"):
        check_joined(1)
    monkeypatch.delenv("WORLD_SIZE")
    check_joined(1)
