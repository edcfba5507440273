"""torchvision's box and mask heads, overridden where they differ from detectron2's.

  * ROIAlign is ``aligned`` (no half-pixel shift), and its level rule has the epsilon inside the
    logarithm.
  * no detection is dropped for being small; boxes are clipped again after rescaling.
  * box loss: L1 over *all* sampled regions; mask targets are cut at >= 0.5 after ROIAlign.
  * masks are pasted by sampling them at pixel centres and cutting at >= 0.5.

Labels are torchvision's: 0 is background, class k of the data set is label k + 1.

References:
    "Mask R-CNN" (arXiv 1703.06870). torchvision (BSD-3), ``models/detection/roi_heads.py``;
    detectron2 (Apache-2.0), ``modeling/roi_heads``, ``layers/mask_ops.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign, batched_nms, clip_boxes_to_image, roi_align

from detection.engines.masks import paste_masks
from detection.engines.torchvision.rpn import is_nonempty
from detection.suppression.soft_nms import SoftNMS

CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # FPN paper (arXiv 1612.03144), Eq. 1


class AlignedRoIPool(MultiScaleRoIAlign):
    """ROIAlign without the half-pixel shift, over the levels of a pyramid.

    Args:
        strides: of the levels, by name, ascending by powers of 2.
        sampling_ratio: samples a bin and direction; 0 adapts to the region's size.
    """

    def __init__(self, strides: dict[str, int], output_size: int, sampling_ratio: int) -> None:
        super().__init__(list(strides), output_size, sampling_ratio)
        self.strides = dict(strides)

    def levels(self, boxes: Tensor) -> Tensor:
        """Which level each box ``[R, 4]`` is pooled from, as an index into the strides."""
        strides = list(self.strides.values())
        low, high = strides[0].bit_length() - 1, strides[-1].bit_length() - 1
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = torch.floor(CANONICAL_LEVEL + torch.log2(sides / CANONICAL_SIZE + 1e-8))
        return level.clamp(low, high).to(torch.int64) - low

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Features ``[B, C, H, W]`` by level, boxes ``[R_i, 4]`` by image -> ``[R, C, S, S]``."""
        counts = torch.tensor([len(b) for b in boxes], device=boxes[0].device)
        image_of = torch.arange(len(boxes), device=boxes[0].device).repeat_interleave(counts)
        return self.pool(
            x, torch.cat((image_of[:, None].to(boxes[0].dtype), torch.cat(boxes)), dim=1)
        )

    def pool(self, x: dict[str, Tensor], rois: Tensor) -> Tensor:
        """As :meth:`forward`, for rows ``[R, 5]`` of (index of the image, x0, y0, x1, y1)."""
        levels = self.levels(rois[:, 1:])
        first = x[self.featmap_names[0]]
        pooled = first.new_zeros(rois.shape[0], first.shape[1], *self.output_size)
        for index, (name, stride) in enumerate(self.strides.items()):
            here = torch.where(levels == index)[0]
            # in place: no copy of all regions a level
            pooled.index_put_((here,), self.align(x[name], rois[here], stride))
        return pooled

    def align(self, level: Tensor, rois: Tensor, stride: int) -> Tensor:
        """Rows of :meth:`pool` out of one level ``[B, C, H, W]``."""
        size, ratio = self.output_size, self.sampling_ratio
        return roi_align(level, rois.to(level.dtype), size, 1 / stride, ratio, aligned=True)


class MaskRoIHeads(RoIHeads):
    """torchvision's ``RoIHeads`` with detectron2's selection and losses, and perhaps soft-NMS."""

    def __init__(self, *args: Any, soft_nms: SoftNMS | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.soft_nms = soft_nms

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Losses in training, detections (boxes, labels, scores, 28x28 masks) otherwise."""
        if self.training:
            assert targets is not None
            return [], self.losses(features, proposals, image_shapes, targets)
        boxes, scores, labels = self.postprocess_detections(
            *self.predict_boxes(features, proposals, image_shapes), proposals, image_shapes
        )
        detections = [
            {"boxes": b, "scores": s, "labels": n}
            for b, s, n in zip(boxes, scores, labels, strict=True)
        ]
        if self.has_mask():
            masks = self.predict_masks(features, boxes, image_shapes, torch.cat(labels)).sigmoid()
            for detection, m in zip(detections, masks.split([len(b) for b in boxes]), strict=True):
                detection["masks"] = m
        return detections, {}

    def predict_boxes(self, features, proposals, image_shapes) -> tuple[Tensor, Tensor]:
        """Class logits ``[R, K + 1]`` and box deltas ``[R, 4 (K + 1)]``, float32."""
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return logits.float(), deltas.float()

    def predict_masks(self, features, boxes, image_shapes, labels: Tensor) -> Tensor:
        """Mask logits ``[R, M, M]``, float32: of each box the channel of its label.

        The memory of an inference is highest in the predictor, so the pooled regions have no name
        that would hold them until then.
        """
        logits = self.mask_predictor(
            self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))
        ).float()
        return logits[torch.arange(len(labels), device=labels.device), labels]

    def losses(self, features, proposals, image_shapes, targets) -> dict[str, Tensor]:
        """``loss_cls``, ``loss_box_reg`` and, with a mask head, ``loss_mask``."""
        boxes, matched, labels_of, deltas_of = self.select_training_samples(proposals, targets)
        logits, deltas = self.predict_boxes(features, boxes, image_shapes)
        labels = torch.cat(labels_of)
        foreground = torch.where(labels > 0)[0]
        box_loss = F.l1_loss(
            deltas.view(len(labels), -1, 4)[foreground, labels[foreground]],
            torch.cat(deltas_of)[foreground],
            reduction="sum",
        )
        losses = {
            "loss_cls": F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1),
            "loss_box_reg": box_loss / max(len(labels), 1),
        }
        if self.has_mask():
            of_objects = [n > 0 for n in labels_of]
            boxes = [b[keep] for b, keep in zip(boxes, of_objects, strict=True)]
            matched = [m[keep] for m, keep in zip(matched, of_objects, strict=True)]
            logits = self.predict_masks(features, boxes, image_shapes, labels[foreground])
            wanted = torch.cat(
                [
                    mask_targets(target["masks"], index, b, logits.shape[-1])
                    for target, index, b in zip(targets, matched, boxes, strict=True)
                ]
            )
            loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
            losses["loss_mask"] = loss / max(wanted.numel(), 1)
        return losses

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Threshold, non-maximum suppression a class, the best of each image.

        Returns:
            For each image boxes ``[D, 4]`` inside it, scores ``[D]``, labels ``[D]``, best first.
        """
        counts = [len(p) for p in proposals]
        boxes_of = self.box_coder.decode(box_regression, proposals).reshape(*class_logits.shape, 4)
        scores_of = class_logits.softmax(-1)
        results = []
        for boxes, scores, shape in zip(
            boxes_of.split(counts), scores_of.split(counts), image_shapes, strict=True
        ):
            finite = torch.isfinite(boxes).flatten(1).all(1) & torch.isfinite(scores).all(1)
            boxes, scores = clip_boxes_to_image(boxes[finite, 1:], shape), scores[finite, 1:]
            region, category = torch.where(scores > self.score_thresh)
            boxes, scores = boxes[region, category], scores[region, category]
            if self.soft_nms:
                keep, scores = self.soft_nms(boxes, scores, category, self.detections_per_img)
            else:
                keep = batched_nms(boxes, scores, category, self.nms_thresh)
                if self.detections_per_img >= 0:
                    keep = keep[: self.detections_per_img]
                scores = scores[keep]
            results.append((boxes[keep], scores, category[keep] + 1))
        best_boxes, best_scores, labels = map(list, zip(*results, strict=True))
        return best_boxes, best_scores, labels


def mask_targets(masks: Tensor, index: Tensor, boxes: Tensor, size: int) -> Tensor:
    """What the mask head should predict: objects' masks, cut out by boxes.

    Args:
        masks: bitmaps of an image's objects, ``[N, H, W]``.
        index: which object each box belongs to, ``[R]``.
        boxes: ``[R, 4]`` in pixels.
        size: side of the head's output.

    Returns:
        ``[R, size, size]``, 0 or 1, float32.
    """
    rois = torch.cat((index[:, None].to(boxes.dtype), boxes), dim=1)
    crops = roi_align(masks[:, None].to(boxes.dtype), rois, (size, size), 1.0, 0, aligned=True)
    return (crops[:, 0] >= 0.5).to(torch.float32)


def rescale_detections(
    detections: dict[str, Tensor],
    input_size: tuple[int, int],
    output_size: tuple[int, int],
    paste: bool = True,
) -> dict[str, Tensor]:
    """One image's detections in the pixels of the original image.

    Args:
        detections: boxes, scores, labels and, with a mask head, masks ``[D, M, M]``.
        input_size, output_size: (height, width) that the model saw, and of the original image.
        paste: masks of the image, bool ``[D, H, W]``; else they stay ``[D, M, M]``.

    Returns:
        The same keys, boxes scaled, then clipped, empty ones removed.
    """
    (h_in, w_in), (h_out, w_out) = input_size, output_size
    x_scale, y_scale = w_out / w_in, h_out / h_in
    boxes = detections["boxes"] * detections["boxes"].new_tensor([x_scale, y_scale] * 2)
    boxes = clip_boxes_to_image(boxes, output_size)
    keep = is_nonempty(boxes)
    result = {name: value[keep] for name, value in (detections | {"boxes": boxes}).items()}
    if paste and "masks" in result:
        result["masks"] = paste_masks(result["masks"], result["boxes"], output_size)
    return result
