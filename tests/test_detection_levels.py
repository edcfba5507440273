"""Only what a head reads is built, for every choice of stages and levels, on both engines."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import torch
from small_detector import sample, small_config, spread_scores
from two_engines import (
    Detectron2Detector,
    TorchvisionDetector,
    assert_same_detections,
    assert_same_gradients,
)

from backbones.convnext import SIZES, STAGES, Size
from backbones.errors import InputError
from backbones.pyramid import levels_of, plan_pyramid
from detection.config import load_config
from detection.engines.renaming import torchvision_to_detectron2
from detection.engines.torchvision.model import build_mask_rcnn
from detection.engines.weights import read_detector

RUNS = [STAGES[first:last] for first in range(4) for last in range(first + 1, 5)]
ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]


@pytest.fixture(autouse=True)
def _tiny_encoder(monkeypatch):
    monkeypatch.setitem(SIZES, "convnextv2_atto", Size((8, 12, 16, 20), (1, 1, 1, 1), 2))


def config_of(stages, rpn, roi, **changes):
    return small_config(
        {
            "MODEL.FPN.IN_FEATURES": list(stages),
            "MODEL.RPN.IN_FEATURES": list(rpn),
            "MODEL.ROI_HEADS.IN_FEATURES": list(roi),
            "MODEL.ANCHOR_GENERATOR.SIZES": [[24]],
            **changes,
        }
    )


def choices(stages):
    """(what the RPN reads, what the ROI heads read), so that every set of read levels occurs."""
    levels = levels_of(stages, extra=1)
    own = levels[:-1]
    subsets = chain.from_iterable(combinations(levels, n) for n in range(1, len(levels) + 1))
    for rpn in subsets:
        for roi in {tuple(own), (own[0],), (own[-1],)}:
            yield rpn, roi


def build(engine, config):
    if engine == "torchvision":
        return build_mask_rcnn(config).backbone
    return Detectron2Detector(config).model.backbone


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stages", RUNS, ids="-".join)
def test_no_parameter_of_a_backbone_is_unused_for_any_choice_of_levels(engine, stages):
    images = torch.randn(1, 3, 64, 64)
    for rpn, roi in choices(stages):
        backbone = build(engine, config_of(stages, rpn, roi))
        maps = backbone(images)
        assert set(maps) == {*rpn, *roi}
        sum(value.square().sum() for value in maps.values()).backward()
        unused = [name for name, value in backbone.named_parameters() if value.grad is None]
        assert not unused, (rpn, roi, unused)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("stages", "rpn", "roi"),
    [
        (STAGES[1:], ("p3", "p4", "p5", "p6"), ("p3", "p4", "p5")),
        (STAGES[:3], ("p2", "p3", "p4", "p5"), ("p2", "p3", "p4")),
        (STAGES, ("p4", "p6"), ("p3", "p4")),
        (STAGES[3:], ("p5",), ("p5",)),
    ],
)
def test_a_training_step_reaches_every_parameter(engine, stages, rpn, roi):
    """Of the whole detector, as ``DistributedDataParallel`` demands."""
    detector = {"torchvision": TorchvisionDetector, "detectron2": Detectron2Detector}[engine](
        config_of(stages, rpn, roi)
    )
    detector.learn([sample(64, 96, 3, seed=1), sample(80, 64, 2, seed=2)])
    assert [n for n, p in detector.model.named_parameters() if p.grad is None] == []


@pytest.mark.detectron2
@pytest.mark.parametrize("stages", RUNS, ids="-".join)
def test_a_pyramid_on_any_run_of_stages_gives_the_same_numbers_on_both_engines(stages):
    """Detections on images that no stride divides, losses and gradients."""
    levels = levels_of(stages, extra=1)
    changes = {
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 4096,  # nothing is drawn
        "MODEL.RPN.IOU_THRESHOLDS": [0.5, 0.5],
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 4096,
    }
    config = config_of(stages, levels, levels[:-1], **changes)
    torch.manual_seed(0)
    ours, theirs = TorchvisionDetector(config), Detectron2Detector(config)
    spread_scores(ours.model)
    theirs.load(ours.state())
    images = [sample(61, 90, 3, seed=1), sample(75, 50, 2, seed=2)]
    assert_same_detections(ours.detect(images), theirs.detect(images))
    (losses, gradients), (expected, expected_gradients) = ours.learn(images), theirs.learn(images)
    assert losses == pytest.approx(
        {
            "loss_rpn_cls": expected["loss_rpn_cls"],
            "loss_rpn_loc": expected["loss_rpn_loc"],
            "loss_cls": expected["loss_cls"],
            "loss_box_reg": expected["loss_box_reg"],
            "loss_mask": expected["loss_mask"],
        },
        rel=1e-5,
    )
    assert_same_gradients(gradients, expected_gradients, relative=1e-3)


def test_stages_below_the_lowest_read_level_have_no_lateral_and_no_norm():
    plan = plan_pyramid(STAGES, {"p4", "p5", "p6"})
    assert plan.stages == ("stage3", "stage4")
    assert plan.levels == ("p4", "p5", "p6")
    model = build_mask_rcnn(config_of(STAGES, ("p4", "p5", "p6"), ("p4", "p5")))
    assert set(model.backbone.body.out_norms) == {"stage3", "stage4"}
    assert len(model.backbone.fpn.inner_blocks) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.FPN.IN_FEATURES", "['stage2','stage5']"], r"one or more of stage1"),
        (["MODEL.RPN.IN_FEATURES", "['p2','p3','p4','p5','p7']"], r"one or more of p2"),
        (
            [
                *("MODEL.FPN.IN_FEATURES", "['stage1','stage2']"),
                *("MODEL.ROI_HEADS.IN_FEATURES", "['p2','p3']"),
            ],
            r"RPN\.IN_FEATURES names \['p5', 'p6'\], but MODEL\.FPN\.IN_FEATURES gives "
            r"\['p2', 'p3', 'p4'\]",
        ),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[8],[16],[32],[64],[128],[256]]"], "1 list or 5"),
        (["MODEL.ROI_HEADS.IN_FEATURES", "['p2','p4']"], r"\['p2', 'p4'\].*consecutive"),
    ],
)
@pytest.mark.parametrize("engine", ["torchvision", "detectron2"])
def test_levels_that_do_not_fit_are_one_message_before_training(
    engine, overrides, message, tmp_path
):
    (tmp_path / "config.yaml").write_text(f"ENGINE: {engine}\n")
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "config.yaml", overrides)


def test_detectors_with_parts_that_no_head_reads_are_still_read(tmp_path):
    """Those that were trained before such parts were left out."""
    config = config_of(STAGES[1:3], ("p3", "p4", "p5"), ("p3", "p4"))
    model = build_mask_rcnn(config)
    state = model.state_dict()
    body = "backbone.body."
    idle = {
        f"{body}out_norms.stage1.weight": torch.ones(8),
        f"{body}stages.3.0.norm.weight": torch.ones(20),
        f"{body}downsample_layers.3.0.weight": torch.ones(16),
    }
    torch.save(state | idle, tmp_path / "old.pth")
    other = build_mask_rcnn(config)
    read_detector(tmp_path / "old.pth", other)
    for name, value in other.state_dict().items():
        assert torch.equal(value, state[name])
    assert "backbone.fpn_lateral3.weight" in torchvision_to_detectron2(state)
