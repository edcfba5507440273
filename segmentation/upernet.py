"""UPerNet on a ConvNeXt: a class for every pixel.

UPerNet is "Unified Perceptual Parsing for Scene Understanding" (arXiv 1807.10221): pyramid pooling
(arXiv 1612.01105) on the last stage, a feature pyramid over all four, one prediction at stride 4.
The ConvNeXt papers add an auxiliary FCN head on stage 3, only for training. This is an
independent implementation in plain PyTorch under Apache-2.0; with equal weights its logits are
those of transformers' ``UperNetForSemanticSegmentation`` and of mmsegmentation's ``UPerHead``.
Parameter names of the heads are mmsegmentation's (Apache-2.0), so that its checkpoints load.

Deliberate deviations from mmsegmentation:
  * the loss is the mean over the pixels that have a class, as in detectron2 and transformers;
    mmsegmentation divides by all pixels, the ignored ones included;
  * for a batch without any such pixel the loss is 0, not NaN.

Shape suffixes: B batch, C channels, K classes, H/W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.convnext import STAGES

IGNORED = 255  # the label of pixels without a class
Norm = Literal["BN", "SyncBN", "GN"]
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "GN": partial(nn.GroupNorm, 32),
}

resize = partial(F.interpolate, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class UPerNetOptions:
    """Options of the heads; the defaults are the ConvNeXt papers'."""

    num_classes: int  # K
    channels: int = 512  # of every map of the main head
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)  # sides of the pooled maps of the last stage
    # fraction of a head's channels that are dropped before its prediction, in training
    dropout: float = 0.1
    # the norm after each convolution: "BN"; "SyncBN", over all processes; or "GN", which does not
    # depend on the batch and suits one or two images per step
    norm: Norm = "BN"
    aux_channels: int = 256  # channels of the auxiliary head on stage 3; 0 builds none
    aux_weight: float = 0.4  # weight of its loss


class ConvNorm(nn.Sequential):
    """Convolution, norm and ReLU, named ``conv``, ``bn`` (whatever norm it is), ``activate``."""

    def __init__(self, c_in: int, c_out: int, kernel: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
        self.bn = NORMS[norm](c_out)
        self.activate = nn.ReLU()
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")


class Prediction(nn.Module):
    """The end of both heads: dropout of whole channels and a 1x1 convolution to K classes."""

    def __init__(self, channels: int, options: UPerNetOptions) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(options.dropout)
        self.conv_seg = nn.Conv2d(channels, options.num_classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        assert self.conv_seg.bias is not None
        nn.init.zeros_(self.conv_seg.bias)

    def predict(self, x_nchw: Tensor) -> Tensor:
        return self.conv_seg(self.dropout(x_nchw))


class UPerHead(Prediction):
    """Four stages -> logits at stride 4.

    Args:
        in_channels: of the stages, ascending in stride.
    """

    def __init__(self, in_channels: Sequence[int], options: UPerNetOptions) -> None:
        channels, norm = options.channels, options.norm
        super().__init__(channels, options)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(s), ConvNorm(in_channels[-1], channels, 1, norm))
            for s in options.pool_scales
        )
        pooled = in_channels[-1] + len(options.pool_scales) * channels
        self.bottleneck = ConvNorm(pooled, channels, 3, norm)
        self.lateral_convs = nn.ModuleList(ConvNorm(c, channels, 1, norm) for c in in_channels[:-1])
        self.fpn_convs = nn.ModuleList(
            ConvNorm(channels, channels, 3, norm) for _ in in_channels[:-1]
        )
        self.fpn_bottleneck = ConvNorm(len(in_channels) * channels, channels, 3, norm)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Maps ``[B, C, H/stride, W/stride]`` of the stages -> logits ``[B, K, H/4, W/4]``."""
        # 1. pyramid pooling of the last stage
        last = stages[-1]
        pooled = [resize(pool(last), size=last.shape[2:]) for pool in self.psp_modules]
        top = self.bottleneck(torch.cat([last, *pooled], dim=1))
        # 2. from top to bottom
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, stages[:-1], strict=True)]
        laterals.append(top)
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + resize(laterals[i], size=laterals[i - 1].shape[2:])
        # 3. all levels at stride 4
        levels = [conv(x) for conv, x in zip(self.fpn_convs, laterals[:-1], strict=True)]
        levels.append(top)
        size = levels[0].shape[2:]
        same_size = [levels[0], *(resize(x, size=size) for x in levels[1:])]
        return self.predict(self.fpn_bottleneck(torch.cat(same_size, dim=1)))


class FCNHead(Prediction):
    """The auxiliary head: one 3x3 convolution on stage 3 (arXiv 1411.4038)."""

    def __init__(self, in_channels: int, options: UPerNetOptions) -> None:
        super().__init__(options.aux_channels, options)
        self.convs = nn.Sequential(ConvNorm(in_channels, options.aux_channels, 3, options.norm))

    def forward(self, stage: Tensor) -> Tensor:
        """``[B, C, H/16, W/16]`` -> logits ``[B, K, H/16, W/16]``."""
        return self.predict(self.convs(stage))


class SegmentationHeads(nn.Module):
    """Both heads on the maps of an encoder, with their losses; used by both engines.

    Args:
        in_channels: stage name -> channels, for all four stages.
    """

    def __init__(self, in_channels: Mapping[str, int], options: UPerNetOptions) -> None:
        super().__init__()
        self.options = options
        self.decode_head = UPerHead([in_channels[stage] for stage in STAGES], options)
        self.auxiliary_head = (
            FCNHead(in_channels["stage3"], options) if options.aux_channels else None
        )

    def logits(self, features: Mapping[str, Tensor]) -> Tensor:
        """Stage name -> map, to logits ``[B, K, H/4, W/4]`` of the main head."""
        return self.decode_head([features[stage] for stage in STAGES])

    def losses(
        self,
        features: Mapping[str, Tensor],
        labels_bhw: Tensor,
        class_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``loss_seg`` and, with the auxiliary head, its weighted ``loss_aux``.

        Args:
            labels_bhw: int64 ``[B, H, W]``, ``IGNORED`` where there is no class.
            class_weights: ``[K]``, the weight of each class in the mean over pixels.
        """
        losses = {"loss_seg": pixel_loss(self.logits(features), labels_bhw, class_weights)}
        if self.auxiliary_head is not None:
            loss = pixel_loss(self.auxiliary_head(features["stage3"]), labels_bhw, class_weights)
            losses["loss_aux"] = self.options.aux_weight * loss
        return losses


def pixel_loss(
    logits_bkhw: Tensor, labels_bhw: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """Cross entropy of logits, resized to the labels' size; the mean over pixels with a class."""
    logits = resize(logits_bkhw.float(), size=labels_bhw.shape[-2:])
    total = F.cross_entropy(
        logits, labels_bhw, class_weights, ignore_index=IGNORED, reduction="sum"
    )
    labelled = labels_bhw != IGNORED
    if class_weights is None:
        weight = labelled.sum()
    else:
        weight = class_weights[labels_bhw[labelled]].sum()
    return total / weight.clamp(
        min=torch.finfo(torch.float32).tiny if class_weights is not None else 1
    )
