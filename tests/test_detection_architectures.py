"""detectron2's architectures on this encoder: a few iterations of every shipped file.

Each trains, resumes, evaluates and predicts by detectron2's own scripts, which its wheel brings.
"""

# ruff: noqa: E402 - the skip comes before the imports
from __future__ import annotations

import argparse
import importlib.util
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2", reason="detectron2 is not installed (docs/detectron2.md)")
pytestmark = pytest.mark.detectron2

import detectron2
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import (
    COCO_PERSON_KEYPOINT_FLIP_MAP,
    COCO_PERSON_KEYPOINT_NAMES,
)
from detectron2.engine import DefaultPredictor
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.layers import ShapeSpec
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.projects.point_rend import add_pointrend_config
from detectron2.structures import BoxMode
from omegaconf import DictConfig

import det_configs
from backbones.checkpoint import save_encoder
from backbones.convnext import SIZES, Size, build_convnext
from backbones.d2_adapter import add_convnext_config
from backbones.errors import InputError

SCRIPTS = Path(detectron2.__file__).parent.parent / "tools"
SHIPPED = Path(det_configs.__file__).parent
NAME = "architectures_test"
SIDE = 64
YAML = sorted((SHIPPED / "architectures").glob("*_1x.yaml"))
LAZY = sorted((SHIPPED / "lazy").glob("*_1x.py"))
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.CONVNEXT.SIZE": "convnextv2_atto",
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 40,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 40,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.NUM_CLASSES": 1,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": (32,),
    "MODEL.RETINANET.NUM_CLASSES": 1,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "DATASETS.TRAIN": (NAME,),
    "DATASETS.TEST": (NAME,),
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": (),
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "INPUT.MIN_SIZE_TRAIN": (SIDE,),
    "INPUT.MAX_SIZE_TRAIN": 2 * SIDE,
    "INPUT.MIN_SIZE_TEST": SIDE,
    "INPUT.MAX_SIZE_TEST": 2 * SIDE,
    "TEST.DETECTIONS_PER_IMAGE": 3,
}
TASKS = {
    "cascade_mask_rcnn": {"bbox", "segm"},
    "deeplabv3plus": {"sem_seg"},
    "faster_rcnn": {"bbox"},
    "keypoint_rcnn": {"bbox", "keypoints"},
    "mask_rcnn": {"bbox", "segm"},
    "panoptic_fpn": {"bbox", "segm", "sem_seg"},
    "point_rend": {"bbox", "segm"},
    "retinanet": {"bbox"},
}
POINT_REND = {
    "MODEL.ROI_MASK_HEAD.FC_DIM": 32,
    "MODEL.POINT_HEAD.FC_DIM": 32,
    "MODEL.POINT_HEAD.NUM_CLASSES": 1,
}
DEEPLAB = {
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 32,
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [32],
}


@pytest.fixture(autouse=True)
def _tiny_encoder(monkeypatch):
    tiny = Size((8, 12, 16, 20), (1, 1, 1, 1), 2)
    monkeypatch.setitem(SIZES, "convnextv2_atto", tiny)


def script(name):
    """One of detectron2's own files as a module; its ``tools`` package is hidden by ours."""
    spec = importlib.util.spec_from_file_location(f"d2_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A data set with boxes, masks, keypoints and stuff under ``NAME``; the first image."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    records = []
    for number in range(3):
        pixels = generator.integers(0, 90, (SIDE, SIDE + 16, 3), dtype=np.uint8)
        stuff = np.zeros((SIDE, SIDE + 16), np.uint8)
        x, y, side = 6 + 8 * number, 10, 28
        pixels[y : y + side, x : x + side] = (220, 120, 60)
        stuff[y : y + side, x : x + side] = 1
        stuff[-6:] = 2
        Image.fromarray(pixels).save(folder / f"{number}.png")
        Image.fromarray(stuff).save(folder / f"{number}_stuff.png")
        corners = [x, y, x + side, y, x + side, y + side, x, y + side]
        points = [value for k in range(17) for value in (x + k, y + k, 2)]
        records.append(
            {
                "file_name": str(folder / f"{number}.png"),
                "sem_seg_file_name": str(folder / f"{number}_stuff.png"),
                "image_id": number + 1,
                "height": SIDE,
                "width": SIDE + 16,
                "annotations": [
                    {
                        "bbox": [x, y, side, side],
                        "bbox_mode": BoxMode.XYWH_ABS,
                        "category_id": 0,
                        "segmentation": [corners],
                        "keypoints": points,
                        "iscrowd": 0,
                    }
                ],
            }
        )
    DatasetCatalog.register(NAME, lambda: json.loads(json.dumps(records)))
    MetadataCatalog.get(NAME).set(
        thing_classes=["box"],
        thing_dataset_id_to_contiguous_id={1: 0},
        stuff_classes=["ground", "box", "line"],
        stuff_dataset_id_to_contiguous_id={0: 0, 1: 1, 2: 2},
        ignore_label=255,
        keypoint_names=COCO_PERSON_KEYPOINT_NAMES,
        keypoint_flip_map=COCO_PERSON_KEYPOINT_FLIP_MAP,
        evaluator_type="coco",
    )
    yield np.array(Image.open(records[0]["file_name"]))
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def encoder_file(tmp_path):
    torch.manual_seed(3)
    encoder = build_convnext("convnextv2_atto")
    save_encoder(encoder, tmp_path / "encoder.safetensors", {"licence": "Apache-2.0"})
    return tmp_path / "encoder.safetensors"


def evaluators(meta_architecture, folder):
    """What a task is evaluated by; not panoptic quality, for panopticapi is not declared."""
    found = []
    if "Segmentor" not in meta_architecture:
        found.append(COCOEvaluator(NAME, output_dir=str(folder)))
    if "Segmentor" in meta_architecture or "Panoptic" in meta_architecture:
        found.append(SemSegEvaluator(NAME, distributed=False, output_dir=str(folder)))
    return found


def config_of(path, folder, **changes):
    cfg = get_cfg()
    add_convnext_config(cfg)
    if path.stem.startswith("point_rend"):
        add_pointrend_config(cfg)
    if path.stem.startswith("deeplab"):
        add_deeplab_config(cfg)
    cfg.merge_from_file(str(path))
    extra = {"point_rend": POINT_REND, "deeplabv3p": DEEPLAB}.get(path.stem[:10], {})
    for name, value in {**SMALL, **extra, "OUTPUT_DIR": str(folder), **changes}.items():
        cfg.merge_from_list([name, value])
    return cfg


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.stem)
def test_a_shipped_yaml_trains_resumes_evaluates_and_predicts(
    path, picture, encoder_file, tmp_path, caplog, monkeypatch
):
    # which detectron2's set-up turns off; restored behind the test
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)

    class Trainer(script("train_net").Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder=None):
            folder = output_folder or Path(cfg.OUTPUT_DIR) / "inference"
            return DatasetEvaluators(evaluators(cfg.MODEL.META_ARCHITECTURE, folder))

        @classmethod
        def build_lr_scheduler(cls, cfg, optimizer):
            if path.stem.startswith("deeplab"):
                from detectron2.projects.deeplab import build_lr_scheduler

                return build_lr_scheduler(cfg, optimizer)
            return super().build_lr_scheduler(cfg, optimizer)

    pretrained = "_fcmae_" in path.stem
    changes = {"MODEL.CONVNEXT.WEIGHTS": str(encoder_file) if pretrained else ""}
    with caplog.at_level(logging.INFO, logger="detectron2"):
        logging.getLogger("detectron2").propagate = True
        first = Trainer(config_of(path, tmp_path / "run", **changes))
    assert ("encoder tensors loaded from" in caplog.text) == pretrained
    first.resume_or_load(resume=False)
    first.max_iter = 1  # as if interrupted
    first.train()
    assert [n for n, p in first.model.named_parameters() if p.grad is None] == []
    cfg = config_of(path, tmp_path / "run", **changes)
    second = Trainer(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 1
    second.train()
    results = Trainer.test(cfg, second.model)
    assert set(results) == TASKS[path.stem.partition("_convnext")[0]]
    cfg.MODEL.WEIGHTS = str(tmp_path / "run" / "model_final.pth")
    encoder_file.unlink()  # a finished detector does not need it
    found = DefaultPredictor(cfg)(picture)
    assert {"instances", "sem_seg", "panoptic_seg"} & set(found)


def test_panoptic_quality_is_measured_by_detectron2s_evaluator(picture, tmp_path):
    """The COCO format of things and stuff, on the pictures of the other tests."""
    pytest.importorskip("panopticapi", reason="it is on GitHub alone: cocodataset/panopticapi")
    from detectron2.evaluation import COCOPanopticEvaluator
    from panopticapi.utils import id2rgb

    name, ids = "panoptic_test", {0: 10, 1: 1, 2: 11}  # of the label maps -> categories
    records = DatasetCatalog.get(NAME)
    tree = {"images": [], "annotations": [], "categories": [
        {"id": 1, "name": "box", "isthing": 1}, {"id": 10, "name": "ground", "isthing": 0},
        {"id": 11, "name": "line", "isthing": 0}]}  # fmt: skip
    for record in records:
        labels = np.array(Image.open(record["sem_seg_file_name"]))
        separated = np.choose(labels, [1, 0, 2]).astype(np.uint8)  # 0 is all things
        record["sem_seg_file_name"] = str(tmp_path / f"stuff_{record['image_id']}.png")
        Image.fromarray(separated).save(record["sem_seg_file_name"])
        file = f"{record['image_id']}.png"
        segments = labels.astype(np.uint32) + 1
        Image.fromarray(id2rgb(segments)).save(tmp_path / file)
        info = [
            {"id": label + 1, "category_id": ids[label], "iscrowd": 0,
             "area": int((labels == label).sum()), "bbox": [0, 0, 1, 1]}
            for label in range(3)
        ]  # fmt: skip
        size = {"height": record["height"], "width": record["width"]}
        tree["images"].append({"id": record["image_id"], "file_name": file, **size})
        tree["annotations"].append(
            {"image_id": record["image_id"], "file_name": file, "segments_info": info}
        )
    (tmp_path / "panoptic.json").write_text(json.dumps(tree))
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        thing_classes=["box"],
        thing_dataset_id_to_contiguous_id={1: 0},
        stuff_classes=["things", "ground", "line"],
        stuff_dataset_id_to_contiguous_id={0: 0, 10: 1, 11: 2},
        panoptic_json=str(tmp_path / "panoptic.json"),
        panoptic_root=str(tmp_path),
        ignore_label=255,
        label_divisor=1000,
    )
    path = SHIPPED / "architectures/panoptic_fpn_convnextv2_tiny_scratch_1x.yaml"
    changes = {"DATASETS.TRAIN": (name,), "DATASETS.TEST": (name,), "SOLVER.MAX_ITER": 60}
    changes |= {"SOLVER.BASE_LR": 1e-2, "SOLVER.WARMUP_ITERS": 5, "SOLVER.CHECKPOINT_PERIOD": 100}
    changes["MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT"] = 16
    try:
        trainer = script("train_net").Trainer
        cfg = config_of(path, tmp_path / "run", **changes)
        run = trainer(cfg)
        run.resume_or_load(resume=False)
        evaluator = COCOPanopticEvaluator(name, str(tmp_path / "found"))
        run._hooks = [hook for hook in run._hooks if type(hook).__name__ != "EvalHook"]
        run.train()
        results = trainer.test(cfg, run.model, [evaluator])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert results["panoptic_seg"]["PQ_st"] > 20  # it has learnt where the ground is


def shrink_heads(heads):
    """Heads of a LazyConfig with a few channels, where they are large."""
    boxes = heads.get("box_heads") or [heads.box_head]
    predictors = heads.get("box_predictors") or [heads.box_predictor]
    for box, predictor in zip(boxes, predictors, strict=True):
        box.fc_dims, predictor.input_shape = [32], ShapeSpec(channels=32)
    for name in ("mask_head", "keypoint_head"):
        if "conv_dims" in heads.get(name, {}):
            heads[name].conv_dims = [32, 32]


def test_lazy_configs_from_random_weights_are_those_from_fcmae_without_weights():
    for path in LAZY:
        if "_scratch_" in path.stem:
            cfg = LazyConfig.load(str(path))
            other = LazyConfig.load(str(path).replace("_scratch_", "_fcmae_"))
            encoder = other.model.backbone.get("bottom_up", other.model.backbone)
            assert encoder.weights == "timm:convnextv2_tiny.fcmae"
            encoder.weights = ""
            assert str(cfg.model) == str(other.model)


@pytest.mark.parametrize("path", LAZY[:4], ids=lambda path: path.stem)
def test_a_lazy_configs_mean_and_deviation_are_those_of_its_weights(path, tmp_path):
    """Also where the command line names the weights; ImageNet's where nothing tells."""
    given = {"mean": "[0.1, 0.2, 0.3, 0.4]", "std": "[0.2, 0.2, 0.2, 0.5]"}
    four = build_convnext("convnextv2_atto", in_chans=4)
    save_encoder(four, tmp_path / "4.safetensors", given)
    cfg = LazyConfig.load(str(path))
    encoder = cfg.model.backbone.get("bottom_up", cfg.model.backbone)
    for weights in (encoder.weights, "", str(tmp_path / "gone.safetensors")):
        encoder.weights = weights
        np.testing.assert_allclose(instantiate(cfg.model.pixel_mean), [123.675, 116.28, 103.53])
        np.testing.assert_allclose(instantiate(cfg.model.pixel_std), [58.395, 57.12, 57.375])
    encoder.weights, encoder.in_chans = str(tmp_path / "4.safetensors"), 4
    np.testing.assert_allclose(instantiate(cfg.model.pixel_mean), [25.5, 51, 76.5, 102])
    np.testing.assert_allclose(instantiate(cfg.model.pixel_std), [51, 51, 51, 127.5])
    encoder.weights = ""
    with pytest.raises(InputError, match="the mean and deviation of 4 channels are unknown"):
        instantiate(cfg.model.pixel_mean)


@pytest.mark.parametrize(
    "path", [p for p in LAZY if "_fcmae_" in p.stem], ids=lambda path: path.stem
)
def test_a_shipped_lazy_config_trains_resumes_evaluates_and_predicts(
    path, picture, encoder_file, tmp_path
):
    tools = script("lazyconfig_train_net")
    cfg = LazyConfig.load(str(path))
    assert cfg.optimizer.lr == 1e-4
    deeplab = path.stem.startswith("deeplab")
    encoder = cfg.model.backbone if deeplab else cfg.model.backbone.bottom_up
    encoder.size, encoder.weights = "convnextv2_atto", str(encoder_file)
    if deeplab:
        cfg.model.sem_seg_head.input_shape.stage1.channels = 8
        cfg.model.sem_seg_head.input_shape.stage4.channels = 20
        cfg.model.sem_seg_head.num_classes = 3
        cfg.model.sem_seg_head.decoder_channels = [32, 32]
    elif path.stem.startswith("retinanet"):
        cfg.model.backbone.top_block.in_channels = 20
        cfg.model.num_classes = 1
        cfg.model.head.conv_dims = [256]
    else:
        cfg.model.roi_heads.num_classes = 1
        cfg.model.proposal_generator.pre_nms_topk = [40, 40]
        cfg.model.proposal_generator.post_nms_topk = [20, 20]
        cfg.model.roi_heads.batch_size_per_image = 8
        shrink_heads(cfg.model.roi_heads)
    if "sem_seg_head" in cfg.model:
        cfg.model.sem_seg_head.num_classes = 3
    cfg.optimizer.params.lr_factor_func = None  # its depths are the real size's
    cfg.train.update(
        output_dir=str(tmp_path / "run"), max_iter=1, device="cpu", eval_period=0, log_period=1
    )
    (tmp_path / "run").mkdir()
    cfg.train.checkpointer.period = 1
    cfg.dataloader.train.dataset.names = cfg.dataloader.test.dataset.names = NAME
    cfg.dataloader.train.total_batch_size = 2
    cfg.dataloader.train.num_workers = cfg.dataloader.test.num_workers = 0
    cfg.dataloader.train.mapper.augmentations[0].short_edge_length = SIDE
    cfg.dataloader.test.mapper.augmentations[0].short_edge_length = SIDE
    if deeplab:
        cfg.dataloader.train.mapper.augmentations[1].crop_size = [SIDE, SIDE]
    evaluated = cfg.dataloader.evaluator
    if path.stem.startswith("panoptic"):
        evaluated.pop()  # panoptic quality: the test below
    for evaluator in [evaluated] if isinstance(evaluated, DictConfig) else evaluated:
        evaluator.output_dir = str(tmp_path / "inference")
    tools.do_train(argparse.Namespace(resume=False), cfg)
    cfg.train.update(max_iter=2, eval_period=2)
    tools.do_train(argparse.Namespace(resume=True), cfg)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").open()]
    assert [step["iteration"] for step in steps if "total_loss" in step][-1] == 1
    tasks = {key.split("/")[0] for step in steps for key in step if key.endswith(("/AP", "/mIoU"))}
    assert tasks == TASKS[path.stem.partition("_convnext")[0]]
    final = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    encoder_file.unlink()  # a finished detector does not need it
    model = instantiate(cfg.model).eval()
    model.load_state_dict(final["model"])
    with torch.no_grad():
        image = torch.from_numpy(picture.copy()).permute(2, 0, 1)
        (found,) = model([{"image": image, "height": SIDE, "width": SIDE + 16}])
    assert {"instances", "sem_seg", "panoptic_seg"} & set(found)


def test_the_comparison_of_architectures_pairs_seeds_and_builds_its_small_models(tmp_path):
    spec = importlib.util.spec_from_file_location(
        "compare", SHIPPED.parent / "ablations/architectures/compare.py"
    )
    compare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compare)
    arms = {"scratch": (1.0, 2.0), "fcmae": (3.0, 5.0)}
    found = {
        f"nuclei/retinanet/{arm}/{seed}": {"box AP": value}
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    }
    # 6.4: 12.706, the quantile of one degree of freedom, x 0.7071 / the root of 2
    line = "| RetinaNet | nuclei | box AP | 1.5 | 4.0 | +2.5 ± 6.4 | +2.0, +3.0 |"
    assert compare.table(found, [0, 1]).splitlines()[2:] == [line]
    for architecture in compare.ARCHITECTURES.values():
        file = SHIPPED / f"lazy/{architecture}_convnextv2_tiny_fcmae_1x.py"
        model = instantiate(compare.configure(file, "nuclei", None, tmp_path, 4).model)
        assert model.backbone.output_shape()["p3"].channels == compare.CHANNELS
