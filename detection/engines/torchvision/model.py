"""Mask R-CNN of torchvision's components on a ConvNeXt; it computes the same as detectron2's.

With equal weights (:mod:`detection.engines.renaming` renames them) boxes, scores, masks, losses and
gradients equal those of detectron2's ``GeneralizedRCNN`` with ``backbones.d2_adapter``; the two
modules ``roi`` and ``rpn`` hold the overrides that this takes. Parameter names are torchvision's.

Deliberate deviations from torchvision's ``MaskRCNN``: images are not resized inside the model
(Pillow does it in :mod:`detection.data.transforms`), mean and standard deviation are in 0 to 255,
and fresh heads are initialised as detectron2's.

References:
    torchvision (BSD-3), ``models/detection/mask_rcnn.py``; detectron2 (Apache-2.0),
    ``modeling/meta_arch/rcnn.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from backbones.convnext import build_convnext
from backbones.errors import InputError
from backbones.normalization import GRNOptions
from backbones.pyramid import all_levels_read, plan_pyramid
from detection.engines.torchvision.layers import NORMS, BoxHead, ConvNeXtFPN
from detection.engines.torchvision.roi import AlignedRoIPool, MaskRoIHeads, rescale_detections
from detection.engines.torchvision.rpn import RPN, Anchors, Float32RPNHead
from detection.suppression.soft_nms import SoftNMS
from images.configured import known_statistics


class MaskRCNN(nn.Module):
    """Mask R-CNN; :func:`build_mask_rcnn` makes one from a config.

    An input is a dictionary of one image, as :mod:`detection.data.transforms` makes it: ``image``
    ``[C, H, W]`` in 0 to 255, uint8 or float32; in training ``boxes`` ``[N, 4]`` (x0, y0, x1, y1 in
    pixels), ``labels`` ``[N]`` (0 is the data set's first class) and ``masks`` ``[N, H, W]`` bool;
    in inference ``height`` and ``width`` of the original image.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: ConvNeXtFPN,
        rpn: RPN,
        roi_heads: MaskRoIHeads,
        pixel_mean: list[float],
        pixel_std: list[float],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(
        self, inputs: list[dict[str, Any]], paste: bool = True
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses by name in training; otherwise detections of each image.

        Args:
            paste: masks of the whole image, which take ``D x height x width`` bytes; else they
                stay in their boxes, probabilities ``[D, M, M]``.

        Returns:
            In training ``loss_rpn_cls``, ``loss_rpn_loc``, ``loss_cls``, ``loss_box_reg``,
            ``loss_mask``. Otherwise for each image ``boxes`` ``[D, 4]`` in the original image's
            pixels, ``scores`` ``[D]``, ``labels`` ``[D]`` (0 is the first class) and bool
            ``masks`` ``[D, height, width]``, by descending score.
        """
        images = self.normalize_and_pad([item["image"] for item in inputs])
        targets = None
        if self.training:
            targets = [
                {
                    "boxes": item["boxes"].to(self.pixel_mean),
                    "labels": item["labels"].to(self.pixel_mean.device) + 1,
                    **(
                        {"masks": item["masks"].to(self.pixel_mean.device)} if self.has_mask else {}
                    ),
                }
                for item in inputs
            ]
        features = self.backbone(images.tensors)
        proposals, rpn_losses = self.rpn(images, features, targets)
        detections, roi_losses = self.roi_heads(features, proposals, images.image_sizes, targets)
        if self.training:
            return rpn_losses | roi_losses
        return [
            rescale_detections(
                found | {"labels": found["labels"] - 1},
                size,
                (item["height"], item["width"]),
                paste,
            )
            for found, size, item in zip(detections, images.image_sizes, inputs, strict=True)
        ]

    @property
    def has_mask(self) -> bool:
        """Whether the model predicts masks (``MODEL.MASK_ON``)."""
        return self.roi_heads.has_mask()

    def normalize_and_pad(self, images: list[Tensor]) -> ImageList:
        """One batch of normalised images, padded below and at the right with zeros.

        Height and width become multiples of the pyramid's coarsest stride.
        """
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        divisor = self.backbone.size_divisibility
        height, width = (-(-max(side) // divisor) * divisor for side in zip(*sizes, strict=True))
        normalized = [
            (image.to(self.pixel_mean) - self.pixel_mean) / self.pixel_std for image in images
        ]
        return ImageList(
            torch.stack(
                [
                    F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))
                    for image in normalized
                ]
            ),
            sizes,
        )


def build_mask_rcnn(config: CfgNode) -> MaskRCNN:
    """The detector that a config describes, with fresh weights.

    Args:
        config: as :func:`detection.config.load_config` gives it, with ``NUM_CLASSES`` above 0.

    Raises:
        InputError: for values that torchvision's components do not support.
    """
    model = config.MODEL
    if model.ROI_HEADS.NUM_CLASSES < 1:
        raise InputError(
            "MODEL.ROI_HEADS.NUM_CLASSES is 0: the number of classes comes from the data set "
            "(detection.run resolves it); give it where a model is built without one"
        )
    convnext = model.CONVNEXT
    plan = plan_pyramid(model.FPN.IN_FEATURES, all_levels_read(model))
    body = build_convnext(
        convnext.SIZE,
        in_chans=convnext.IN_CHANS,
        drop_path_rate=convnext.DROP_PATH_RATE,
        out_norms=plan.stages if convnext.OUT_NORMS else (),
        checkpoint_stages=convnext.CHECKPOINT_STAGES,
        grn=GRNOptions.of_config(convnext.GRN),
        last_stage=plan.stages[-1],
    )
    body.freeze(model.BACKBONE.FREEZE_AT)
    backbone = ConvNeXtFPN(body, plan, model.FPN.OUT_CHANNELS, model.FPN.NORM)
    mask_rcnn = MaskRCNN(
        backbone,
        _build_rpn(config, backbone.strides),
        _build_roi_heads(config, backbone.strides),
        *known_statistics(config),
    )
    initialize_heads(mask_rcnn.roi_heads)
    return mask_rcnn


def _build_rpn(config: CfgNode, strides: dict[str, int]) -> RPN:
    options, anchor_options = config.MODEL.RPN, config.MODEL.ANCHOR_GENERATOR
    channels = config.MODEL.FPN.OUT_CHANNELS
    if any(width not in (-1, channels) for width in options.CONV_DIMS):
        raise InputError(
            f"MODEL.RPN.CONV_DIMS is {options.CONV_DIMS}; the torchvision engine keeps the "
            f"channels: use -1 for each convolution, or ENGINE detectron2"
        )
    levels = [strides[name] for name in options.IN_FEATURES]
    sizes, ratios = (
        list(rows) * len(levels) if len(rows) == 1 else list(rows)
        for rows in (anchor_options.SIZES, anchor_options.ASPECT_RATIOS)
    )
    anchors = Anchors(sizes, ratios, levels, anchor_options.OFFSET)
    return RPN(
        anchors,
        Float32RPNHead(channels, anchors.num_anchors_per_location()[0], len(options.CONV_DIMS)),
        options.IN_FEATURES,
        fg_iou_thresh=options.IOU_THRESHOLDS[1],
        bg_iou_thresh=options.IOU_THRESHOLDS[0],
        batch_size_per_image=options.BATCH_SIZE_PER_IMAGE,
        positive_fraction=options.POSITIVE_FRACTION,
        pre_nms_top_n={
            "training": options.PRE_NMS_TOPK_TRAIN,
            "testing": options.PRE_NMS_TOPK_TEST,
        },
        post_nms_top_n={
            "training": options.POST_NMS_TOPK_TRAIN,
            "testing": options.POST_NMS_TOPK_TEST,
        },
        nms_thresh=options.NMS_THRESH,
    )


def _build_roi_heads(config: CfgNode, strides: dict[str, int]) -> MaskRoIHeads:
    options, box, mask = (
        config.MODEL.ROI_HEADS,
        config.MODEL.ROI_BOX_HEAD,
        config.MODEL.ROI_MASK_HEAD,
    )
    channels, classes = config.MODEL.FPN.OUT_CHANNELS, options.NUM_CLASSES + 1
    levels = {name: strides[name] for name in options.IN_FEATURES}
    box_head = BoxHead(
        channels,
        box.POOLER_RESOLUTION,
        [box.CONV_DIM] * box.NUM_CONV,
        [box.FC_DIM] * box.NUM_FC,
        box.NORM,
    )
    mask_parts: dict[str, nn.Module] = {}
    if config.MODEL.MASK_ON:
        convs = [mask.CONV_DIM] * mask.NUM_CONV
        mask_parts = {
            "mask_roi_pool": AlignedRoIPool(
                levels, mask.POOLER_RESOLUTION, mask.POOLER_SAMPLING_RATIO
            ),
            "mask_head": MaskRCNNHeads(channels, convs, 1, NORMS[mask.NORM]),
            "mask_predictor": MaskRCNNPredictor(
                mask.CONV_DIM if convs else channels, mask.CONV_DIM, classes
            ),
        }
    return MaskRoIHeads(
        box_roi_pool=AlignedRoIPool(levels, box.POOLER_RESOLUTION, box.POOLER_SAMPLING_RATIO),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(box_head.out_channels, classes),
        fg_iou_thresh=options.IOU_THRESHOLDS[0],
        bg_iou_thresh=options.IOU_THRESHOLDS[0],
        batch_size_per_image=options.BATCH_SIZE_PER_IMAGE,
        positive_fraction=options.POSITIVE_FRACTION,
        bbox_reg_weights=None,
        score_thresh=options.SCORE_THRESH_TEST,
        nms_thresh=options.NMS_THRESH_TEST,
        detections_per_img=config.TEST.DETECTIONS_PER_IMAGE,
        soft_nms=SoftNMS.from_config(config),
        **mask_parts,
    )


def initialize_heads(heads: MaskRoIHeads) -> None:
    """detectron2's initialisation; torchvision's own is kept where it is the same.

    The rows of the background in the box and mask predictors, which detectron2 does not have,
    are 0. No loss reaches them, so they stay 0 and the two engines' weights map exactly.
    """
    for layer in heads.box_head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=1)
    nn.init.normal_(heads.box_predictor.cls_score.weight, std=0.01)
    nn.init.normal_(heads.box_predictor.bbox_pred.weight, std=0.001)
    without_background = [(heads.box_predictor.bbox_pred.weight, 4)]
    if heads.has_mask():
        predictor = heads.mask_predictor.mask_fcn_logits
        nn.init.normal_(predictor.weight, std=0.001)
        without_background.append((predictor.weight, 1))
    with torch.no_grad():
        for weight, rows in without_background:
            weight[:rows] = 0
    parts = (heads.box_head, heads.box_predictor, heads.mask_head, heads.mask_predictor)
    for part in parts:
        for layer in part.modules() if part is not None else ():
            if (
                isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
                and layer.bias is not None
            ):
                nn.init.zeros_(layer.bias)
