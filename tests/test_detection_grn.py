"""Detectors with something else in GRN's place: their config, their weights, what is refused."""

import pytest
import torch
from safetensors import safe_open
from small_coco import write_small_coco
from small_detector import small_config

from backbones.checkpoint import save_encoder
from backbones.convnext import build_convnext
from backbones.normalization import GRNOptions
from detection.config import load_config
from detection.dataset import load_dataset
from detection.engines.torchvision.engine import load_initial_weights, save_detector
from detection.engines.torchvision.model import build_mask_rcnn
from detection.run_record import encoder_facts

GRN = "MODEL.CONVNEXT.GRN."


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """An encoder with the paper's GRN."""
    torch.manual_seed(0)
    encoder = build_convnext("convnextv2_atto")
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_encoder(encoder, path, {})
    return path, encoder.state_dict()


def test_the_encoder_of_a_config_has_what_it_says_in_grns_place():
    body = build_mask_rcnn(small_config({GRN + "KIND": "cbam"})).backbone.body
    assert body.grn == GRNOptions(kind="cbam")
    assert body.stages[2][5].grn.spatial.weight.shape == (1, 2, 7, 7)
    changes = {GRN + "AGGREGATE": "l1", GRN + "NORMALIZE": "sum", GRN + "RESIDUAL": False}
    body = build_mask_rcnn(small_config(changes)).backbone.body
    assert body.stages[0][0].grn.options == GRNOptions("l1", "sum", residual=False)


@pytest.mark.detectron2
def test_detectron2_builds_the_same_encoder(pretrained):
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    import backbones.d2_adapter  # noqa: F401
    from detection.config import add_convnext_config

    cfg = get_cfg()
    add_convnext_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_convnext_fpn_backbone", 0
    cfg.MODEL.FPN.IN_FEATURES = cfg.MODEL.CONVNEXT.OUT_FEATURES
    cfg.MODEL.CONVNEXT.GRN.KIND, cfg.MODEL.CONVNEXT.WEIGHTS = "se", str(pretrained[0])
    with pytest.raises(ValueError, match="the model has se"):
        build_backbone(cfg)
    cfg.MODEL.CONVNEXT.ALLOW_OTHER_GRN = True
    encoder = build_backbone(cfg).bottom_up
    assert encoder.grn == GRNOptions(kind="se")
    assert torch.equal(
        encoder.stages[3][1].dwconv.weight, pretrained[1]["stages.3.1.dwconv.weight"]
    )


def test_an_encoder_with_grn_goes_into_a_detector_without_only_when_asked(pretrained, caplog):
    path, tensors = pretrained
    changes = {GRN + "KIND": "batchnorm", "MODEL.CONVNEXT.WEIGHTS": str(path)}
    config = small_config(changes)
    model = build_mask_rcnn(config)
    for refuse in (lambda: load_initial_weights(config, model), lambda: encoder_facts(config, 1)):
        with pytest.raises(ValueError, match=r"trained with GRNOptions.*ALLOW_OTHER_GRN"):
            refuse()
    config = small_config({**changes, "MODEL.CONVNEXT.ALLOW_OTHER_GRN": True})
    caplog.set_level("INFO")
    load_initial_weights(config, model)
    assert torch.equal(model.backbone.body.stages[0][0].pwconv1.weight.cpu(),
                       tensors["stages.0.0.pwconv1.weight"])  # fmt: skip
    assert torch.equal(model.backbone.body.stages[0][0].grn.weight, torch.ones(160))
    facts = encoder_facts(config, len(model.state_dict()))
    grn = sum(".grn." in name for name in model.state_dict())
    assert (facts["loaded"], facts["total"]) == (len(tensors) - 24, len(tensors) - 24 + grn)
    assert facts["new"] == len(model.state_dict()) - facts["loaded"]
    assert facts["new_parts"] == ["grn", "out_norms", "fpn", "rpn", "roi_heads"]
    assert f"{facts['loaded']} of {facts['total']} encoder tensors" in caplog.text
    assert "24 tensors of its GRN left out" in caplog.text


def test_a_detector_says_its_grn_and_another_is_refused(tmp_path):
    annotations, images = write_small_coco(tmp_path / "data")
    dataset = load_dataset(f"json:{annotations}:{images}")
    config = small_config({GRN + "AGGREGATE": "avg", "OUTPUT_DIR": str(tmp_path)})
    save_detector(config, dataset, build_mask_rcnn(config), "model_final.safetensors")
    path = tmp_path / "model_final.safetensors"
    with safe_open(path, "pt") as file:
        assert "aggregate='avg'" in file.metadata()["grn"]
    load_initial_weights(config := small_config({"MODEL.WEIGHTS": str(path),
                         GRN + "AGGREGATE": "avg"}), build_mask_rcnn(config))  # fmt: skip
    other = small_config({"MODEL.WEIGHTS": str(path)})
    with pytest.raises(
        ValueError, match=r"trained with GRNOptions\(aggregate='avg'.*GRN is .*'l2'"
    ):
        load_initial_weights(other, build_mask_rcnn(other))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["KIND", "gr"], "GRN.KIND is 'gr'; it must be 'grn' or 'affine' or 'none' or 'lrn'"),
        (["KIND", "se", "AGGREGATE", "l1"], "kind is 'se', which has no aggregate"),
    ],
)
def test_grn_that_makes_no_sense_is_refused(overrides, message, tmp_path):
    keys = [f"{GRN}{value}" if n % 2 == 0 else value for n, value in enumerate(overrides)]
    file = tmp_path / "config.yaml"
    file.write_text("VERSION: 2\n")
    with pytest.raises(ValueError, match=message):
        load_config(file, keys)
    with pytest.raises(ValueError, match="convnext_tiny, a ConvNeXt V1, has no GRN"):
        load_config(file, ["MODEL.CONVNEXT.SIZE", "convnext_tiny", GRN + "RESIDUAL", "False"])
