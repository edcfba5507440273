"""The torchvision engine's Mask R-CNN as one graph, without a loop over images.

The PyTorch detector loops over images and classes, and the number of regions varies. Here the same
modules run on dense tensors: candidates have a fixed number of places, and an empty place has the
score -inf. Only the costly parts (ROIAlign and the heads) run on the filled places alone. Batch,
height and width may vary from call to call, and the results equal those of
:class:`detection.engines.torchvision.model.MaskRCNN`.

Ordinary non-maximum suppression becomes one operator for all images and classes (or levels):
ONNX's ``NonMaxSuppression`` is that operator. Soft-NMS decays one score after the other and has no
operator in ONNX: :class:`DetectorGraph` refuses it.

Shape suffixes: B image, P place of a proposal, L level, K class (without background), D place of a
detection, R region in a filled place; g group and n member of one suppression.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import nms

from backbones.errors import InputError
from detection.engines.torchvision.model import MaskRCNN
from detection.engines.torchvision.roi import AlignedRoIPool
from detection.engines.torchvision.rpn import is_nonempty

Suppress = Callable[[Tensor, Tensor, float], Tensor]
EMPTY = float("-inf")
LAST = -1e300  # of the float64 scores: above an empty place, below all others


def suppress_by_torchvision(boxes_gn4: Tensor, scores_gn: Tensor, threshold: float) -> Tensor:
    """Greedy suppression inside each group: bool ``[g, n]``, True = kept.

    Groups are moved apart, in float64, where that rounds nothing.

    Args:
        boxes_gn4: x0, y0, x1, y1 of at least 0.
        scores_gn: -inf where there is no box.
        threshold: the IoU above which the lower score goes.
    """
    groups, members = scores_gn.shape
    step = boxes_gn4.amax().double() + 1
    offset = torch.arange(groups, device=step.device, dtype=step.dtype) * step
    boxes = (boxes_gn4.double() + offset[:, None, None]).reshape(-1, 4)
    scores = scores_gn.reshape(-1).double()
    filled = torch.where(scores > EMPTY)[0]
    # torch.export assumes that nms keeps at least 2 boxes: add 2, far from all others
    apart = boxes.new_tensor([[-3.0, -3.0, -2.0, -2.0], [-6.0, -6.0, -5.0, -5.0]])
    places = torch.cat((filled, torch.arange(2, device=filled.device) + groups * members))
    kept = nms(
        torch.cat((boxes[filled], apart)),
        torch.cat((scores[filled], scores.new_tensor([LAST, LAST]))),
        threshold,
    )
    is_kept = torch.zeros(groups * members + 2, dtype=torch.bool, device=scores.device)
    return is_kept.index_fill(0, places[kept], True)[:-2].view(groups, members)


# The same function as an operator, for which ONNX has one of its own.
suppress = torch.library.custom_op("convnext_detection::suppress", mutates_args=())(
    suppress_by_torchvision
)


@suppress.register_fake
def _(boxes_gn4: Tensor, scores_gn: Tensor, threshold: float) -> Tensor:
    return torch.empty_like(scores_gn, dtype=torch.bool)


class DetectorGraph(nn.Module):
    """A trained detector for ``torch.export``.

    Args:
        model: the detector. In float16 its encoder, pyramid and heads compute in float16; boxes,
            scores, ROIAlign and GRN's statistic stay in float32.
        suppress: one of this module's two, the same function: ``suppress`` for ONNX,
            ``suppress_by_torchvision`` for a program of torch's and torchvision's operators alone.

    Raises:
        InputError: for a detector with soft-NMS.
    """

    def __init__(self, model: MaskRCNN, suppress: Suppress) -> None:
        super().__init__()
        if model.roi_heads.soft_nms:
            raise InputError(
                "soft-NMS cannot be exported: neither ONNX nor torchvision has an operator for it. "
                "Export with ordinary suppression instead: MODEL.ROI_HEADS.SOFT_NMS.ENABLED False"
            )
        self.model = model.eval()
        self.suppress = suppress
        self.dtype = next(model.backbone.parameters()).dtype
        if model.has_mask:
            self.mask_upsampling = upsampling_by_cells(model.roi_heads.mask_predictor.conv5_mask)

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Detect in a batch of images.

        Args:
            images: uint8 ``[B, C, H, W]``; what lies outside of an image's size is not looked at.
            sizes: int64 ``[B, 2]``, height and width of each image in ``images``.

        Returns:
            The detections of all images one after the other, best first in each:
            ``image [R]`` (its index), ``boxes [R, 4]`` (x0, y0, x1, y1 in pixels of ``images``),
            ``scores [R]``, ``labels [R]`` (0 is the first class) and, with a mask head, ``masks
            [R, M, M]`` (probabilities inside of the box).
        """
        pixels = self.normalize_and_pad(images, sizes)
        features = {
            name: level.float()  # ROIAlign's coordinates need float32
            for name, level in self.model.backbone(pixels.to(self.dtype)).items()
        }
        boxes_bp4, logits_bp = self.propose(pixels, features, sizes)
        image, place = torch.where(logits_bp > EMPTY)
        proposals_r4 = boxes_bp4[image, place]
        class_boxes_rk4, scores_rk = self.classify(features, image, proposals_r4, sizes)
        boxes_bd4, scores_bd, labels_bd = self.select(
            class_boxes_rk4, scores_rk, image, place, logits_bp
        )
        image, place = torch.where(scores_bd > EMPTY)
        found = {
            "image": image,
            "boxes": boxes_bd4[image, place],
            "scores": scores_bd[image, place],
            "labels": labels_bd[image, place],
        }
        if self.model.has_mask:
            found["masks"] = self.mask(features, image, found["boxes"], found["labels"])
        return found

    def normalize_and_pad(self, images: Tensor, sizes: Tensor) -> Tensor:
        """``[B, C, H', W']`` of multiples of the coarsest stride, 0 outside of each image."""
        height, width = images.shape[-2:]
        x = (images.to(torch.float32) - self.model.pixel_mean) / self.model.pixel_std
        rows = torch.arange(height, device=x.device) < sizes[:, 0, None]
        columns = torch.arange(width, device=x.device) < sizes[:, 1, None]
        x = torch.where(rows[:, None, :, None] & columns[:, None, None, :], x, 0.0)
        divisor = self.model.backbone.size_divisibility
        return F.pad(x, (0, -width % divisor, 0, -height % divisor))

    def propose(
        self, pixels: Tensor, features: dict[str, Tensor], sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Proposals ``[B, P, 4]`` and their logits ``[B, P]``: top k a level, NMS, top P of all."""
        rpn = self.model.rpn
        maps = [features[name] for name in rpn.in_features]
        logits_of, deltas_of = rpn.head([level.to(self.dtype) for level in maps])
        anchors = rpn.anchor_generator(ImageList(pixels, [(0, 0)]), maps)[0]
        counts = [level[0].numel() for level in logits_of]
        boxes_of, scores_of = [], []
        for logits, deltas, of_level in zip(
            logits_of, deltas_of, anchors.split(counts), strict=True
        ):
            logits_ba = logits.permute(0, 2, 3, 1).flatten(1)
            deltas_ba4 = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            count = rpn._pre_nms_top_n["testing"]
            # a level may have fewer anchors than that: the missing places are empty
            scores_bp, best_bp = F.pad(logits_ba, (0, count), value=EMPTY).topk(count)
            best_bp = best_bp.clamp(max=of_level.shape[0] - 1)
            deltas_bp4 = deltas_ba4.gather(1, best_bp[..., None].expand(-1, -1, 4))
            boxes = rpn.box_coder.decode_single(
                deltas_bp4.reshape(-1, 4), of_level[best_bp].reshape(-1, 4)
            )
            boxes_of.append(boxes.view(-1, count, 4))
            scores_of.append(scores_bp)
        boxes_blp4, scores_blp = torch.stack(boxes_of, 1), torch.stack(scores_of, 1)
        boxes_blp4 = clip(boxes_blp4, sizes[:, None, None])
        usable = boxes_blp4.isfinite().all(-1) & is_nonempty(boxes_blp4) & scores_blp.isfinite()
        return self.best(
            boxes_blp4, torch.where(usable, scores_blp, EMPTY), rpn.nms_thresh,
            rpn._post_nms_top_n["testing"],
        )[:2]  # fmt: skip

    def classify(
        self, features: dict[str, Tensor], image: Tensor, proposals_r4: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Boxes ``[R, K, 4]`` and probabilities ``[R, K]`` of every proposal and class."""
        heads = self.model.roi_heads
        pooled, rows = self.pool(heads.box_roi_pool, features, image, proposals_r4)
        logits, deltas = (
            in_rows(values, rows, proposals_r4)
            for values in heads.box_predictor(heads.box_head(pooled))
        )
        boxes = heads.box_coder.decode_single(deltas, proposals_r4)
        boxes = boxes.view(boxes.shape[0], -1, 4)
        scores = logits.softmax(-1)
        finite = boxes.isfinite().flatten(1).all(1) & scores.isfinite().all(1)
        scores = torch.where(finite[:, None], scores, EMPTY)
        return clip(boxes[:, 1:], sizes[image][:, None]), scores[:, 1:]

    def select(
        self,
        class_boxes_rk4: Tensor,
        scores_rk: Tensor,
        image: Tensor,
        place: Tensor,
        logits_bp: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes ``[B, D, 4]``, scores and labels ``[B, D]``: threshold, NMS a class, best D."""
        heads = self.model.roi_heads
        scores_rk = torch.where(scores_rk > heads.score_thresh, scores_rk, EMPTY)
        classes = scores_rk.shape[1]
        boxes_bpk4 = class_boxes_rk4.new_zeros(*logits_bp.shape, classes, 4)
        scores_bpk = torch.full_like(boxes_bpk4[..., 0], EMPTY)
        boxes_bpk4 = boxes_bpk4.index_put((image, place), class_boxes_rk4)
        scores_bpk = scores_bpk.index_put((image, place), scores_rk)
        return self.best(
            boxes_bpk4.transpose(1, 2), scores_bpk.transpose(1, 2), heads.nms_thresh,
            heads.detections_per_img,
        )  # fmt: skip

    def best(
        self, boxes: Tensor, scores: Tensor, threshold: float, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Suppress inside each group of each image, then take the best of its groups together.

        Args:
            boxes: ``[B, groups, n, 4]``.
            scores: ``[B, groups, n]``, -inf in empty places.
            threshold: see :func:`suppress_by_torchvision`.
            count: how many to take; all if negative.

        Returns:
            Boxes ``[B, places, 4]``, scores ``[B, places]`` and the index of the group
            ``[B, places]``, best first, empty places last.
        """
        groups, members = scores.shape[1:]
        places = groups * members if count < 0 else min(count, groups * members)
        boxes = torch.where((scores > EMPTY)[..., None], boxes, 0.0)
        kept = self.suppress(boxes.flatten(0, 1), scores.flatten(0, 1), threshold)
        scores = torch.where(kept.view(scores.shape), scores, EMPTY).flatten(1)
        scores, at = scores.topk(places)
        boxes = boxes.flatten(1, 2).gather(1, at[..., None].expand(-1, -1, 4))
        return boxes, scores, at // members

    def mask(
        self, features: dict[str, Tensor], image: Tensor, boxes_r4: Tensor, labels_r: Tensor
    ) -> Tensor:
        """Probabilities ``[R, M, M]``."""
        heads = self.model.roi_heads
        pooled, rows = self.pool(heads.mask_roi_pool, features, image, boxes_r4)
        cells = self.mask_upsampling(heads.mask_head(pooled)).relu()  # [R, 4 C, M / 2, M / 2]
        last, labels = heads.mask_predictor.mask_fcn_logits, labels_r[rows] + 1
        weights_r1c, bias_r11 = last.weight[labels, :, 0, 0][:, None], last.bias[labels, None, None]
        side = cells.shape[-1]
        logits = weights_r1c @ cells.reshape(-1, last.in_channels, 4 * side * side) + bias_r11
        masks = F.pixel_shuffle(logits.view(-1, 4, side, side), 2)[:, 0].float().sigmoid()
        return in_rows(masks, rows, boxes_r4)

    def pool(
        self, pooler: AlignedRoIPool, features: dict[str, Tensor], image: Tensor, boxes_r4: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Regions ``[R, C, S, S]`` level after level, and the row of ``boxes_r4`` of each ``[R]``.

        They are not put back into the order of ``boxes_r4`` here: the heads' outputs are smaller to
        move.
        """
        levels, regions_r5 = pooler.levels(boxes_r4), regions(image, boxes_r4)
        rows_of = [torch.where(levels == index)[0] for index in range(len(pooler.strides))]
        pooled = [
            pooler.align(features[name], regions_r5[rows], stride)
            for (name, stride), rows in zip(pooler.strides.items(), rows_of, strict=True)
        ]
        return torch.cat(pooled).to(self.dtype), torch.cat(rows_of)


def upsampling_by_cells(up: nn.ConvTranspose2d) -> nn.Conv2d:
    """A transposed 2x2 convolution of stride 2 as a 1x1 convolution to the 4 pixels of each cell.

    The channels of its output are those of ``torch.pixel_shuffle``. Its products overlap nowhere,
    and unlike a transposed convolution it runs in int8.
    """
    cells = nn.Conv2d(up.in_channels, 4 * up.out_channels, 1).to(up.weight)
    assert up.bias is not None
    with torch.no_grad():
        cells.weight.copy_(up.weight.permute(1, 2, 3, 0).reshape(cells.weight.shape))
        cells.bias.copy_(up.bias.repeat_interleave(4))  # type: ignore[union-attr]
    return cells


def in_rows(values: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """``values [R, ...]`` moved to the given rows, as many as ``like`` has; float32."""
    empty = like.new_zeros(like.shape[0], *values.shape[1:])
    return empty.index_put((rows,), values.to(like.dtype))


def regions(image: Tensor, boxes_r4: Tensor) -> Tensor:
    """``[R, 5]`` as :meth:`AlignedRoIPool.align` takes them."""
    return torch.cat((image[:, None].to(boxes_r4.dtype), boxes_r4), 1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes ``[..., 4]`` cut at images of ``sizes [..., 2]`` (height, width; broadcast)."""
    limits = sizes.flip(-1).to(boxes.dtype)
    return boxes.clamp(min=0).minimum(torch.cat((limits, limits), -1))
