"""torchvision's region proposal network, overridden where it differs from detectron2's.

The overrides, each needed to get detectron2's numbers:
  * anchors are not rounded, are float32 under autocast, and their strides are given; torchvision
    infers a stride from image and grid sizes, wrongly at p6 when p5 has an odd side.
  * proposals are ranked and suppressed by logits; sigmoid scores saturate into ties.
  * proposals are kept while both sides are > 0, not > 1e-3.
  * the box loss is L1, and both losses are divided by ``batch_size_per_image * images``, not by
    the number of sampled anchors.

References:
    "Faster R-CNN" (arXiv 1506.01497). torchvision (BSD-3), ``models/detection/rpn.py``;
    detectron2 (Apache-2.0), ``modeling/proposal_generator``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import batched_nms, clip_boxes_to_image


class Anchors(AnchorGenerator):
    """Anchors of given strides, in float32, not rounded.

    Args:
        sizes: for each level the square roots of the anchors' areas, in pixels.
        aspect_ratios: for each level, height / width.
        strides: for each level, pixels from one anchor centre to the next.
        offset: centre of the first anchor, in strides from the image's corner.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float = 0.0,
    ) -> None:
        super().__init__(tuple(map(tuple, sizes)), tuple(map(tuple, aspect_ratios)))
        self.strides = tuple(strides)
        self.offset = offset

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Boxes ``[sizes * ratios, 4]`` around the origin, sizes outer, ratios inner."""
        sides = [
            (math.sqrt(size**2 / ratio), ratio * math.sqrt(size**2 / ratio))
            for size in scales
            for ratio in aspect_ratios
        ]
        boxes = [[-width / 2, -height / 2, width / 2, height / 2] for width, height in sides]
        return torch.tensor(boxes, dtype=dtype, device=device)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """For each image the anchors ``[sum over levels of H * W * A, 4]``, level by level."""
        anchors = []
        for base, stride, feature in zip(
            self.cell_anchors, self.strides, feature_maps, strict=True
        ):
            height, width = feature.shape[-2:]
            x, y = (
                (torch.arange(n, device=feature.device, dtype=torch.float32) + self.offset) * stride
                for n in (width, height)
            )
            y, x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack((x, y, x, y), dim=-1).view(-1, 1, 4)
            anchors.append((shifts + base.to(feature.device)).view(-1, 4))
        return [torch.cat(anchors)] * len(image_list.image_sizes)


class Float32RPNHead(RPNHead):
    """torchvision's head whose outputs are float32 under autocast as well.

    Box decoding and the ranking of logits need the precision.
    """

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


class RPN(RegionProposalNetwork):
    """torchvision's RPN with detectron2's ranking, filters and losses.

    Args:
        in_features: names of the pyramid's levels that it reads.
    """

    def __init__(
        self,
        anchor_generator: Anchors,
        head: nn.Module,
        in_features: Sequence[str],
        **options,
    ) -> None:
        super().__init__(anchor_generator, head, **options)
        self.in_features = tuple(in_features)

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals ``[P, 4]`` of each image, best first; in training the two losses as well."""
        selected = {name: features[name] for name in self.in_features}
        proposals, losses = super().forward(images, selected, targets)
        if losses:
            losses = {
                "loss_rpn_cls": losses["loss_objectness"],
                "loss_rpn_loc": losses["loss_rpn_box_reg"],
            }
        return proposals, losses

    @torch.no_grad()
    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The best of ``proposals [B, anchors, 4]``: top k a level, NMS a level, top k of all.

        Returns:
            For each image boxes ``[P, 4]`` inside it and logits ``[P]``, in descending order.
        """
        logits = objectness.reshape(len(proposals), -1)
        best = self._get_top_n_idx(logits, num_anchors_per_level)
        sizes = torch.tensor(num_anchors_per_level, device=logits.device)
        level_of_anchor = torch.arange(len(sizes), device=logits.device).repeat_interleave(sizes)
        boxes_of, logits_of = [], []
        for image_boxes, image_logits, index, shape in zip(
            proposals, logits, best, image_shapes, strict=True
        ):
            boxes, scores, levels = image_boxes[index], image_logits[index], level_of_anchor[index]
            finite = torch.isfinite(boxes).all(1) & torch.isfinite(scores)
            boxes = clip_boxes_to_image(boxes, shape)
            keep = finite & is_nonempty(boxes)
            boxes, scores, levels = boxes[keep], scores[keep], levels[keep]
            keep = batched_nms(boxes, scores, levels, self.nms_thresh)[: self.post_nms_top_n()]
            boxes_of.append(boxes[keep])
            logits_of.append(scores[keep])
        return boxes_of, logits_of

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Objectness and box loss over the sampled anchors of all images, by a fixed divisor.

        Both are NaN where any prediction is not finite, sampled or not: then the training has
        diverged, and the loop must stop rather than ignore those proposals.
        """
        positive, negative = (torch.cat(masks).bool() for masks in self.fg_bg_sampler(labels))
        sampled = positive | negative
        divisor = self.fg_bg_sampler.batch_size_per_image * len(labels)
        objectness_loss = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], torch.cat(labels)[sampled], reduction="sum"
        )
        box_loss = F.l1_loss(
            pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], reduction="sum"
        )
        diverged = 0 * (objectness.detach().sum() + pred_bbox_deltas.detach().sum())  # 0 or NaN
        return objectness_loss / divisor + diverged, box_loss / divisor + diverged


def is_nonempty(boxes: Tensor) -> Tensor:
    """Whether both sides of each box ``[..., 4]`` (x0, y0, x1, y1) are longer than 0."""
    return ((boxes[..., 2:] - boxes[..., :2]) > 0).all(-1)
