"""What only the detectron2 engine has: Cascade heads and test-time augmentation."""

# ruff: noqa: E402 - the skip comes before the imports

import json

import pytest
import torch
from golden import inputs
from golden.scenes import config_of, scenes
from small_coco import write_small_coco
from small_detector import prediction_sample, sample, small_config, spread_scores

pytest.importorskip("detectron2", reason="detectron2 is not installed (docs/detectron2.md)")
pytestmark = pytest.mark.detectron2

from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import GeneralizedRCNNWithTTA

from detection.config import to_detectron2
from detection.data.pixels import read_record
from detection.dataset import load_dataset
from detection.engines import load_engine
from detection.engines.detectron2.results import (
    AugmentedInBoxes,
    InBoxes,
    coco_results,
    write_augmented_predictions,
    write_predictions,
)
from detection.engines.detectron2.trainer import build_detector
from detection.engines.renaming import torchvision_to_detectron2
from detection.engines.torchvision.model import build_mask_rcnn
from detection.evaluate import coco_metrics
from detection.run import run
from detection.suppression.soft_nms import SoftNMS

AGNOSTIC = {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True, "ENGINE": "detectron2"}
CASCADE = AGNOSTIC | {"MODEL.ROI_HEADS.NAME": "CascadeROIHeads"}
# The test sizes of small_config, once and unflipped.
IDENTITY = {
    "ENGINE": "detectron2",
    "TEST.AUG.ENABLED": True,
    "TEST.AUG.MIN_SIZES": (64,),
    "TEST.AUG.MAX_SIZE": 96,
    "TEST.AUG.FLIP": False,
}


@pytest.fixture
def dataset(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    return load_dataset(f"json:{annotations}:{images}")


def decided(changes):
    """detectron2's detector with scores that differ, and its config."""
    torch.manual_seed(0)
    ours = build_mask_rcnn(small_config(changes))
    spread_scores(ours)
    cfg = to_detectron2(small_config(changes))
    theirs = build_detector(cfg).eval()
    theirs.load_state_dict(torchvision_to_detectron2(ours.state_dict()))
    return theirs, cfg


def cascade(changes):
    """A Cascade detector with large weights in its predictors, so that its stages differ."""
    torch.manual_seed(0)
    model = build_detector(to_detectron2(small_config(CASCADE | changes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "predictor" in name or "rpn_head" in name:
                parameter.mul_(10)
    return model


def detect(model, item):
    with torch.no_grad():
        return model([item])[0]["instances"]


def read(path):
    return json.loads(path.read_text())


def test_one_identical_scale_without_flip_is_the_plain_result(dataset, tmp_path):
    model, cfg = decided(IDENTITY | {"MODEL.ROI_HEADS.NUM_CLASSES": 2})
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    plain = read(write_predictions(cfg, model, dataset, "inference"))
    augmented = read(write_augmented_predictions(cfg, model, dataset))
    assert len(plain) == len(augmented) > 50
    for a, b in zip(plain, augmented, strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        assert b["bbox"] == pytest.approx(a["bbox"], abs=1e-3)
        assert b["score"] == pytest.approx(a["score"], abs=1e-5)
    same = [a["segmentation"] == b["segmentation"] for a, b in zip(plain, augmented, strict=True)]
    assert sum(same) > 0.95 * len(same)  # boxes scaled there and back round differently


@pytest.mark.parametrize("augmented", [False, True])
def test_results_are_those_of_detectron2s_own_pasting_bit_for_bit(dataset, augmented):
    model, cfg = decided(IDENTITY | {"MODEL.ROI_HEADS.NUM_CLASSES": 2})
    theirs = GeneralizedRCNNWithTTA(cfg, model) if augmented else model
    ours = AugmentedInBoxes(cfg, model) if augmented else InBoxes(model)
    for record in dataset.records:
        image = read_record(record, cfg)
        item = prediction_sample(image, cfg, record["image_id"])
        pasted = detect(theirs, item)
        assert pasted.pred_masks.shape[1:] == image.shape[:2]
        expected = instances_to_coco_json(pasted, record["image_id"])
        for result in expected:
            result["category_id"] = dataset.category_ids[result["category_id"]]
        assert coco_results(detect(ours, item), dataset, record["image_id"]) == expected
        assert len(expected) > 5


def test_images_are_resized_from_their_originals(dataset, tmp_path, monkeypatch):
    """Not from what the plain test made of them: their pixels would be interpolated twice."""
    seen = []
    model, cfg = decided(IDENTITY | {"INPUT.MIN_SIZE_TEST": 32, "MODEL.ROI_HEADS.NUM_CLASSES": 2})
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    infer = GeneralizedRCNNWithTTA._inference_one_image

    def watch(self, image):
        seen.append((tuple(image["image"].shape[1:]), (image["height"], image["width"])))
        return infer(self, image)

    monkeypatch.setattr(GeneralizedRCNNWithTTA, "_inference_one_image", watch)
    write_augmented_predictions(cfg, model, dataset)
    assert len(seen) == len(dataset.records)
    assert all(found == original for found, original in seen)


def test_flips_make_the_result_of_a_mirrored_image_the_mirrored_result():
    changes = IDENTITY | {"TEST.AUG.FLIP": True, "TEST.AUG.MIN_SIZES": (64, 80)}
    model, cfg = decided(changes)
    augmented = GeneralizedRCNNWithTTA(cfg, model)
    item = sample(70, 83, 0)
    found = detect(augmented, item)
    mirrored = detect(augmented, item | {"image": item["image"].flip(2)})
    assert len(found) == len(mirrored) > 10
    boxes = mirrored.pred_boxes.tensor[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
    boxes = boxes + torch.tensor([83, 0, 83, 0])
    torch.testing.assert_close(found.scores, mirrored.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pred_boxes.tensor, boxes, atol=1e-3, rtol=0)
    assert (found.pred_masks != mirrored.pred_masks.flip(2)).float().mean() < 1e-3
    # The plain detector sees a mirrored image differently.
    plain, other = (
        detect(model, item | {"image": i}) for i in (item["image"], item["image"].flip(2))
    )
    assert len(plain) != len(other) or not torch.allclose(plain.scores, other.scores, atol=1e-4)


def test_an_image_on_which_nothing_is_found_is_no_trouble():
    model, cfg = decided(
        IDENTITY | {"TEST.AUG.FLIP": True, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1.0}
    )
    assert len(detect(GeneralizedRCNNWithTTA(cfg, model), sample(70, 83, 0))) == 0


def test_the_engine_writes_both_results_in_coco_format(dataset, tmp_path):
    changes = IDENTITY | {"TEST.AUG.FLIP": True, "TEST.AUG.MIN_SIZES": (48, 64)}
    changes |= {"OUTPUT_DIR": str(tmp_path / "run"), "MODEL.ROI_HEADS.NUM_CLASSES": 2}
    model, _ = decided(changes)
    weights = tmp_path / "detector.pth"
    torch.save({"model": model.state_dict()}, weights)
    plain = load_engine("detectron2").predict(small_config(changes), dataset, str(weights))
    augmented = tmp_path / "run" / "inference_TTA" / plain.name
    assert plain.parent.name == "inference"
    assert read(plain) != read(augmented)
    for path in (plain, augmented):
        metrics = coco_metrics(dataset.annotations, path, ("bbox", "segm"))
        assert metrics["bbox"]["AP"] is not None


@pytest.mark.parametrize("flip", [False, True])
def test_a_runs_augmented_metrics_are_written_beside_the_plain_ones(tmp_path, flip):
    """Of a trained detector; one identical scale without flip scores as the plain test does."""
    changes = IDENTITY | {"TEST.AUG.MIN_SIZES": (128,), "TEST.AUG.MAX_SIZE": 160}
    if flip:
        changes |= {"TEST.AUG.FLIP": True, "TEST.AUG.MIN_SIZES": (96, 128)}
    changes["MODEL.WEIGHTS"] = str(inputs.trained_file("LN"))
    annotations = str(scenes(tmp_path / "data").annotations)
    changes["DATASETS.TEST"] = (f"json:{annotations}:{tmp_path / 'data' / 'images'}",)
    with inputs.tiny_encoder():
        returned = run(config_of(tmp_path / "run", changes), eval_only=True)
    plain, augmented = tmp_path / "run" / "inference", tmp_path / "run" / "inference_TTA"
    for folder in (plain, augmented):
        metrics = coco_metrics(annotations, folder / "coco_instances_results.json")
        assert read(folder / "metrics_summary.json") == metrics
        assert (folder / "diagnosis.json").is_file()
        assert metrics["bbox"]["AP"] > 10 < metrics["segm"]["AP"]
    assert returned == read(plain / "metrics_summary.json")
    found = read(augmented / "metrics_summary.json")
    same = {t: found[t] == pytest.approx(returned[t], abs=1e-3) for t in ("bbox", "segm")}
    assert same == {"bbox": not flip, "segm": not flip}


def test_cascade_stages_have_the_configs_thresholds_and_box_weights():
    model = cascade({})
    heads = model.roi_heads
    assert heads.num_cascade_stages == 3
    assert [matcher.thresholds[1] for matcher in heads.proposal_matchers] == [0.5, 0.6, 0.7]
    weights = [list(p.box2box_transform.weights) for p in heads.box_predictor]
    assert weights == [[10, 10, 5, 5], [20, 20, 10, 10], [30, 30, 15, 15]]
    changes = {
        "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": (0.5, 0.75),
        "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": ([10, 10, 5, 5], [40, 40, 20, 20]),
    }
    heads = cascade(changes).roi_heads
    assert [matcher.thresholds[1] for matcher in heads.proposal_matchers] == [0.5, 0.75]
    assert list(heads.box_predictor[1].box2box_transform.weights) == [40, 40, 20, 20]


def test_one_cascade_stage_is_the_standard_head():
    one = cascade(
        {
            "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": (0.5,),
            "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": ((10.0, 10.0, 5.0, 5.0),),
        }
    )
    standard = build_detector(to_detectron2(small_config(AGNOSTIC))).eval()
    names = {
        n: n.replace("box_head.0", "box_head").replace("predictor.0", "predictor")
        for n in one.state_dict()
    }
    standard.load_state_dict({names[n]: t for n, t in one.state_dict().items()})
    item = sample(128, 160, 0)
    found, expected = detect(one, item), detect(standard, item)
    assert len(found) == len(expected) > 10
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.pred_masks, expected.pred_masks)


def test_cascade_heads_suppress_softly_as_well():
    crowded = {
        "MODEL.RPN.NMS_THRESH": 1.0,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 300,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 300,
        "TEST.DETECTIONS_PER_IMAGE": 1000,
    }
    soft = crowded | {"MODEL.ROI_HEADS.SOFT_NMS.ENABLED": True}
    item = sample(128, 160, 0)
    raw = detect(cascade(crowded | {"MODEL.ROI_HEADS.NMS_THRESH_TEST": 1.0}), item)
    found = detect(cascade(soft), item)
    hard = detect(cascade(crowded), item)
    keep, scores = SoftNMS()(raw.pred_boxes.tensor, raw.scores, raw.pred_classes, 1000)
    assert len(hard) < len(keep)
    assert torch.equal(found.pred_boxes.tensor, raw.pred_boxes.tensor[keep])
    assert torch.equal(found.scores, scores)
    assert torch.equal(found.pred_masks, raw.pred_masks[keep])


def test_a_cascade_trains_and_predicts_by_the_engine(dataset, tmp_path):
    changes = CASCADE | {"OUTPUT_DIR": str(tmp_path / "run"), "MODEL.ROI_HEADS.NUM_CLASSES": 2}
    config = small_config(changes | {"SOLVER.MAX_ITER": 2, "SOLVER.STEPS": ()})
    engine = load_engine("detectron2")
    engine.train(config, dataset, False)
    (line,) = read_lines(tmp_path / "run" / "metrics.json")
    for stage in range(3):
        assert line[f"loss_cls_stage{stage}"] > 0
        assert f"loss_box_reg_stage{stage}" in line
    assert engine.predict(config, dataset, None).is_file()


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
