"""detectron2's ROI heads with soft-NMS.

Importing this registers ``SoftNMSStandardROIHeads`` and ``SoftNMSCascadeROIHeads``, which
:func:`detection.config.to_detectron2` puts into ``MODEL.ROI_HEADS.NAME`` where
``MODEL.ROI_HEADS.SOFT_NMS.ENABLED`` is True; their weights are those of the heads without.
"""

from __future__ import annotations

import math
from typing import Any

from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Instances
from torch import nn

from backbones.errors import InputError
from detection.suppression.soft_nms import SoftNMS


class _SoftNMSHeads(StandardROIHeads):
    """Heads whose own suppression is turned off, and which suppress softly afterwards."""

    @configurable
    def __init__(self, *, soft_nms: SoftNMS, **options: Any) -> None:
        super().__init__(**options)
        self.soft_nms = soft_nms
        is_cascade = isinstance(self.box_predictor, nn.ModuleList)
        for predictor in self.box_predictor if is_cascade else [self.box_predictor]:
            self.limit = predictor.test_topk_per_image
            predictor.test_topk_per_image = -1
            predictor.test_nms_thresh = math.inf

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Any) -> dict[str, Any]:
        soft_nms = SoftNMS.from_config(cfg)
        if soft_nms is None:
            raise InputError(
                f"MODEL.ROI_HEADS.NAME is {cfg.MODEL.ROI_HEADS.NAME}, but "
                "MODEL.ROI_HEADS.SOFT_NMS.ENABLED is False: set it to True"
            )
        return super().from_config(cfg, input_shape) | {"soft_nms": soft_nms}

    def _forward_box(self, features: Any, proposals: Any, *targets: Any) -> Any:
        found = super()._forward_box(features, proposals, *targets)
        return found if self.training else [self._suppress(of_image) for of_image in found]

    def _suppress(self, found: Instances) -> Instances:
        keep, scores = self.soft_nms(
            found.pred_boxes.tensor, found.scores, found.pred_classes, self.limit
        )
        found = found[keep]
        found.scores = scores
        return found


@ROI_HEADS_REGISTRY.register()
class SoftNMSStandardROIHeads(_SoftNMSHeads):
    """``StandardROIHeads`` with soft-NMS."""


@ROI_HEADS_REGISTRY.register()
class SoftNMSCascadeROIHeads(_SoftNMSHeads, CascadeROIHeads):
    """``CascadeROIHeads`` with soft-NMS."""
