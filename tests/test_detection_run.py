"""Whole runs of the torchvision engine: files, resume, evaluation, and what they refuse."""

import json
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_coco import small_coco, write_small_coco
from small_detector import small_config

from backbones.checkpoint import OWN_WEIGHTS, save_encoder
from backbones.convnext import build_convnext
from backbones.weight_files import read_metadata
from detection.engines import load_engine
from detection.evaluate import coco_metrics
from detection.run import check_output_dir, run
from training.guards.checkpoints import list_checkpoints
from training.records.environment import git_commit


def configure(data, output_dir, changes=None):
    base = {
        "MODEL.ROI_HEADS.NUM_CLASSES": 0,
        "DATASETS.TRAIN": (data,),
        "DATASETS.TEST": (data,),
        "OUTPUT_DIR": str(output_dir),
    }
    return small_config(base | (changes or {}))


def final_weights(output_dir):
    return load_file(output_dir / "model_final.safetensors")


def test_a_run_leaves_every_file_that_others_read(data, tmp_path):
    torch.manual_seed(0)
    encoder = build_convnext("convnextv2_atto")
    save_encoder(encoder, tmp_path / "encoder.safetensors", {"licence": "CC0"})
    out = tmp_path / "run"
    changes = {
        "MODEL.CONVNEXT.WEIGHTS": str(tmp_path / "encoder.safetensors"),
        "SOLVER.LAYER_DECAY": 0.9,
        "TEST.EVAL_PERIOD": 3,
    }
    metrics = run(configure(data, out, changes), config_file="some.yaml")

    results = out / "inference" / "coco_instances_results.json"
    summary = json.loads((out / "inference" / "metrics_summary.json").read_text())
    assert summary == metrics
    assert metrics == coco_metrics(data.split(":")[1], results, ("bbox", "segm"))
    assert set(metrics["per_class"]) == {"disc", "box"}

    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 2
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert lines[-1]["iteration"] == 4
    losses = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
    assert losses <= lines[-1].keys()
    assert lines[-1]["lr"] == pytest.approx(1e-4)
    assert [line["iteration"] for line in lines if "bbox/AP" in line] == [3]

    facts = json.loads((out / "run.json").read_text())
    weights = final_weights(out)
    encoder_tensors = sum(
        name.startswith(("backbone.body.stages.", "backbone.body.downsample_layers."))
        for name in weights
    )
    assert facts["engine"] == "torchvision"
    assert facts["git_commit"] == git_commit()
    assert facts["config_file"] == "some.yaml"
    assert facts["encoder"]["loaded"] == facts["encoder"]["total"] == encoder_tensors
    assert facts["encoder"]["new"] == len(weights) - encoder_tensors
    assert facts["encoder"]["new_parts"] == ["out_norms", "fpn", "rpn", "roi_heads"]
    assert facts["encoder"]["licence"] == "CC0"
    assert read_metadata(out / "model_final.safetensors")["licence"] == "CC0"
    background = 4 * (32 + 1) + 1 * (32 + 1)
    assert facts["parameters"] == sum(w.numel() for w in weights.values()) - background
    assert facts["datasets"]["train"]["images"] == 4
    assert facts["datasets"]["train"]["instances"] == 5
    assert facts["augmentation"] == ["horizontal flip"]
    assert facts["train_seconds"] > 0
    assert facts["predict_seconds"] > 0

    log = (out / "log.txt").read_text()
    count = f"{encoder_tensors} of {encoder_tensors} encoder tensors from {tmp_path}"
    assert count in log
    assert "new: out_norms, fpn, rpn, roi_heads" in log
    assert "torch 2" in log.split("full config")[0]
    assert "1 of 4 images are left out" in log
    assert "augmentation of the training images: horizontal flip" in log
    assert (out / "report.html").is_file()
    assert (out / "last_checkpoint").read_text() == "model_final.safetensors"


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(data, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    drop_path = {"MODEL.CONVNEXT.DROP_PATH_RATE": 0.2, "DATASETS.TEST": ()}
    run(configure(data, whole, drop_path))

    class Interrupted(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        from detection.engines.torchvision import engine as torchvision_engine

        def interrupt(*_):
            raise Interrupted

        patch.setattr(torchvision_engine, "evaluate_in_training", interrupt)
        changes = drop_path | {"DATASETS.TEST": (data,), "TEST.EVAL_PERIOD": 3}
        with pytest.raises(Interrupted):
            run(configure(data, cut, changes))
    assert [folder.name for folder in list_checkpoints(cut)] == ["step_00000002"]
    assert (cut / "last_checkpoint").read_text() == "checkpoints/step_00000002/model.safetensors"
    assert run(configure(data, cut, {}), eval_only=True)["bbox"]  # what there is can be evaluated

    run(configure(data, cut, drop_path), resume=True)
    expected = final_weights(whole)
    assert all(torch.equal(w, expected[name]) for name, w in final_weights(cut).items())


def test_evaluation_alone_repeats_the_runs_numbers_and_keeps_its_records(data, tmp_path):
    out = tmp_path / "run"
    config = configure(data, out)
    trained = run(config)
    before = (out / "config.yaml").read_text()
    started = json.loads((out / "run.json").read_text())["started"]
    assert read_metadata(out / "model_final.safetensors")["licence"] == OWN_WEIGHTS
    assert run(config, eval_only=True) == trained
    assert (out / "config.yaml").read_text() == before
    assert json.loads((out / "run.json").read_text())["started"] == started
    elsewhere = configure(
        data, tmp_path / "other", {"MODEL.WEIGHTS": str(out / "model_final.safetensors")}
    )
    assert run(elsewhere, eval_only=True) == trained


def test_a_folder_with_a_run_is_not_trained_over_nor_resumed_as_another(data, tmp_path):
    out = tmp_path / "run"
    run(configure(data, out, {"SOLVER.MAX_ITER": 1, "DATASETS.TEST": ()}))
    weights = (out / "model_final.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"holds a run already .*; continue it with --resume"):
        run(configure(data, out))
    with pytest.raises(
        ValueError, match=r"other settings:\n  MODEL.FPN.OUT_CHANNELS was 32, is 16"
    ):
        run(configure(data, out, {"MODEL.FPN.OUT_CHANNELS": 16}), resume=True)
    assert (out / "model_final.safetensors").read_bytes() == weights


def test_changes_since_an_earlier_run_are_told_but_for_what_the_run_itself_filled_in(tmp_path):
    old = small_config({"SEED": 7, "SOLVER.MAX_ITER": 9})
    (tmp_path / "config.yaml").write_text(old.dump())
    (tmp_path / "last_checkpoint").write_text("model_0000004.pth")
    changes = {"SEED": -1, "SOLVER.MAX_ITER": 12, "MODEL.ROI_HEADS.NUM_CLASSES": 0}
    new = small_config(changes | {"OUTPUT_DIR": str(tmp_path)})
    found = check_output_dir(new, resume=True, eval_only=False)
    assert found == ["SOLVER.MAX_ITER was 9, is 12"]


def test_a_random_seed_is_drawn_once_and_recorded(data, tmp_path):
    changes = {"SEED": -1, "SOLVER.MAX_ITER": 1, "DATASETS.TEST": ()}
    seeds = set()
    for name in ("a", "b"):
        run(configure(data, tmp_path / name, changes))
        seeds.add(yaml.safe_load((tmp_path / name / "config.yaml").read_text())["SEED"])
    assert len(seeds) == 2
    assert min(seeds) >= 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.ROI_HEADS.NUM_CLASSES": 5}, "NUM_CLASSES is 5, but .* has 2"),
        ({"MODEL.CONVNEXT.SIZE": "convnextv2_femto"}, "is convnextv2_atto; the model is .*femto"),
        ({"MODEL.CONVNEXT.WEIGHTS": "no/such.safetensors"}, r"no checkpoint file no/such\.safe"),
        ({"MODEL.WEIGHTS": "no/such.pth"}, r"no checkpoint file no/such\.pth"),
        ({"DATASETS.TRAIN": ()}, "DATASETS.TRAIN is empty"),
        ({"DATASETS.TRAIN": ("coco_2018",)}, "unknown data set 'coco_2018'"),
        ({"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.PRECISION": "fp16"}, "fp16, which needs a GPU"),
    ],
)
def test_what_cannot_work_ends_before_training(data, tmp_path, changes, message):
    encoder = tmp_path / "encoder.safetensors"
    save_encoder(build_convnext("convnextv2_atto"), encoder, {})
    config = configure(data, tmp_path / "run", {"MODEL.CONVNEXT.WEIGHTS": str(encoder)} | changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(config)
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_problems_of_both_data_sets_are_reported_together(data, tmp_path):
    broken = small_coco()
    broken["images"][0]["file_name"] = "gone.png"
    broken["annotations"][0]["category_id"] = 77
    annotations, images = write_small_coco(tmp_path / "broken", broken)
    bad = f"json:{annotations}:{images}"
    config = configure(bad, tmp_path / "run", {"DATASETS.TEST": (f"json:none.json:{images}",)})
    with pytest.raises(
        ValueError, match=r"(?s)gone\.png.*77.*none\.json|77.*gone\.png.*none\.json"
    ):
        run(config)


def test_two_sets_without_a_class_in_common_are_refused(data, tmp_path):
    other = small_coco()
    for category in other["categories"]:
        category["name"] = f"other {category['name']}"
    annotations, images = write_small_coco(tmp_path / "other", other)
    config = configure(data, tmp_path / "run", {"DATASETS.TEST": (f"json:{annotations}:{images}",)})
    with pytest.raises(ValueError, match=r"the classes of .* differ: .*disc.*other disc"):
        run(config)


def test_nothing_to_evaluate_is_an_error(data, tmp_path):
    with pytest.raises(ValueError, match=r"nothing to evaluate: .* holds no run"):
        run(configure(data, tmp_path / "none"), eval_only=True)


def test_a_loss_that_is_not_finite_names_the_images(data, tmp_path):
    changes = {"MODEL.PIXEL_MEAN": [1e38, 1e38, 1e38], "MODEL.PIXEL_STD": [1.0, 1.0, 1.0]}
    config = configure(data, tmp_path / "run", changes)
    with pytest.raises(ValueError, match=r"not finite at step 0: .*batch: .*\.png"):
        run(config)


def test_without_masks_only_boxes_are_trained_and_measured(data, tmp_path):
    metrics = run(configure(data, tmp_path / "run", {"MODEL.MASK_ON": False, "SOLVER.MAX_ITER": 1}))
    assert "segm" not in metrics
    assert metrics["bbox"]["AP"] is not None
    assert not any("mask" in name for name in final_weights(tmp_path / "run"))


def test_detectron2_where_it_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(ValueError, match=r"(?s)not installed.*pip install.*--engine torchvision"):
        load_engine("detectron2")
    with pytest.raises(ValueError, match="ENGINE is 'mmdet'; the engines are"):
        load_engine("mmdet")
