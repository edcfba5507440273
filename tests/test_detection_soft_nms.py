"""Soft-NMS: the paper's loop, class by class and pair by pair, and the same on both engines."""

import math

import numpy as np
import pytest
import torch
from small_detector import sample, small_config, spread_scores

from detection.engines.renaming import torchvision_to_detectron2
from detection.engines.torchvision.model import build_mask_rcnn
from detection.suppression.soft_nms import SoftNMS

METHODS = [SoftNMS("linear", 0.5), SoftNMS("linear", 0.3, min_score=0.2), SoftNMS("gaussian")]


def crowded(count, seed):
    """Boxes that overlap, some of them empty or equal; scores; three classes."""
    draw = np.random.default_rng(seed)
    corner = draw.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + draw.uniform(5, 40, (count, 2))], 1)
    boxes[3] = boxes[2]
    boxes[5, 2] = boxes[5, 0]
    boxes[6] = boxes[5]
    arrays = boxes.astype(np.float32), draw.uniform(0.05, 1, count).astype(np.float32)
    return *map(torch.from_numpy, arrays), torch.from_numpy(draw.integers(0, 3, count))


def overlap(a, b):
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    inside = max(width, 0) * max(height, 0)
    union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - inside
    return inside / union if union > 0 else 0.0


def paper(boxes, scores, classes, options):
    """arXiv 1704.04503, Figure 2, for each class: (score, index) of what stays, best first."""
    boxes, scores = boxes.tolist(), scores.tolist()
    found = []
    for category in set(classes.tolist()):
        remaining = [i for i, c in enumerate(classes.tolist()) if c == category]
        while remaining:
            best = max(remaining, key=scores.__getitem__)
            remaining.remove(best)
            found.append((scores[best], best))
            for other in remaining:
                iou = overlap(boxes[best], boxes[other])
                if options.method == "gaussian":
                    scores[other] *= math.exp(-(iou**2) / options.sigma)
                elif iou >= options.threshold:
                    scores[other] *= 1 - iou
    return sorted(((s, i) for s, i in found if s >= options.min_score), reverse=True)


@pytest.mark.parametrize("options", METHODS, ids=str)
@pytest.mark.parametrize("limit", [-1, 1, 25, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_soft_nms_is_the_papers_loop_class_by_class(options, limit, seed):
    boxes, scores, classes = crowded(80, seed)
    given = scores.clone()
    keep, decayed = options(boxes, scores, classes, limit)
    expected = paper(boxes, scores, classes, options)
    expected = expected if limit < 0 else expected[:limit]
    assert keep.tolist() == [index for _, index in expected]
    torch.testing.assert_close(decayed, torch.tensor([s for s, _ in expected]), atol=1e-6, rtol=0)
    assert torch.equal(scores, given)


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_no_detections_stay_none(options):
    keep, scores = options(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), 10)
    assert keep.shape == scores.shape == (0,)
    assert (keep.dtype, scores.dtype) == (torch.int64, torch.float32)


def test_the_configs_threshold_is_that_of_ordinary_suppression():
    assert SoftNMS.from_config(small_config()) is None
    config = small_config(
        {
            "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.4,
            "MODEL.ROI_HEADS.SOFT_NMS.ENABLED": True,
            "MODEL.ROI_HEADS.SOFT_NMS.METHOD": "gaussian",
            "MODEL.ROI_HEADS.SOFT_NMS.SIGMA": 0.3,
            "MODEL.ROI_HEADS.SOFT_NMS.MIN_SCORE": 0.01,
        }
    )
    assert SoftNMS.from_config(config) == SoftNMS("gaussian", 0.4, 0.3, 0.01)


CROWDED = {  # proposals that overlap
    "MODEL.RPN.NMS_THRESH": 1.0,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 300,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 300,
}
SOFT = CROWDED | {
    "MODEL.ROI_HEADS.SOFT_NMS.ENABLED": True,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3,
    "TEST.DETECTIONS_PER_IMAGE": 300,
}


def detect(changes):
    torch.manual_seed(0)
    model = build_mask_rcnn(small_config(changes)).eval()
    spread_scores(model)
    item = sample(128, 160, 0)
    with torch.no_grad():
        return model, item, model([item])[0]


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_the_torchvision_engine_suppresses_softly_behind_its_box_head(method):
    everything = CROWDED | {
        "TEST.DETECTIONS_PER_IMAGE": 10_000,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 1.0,
    }
    *_, raw = detect(everything)
    changes = SOFT | {"MODEL.ROI_HEADS.SOFT_NMS.METHOD": method}
    *_, found = detect(changes)
    expected = paper(raw["boxes"], raw["scores"], raw["labels"], SoftNMS(method, 0.3))[:300]
    assert len(raw["scores"]) > len(expected) == 300
    index = [i for _, i in expected]
    torch.testing.assert_close(found["boxes"], raw["boxes"][index], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        found["scores"], torch.tensor([s for s, _ in expected]), atol=1e-5, rtol=0
    )
    assert (found["scores"] < raw["scores"][index] - 0.01).any()


@pytest.mark.detectron2
@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_both_engines_suppress_alike(method):
    from detection.config import to_detectron2
    from detection.engines.detectron2.trainer import build_detector

    changes = SOFT | {"MODEL.ROI_HEADS.SOFT_NMS.METHOD": method}
    ours, item, found = detect(changes)
    theirs = build_detector(to_detectron2(small_config(changes))).eval()
    theirs.load_state_dict(torchvision_to_detectron2(ours.state_dict()), strict=True)
    with torch.no_grad():
        expected = theirs([item])[0]["instances"]
    assert len(found["scores"]) == 300
    assert torch.equal(found["labels"], expected.pred_classes)
    torch.testing.assert_close(found["boxes"], expected.pred_boxes.tensor, atol=1e-4, rtol=0)
    torch.testing.assert_close(found["scores"], expected.scores, atol=1e-5, rtol=0)
    assert torch.equal(found["masks"], expected.pred_masks)


@pytest.mark.detectron2
def test_plain_detectron2_heads_do_not_ignore_the_setting_unsaid():
    from detectron2.modeling import build_model

    import detection.suppression.detectron2_heads  # noqa: F401 - registers them
    from detection.config import to_detectron2

    cfg = to_detectron2(small_config(SOFT))
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    with pytest.raises(ValueError, match="NAME to SoftNMSStandardROIHeads"):
        build_model(cfg)
    cfg.MODEL.ROI_HEADS.update(NAME="SoftNMSStandardROIHeads")
    cfg.MODEL.ROI_HEADS.SOFT_NMS.ENABLED = False
    with pytest.raises(ValueError, match=r"SOFT_NMS\.ENABLED is False"):
        build_model(cfg)
