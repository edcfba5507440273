"""The encoder as a detectron2 backbone: names, features, weights, and a script of one's own."""

# ruff: noqa: E402 - the skip comes before the imports

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed (docs/detectron2.md)")
pytestmark = pytest.mark.detectron2

from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.modeling import build_backbone

import det_configs
from backbones.checkpoint import save_encoder
from backbones.convnext import STAGES, build_convnext
from backbones.d2_adapter import D2ConvNeXt
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
