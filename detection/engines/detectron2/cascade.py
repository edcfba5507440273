"""Cascade heads like mmdetection's: a box per class, a mask head per stage, averaged logits.

detectron2's ``CascadeROIHeads`` refine one box for all classes, average the stages' probabilities
and have one mask head. The published Cascade Mask R-CNNs of ConvNeXt differ, and
would compute other results with those heads:

1. each stage has a box for each class; the next stage begins with that of the likeliest class;
2. the stages' *logits* are averaged, then the softmax is taken;
3. each stage has a mask head; their probabilities are averaged.

In training the likeliest class of an object is its own, and the mask loss is the mean of
the three heads on the proposals of the first stage. (mmdetection instead samples anew for each
stage, weights the stages by 1, 0.5 and 0.25, and uses the GIoU loss of decoded boxes.)

Importing this registers ``PerClassCascadeROIHeads``.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn


class StageMaskHeads(nn.ModuleList):
    """A mask head for each stage, called as one."""

    def forward(self, x: Tensor, instances: list[Instances]) -> Any:
        """Training: the mean of the heads' losses; else ``pred_masks`` in the instances."""
        heads: list[Any] = list(self)
        logits = [head.layers(x) for head in heads]
        if self.training:
            losses = [mask_rcnn_loss(of_head, instances) for of_head in logits]
            return {"loss_mask": torch.stack(losses).mean()}
        probabilities = torch.stack([of_head.sigmoid() for of_head in logits]).mean(0)
        classes = torch.cat([of_image.pred_classes for of_image in instances])
        chosen = probabilities[torch.arange(len(classes), device=classes.device), classes][:, None]
        masks = chosen.split([len(of_image) for of_image in instances])
        for of_image, of_masks in zip(instances, masks, strict=True):
            of_image.pred_masks = of_masks
        return instances


@ROI_HEADS_REGISTRY.register()
class PerClassCascadeROIHeads(CascadeROIHeads):
    """``CascadeROIHeads`` with a box for each class and a mask head for each stage."""

    @configurable
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    @classmethod
    def _init_box_head(cls, cfg: Any, input_shape: Any) -> dict[str, Any]:
        agnostic = cfg.clone()
        agnostic.defrost()
        agnostic.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True  # what the base class insists on
        made = super()._init_box_head(agnostic, input_shape)
        weights = cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
        transforms = [Box2BoxTransform(weights=of_stage) for of_stage in weights]
        made["box_predictors"] = [
            FastRCNNOutputLayers(cfg, head.output_shape, box2box_transform=transform)
            for head, transform in zip(made["box_heads"], transforms, strict=True)
        ]
        return made

    @classmethod
    def _init_mask_head(cls, cfg: Any, input_shape: Any) -> dict[str, Any]:
        made = [
            super(PerClassCascadeROIHeads, cls)._init_mask_head(cfg, input_shape)
            for _ in cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS
        ]
        if not made[0]:
            return {}
        return made[0] | {"mask_head": StageMaskHeads([one["mask_head"] for one in made])}

    def _forward_box(self, features: Any, proposals: Any, targets: Any = None) -> Any:
        maps = [features[name] for name in self.box_in_features]
        sizes = [of_image.image_size for of_image in proposals]
        stages: list[tuple[Any, Any, Any]] = []
        for stage in range(self.num_cascade_stages):
            if stage:
                proposals = self._create_proposals_from_boxes(self._refined(*stages[-1]), sizes)
                if self.training:
                    proposals = self._match_and_label_boxes(proposals, stage, targets)
            predictions = self._run_stage(maps, proposals, stage)
            stages.append((self.box_predictor[stage], predictions, proposals))
        if self.training:
            return self._losses(stages)
        predictor, predictions, proposals = stages[-1]
        logits = torch.stack([scores for _, (scores, _), _ in stages]).mean(0)
        found, _ = fast_rcnn_inference(
            predictor.predict_boxes(predictions, proposals),
            logits.softmax(-1).split([len(of_image) for of_image in proposals]),
            sizes,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return found

    def _refined(self, predictor: Any, predictions: Any, proposals: Any) -> list[Tensor]:
        """For each image the boxes ``[R, 4]`` of each proposal's class."""
        scores, deltas = predictions
        classes = scores[:, :-1].argmax(1)
        if self.training:
            own = torch.cat([of_image.gt_classes for of_image in proposals])
            classes = torch.where(own < self.num_classes, own, classes)
        numbers = [len(of_image) for of_image in proposals]
        before = torch.cat([of_image.proposal_boxes.tensor for of_image in proposals])
        each = deltas.view(len(deltas), -1, 4)[torch.arange(len(deltas)), classes]
        return list(predictor.box2box_transform.apply_deltas(each, before).split(numbers))

    @staticmethod
    def _losses(stages: list[tuple[Any, Any, Any]]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        storage = get_event_storage()
        for number, (predictor, predictions, proposals) in enumerate(stages):
            with storage.name_scope(f"stage{number}"):
                found = predictor.losses(predictions, proposals)
            losses |= {f"{name}_stage{number}": value for name, value in found.items()}
        return losses
