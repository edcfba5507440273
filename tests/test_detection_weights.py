"""Whole-detector weights: exact in both directions, strict, and clear about what does not fit."""

import pytest
import torch
from safetensors.torch import save_file
from small_detector import small_config

from backbones.checkpoint import save_encoder
from backbones.convnext import build_convnext
from detection.engines.renaming import (
    detectron2_to_torchvision,
    is_detectron2,
    torchvision_to_detectron2,
)
from detection.engines.torchvision.model import build_mask_rcnn
from detection.engines.weights import read_detector

VARIANTS = {
    "plain": {},
    "norms and convolutions": {
        "MODEL.FPN.NORM": "LN",
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 2,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": 16,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.NORM": "LN",
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
        "MODEL.ROI_MASK_HEAD.NORM": "GN",
    },
    "norms of masks": {"MODEL.ROI_MASK_HEAD.NORM": "LN"},
    "two RPN convolutions": {"MODEL.RPN.CONV_DIMS": [-1, -1]},
    "no masks": {"MODEL.MASK_ON": False},
    "levels 3 to 5": {
        "MODEL.FPN.IN_FEATURES": ["stage2", "stage3", "stage4"],
        "MODEL.RPN.IN_FEATURES": ["p3", "p4", "p5", "p6"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4", "p5"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32], [64], [128]],
    },
}


def detector(changes=None):
    torch.manual_seed(0)
    return build_mask_rcnn(small_config(changes))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_weights_survive_the_way_to_detectron2_and_back_bit_by_bit(changes):
    state = detector(changes).state_dict()
    theirs = torchvision_to_detectron2(state)
    back = detectron2_to_torchvision(theirs)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    again = torchvision_to_detectron2(back)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


def test_every_name_of_the_table_is_detectron2s():
    names = set(
        torchvision_to_detectron2(detector(VARIANTS["norms and convolutions"]).state_dict())
    )
    assert {
        "backbone.bottom_up.stages.0.0.grn.gamma",
        "backbone.bottom_up.out_norms.stage1.weight",
        "backbone.fpn_lateral2.weight",
        "backbone.fpn_lateral2.norm.weight",
        "backbone.fpn_output5.norm.bias",
        "proposal_generator.rpn_head.conv.weight",
        "proposal_generator.rpn_head.objectness_logits.bias",
        "proposal_generator.rpn_head.anchor_deltas.weight",
        "roi_heads.box_head.conv2.weight",
        "roi_heads.box_head.conv2.norm.weight",
        "roi_heads.box_head.fc1.weight",
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.box_predictor.bbox_pred.bias",
        "roi_heads.mask_head.mask_fcn2.weight",
        "roi_heads.mask_head.mask_fcn2.norm.bias",
        "roi_heads.mask_head.deconv.weight",
        "roi_heads.mask_head.predictor.weight",
    } <= names
    levels_3_to_5 = torchvision_to_detectron2(detector(VARIANTS["levels 3 to 5"]).state_dict())
    assert "backbone.fpn_lateral3.weight" in levels_3_to_5
    assert "backbone.fpn_lateral2.weight" not in levels_3_to_5


def test_background_moves_from_last_to_first_and_gets_rows_of_zeros():
    theirs = {
        "roi_heads.box_predictor.cls_score.bias": torch.tensor([1.0, 2.0, 3.0, 9.0]),
        "roi_heads.box_predictor.bbox_pred.bias": torch.arange(1.0, 13.0),
        "roi_heads.mask_head.predictor.bias": torch.tensor([5.0, 6.0, 7.0]),
    }
    ours = detectron2_to_torchvision(theirs)
    assert ours["roi_heads.box_predictor.cls_score.bias"].tolist() == [9, 1, 2, 3]
    assert ours["roi_heads.box_predictor.bbox_pred.bias"].tolist() == [0] * 4 + list(range(1, 13))
    assert ours["roi_heads.mask_predictor.mask_fcn_logits.bias"].tolist() == [0, 5, 6, 7]
    assert theirs["roi_heads.box_predictor.cls_score.bias"].tolist() == [1, 2, 3, 9]


CASCADE = {
    "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
}


@pytest.mark.detectron2
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (CASCADE, "these are Cascade heads, which the torchvision engine does not have"),
        ({"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}, "predict 1 box for 3 classes"),
        ({"MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True}, "predict 1 mask for 3 classes"),
    ],
)
def test_heads_that_torchvision_lacks_are_refused_by_name(changes, message):
    from detectron2.modeling import build_model

    import backbones.d2_adapter  # noqa: F401 - registers the backbone
    from detection.config import to_detectron2

    model = build_model(to_detectron2(small_config(changes)))
    with pytest.raises(ValueError, match=message):
        detectron2_to_torchvision(model.state_dict())


def test_unknown_keys_are_all_named():
    state = detector().state_dict() | {"roi_heads.extra": torch.zeros(1), "ema": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"2 of \d+ tensors .*roi_heads\.extra, ema"):
        torchvision_to_detectron2(state)
    with pytest.raises(ValueError, match=r"detectron2 ConvNeXt Mask R-CNN's: keypoint\.weight"):
        detectron2_to_torchvision({"keypoint.weight": torch.zeros(1)})


def test_background_rows_that_would_be_lost_are_refused():
    state = detector().state_dict()
    state["roi_heads.mask_predictor.mask_fcn_logits.bias"][0] = 1.0
    with pytest.raises(ValueError, match=r"rows are not 0 in .*mask_fcn_logits\.bias"):
        torchvision_to_detectron2(state)


@pytest.mark.parametrize("as_detectron2", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_either_engines_file_loads_completely(tmp_path, as_detectron2, suffix):
    source, target = detector(), detector()
    state = source.state_dict()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(1)
    written = torchvision_to_detectron2(state) if as_detectron2 else state
    assert is_detectron2(written) == as_detectron2
    path = tmp_path / f"detector{suffix}"
    if suffix == ".pth":
        torch.save({"model": written, "iteration": 3}, path)
    else:
        save_file({name: value.contiguous() for name, value in written.items()}, path)
    read_detector(path, target)
    assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())


def test_a_detector_of_other_classes_or_size_is_refused_with_every_tensor_named(tmp_path):
    path = tmp_path / "detector.safetensors"
    save_file(torchvision_to_detectron2(detector().state_dict()), path)
    model = detector({"MODEL.ROI_HEADS.NUM_CLASSES": 2, "MODEL.ROI_MASK_HEAD.NUM_CONV": 2})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="is not this detector") as error:
        read_detector(path, model)
    message = str(error.value)
    assert "2 missing in the file: roi_heads.mask_head.1.0.weight" in message
    assert "cls_score.weight ((4, 32) in the file, (3, 32) here)" in message
    assert "MODEL.CONVNEXT.WEIGHTS" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_encoder_given_as_a_detector_is_refused_with_the_right_key(tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_encoder(build_convnext("convnextv2_atto"), path, {})
    with pytest.raises(ValueError, match=r"an encoder goes into MODEL.CONVNEXT.WEIGHTS"):
        read_detector(path, detector())


def test_a_missing_detector_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        read_detector(tmp_path / "none.pth", detector())


@pytest.mark.detectron2
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_detectron2_loads_the_renamed_weights_strictly(changes):
    from detectron2.modeling import build_model

    import backbones.d2_adapter  # noqa: F401 - registers the backbone
    from detection.config import to_detectron2

    model = build_model(to_detectron2(small_config(changes)))
    model.load_state_dict(torchvision_to_detectron2(detector(changes).state_dict()), strict=True)
