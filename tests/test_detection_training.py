"""The training recipe on both engines: what each setting does to the weights, and to a resume.

Most tests train with every anchor and every proposal in the losses: then nothing is drawn, and a
step's gradient does not depend on how its images are divided.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import start
from PIL import Image
from safetensors.torch import load_file
from small_detector import small_config

import detection.data.transforms
from detection.config import to_detectron2
from detection.dataset import load_dataset
from detection.engines import load_engine
from detection.engines.renaming import detectron2_to_torchvision
from detection.engines.torchvision.model import build_mask_rcnn
from detection.evaluate import coco_metrics
from detection.run import run
from images.files import read_image
from training.configured import build_adamw
from training.guards.checkpoints import list_checkpoints
from training.records import environment

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
SIDE, OBJECTS = 64, 2
EXHAUSTIVE: dict[str, Any] = {
    "MODEL.ROI_HEADS.NUM_CLASSES": 0,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1.0]],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 1024,
    "MODEL.RPN.NMS_THRESH": 1.0,  # no proposal is ever suppressed, so each image has as many
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 1024,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1024,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 4096,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.99],  # the objects alone are positive
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "INPUT.MAX_SIZE_TRAIN": SIDE,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": 3,
    "SOLVER.STEPS": (2,),
    "SOLVER.WARMUP_FACTOR": 0.1,
    "SOLVER.LAYER_DECAY": 0.9,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 5.0,  # of norms from 2 to 11: AdamW then feels their scale
    "SOLVER.CHECKPOINT_PERIOD": 1,
}
AVERAGED = {"SOLVER.EMA.ENABLED": True, "SOLVER.EMA.DECAY": 0.3}
NOISY = AVERAGED | {
    "MODEL.CONVNEXT.DROP_PATH_RATE": 0.3,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.ACCUMULATE": 2,
    "SOLVER.CHECKPOINT_PERIOD": 2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Six images of one size, each with two boxes, as a data set's name."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, 7):
        pixels = generator.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
        for category in range(1, OBJECTS + 1):
            x, y = (int(v) for v in generator.integers(0, 30, 2))
            w, h = (int(v) for v in generator.integers(12, 30, 2))
            pixels[y : y + h, x : x + w, category] = 220
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE})
    categories = [{"id": c, "name": f"class {c}"} for c in range(1, OBJECTS + 1)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(tree))
    return f"json:{folder / 'annotations.json'}:{folder}"


def configure(engine: str, data: str, folder: Path, changes: dict[str, Any] | None = None):
    own = {"ENGINE": engine, "OUTPUT_DIR": str(folder), "DATASETS.TRAIN": (data,)}
    return small_config(EXHAUSTIVE | own | (changes or {}))


def train(engine, data, folder, changes=None, resume=False) -> dict[str, torch.Tensor]:
    """Train into a folder; the final weights."""
    load_engine(engine).train(configure(engine, data, folder, changes), load_dataset(data), resume)
    return final(folder)


def final(folder: Path, suffix: str = "") -> dict[str, torch.Tensor]:
    """The final weights of either engine, under the torchvision engine's names."""
    if (path := folder / f"model_final{suffix}.safetensors").is_file():
        return load_file(path)
    path = folder / f"model_final{suffix}.pth"
    return detectron2_to_torchvision(torch.load(path, weights_only=True)["model"])


def intermediate(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The weights after some steps, under the torchvision engine's names."""
    if (path := folder / f"checkpoints/step_{step:08d}/model.safetensors").is_file():
        return load_file(path)
    path = folder / f"model_{step - 1:07d}.pth"
    return detectron2_to_torchvision(torch.load(path, weights_only=True)["model"])


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def metrics_lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(engine, data, tmp_path_factory) -> Path:
    """The folder of a run of four steps that nothing interrupted, with drop path's noise."""
    folder = tmp_path_factory.mktemp(f"{engine}_whole")
    train(engine, data, folder, NOISY)
    return folder


@pytest.fixture(scope="module")
def plain(engine, data, tmp_path_factory) -> Path:
    """The folder of a run of three steps in which nothing is drawn."""
    folder = tmp_path_factory.mktemp(f"{engine}_plain")
    train(engine, data, folder, AVERAGED)
    return folder


def work(rank: int, processes: int, port: int, *arguments: Any) -> None:
    """What a process does that torchrun started."""
    torch.set_num_threads(1)
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    if processes > 1:
        os.environ.update({name: str(value) for name, value in environment.items()})
    train(*arguments)


def train_killed(reads: int, *arguments: Any) -> None:
    """Train until so many images have been read, and then be gone without a word."""
    images = itertools.count(1)

    def read_or_die(*of_image: Any, **options: Any) -> Any:
        if next(images) > reads:
            os.kill(os.getpid(), signal.SIGKILL)
        return read_image(*of_image, **options)

    detection.data.pixels.read_image = read_or_die
    work(0, 1, 0, *arguments)


def test_average_is_that_of_the_weights_after_each_step(engine, data, tmp_path):
    changes = AVERAGED | {"SOLVER.EMA.DECAY": 0.9, "SOLVER.MAX_ITER": 2, "SOLVER.STEPS": ()}
    train(engine, data, tmp_path, changes)
    first, second = (intermediate(tmp_path, step) for step in (1, 2))
    decay = 1 - 2 ** (-2 / 3)  # of the warm-up, after two steps
    expected = {name: decay * first[name] + (1 - decay) * second[name] for name in first}
    average = final(tmp_path, "_ema")
    assert difference(average, expected) < 1e-6
    assert difference(average, second) > 1e-5


def test_run_evaluates_the_average_beside_the_weights(engine, data, tmp_path, monkeypatch):
    monkeypatch.setattr("detection.run.write_report", lambda *_: None)
    changes = AVERAGED | {
        "SOLVER.MAX_ITER": 2,
        "SOLVER.STEPS": (),
        "SOLVER.BASE_LR": 0.01,
        "DATASETS.TEST": (data,),
        "TEST.EVAL_PERIOD": 1,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "TEST.DETECTIONS_PER_IMAGE": 3,
    }
    config = configure(engine, data, tmp_path / "run", changes)
    metrics = run(config)
    folders = [tmp_path / "run" / name for name in ("inference", "inference_EMA")]
    results = [(f / "coco_instances_results.json").read_text() for f in folders]
    summaries = [json.loads((f / "metrics_summary.json").read_text()) for f in folders]
    assert results[0] != results[1]
    assert metrics == summaries[0]
    assert summaries[1] == coco_metrics(
        data.split(":")[1], folders[1] / "coco_instances_results.json", ("bbox", "segm")
    )
    (line,) = (line for line in metrics_lines(tmp_path / "run") if "bbox/AP" in line)
    assert {"segm/AP", "ema/bbox/AP", "ema/segm/AP"} <= line.keys()

    suffix = "safetensors" if engine == "torchvision" else "pth"
    average = str(tmp_path / "run" / f"model_final_ema.{suffix}")
    config = configure(engine, data, tmp_path / "average", changes | {"MODEL.WEIGHTS": average})
    run(config, eval_only=True)
    alone = tmp_path / "average" / "inference" / "coco_instances_results.json"
    assert alone.read_text() == results[1]
    assert not (tmp_path / "average" / "inference_EMA").exists()


def test_average_that_was_not_begun_cannot_be_resumed(engine, data, tmp_path):
    changes = {"SOLVER.MAX_ITER": 1, "SOLVER.STEPS": ()}
    train(engine, data, tmp_path, changes)
    with pytest.raises(ValueError, match="no averaged weights"):
        train(engine, data, tmp_path, changes | AVERAGED | {"SOLVER.MAX_ITER": 2}, resume=True)


def test_killed_and_resumed_a_run_ends_with_the_same_bits(engine, data, whole, tmp_path):
    process = start(train_killed, 4 * 3 + 2, engine, data, tmp_path, NOISY)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL  # in the fourth step, two behind a checkpoint
    assert not list(tmp_path.glob("model_final*"))
    resumed = train(engine, data, tmp_path, NOISY, resume=True)
    assert difference(resumed, final(whole)) == 0
    assert difference(final(tmp_path, "_ema"), final(whole, "_ema")) == 0
    assert difference(final(whole), final(whole, "_ema")) > 0
    states = [optimizer_state(folder) for folder in (tmp_path, whole)]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert all(torch.equal(state[name], states[1][key][name]) for name in state)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_signal_while_data_are_read_loses_no_step_and_a_damaged_checkpoint_is_passed_over(
    engine, data, whole, tmp_path, monkeypatch, caplog, is_damaged
):
    images = itertools.count(1)

    def read_and_signal(*of_image: Any, **options: Any) -> Any:
        if next(images) == 4 * 3 + 2:  # in the fourth step, two behind a checkpoint
            os.kill(os.getpid(), signal.SIGTERM)
        return read_image(*of_image, **options)

    monkeypatch.setattr(detection.data.pixels, "read_image", read_and_signal)
    with pytest.raises(SystemExit) as ended:
        train(engine, data, tmp_path, NOISY)
    assert ended.value.code == 128 + signal.SIGTERM
    folders = list_checkpoints(tmp_path)
    newest = folders[-1] / "model.safetensors" if folders else tmp_path / "model_0000002.pth"
    assert "3" in newest.parent.name or not folders
    if is_damaged:
        newest.write_bytes(newest.read_bytes()[:-1000])
    assert difference(train(engine, data, tmp_path, NOISY, resume=True), final(whole)) == 0
    assert ("is damaged and passed over" in caplog.text) is is_damaged


def optimizer_state(folder: Path) -> dict[int, dict[str, torch.Tensor]]:
    if checkpoints := list_checkpoints(folder):
        return torch.load(checkpoints[-1] / "optimizer.bin", weights_only=True)["state"]
    content = torch.load(folder / "model_final.pth", weights_only=True)
    return content["trainer"]["_trainer"]["optimizer"]["state"]


def test_accumulated_micro_batches_train_the_weights_of_the_whole_batch(
    engine, data, plain, tmp_path
):
    parts = train(engine, data, tmp_path, AVERAGED | {"SOLVER.ACCUMULATE": 2})
    assert 0 < difference(parts, final(plain)) < 1e-5
    assert difference(final(tmp_path, "_ema"), final(plain, "_ema")) < 1e-5
    lines = [metrics_lines(folder)[-1] for folder in (tmp_path, plain)]
    for name in (name for name in lines[0] if "loss" in name):
        assert lines[0][name] == pytest.approx(lines[1][name], rel=1e-4)


def test_two_processes_train_the_weights_of_one(engine, data, plain, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    changes = AVERAGED | {"SOLVER.ACCUMULATE": 2}
    ranks = [start(work, rank, 2, port, engine, data, tmp_path, changes) for rank in (0, 1)]
    for process in ranks:
        process.join(300)
        assert process.exitcode == 0
    assert 0 < difference(final(tmp_path), final(plain)) < 1e-5
    assert difference(final(tmp_path, "_ema"), final(plain, "_ema")) < 1e-5


def test_bf16_step_on_a_cpu_has_nearly_the_losses_of_float32(
    engine, data, plain, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(environment, "computes_in_bf16", lambda: False)
    changes = {"SOLVER.MAX_ITER": 1, "SOLVER.STEPS": (), "SOLVER.AMP.ENABLED": True}
    weights = train(engine, data, tmp_path / "bf16", changes)
    assert caplog.text.count("float32: --precision no, or SOLVER.AMP.ENABLED False") == 1
    train(engine, data, tmp_path / "no", changes | {"SOLVER.AMP.ENABLED": False})
    assert caplog.text.count("bf16 is many times slower") == 1
    found, expected = (metrics_lines(tmp_path / name)[0] for name in ("bf16", "no"))
    losses = [name for name in expected if "loss" in name]
    assert len(losses) == 6
    for name in losses:
        assert found[name] == pytest.approx(expected[name], rel=0.02)
    assert found["total_loss"] != expected["total_loss"]
    assert {value.dtype for value in weights.values()} == {torch.float32}
    moved = difference(weights, final(tmp_path / "no"))
    assert 0 < moved < 4e-4  # AdamW's first steps are of the rate's size, 1e-4 here


def test_fp16_on_a_cpu_is_refused(engine, data, tmp_path):
    changes = {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.PRECISION": "fp16"}
    with pytest.raises(ValueError, match=r"PRECISION is fp16, which needs a GPU.*use bf16"):
        train(engine, data, tmp_path, changes)
    assert not (tmp_path / "metrics.json").exists()


def test_checkpointed_stages_train_the_same_weights(engine, data, plain, tmp_path):
    stages = {"MODEL.CONVNEXT.CHECKPOINT_STAGES": ["stage1", "stage3"]}
    assert difference(train(engine, data, tmp_path, stages), final(plain)) == 0


def test_frozen_stages_keep_their_weights_and_all_else_learns(engine, data, plain, tmp_path):
    two = {"SOLVER.MAX_ITER": 2, "SOLVER.STEPS": (), "MODEL.BACKBONE.FREEZE_AT": 3}
    train(engine, data, tmp_path, two)
    first, second = (intermediate(tmp_path, step) for step in (1, 2))
    kept = {name for name in first if torch.equal(first[name], second[name])}
    body = "backbone.body."
    frozen = {f"{body}downsample_layers.{i}." for i in range(2)}
    frozen |= {f"{body}stages.{i}." for i in range(2)}
    assert kept == {name for name in first if name.startswith(tuple(frozen))}


def test_drop_path_changes_the_training(engine, data, plain, tmp_path):
    changes = {"MODEL.CONVNEXT.DROP_PATH_RATE": 0.5}
    assert difference(train(engine, data, tmp_path, changes), final(plain)) > 1e-4


@pytest.mark.detectron2
@pytest.mark.parametrize("kind", ["group", "single"])
def test_both_engines_give_each_weight_the_same_rate_and_decay(kind):
    from detectron2.modeling import build_model

    import backbones.d2_adapter  # noqa: F401 - registers the backbone

    options = {
        "MODEL.CONVNEXT.SIZE": "convnextv2_nano",
        "MODEL.FPN.NORM": "LN",
        "MODEL.ROI_BOX_HEAD.NORM": "LN",
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
        "MODEL.ROI_MASK_HEAD.NORM": "LN",
        "SOLVER.LAYER_DECAY": 0.9,
        "SOLVER.LAYER_DECAY_TYPE": kind,
    }
    config = small_config(options)
    ours = settings(config, build_mask_rcnn(config), "backbone.body.")
    theirs = settings(
        config, build_model(to_detectron2(config)), "backbone.bottom_up.", detectron2_to_torchvision
    )
    assert ours == theirs
    norms = [name for name in ours if re.search(r"(fpn|roi_heads).*\.1\.weight", name)]
    assert len(norms) == 10  # eight in the pyramid, one in each head
    assert all(ours[name][1] == 0 for name in norms)
    # nano: 8 blocks in the third stage, 14 in all; the last rate is that of the heads
    assert len({rate for rate, _ in ours.values()}) == {"group": 8, "single": 15}[kind]


def settings(
    config: Any, model: torch.nn.Module, prefix: str, rename: Callable[..., Any] = dict
) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) by the torchvision engine's names."""
    parameters = dict(model.named_parameters())
    filled: dict[str, dict[str, torch.Tensor]] = {"lr": {}, "weight_decay": {}}
    for group in build_adamw(config, model, prefix).param_groups:
        for name in group["param_names"]:
            for key, tensors in filled.items():
                tensors[name] = torch.full_like(parameters[name], group[key])
    rates, decays = (rename(tensors) for tensors in filled.values())
    last = {name: (rates[name].flatten()[-1], decays[name].flatten()[-1]) for name in rates}
    return {name: (rate.item(), decay.item()) for name, (rate, decay) in last.items()}
