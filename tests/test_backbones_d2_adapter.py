"""The encoder as a detectron2 backbone: names, features, weights, and a script of one's own."""

# ruff: noqa: E402 - the skip comes before the imports

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed (docs/detectron2.md)")
pytestmark = pytest.mark.detectron2

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.engine import DefaultTrainer
from detectron2.export import TracingAdapter
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone, build_model
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger

import det_configs
from backbones.checkpoint import save_encoder
from backbones.convnext import SIZES, STAGES, build_convnext
from backbones.d2_adapter import D2ConvNeXt, lr_decay_rate
from backbones.errors import InputError
from backbones.param_groups import parameter_groups
from detection.config import add_convnext_config


def plain_config(**convnext):
    """What a detectron2 user's own script has: ``get_cfg`` and our keys."""
    cfg = get_cfg()
    add_convnext_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_convnext_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.FPN.IN_FEATURES = list(STAGES)
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    for key, value in convnext.items():
        cfg.MODEL.CONVNEXT[key] = value
    return cfg


def encoder(**options):
    torch.manual_seed(1)
    return build_convnext("convnextv2_atto", **options)


def test_detector_keys_are_the_encoders_own_behind_bottom_up():
    names = build_backbone(plain_config()).state_dict()
    inside = {n.removeprefix("bottom_up.") for n in names if n.startswith("bottom_up.")}
    assert inside == set(encoder(out_norms=STAGES).state_dict())
    assert {n.partition(".")[0] for n in names} == {"bottom_up"} | {
        f"fpn_{kind}{level}" for kind in ("lateral", "output") for level in (2, 3, 4, 5)
    }


def test_features_are_the_encoders_and_shapes_are_as_declared():
    backbone = D2ConvNeXt("convnextv2_atto", out_features=("stage2", "stage4"))
    reference = encoder(out_norms=("stage2", "stage4"))
    backbone.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = backbone(images), reference.forward_features(images)
    assert list(found) == ["stage2", "stage4"]
    for name, spec in backbone.output_shape().items():
        assert torch.equal(found[name], expected[name])
        assert found[name].shape == (2, spec.channels, 64 // spec.stride, 96 // spec.stride)


def test_pyramid_has_five_levels_and_p6_is_p5_subsampled():
    backbone = build_backbone(plain_config())
    with torch.no_grad():
        levels = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(levels[f"p{i}"].shape[-2:]) for i in range(2, 7)] == [
        (16, 24), (8, 12), (4, 6), (2, 3), (1, 2),
    ]  # fmt: skip
    assert torch.equal(levels["p6"], levels["p5"][:, :, ::2, ::2])


def test_encoder_weights_are_loaded_completely_by_the_builder(tmp_path):
    source = encoder()
    save_encoder(source, tmp_path / "encoder.safetensors", {})
    backbone = build_backbone(plain_config(WEIGHTS=str(tmp_path / "encoder.safetensors")))
    for name, tensor in source.state_dict().items():
        assert torch.equal(backbone.bottom_up.state_dict()[name], tensor), name
    loaded = backbone.bottom_up.loaded
    assert loaded.loaded == loaded.total == len(source.state_dict())
    assert len(loaded.new) == 2 * len(STAGES)


def test_encoder_of_another_size_is_refused_with_both_sizes_named(tmp_path):
    save_encoder(encoder(), tmp_path / "encoder.safetensors", {})
    cfg = plain_config(WEIGHTS=str(tmp_path / "encoder.safetensors"), SIZE="convnextv2_femto")
    with pytest.raises(ValueError, match=r"convnextv2_atto.*convnextv2_femto"):
        build_backbone(cfg)


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [
        (0, ()),
        (1, ("downsample_layers.0.",)),
        (2, ("downsample_layers.0.", "stages.0.")),
        (3, ("downsample_layers.0.", "stages.0.", "downsample_layers.1.", "stages.1.")),
        (5, ("downsample_layers.", "stages.")),
    ],
)
def test_freeze_at_stops_the_stem_and_that_many_stages_less_one(freeze_at, frozen):
    backbone = D2ConvNeXt("convnextv2_atto", freeze_at=freeze_at)
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen or ("none",)), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "convnextv2_giant"}, "convnextv2_giant.*convnextv2_atto"),
        ({"out_features": ["res2"]}, "res2.*stage1"),
        ({"out_features": []}, "OUT_FEATURES names nothing"),
        ({"freeze_at": 6}, "FREEZE_AT is 6"),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        D2ConvNeXt(**{"size": "convnextv2_atto", **options})


def test_config_without_our_keys_names_the_missing_call():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_convnext_backbone"
    with pytest.raises(ValueError, match="add_convnext_config"):
        build_backbone(cfg)


def test_channels_that_contradict_the_pixel_means_are_refused():
    with pytest.raises(ValueError, match=r"IN_CHANS is 4.*3 values"):
        build_backbone(plain_config(IN_CHANS=4))


def test_lazy_config_builds_the_backbone_from_plain_arguments():
    lazy = LazyCall(D2ConvNeXt)(size="convnextv2_atto", drop_path_rate=0.1, out_norms=False)
    backbone = instantiate(lazy)
    assert set(backbone.state_dict()) == set(encoder().state_dict())
    assert backbone.stages[-1][-1].drop_path.drop_prob == pytest.approx(0.1)


def test_a_default_config_builds_every_backbone_with_detectron2s_contract():
    """As detectron2's own backbone tests do: a config, a builder, an input of any size."""
    for name, sizes in (
        ("build_convnext_backbone", {"stage1": 4, "stage2": 8, "stage3": 16, "stage4": 32}),
        ("build_convnext_fpn_backbone", {f"p{n}": 2**n for n in range(2, 7)}),
        ("build_retinanet_convnext_fpn_backbone", {f"p{n}": 2**n for n in range(2, 8)}),
    ):
        cfg = plain_config()
        cfg.MODEL.BACKBONE.NAME = name
        backbone = build_backbone(cfg, ShapeSpec(channels=3)).eval()
        assert isinstance(backbone, Backbone)
        assert backbone.size_divisibility == 32
        assert backbone.padding_constraints.get("square_size", 0) == 0
        shapes = backbone.output_shape()
        assert {level: shape.stride for level, shape in shapes.items()} == sizes
        with torch.no_grad():
            maps = backbone(torch.rand(2, 3, 128, 160))
        assert list(maps) == list(shapes)
        for level, values in maps.items():
            stride, channels = shapes[level].stride, shapes[level].channels
            assert values.shape == (2, channels, -(-128 // stride), -(-160 // stride))
            assert values.isfinite().all()


@pytest.mark.parametrize("norm", ["", "GN", "LN"])
@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
def test_the_pyramid_is_detectron2s_own_in_norm_and_fuse_type(norm, fuse_type):
    cfg = plain_config()
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.FPN.NORM, cfg.MODEL.FPN.FUSE_TYPE = norm, fuse_type
    backbone = build_backbone(cfg).eval()
    reference = FPN(
        D2ConvNeXt("convnextv2_atto"), list(STAGES), 32, norm, LastLevelMaxPool(), fuse_type
    ).eval()
    reference.load_state_dict(backbone.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = backbone(images), reference(images)
    assert all(torch.equal(found[level], expected[level]) for level in expected)


def config_from(text, tmp_path, add=True):
    """A YAML merged into ``get_cfg()``, with or without our keys."""
    (tmp_path / "their.yaml").write_text(text)
    cfg = get_cfg()
    if add:
        add_convnext_config(cfg)
    cfg.merge_from_file(str(tmp_path / "their.yaml"))
    return cfg


R50_FPN = """
MODEL:
  WEIGHTS: "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
  META_ARCHITECTURE: GeneralizedRCNN
  DEVICE: cpu
  BACKBONE: {NAME: build_convnext_fpn_backbone}
  RESNETS: {OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5]}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6]}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5]}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 2, POOLER_RESOLUTION: 7}
"""


@pytest.mark.parametrize("add", [True, False])
def test_a_resnets_yaml_is_told_all_that_must_follow_in_one_message(tmp_path, add):
    with pytest.raises(InputError) as caught:
        build_model(config_from(R50_FPN, tmp_path, add))
    message = str(caught.value)
    for said in (
        "MODEL.FPN.IN_FEATURES names ['res2', 'res3', 'res4', 'res5']",
        "stage1, stage2, stage3, stage4",
        "MODEL.BACKBONE.FREEZE_AT is 2",
        "INPUT.FORMAT is 'BGR'",
        "MODEL.PIXEL_MEAN is [103.53, 116.28, 123.675], in BGR's order; in RGB's it is [123.675,",
        "MODEL.PIXEL_STD is [1.0, 1.0, 1.0]",
        "MODEL.WEIGHTS is detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    ):
        assert said in message
    assert ("add_convnext_config" in message) != add


def test_a_c4_yaml_whose_backbones_name_alone_was_changed_is_told_its_levels(tmp_path):
    text = "MODEL: {DEVICE: cpu, BACKBONE: {NAME: build_convnext_backbone}}"
    with pytest.raises(InputError) as caught:
        build_model(config_from(text, tmp_path))
    message = str(caught.value)
    assert "MODEL.RPN.IN_FEATURES names ['res4']" in message
    assert "MODEL.ROI_HEADS.IN_FEATURES names ['res4']" in message
    assert "MODEL.BACKBONE.FREEZE_AT is 2" in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128], [256]]}, "1 list or 5"),
        ({"MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p7"]}, r"RPN.*\['p7'\]"),
        ({"MODEL.FPN.IN_FEATURES": ["stage1", "stage3"]}, "consecutive"),
        ({"MODEL.FPN.IN_FEATURES": ["stage1", "stage5"]}, r"\['stage5'\]"),
        ({"MODEL.CONVNEXT.OUTPUT_STRIDE": 16}, "OUTPUT_STRIDE is 16"),
        ({"MODEL.CONVNEXT.OUT_FEATURES": ["stage4"]}, "OUT_FEATURES gives"),
    ],
)
def test_levels_that_do_not_fit_are_one_message_before_anything_is_built(tmp_path, changes, said):
    cfg = config_from(PLAIN_YAML, tmp_path)
    cfg.merge_from_list([item for pair in changes.items() for item in pair])
    with pytest.raises(InputError, match=said):
        build_model(cfg)


def test_an_unknown_level_of_a_head_of_ones_own_is_no_bare_key_error():
    with pytest.raises(InputError, match=r"a head reads 'res5', but the backbone gives \['stage4'"):
        D2ConvNeXt("convnextv2_atto", out_features=["stage4"]).output_shape()["res5"]


def idle(model, images=None):
    """The parameters that a training step's losses do not reach."""
    model.train()
    with EventStorage():
        sum(model(images or [sample()]).values()).backward()
    return [name for name, value in model.named_parameters() if value.grad is None]


def sample():
    objects = Instances((64, 80))
    objects.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 48.0]]))
    objects.gt_classes = torch.tensor([1])
    masks = torch.zeros(1, 64, 80, dtype=torch.bool)
    masks[:, 8:48, 8:40] = True
    objects.gt_masks = BitMasks(masks)
    return {"image": torch.zeros(3, 64, 80, dtype=torch.uint8), "instances": objects}


C4 = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  DEVICE: cpu
  MASK_ON: True
  BACKBONE: {NAME: build_convnext_backbone, FREEZE_AT: 0}
  RESNETS: {RES2_OUT_CHANNELS: 40, NORM: GN}
  RPN: {IN_FEATURES: [stage3], PRE_NMS_TOPK_TRAIN: 50, POST_NMS_TOPK_TRAIN: 20}
  ROI_HEADS: {NAME: Res5ROIHeads, IN_FEATURES: [stage3], NUM_CLASSES: 2, BATCH_SIZE_PER_IMAGE: 16}
INPUT: {MASK_FORMAT: bitmask}
"""
C5 = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  DEVICE: cpu
  MASK_ON: True
  BACKBONE: {NAME: build_convnext_backbone, FREEZE_AT: 0}
  CONVNEXT: {OUTPUT_STRIDE: 16}
  RPN: {IN_FEATURES: [stage4], PRE_NMS_TOPK_TRAIN: 50, POST_NMS_TOPK_TRAIN: 20}
  ROI_HEADS:
    {NAME: StandardROIHeads, IN_FEATURES: [stage4], NUM_CLASSES: 2, BATCH_SIZE_PER_IMAGE: 16}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 32, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 16, POOLER_RESOLUTION: 14}
INPUT: {MASK_FORMAT: bitmask}
"""


@pytest.mark.parametrize(("text", "stages", "stride"), [(C4, 3, 16), (C5, 4, 16)])
def test_c4_and_dilated_c5_train_without_an_idle_tensor(tmp_path, text, stages, stride):
    model = build_model(config_from(text, tmp_path))
    assert len(model.backbone.stages) == stages
    assert [shape.stride for shape in model.backbone.output_shape().values()] == [stride]
    assert list(model.backbone.out_norms) == [f"stage{stages}"]
    assert idle(model) == []


def test_c4_heads_of_other_channels_are_told_the_key(tmp_path):
    cfg = config_from(C4, tmp_path)
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256
    with pytest.raises(InputError, match=r"RES2_OUT_CHANNELS is 256.*set it to 40"):
        build_model(cfg)


def test_retinanets_p6_without_p7_is_refused_for_its_convolution_would_be_idle():
    cfg = plain_config()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_convnext_fpn_backbone"
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6"]
    with pytest.raises(InputError, match="p6 without the level above"):
        build_backbone(cfg)


def test_a_retinanet_with_the_other_builder_is_told_the_right_one():
    cfg = plain_config()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.FPN.IN_FEATURES = ["stage2", "stage3", "stage4"]
    with pytest.raises(InputError, match=r"\['p7'\].*build_retinanet_convnext_fpn_backbone"):
        build_backbone(cfg)


def saved(encoder, path, **metadata):
    save_encoder(encoder, path, metadata)
    return str(path)


def test_licence_counts_and_statistics_stand_in_detectron2s_own_log(tmp_path, monkeypatch):
    """Which shows its loggers alone, ``detectron2`` and ``fvcore``."""
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)  # restored behind it
    weights = saved(
        encoder(),
        tmp_path / "encoder.safetensors",
        licence="CC0",
        mean="[0.5, 0.4, 0.3]",
        std="[0.2, 0.2, 0.2]",
    )
    logger = setup_logger(str(tmp_path))
    try:
        build_backbone(plain_config(WEIGHTS=weights))
    finally:
        for handler in list(logger.handlers):
            handler.close()
            logger.removeHandler(handler)
    total = len(encoder().state_dict())
    text = (tmp_path / "log.txt").read_text()
    assert f"{total}/{total} encoder tensors loaded from {weights}" in text
    assert "licence of these weights: CC0" in text
    assert "mean [127.5, 102.0, 76.5], deviation [51.0, 51.0, 51.0]" in text
    assert text.count("this config is not as the encoder's weights are") == 1
    assert "INPUT.FORMAT is 'BGR'" in text
    assert "MODEL.PIXEL_STD is [1.0, 1.0, 1.0]" in text


def test_a_config_as_the_encoder_is_draws_no_warning(tmp_path, caplog):
    weights = saved(
        encoder(), tmp_path / "e.safetensors", mean="[0.5, 0.4, 0.3]", std="[0.2, 0.2, 0.2]"
    )
    cfg = plain_config(WEIGHTS=weights)
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [127.5, 102.0, 76.5], [51.0, 51.0, 51.0]
    with caplog.at_level("WARNING"):
        build_backbone(cfg)
    assert not caplog.records


def test_a_finished_detector_needs_no_encoder_file(tmp_path, caplog):
    """Neither from YAML nor from a LazyConfig; one that lacks the encoder is told at once."""
    cfg = plain_config(WEIGHTS=str(tmp_path / "gone.safetensors"))
    with pytest.raises(FileNotFoundError, match="gone"):
        build_backbone(cfg)
    whole = build_backbone(plain_config())
    state = {f"backbone.{name}": value for name, value in whole.state_dict().items()}
    torch.save({"model": state}, tmp_path / "model_final.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    detector = torch.nn.Module()
    detector.backbone = build_backbone(cfg)
    DetectionCheckpointer(detector).load(cfg.MODEL.WEIGHTS)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(detector.backbone(images)["p2"], whole(images)["p2"])

    lazy = D2ConvNeXt("convnextv2_atto", weights=str(tmp_path / "gone.safetensors"))
    with pytest.raises(FileNotFoundError, match="gone"):
        lazy(images)
    lazy.load_state_dict(whole.bottom_up.state_dict())
    assert torch.equal(lazy(images)["stage4"], whole.bottom_up(images)["stage4"])


@pytest.mark.parametrize(
    "file",
    [
        "quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml",
        "coco/mask_rcnn_convnextv2_base_fcmae_lsj3x.yaml",
    ],
)
def test_our_files_in_detectron2s_own_trainer_name_every_key_that_is_ours(file):
    cfg = get_cfg()
    add_convnext_config(cfg)
    cfg.merge_from_file(str(Path(det_configs.__file__).parent / file))
    with pytest.raises(InputError) as caught:
        DefaultTrainer.build_model(cfg)
    message = str(caught.value)
    said = ["SOLVER.OPTIMIZER is 'AdamW'", "MODEL.ROI_HEADS.NUM_CLASSES is 0"]
    if file.startswith("quick"):
        said.append("CLIP_TYPE is 'full_model'")
    else:
        said += [
            "INPUT.LSJ.ENABLED is True",
            "SOLVER.LAYER_DECAY is 0.95",
            "SOLVER.AMP.PRECISION is 'bf16'",
            "SOFT_NMS.ENABLED is True",
        ]
    assert [text for text in said if text not in message] == []
    cfg.MODEL.CONVNEXT.ALLOW_IGNORED_KEYS = True
    cfg.MODEL.ROI_HEADS.SOFT_NMS.ENABLED = False
    cfg.MODEL.CONVNEXT.WEIGHTS, cfg.MODEL.DEVICE = "", "meta"
    assert DefaultTrainer.build_model(cfg).roi_heads.num_classes == 0


def test_a_plain_detectron2_config_hears_nothing_of_our_keys(tmp_path):
    cfg = config_from(PLAIN_YAML, tmp_path)
    cfg.SOLVER.AMP.ENABLED = True
    assert build_model(cfg).roi_heads.num_classes == 2


def test_detectron2s_tracing_equals_eager_at_three_sizes(tmp_path):
    torch.manual_seed(0)
    cfg = config_from(PLAIN_YAML, tmp_path)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 0.0, 5
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)

    def inference(model, inputs):
        (found,) = model.inference(inputs, do_postprocess=False)
        return [{"instances": found}]

    def image(*size):
        return torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) * 255

    adapter = TracingAdapter(model, [{"image": image(96, 128)}], inference)
    with patch_builtin_len():
        traced = torch.jit.trace(adapter, (image(96, 128),))
    for size in ((96, 128), (128, 96), (160, 160)):
        with torch.no_grad():
            found = adapter.outputs_schema(traced(image(*size)))[0]["instances"]
            expected = model.inference([{"image": image(*size)}], do_postprocess=False)[0]
        assert len(found) == len(expected) > 0
        assert torch.allclose(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3)
        assert torch.allclose(found.scores, expected.scores, atol=1e-5)
        assert torch.equal(found.pred_classes, expected.pred_classes)


ALONE = """
import sys
for name in ("detection", "training", "tools"):
    assert __import__(name).MINE
from backbones.d2_adapter import add_convnext_config
from detectron2.config import get_cfg
from detectron2.modeling import build_model

cfg = get_cfg()
add_convnext_config(cfg)
cfg.merge_from_file("their.yaml")
build_model(cfg)
ours = {"fcmae", "images", "reporting", "segmentation"}
print(sorted(ours & set(sys.modules)))
"""


def test_the_adapter_needs_no_other_package_beside_folders_that_hide_ours(tmp_path):
    for name in ("detection", "training", "tools"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = True\n")
    (tmp_path / "their.yaml").write_text(PLAIN_YAML)
    assert run_script(tmp_path, ALONE) == "[]\n"


def test_learning_rates_fall_towards_the_stem_as_those_of_parameter_groups_do():
    detector = torch.nn.Module()
    detector.backbone = build_backbone(plain_config())
    groups = parameter_groups(
        detector, 1.0, 0.05, SIZES["convnextv2_atto"].depths, 0.9, "group", "backbone.bottom_up."
    )
    for group in groups:
        for name in group["param_names"]:
            assert lr_decay_rate(name, "convnextv2_atto", 0.9) == pytest.approx(group["lr"])


PLAIN_YAML = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  DEVICE: cpu
  MASK_ON: True
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  BACKBONE: {NAME: build_convnext_fpn_backbone, FREEZE_AT: 0}
  CONVNEXT: {SIZE: convnextv2_atto, DROP_PATH_RATE: 0.1}
  FPN: {IN_FEATURES: [stage1, stage2, stage3, stage4], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128], [256]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6]}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5], NUM_CLASSES: 2}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 32, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 16}
INPUT: {MASK_FORMAT: bitmask}
"""

TRAIN = """
import torch
from detectron2.engine import SimpleTrainer
from detectron2.structures import BitMasks, Boxes, Instances

objects = Instances((64, 80))
objects.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 48.0]]))
objects.gt_classes = torch.tensor([1])
masks = torch.zeros(1, 64, 80, dtype=torch.bool)
masks[:, 8:48, 8:40] = True
objects.gt_masks = BitMasks(masks)
sample = {"image": torch.zeros(3, 64, 80, dtype=torch.uint8), "instances": objects}
encoder = model.backbone.bottom_up
before = encoder.stages[0][0].pwconv1.weight.clone()
SimpleTrainer(model, [[sample]], torch.optim.SGD(model.parameters(), 1e-3)).train(0, 1)
assert not torch.equal(before, encoder.stages[0][0].pwconv1.weight)
print("trained")
"""

AFTER_YAML = """
from detectron2.modeling import build_model

model = build_model(cfg)
"""

AFTER_OUR_FILE = """
from detectron2.modeling import build_model

cfg.MODEL.CONVNEXT.WEIGHTS, cfg.MODEL.DEVICE = "", "meta"
model = build_model(cfg)
print(type(model.roi_heads).__name__, model.roi_heads.num_classes)
"""

BEFORE_LAZY = """
from pathlib import Path
import detectron2
from detectron2.config import LazyConfig, instantiate

file = Path(detectron2.__file__).parent / "model_zoo/configs/common/models/mask_rcnn_fpn.py"
model = LazyConfig.load(str(file)).model
"""

AFTER_LAZY = """
model.roi_heads.num_classes = 2
model = instantiate(model)
assert model.backbone.bottom_up.loaded.loaded > 0
"""


def page_blocks():
    """The Python blocks of the page for detectron2's users."""
    text = (Path(__file__).parent.parent / "docs/detectron2.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run_script(folder, *parts):
    (folder / "script.py").write_text("\n".join(parts))
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=300, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pages_yaml_trains_and_our_files_bring_soft_nms_along(tmp_path):
    """In one script, for the imports take seconds; both begin with the same import."""
    (tmp_path / "my_config.yaml").write_text(PLAIN_YAML)
    (tmp_path / "det_configs").symlink_to(Path(det_configs.__file__).parent)
    own_file, our_file, _ = page_blocks()
    shown = run_script(tmp_path, own_file, AFTER_YAML, TRAIN, our_file, AFTER_OUR_FILE)
    assert shown == "trained\nSoftNMSStandardROIHeads 80\n"


def test_the_pages_lazy_config_trains_from_the_encoders_weights(tmp_path):
    (tmp_path / "runs/fcmae").mkdir(parents=True)
    save_encoder(encoder(), tmp_path / "runs/fcmae/encoder.safetensors", {})
    shown = run_script(tmp_path, BEFORE_LAZY, page_blocks()[2], AFTER_LAZY, TRAIN)
    assert shown.endswith("trained\n")
