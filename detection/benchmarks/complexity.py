"""Parameters and multiply-adds of the detector that a config describes.

Counted by fvcore (one multiply-add is one FLOP, as in the papers' tables) on one image of
1280 x 800 pixels, with 1000 proposals through the box head and 100 detections through the mask
head. Counted in this way, base has the 486 G of its paper (arXiv 2301.00808, Table 6).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from fvcore.common.config import CfgNode
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from detection.config import to_detectron2
from detection.engines.torchvision.model import MaskRCNN, build_mask_rcnn

WIDTH, HEIGHT = 1280, 800
PROPOSALS, DETECTIONS = 1000, 100


class Complexity(NamedTuple):
    """Of the whole detector: the number of trained parameters, and multiply-adds per image."""

    parameters: int
    flops: int


class _Layers(nn.Module):
    """Every layer of the detector once; selection, NMS and pooling count as 0 and are left out."""

    def __init__(self, detector: MaskRCNN) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.rpn = detector.rpn.head
        self.roi_heads = detector.roi_heads

    def forward(self, image: Tensor, boxes: Tensor, masks: Tensor) -> list[Tensor]:
        objectness, deltas = self.rpn(list(self.backbone(image).values()))
        heads = self.roi_heads
        outputs = [*objectness, *deltas, *heads.box_predictor(heads.box_head(boxes))]
        if heads.has_mask():
            outputs.append(heads.mask_predictor(heads.mask_head(masks)))
        return outputs


class _CascadeLayers(nn.Module):
    """The same for detectron2's Cascade heads, in which every stage sees every proposal."""

    def __init__(self, config: CfgNode) -> None:
        from detectron2.modeling import build_model

        import backbones.d2_adapter  # noqa: F401 - registers the backbone
        import detection.engines.detectron2.cascade  # noqa: F401 - registers heads

        cfg = to_detectron2(config)
        cfg.MODEL.DEVICE, cfg.MODEL.CONVNEXT.WEIGHTS = "cpu", ""
        super().__init__()
        self.detector = build_model(cfg)

    def forward(self, image: Tensor, boxes: Tensor, masks: Tensor) -> list[Tensor]:
        features, rpn = self.detector.backbone(image), self.detector.proposal_generator
        objectness, deltas = rpn.rpn_head([features[name] for name in rpn.in_features])
        outputs, heads = [*objectness, *deltas], self.detector.roi_heads
        for head, predictor in zip(heads.box_head, heads.box_predictor, strict=True):
            outputs += predictor(head(boxes))
        if heads.mask_on:
            is_list = isinstance(heads.mask_head, nn.ModuleList)
            of_stages: list = list(heads.mask_head) if is_list else [heads.mask_head]
            outputs += [head.layers(masks) for head in of_stages]
        return outputs


def complexity(config: CfgNode, width: int = WIDTH, height: int = HEIGHT) -> Complexity:
    """Count a config's detector; runs it once on a CPU (base: about 10 seconds on one thread).

    ``NUM_CLASSES`` must be given. Cascade heads need detectron2: only it has them.
    """
    is_cascade = config.MODEL.ROI_HEADS.NAME.endswith("CascadeROIHeads")
    layers = (_CascadeLayers(config) if is_cascade else _Layers(build_mask_rcnn(config))).eval()
    channels = config.MODEL.FPN.OUT_CHANNELS
    box, mask = (config.MODEL[head].POOLER_RESOLUTION for head in ("ROI_BOX_HEAD", "ROI_MASK_HEAD"))
    inputs = (
        torch.zeros(1, config.MODEL.CONVNEXT.IN_CHANS, height, width),
        torch.zeros(PROPOSALS, channels, box, box),
        torch.zeros(DETECTIONS, channels, mask, mask),
    )
    with torch.no_grad():
        count = FlopCountAnalysis(layers, inputs).unsupported_ops_warnings(False)
        flops = count.uncalled_modules_warnings(False).total()
    return Complexity(sum(p.numel() for p in layers.parameters()), int(flops))
