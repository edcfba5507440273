"""The detectron2 engine: the same samples as the other engine, resume, weights, messages."""

# ruff: noqa: E402 - the skip comes before the imports
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

pytest.importorskip("detectron2", reason="detectron2 is not installed (docs/detectron2.md)")
pytestmark = pytest.mark.detectron2

from backbones.checkpoint import save_encoder
from backbones.convnext import build_convnext
from detection.config import default_config
from detection.data.transforms import DetectionSamples
from detection.dataset import load_dataset
from detection.engines import load_engine
from detection.engines.detectron2.data import TrainingBatches
from detection.engines.detectron2.engine import prepare
from detection.engines.detectron2.trainer import Trainer, build_detector, build_optimizer
from detection.engines.renaming import detectron2_to_torchvision
from training.data import BatchOrder, seed_generators
from training.loop import NonFiniteLossError

SIZES = [(75, 101), (96, 64), (61, 61), (120, 88), (64, 130)]  # height, width
CATEGORY_IDS = [3, 7]
SMALL = {
    "SEED": 5,
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "INPUT.MIN_SIZE_TRAIN": (64, 80),
    "INPUT.MAX_SIZE_TRAIN": 128,
    "INPUT.MIN_SIZE_TEST": 80,
    "INPUT.MAX_SIZE_TEST": 128,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.STEPS": (3,),
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.BASE_LR": 1e-3,
    "SOLVER.LAYER_DECAY": 0.9,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.DETECTIONS_PER_IMAGE": 5,
}


def ellipse(size, box):
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    x0, y0, width, height = box
    return ((x - x0 - width / 2) / (width / 2)) ** 2 + (
        (y - y0 - height / 2) / (height / 2)
    ) ** 2 <= 1


def annotation(number, image_id, size, box, category, kind):
    mask = ellipse(size, box)
    encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    x0, y0, width, height = box
    polygon = [x0, y0, x0 + width, y0, x0 + width, y0 + height, x0, y0 + height]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "bbox": list(box),
        "area": float(mask.sum()),
        "iscrowd": int(kind == "crowd"),
        "segmentation": [polygon]
        if kind == "polygon"
        else {"size": list(size), "counts": encoded["counts"].decode()},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images of odd sizes: polygons, an RLE, a crowd, and one image without objects."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(3)
    images, annotations = [], []
    for index, size in enumerate(SIZES):
        image_id = 10 * index + 7
        pixels = generator.integers(0, 90, (*size, 3), dtype=np.uint8)
        kinds = [] if index == 2 else ["polygon", "rle", "crowd"][: 2 + (index == 3)]
        for number, kind in enumerate(kinds):
            box = (5 + 25 * number, 8 + 15 * number, 20 + 3 * index, 24)
            pixels[ellipse(size, box)] = [200, 60 + 80 * number, 90]
            annotations.append(
                annotation(
                    len(annotations) + 1, image_id, size, box, CATEGORY_IDS[number % 2], kind
                )
            )
        Image.fromarray(pixels).save(folder / f"{index}.png")
        images.append(
            {"id": image_id, "file_name": f"{index}.png", "height": size[0], "width": size[1]}
        )
    categories = [{"id": i, "name": f"class {i}"} for i in CATEGORY_IDS]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def dataset(folder):
    return load_dataset(f"json:{folder / 'annotations.json'}:{folder}")


def small_config(output_dir, **overrides):
    config = default_config()
    for key, value in {**SMALL, "OUTPUT_DIR": str(output_dir), **overrides}.items():
        *parents, leaf = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return config


def train(config, dataset, resume=False):
    load_engine("detectron2").train(config, dataset, resume)


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """The output folder of a run of four steps."""
    output_dir = tmp_path_factory.mktemp("run")
    train(small_config(output_dir), dataset)
    return output_dir


def weights(output_dir, name="model_final.pth"):
    return torch.load(output_dir / name, weights_only=True)["model"]


@pytest.mark.parametrize("jitter", [False, True])
def test_both_engines_see_the_same_samples_in_the_same_order(dataset, tmp_path, jitter):
    lsj = {"INPUT.LSJ.ENABLED": jitter, "INPUT.LSJ.SIZE": 96}
    config = small_config(tmp_path, **lsj)
    batches = TrainingBatches(prepare(config, dataset), dataset, seed=5, first_step=1)
    samples = DetectionSamples(dataset, config, training=True)
    order = iter(BatchOrder(len(samples), 2, seed=5, first_batch=1))
    for batch, _ in zip(batches, range(4), strict=False):
        for ours, key in zip(batch, next(order), strict=True):
            seed_generators(5, 0, *key)
            theirs = samples[tuple(key)[1]]
            assert ours["file_name"] == theirs["file_name"]
            assert torch.equal(ours["image"], theirs["image"])
            objects = ours["instances"]
            assert torch.equal(objects.gt_boxes.tensor, theirs["boxes"])
            assert torch.equal(objects.gt_classes, theirs["labels"])
            assert torch.equal(objects.gt_masks.tensor, theirs["masks"])


def test_a_run_leaves_detectron2s_files_and_metrics(finished):
    lines = [json.loads(line) for line in (finished / "metrics.json").read_text().splitlines()]
    assert lines[-1]["iteration"] == 3
    losses = ("loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")
    # each is the median over the window, so the sum is the total only nearly
    assert lines[-1]["total_loss"] == pytest.approx(sum(lines[-1][n] for n in losses), rel=0.05)
    assert lines[-1]["lr"] == pytest.approx(1e-4)  # the heads' rate after STEPS
    assert {"time", "data_time", "max_mem", "eta_seconds", "images_per_second"} <= lines[-1].keys()
    assert (finished / "last_checkpoint").read_text() == "model_final.pth"
    assert list(finished.glob("events.out.tfevents.*"))
    assert len(list(finished.glob("model_0*.pth"))) == 2


def test_resumed_run_is_bit_identical_to_an_uninterrupted_one(
    dataset, finished, tmp_path, monkeypatch
):
    run_step = Trainer.run_step

    def interrupted(self):
        if self.iter == 3:
            raise KeyboardInterrupt
        run_step(self)

    monkeypatch.setattr(Trainer, "run_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(small_config(tmp_path), dataset)
    monkeypatch.undo()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    assert not torch.equal(
        weights(tmp_path, "model_0000002.pth")["backbone.fpn_output2.weight"],
        weights(finished)["backbone.fpn_output2.weight"],
    )
    train(small_config(tmp_path), dataset, resume=True)
    resumed, expected = weights(tmp_path), weights(finished)
    assert len(list(tmp_path.glob("model_0*.pth"))) == 2
    assert resumed.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(resumed[name], expected[name])] == []


def test_a_folder_that_holds_a_run_is_not_trained_over(dataset, finished):
    with pytest.raises(ValueError, match=r"holds a run already.*--resume"):
        train(small_config(finished), dataset)


def test_resume_of_another_detector_is_refused(dataset, finished, tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    (tmp_path / "model_final.pth").hardlink_to(finished / "model_final.pth")
    config = small_config(tmp_path, **{"MODEL.ROI_BOX_HEAD.FC_DIM": 48})
    with pytest.raises(ValueError, match="of another detector"):
        train(config, dataset, resume=True)


def test_predictions_have_the_annotations_ids_and_the_images_pixels(dataset, finished):
    path = load_engine("detectron2").predict(small_config(finished), dataset, None)
    assert path == finished / "inference" / "coco_instances_results.json"
    results = json.loads(path.read_text())
    sizes = {10 * index + 7: size for index, size in enumerate(SIZES)}
    assert {result["image_id"] for result in results} == set(sizes)
    assert {result["category_id"] for result in results} <= set(CATEGORY_IDS)
    for result in results:
        height, width = sizes[result["image_id"]]
        x, y, box_width, box_height = result["bbox"]
        assert 0 <= x <= x + box_width <= width + 1e-3
        assert 0 <= y <= y + box_height <= height + 1e-3
        assert result["segmentation"]["size"] == [height, width]
    assert len(results) > len(SIZES)


@pytest.fixture(scope="module")
def decided(dataset, tmp_path_factory):
    """A detector with spread scores and boxes, in detectron2's and in torchvision's format."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    generator = torch.Generator().manual_seed(2)
    state = build_detector(prepare(small_config(folder), dataset)).state_dict()
    for name, gain in (
        ("roi_heads.box_predictor.cls_score.weight", 1.0),
        ("roi_heads.box_predictor.bbox_pred.weight", 0.5),
        ("roi_heads.mask_head.predictor.weight", 2.0),
        ("proposal_generator.rpn_head.objectness_logits.weight", 1.0),
        ("proposal_generator.rpn_head.anchor_deltas.weight", 0.1),
    ):
        state[name] = gain * torch.randn(state[name].shape, generator=generator)
    torch.save({"model": state}, folder / "model.pth")
    renamed = {n: t.contiguous() for n, t in detectron2_to_torchvision(state).items()}
    save_file(renamed, folder / "model.safetensors")
    return folder


def test_engines_and_formats_of_the_same_weights_give_the_same_files(dataset, decided, tmp_path):
    """Either engine, either engine's checkpoint: boxes, scores, classes and every mask pixel."""
    found = {}
    for engine in ("detectron2", "torchvision"):
        for file in ("model.pth", "model.safetensors"):
            config = small_config(tmp_path / engine / file)
            path = load_engine(engine).predict(config, dataset, str(decided / file))
            found[engine, file] = json.loads(path.read_text())
    reference = found["detectron2", "model.pth"]
    assert len(reference) > 3 * len(SIZES)
    assert len({result["category_id"] for result in reference}) == 2
    for results in found.values():
        key = ("image_id", "category_id")
        assert [[r[k] for k in key] for r in results] == [[r[k] for k in key] for r in reference]
        for name, tolerance in (("bbox", 1e-4), ("score", 1e-5)):
            np.testing.assert_allclose(
                [r[name] for r in results], [r[name] for r in reference], atol=tolerance, rtol=0
            )
        assert [r["segmentation"] for r in results] == [r["segmentation"] for r in reference]


def test_weights_of_another_detector_are_refused_naming_the_tensors(dataset, decided, tmp_path):
    config = small_config(tmp_path, **{"MODEL.ROI_BOX_HEAD.FC_DIM": 48})
    with pytest.raises(ValueError, match=r"roi_heads\.box_head\.fc1\.weight"):
        load_engine("detectron2").predict(config, dataset, str(decided / "model.pth"))


def test_prediction_without_any_checkpoint_says_what_to_do(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"holds no checkpoint.*MODEL\.WEIGHTS"):
        load_engine("detectron2").predict(small_config(tmp_path), dataset, None)


def test_log_counts_the_encoders_tensors_and_names_the_new_parts(dataset, tmp_path, caplog):
    source = build_convnext("convnextv2_atto")
    save_encoder(source, tmp_path / "encoder.safetensors", {})
    config = small_config(
        tmp_path / "run",
        **{"MODEL.CONVNEXT.WEIGHTS": str(tmp_path / "encoder.safetensors"), "SOLVER.MAX_ITER": 1},
    )
    with caplog.at_level(logging.INFO):
        trainer = Trainer(prepare(config, dataset), dataset, resume=False)
    total = len(source.state_dict())
    new = len(trainer.model.state_dict()) - total
    assert (
        f"{total} of {total} encoder tensors from {tmp_path}/encoder.safetensors; "
        f"{new} new: out_norms, fpn, rpn, roi_heads"
    ) in caplog.text
    for name, tensor in source.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[f"backbone.bottom_up.{name}"], tensor)


def test_optimizer_decays_rates_by_depth_and_spares_norms_and_grn(dataset, tmp_path):
    cfg = prepare(small_config(tmp_path), dataset)
    model = build_detector(cfg)
    optimizer = build_optimizer(cfg, model)
    options = {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert set(options) == {name for name, _ in model.named_parameters()}
    encoder = "backbone.bottom_up."
    assert options["roi_heads.box_head.fc1.weight"] == (1e-3, 0.05)
    assert options[f"{encoder}out_norms.stage4.weight"] == (1e-3, 0.0)
    assert options[f"{encoder}stages.3.0.pwconv1.weight"] == (pytest.approx(9e-4), 0.05)
    assert options[f"{encoder}stages.3.0.grn.gamma"] == (pytest.approx(9e-4), 0.0)
    # atto's six blocks of stage 3 make two groups: ids 0 to 5, and 6 behind the encoder
    assert options[f"{encoder}downsample_layers.0.0.weight"] == (
        pytest.approx(1e-3 * 0.9**6),
        0.05,
    )


def test_clipping_scales_all_gradients_by_their_common_norm(dataset, tmp_path):
    cfg = prepare(small_config(tmp_path), dataset)
    model = build_detector(cfg)
    optimizer = build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    count = sum(parameter.numel() for parameter in model.parameters())
    optimizer.step()
    for parameter in model.parameters():
        expected = torch.full_like(parameter, count**-0.5)
        assert torch.allclose(parameter.grad, expected, rtol=1e-3)


def test_a_loss_that_is_not_finite_stops_with_step_and_files(dataset, tmp_path):
    config = small_config(tmp_path, **{"SOLVER.BASE_LR": 1e30, "SOLVER.WARMUP_ITERS": 0})
    with pytest.raises(NonFiniteLossError, match=r"at step \d.*\d\.png.*last good checkpoint"):
        train(config, dataset)


def test_evaluation_in_training_adds_ap_to_metrics(dataset, tmp_path):
    config = small_config(
        tmp_path, **{"TEST.EVAL_PERIOD": 2, "DATASETS.TEST": (dataset.name,), "SOLVER.MAX_ITER": 3}
    )
    train(config, dataset)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    evaluated = [line for line in lines if "bbox/AP" in line]
    assert len(evaluated) == 1
    assert {"bbox/AP50", "segm/AP"} <= evaluated[0].keys()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.PRECISION": "fp16"},
            r"SOLVER\.AMP\.PRECISION is fp16, which needs a GPU.*use bf16",
        ),
        ({"MODEL.ROI_HEADS.NUM_CLASSES": 5}, "NUM_CLASSES is 5.*2 categories"),
        ({"INPUT.MASK_FORMAT": "polygon"}, "run-length encoded.*bitmask"),
        ({"MODEL.DEVICE": "cuda:99"}, "cuda:99.*GPU"),
    ],
)
def test_settings_that_cannot_train_are_refused_before_training(
    dataset, tmp_path, overrides, message
):
    with pytest.raises(ValueError, match=message):
        train(small_config(tmp_path, **overrides), dataset)
    assert not (tmp_path / "metrics.json").exists()


def test_image_that_does_not_decode_is_named(dataset, folder, finished):
    data = (folder / "1.png").read_bytes()
    try:
        (folder / "1.png").write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match=r"1\.png does not decode"):
            load_engine("detectron2").predict(small_config(finished), dataset, None)
    finally:
        (folder / "1.png").write_bytes(data)


TWO_PROCESSES = """
import sys
from detection.config import load_config
from detection.dataset import load_dataset
from detection.engines.detectron2.engine import Detectron2Engine


def work(config):
    dataset = load_dataset(config.DATASETS.TRAIN[0])
    Detectron2Engine().train(config, dataset, False)
    Detectron2Engine().predict(config, dataset, None)


if __name__ == "__main__":
    work(load_config(sys.argv[1]))
"""


def test_two_processes_on_a_cpu_train_and_predict_as_one_does(dataset, tmp_path):
    config = small_config(
        tmp_path / "two", **{"DATASETS.TRAIN": (dataset.name,), "SOLVER.MAX_ITER": 2}
    )
    (tmp_path / "config.yaml").write_text(config.dump())
    (tmp_path / "work.py").write_text(TWO_PROCESSES)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", tmp_path / "work.py", tmp_path / "config.yaml"),
        ],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    both = json.loads((tmp_path / "two/inference/coco_instances_results.json").read_text())
    config.OUTPUT_DIR = str(tmp_path / "one")
    final = str(tmp_path / "two" / "model_final.pth")
    path = load_engine("detectron2").predict(config, dataset, final)
    assert both == json.loads(path.read_text())


def test_a_batch_that_processes_cannot_share_is_refused(dataset, tmp_path, monkeypatch):
    cfg = prepare(small_config(tmp_path), dataset)
    monkeypatch.setattr("detection.engines.detectron2.data.comm.get_world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH is 2.*3 processes"):
        TrainingBatches(cfg, dataset, seed=0)
