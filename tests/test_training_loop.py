"""The loop's promises: nothing depends on where a run was interrupted or how it is divided."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import nn

from training.data import BatchOrder, evenly_spread
from training.guards.checkpoints import list_checkpoints, write_checkpoint
from training.loop import PROJECT, NonFiniteLossError, train
from training.options import LoopOptions
from training.records import environment
from training.schedule import cosine_with_warmup


class NoisySamples:
    """Ten vectors, with noise from each of the three generators that libraries draw from."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        noise = torch.rand(4) + random.random() + float(np.random.rand())  # noqa: NPY002
        return torch.full((4,), float(index)) + noise

    def describe(self, index):
        return f"vector_{index}.png"


def losses(model, batch):
    return {"loss_x": model(batch).pow(2).mean()}


def small_model(dropout=0.3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.Linear(8, 1))


def small_training(
    output_dir,
    steps,
    compute_losses=losses,
    dropout=0.3,
    after=None,
    ema=None,
    optimizer=torch.optim.AdamW,
    measure=None,
    **options,
):
    model = small_model(dropout)
    optimizer = optimizer(model.parameters(), lr=1e-2)
    options = {"log_every": 5, "checkpoint_every": 4, "trackers": (), "device": "cpu", **options}
    loop = LoopOptions(
        output_dir=Path(output_dir),
        max_steps=steps,
        batch_size=options.pop("batch_size", 4),
        **options,
    )
    return train(
        model, optimizer, cosine_with_warmup(20, 2), NoisySamples(), torch.stack, compute_losses,
        loop, after, ema, measure,
    )  # fmt: skip


def assert_same_weights(a, b):
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)


def test_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path):
    whole = small_training(tmp_path / "whole", 20)

    class Interrupted(Exception):
        pass

    def interrupt(step, _):
        if step == 11:
            raise Interrupted

    with pytest.raises(Interrupted):
        small_training(tmp_path / "cut", 20, after=interrupt)
    resumed = small_training(tmp_path / "cut", 20, resume=True)
    assert_same_weights(whole, resumed)
    steps = [json.loads(line)["iteration"] for line in (tmp_path / "cut/metrics.json").open()]
    assert steps == sorted(set(steps)), "a step stands twice in metrics.json"


def test_workers_change_nothing(tmp_path):
    alone = small_training(tmp_path / "0", 7)
    with_workers = small_training(tmp_path / "2", 7, workers=2)
    assert_same_weights(alone, with_workers)


def test_accumulated_micro_batches_equal_the_whole_batch(tmp_path):
    sgd = torch.optim.SGD  # unlike Adam, it feels the gradient's scale
    whole = small_training(tmp_path / "1", 6, dropout=0.0, optimizer=sgd)
    parts = small_training(tmp_path / "2", 6, dropout=0.0, optimizer=sgd, accumulate=2)
    for x, y in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(x, y, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_may_accumulate_otherwise(tmp_path):
    whole = small_training(tmp_path / "whole", 10, dropout=0.0)
    small_training(tmp_path / "cut", 5, dropout=0.0)
    resumed = small_training(tmp_path / "cut", 10, dropout=0.0, resume=True, accumulate=2)
    for x, y in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.allclose(x, y, rtol=1e-4, atol=1e-6)


def test_micro_batches_and_steps_draw_their_own_noise(tmp_path):
    seen = []

    def recorded(model, batch):
        seen.append(torch.rand(()).item())
        return losses(model, batch)

    small_training(tmp_path, 4, compute_losses=recorded, accumulate=2)
    assert len(set(seen)) == 8


def test_weights_that_a_step_spoilt_reach_no_checkpoint(tmp_path):
    calls = []

    def spoils(model, batch):
        calls.append(0)
        if len(calls) == 8:  # the step before the second checkpoint
            model[0].weight.register_hook(lambda gradient: gradient * float("inf"))
        return losses(model, batch)

    with pytest.raises(NonFiniteLossError, match=r"weights are not finite after step 7.*_00000004"):
        small_training(tmp_path, 10, compute_losses=spoils)
    assert [c.name for c in list_checkpoints(tmp_path)] == ["step_00000004"]


def test_what_follows_a_step_is_repeated_for_the_step_that_a_run_resumes_from(tmp_path):
    seen = []
    small_training(tmp_path, 4, after=lambda step, _: seen.append(step))
    small_training(tmp_path, 6, after=lambda step, _: seen.append(step), resume=True)
    assert seen == [1, 2, 3, 4, 4, 5, 6]


def test_line_of_the_metrics_that_was_cut_off_is_named_and_removed(tmp_path, caplog):
    small_training(tmp_path, 4, log_every=1)
    with (tmp_path / "metrics.json").open("a") as stream:
        stream.write('{"iteration": 5, "los')
    small_training(tmp_path, 6, resume=True, log_every=1)
    assert "cut off" in caplog.text
    steps = [json.loads(line)["iteration"] for line in (tmp_path / "metrics.json").open()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_averaged_weights_are_those_of_the_recurrence_also_with_accumulation(tmp_path):
    weights = []
    ema = ModelEmaV3(small_model(), decay=0.7)
    small_training(
        tmp_path,
        5,
        after=lambda _, model: weights.append(model[0].weight.detach().clone()),
        ema=ema,
        accumulate=2,
    )
    average = weights[0]
    for later in weights[1:]:
        average = 0.7 * average + 0.3 * later
    assert torch.allclose(ema.module[0].weight, average, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(ema.module[0].weight, weights[-1], rtol=1e-3)


def test_averaged_weights_are_bit_identical_after_a_resume_and_lie_beside_the_checkpoint(tmp_path):
    def averaged(folder, steps, **options):
        ema = ModelEmaV3(small_model(), decay=0.9, use_warmup=True)
        small_training(folder, steps, ema=ema, **options)
        return ema.module

    whole = averaged(tmp_path / "whole", 9)
    averaged(tmp_path / "cut", 6)
    resumed = averaged(tmp_path / "cut", 9, resume=True)
    assert_same_weights(whole, resumed)
    stored = load_file(list_checkpoints(tmp_path / "cut")[-1] / "ema.safetensors")
    assert {name: v.tolist() for name, v in stored.items()} == {
        name: v.tolist() for name, v in whole.state_dict().items()
    }
    small_training(tmp_path / "without", 4)
    with pytest.raises(ValueError, match=r"step_00000004 has no averaged weights .*without EMA"):
        averaged(tmp_path / "without", 6, resume=True)


def test_each_epoch_sees_every_sample_once_across_batch_borders():
    order = iter(BatchOrder(10, 4, seed=3))
    keys = [key for _ in range(5) for key in next(order)]
    assert sorted(k.sample for k in keys if k.epoch == 0) == list(range(10))
    assert sorted(k.sample for k in keys if k.epoch == 1) == list(range(10))
    assert [k.sample for k in keys[:10]] != [k.sample for k in keys[10:]]


def test_order_continues_after_a_resume_and_is_divided_between_processes():
    whole = iter(BatchOrder(10, 4, seed=3))
    batches = [next(whole) for _ in range(6)]
    assert next(iter(BatchOrder(10, 4, seed=3, first_batch=5))) == batches[5]
    shares = [next(iter(BatchOrder(10, 4, 3, 2, rank, 2))) for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == sorted(batches[2])


@pytest.mark.parametrize(
    ("length", "number", "places"),
    [
        (10, 4, [0, 3, 6, 9]),
        (8, 4, [0, 2, 4, 7]),
        (3, 4, [0, 1, 2]),
        (5, 1, [0]),
        (2**26 + 2, 2, [0, 2**26 + 1]),  # more than float32 tells apart
    ],
)
def test_evenly_spread_places_reach_from_the_first_to_the_last(length, number, places):
    assert evenly_spread(range(length), number) == places


def test_metrics_hold_the_mean_over_their_window(tmp_path):
    seen = []

    def recorded(model, batch):
        result = losses(model, batch)
        seen.append(result["loss_x"].item())
        return result

    small_training(tmp_path, 10, compute_losses=recorded)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").open()]
    assert [line["iteration"] for line in lines] == [5, 10]
    assert lines[1]["loss_x"] == pytest.approx(np.mean(seen[5:10]))
    assert lines[1]["total_loss"] == pytest.approx(np.mean(seen[5:10]))
    assert lines[1]["lr"] == pytest.approx(1e-2 * cosine_with_warmup(20, 2)(9))
    assert {"time", "data_time", "eta_seconds", "images_per_second", "max_mem"} <= set(lines[0])


def test_only_the_newest_checkpoints_are_kept_and_an_incomplete_one_is_passed_over(tmp_path):
    small_training(tmp_path, 10, keep_checkpoints=2)
    assert [c.name for c in list_checkpoints(tmp_path)] == ["step_00000008", "step_00000010"]

    def cut_short(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 12, cut_short, keep=2)
    assert [c.name for c in list_checkpoints(tmp_path)] == ["step_00000008", "step_00000010"]


def flip_a_byte(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda c: flip_a_byte(c / "model.safetensors"), "model.safetensors is not what was"),
        (lambda c: os.truncate(c / "optimizer.bin", 50), "optimizer.bin has 50 bytes instead of"),
        (lambda c: (c / "optimizer.bin").unlink(), "optimizer.bin is missing"),
        (lambda c: (c / "state.json").write_text('{"step"'), "state.json cannot be read"),
    ],
)
def test_damaged_checkpoint_is_named_and_the_one_before_it_resumed(tmp_path, caplog, harm, found):
    whole = small_training(tmp_path, 10)
    harm(tmp_path / "checkpoints/step_00000010")
    with caplog.at_level("INFO", logger="training"):
        resumed = small_training(tmp_path, 10, resume=True)
    assert found in caplog.text
    assert "at step 8" in caplog.text
    assert_same_weights(whole, resumed)


def test_all_checkpoints_damaged_is_an_error_not_a_fresh_start(tmp_path):
    small_training(tmp_path, 4)
    flip_a_byte(tmp_path / "checkpoints/step_00000004/optimizer.bin")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        small_training(tmp_path, 4, resume=True)


def test_full_disk_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    def no_room(self, folder, **_):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    def fill_the_disk(step, _):
        if step == 5:
            monkeypatch.setattr("accelerate.Accelerator.save_state", no_room)

    with pytest.raises(ValueError, match=r"step 8 cannot be written.*No space.*step_00000004"):
        small_training(tmp_path, 10, after=fill_the_disk)
    assert [c.name for c in list_checkpoints(tmp_path)] == ["step_00000004"]
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


def test_sigterm_writes_a_checkpoint_and_ends_with_143(tmp_path):
    whole = small_training(tmp_path / "whole", 10)

    def terminate(step, _):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        small_training(tmp_path / "cut", 10, after=terminate)
    assert ended.value.code == 143
    assert list_checkpoints(tmp_path / "cut")[-1].name == "step_00000006"
    assert_same_weights(whole, small_training(tmp_path / "cut", 10, resume=True))


def test_output_folder_with_a_run_is_not_overwritten(tmp_path):
    small_training(tmp_path, 4)
    with pytest.raises(ValueError, match=r"holds a run already.*--resume"):
        small_training(tmp_path, 4)


def test_non_finite_loss_names_step_files_and_last_checkpoint(tmp_path):
    calls = []

    def breaks(model, batch):
        calls.append(0)
        return {"loss_x": model(batch).mean() * (float("nan") if len(calls) == 6 else 1)}

    with pytest.raises(NonFiniteLossError) as caught:
        small_training(tmp_path, 10, compute_losses=breaks)
    message = str(caught.value)
    assert "step 5" in message
    assert message.count("vector_") == 4
    assert "step_00000004" in message


def test_global_norm_of_the_gradients_is_clipped(tmp_path):
    def huge(model, batch):
        return {"loss_x": 1e6 * model(batch).pow(2).mean()}

    norms = []

    def record(_, model):
        norms.append(sum(p.grad.pow(2).sum() for p in model.parameters()) ** 0.5)

    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    optimizer.zero_grad = lambda *_, **__: None  # keep the gradients to look at
    loop = LoopOptions(
        output_dir=tmp_path, max_steps=1, batch_size=4, clip_norm=0.5, device="cpu", trackers=()
    )
    train(model, optimizer, lambda _: 1.0, NoisySamples(), torch.stack, huge, loop, record)
    assert norms[0] == pytest.approx(0.5, rel=1e-4)


def test_tensorboard_gets_the_losses(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small_training(tmp_path, 10, trackers=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "tensorboard" / PROJECT)).Reload()
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").open()]
    assert [e.value for e in events.Scalars("loss_x")] == pytest.approx(
        [line["loss_x"] for line in lines]
    )


def test_bf16_on_a_processor_without_it_is_warned_of_once(tmp_path, monkeypatch, caplog):
    for computes in (True, False):
        monkeypatch.setattr(environment, "computes_in_bf16", lambda computes=computes: computes)
        for precision in ("no", "bf16"):
            small_training(tmp_path / f"{computes}_{precision}", 2, precision=precision)
    (warning,) = [
        r.getMessage() for r in caplog.records if r.name == "training.records.environment"
    ]
    assert warning.startswith("bf16 is many times slower than float32 here")
    assert f"({environment.device_name('cpu')}) has no bf16 instructions" in warning
    assert warning.endswith("float32: --precision no, or SOLVER.AMP.ENABLED False")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux's /proc/cpuinfo")
def test_bf16_is_known_by_the_processors_flags():
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    flags = {name.strip(): set(value.split()) for name, _, value in lines}
    if "Features" in flags:  # Arm
        expected = "bf16" in flags["Features"]
    else:  # as PyTorch's errors say: "bf16 path needs the cpu support avx512bw, avx512vl and ..."
        expected = {"avx512bw", "avx512vl", "avx512dq"} <= flags["flags"]
    assert environment.computes_in_bf16() == expected


def test_bf16_is_not_warned_of_where_nothing_is_known_of_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert environment.computes_in_bf16()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "max_steps is 0"),
        ({"precision": "fp8"}, "precision is 'fp8'; allowed: no, bf16, fp16"),
        ({"precision": "fp16"}, "fp16 needs an NVIDIA GPU"),
        ({"accumulate": 3}, r"batch size 4 is not divisible by 1 process\(es\) x 3"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        small_training(tmp_path, **{"steps": 4, **options})


def test_cosine_schedule_by_hand():
    factor = cosine_with_warmup(total_steps=110, warmup_steps=10, final_factor=0.1)
    assert factor(0) == 0
    assert factor(5) == 0.5
    assert factor(10) == 1
    assert factor(60) == pytest.approx(0.55)
    assert factor(110) == pytest.approx(0.1)
