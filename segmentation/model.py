"""The segmentation model: an encoder with UPerNet's heads, from images to logits and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.convnext import STAGES, ConvNeXt
from segmentation.upernet import IGNORED, SegmentationHeads, UPerNetOptions, resize

STRIDE = 32  # stride of the last stage


class UPerNet(nn.Module):
    """A semantic segmentation model; its parameters are ``backbone.*`` and ``sem_seg_head.*``.

    These are the names of detectron2's ``SemanticSegmentor``, so that files fit both.

    Args:
        encoder: with output norms on all four stages.
        options: options of the heads.
        pixel_mean, pixel_std: of each channel, on the scale of the images.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        encoder: ConvNeXt,
        options: UPerNetOptions,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        assert set(STAGES) <= encoder.out_channels.keys(), "UPerNet reads all four stages"
        self.backbone = encoder
        self.sem_seg_head = SegmentationHeads(encoder.out_channels, options)
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def normalise(self, images: Sequence[Tensor]) -> Tensor:
        """Images ``[C, H, W]`` of any sizes -> one batch ``[B, C, H', W']``.

        They are padded with 0, after normalisation, at the right and below to the largest and to
        multiples of 32, as detectron2 does. transformers and mmsegmentation do not pad; at sizes
        that are multiples of 32 there is no difference.
        """
        height, width = (
            -(-max(image.shape[axis] for image in images) // STRIDE) * STRIDE for axis in (1, 2)
        )
        return torch.stack(
            [
                F.pad(
                    (image.to(self.pixel_mean) - self.pixel_mean) / self.pixel_std,
                    (0, width - image.shape[2], 0, height - image.shape[1]),
                )
                for image in images
            ]
        )

    def forward(self, inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[Tensor]:
        """Losses in training; otherwise logits of each image.

        Args:
            inputs: one dictionary per image: ``image`` ``[C, H, W]``; in training ``labels`` int64
                ``[H, W]``.

        Returns:
            In training ``loss_seg`` and ``loss_aux``; otherwise for each image logits
            ``[K, H, W]`` float32 at the image's own size.
        """
        images = self.normalise([item["image"] for item in inputs])
        features = self.backbone.forward_features(images)
        if self.training:
            labels = torch.stack(
                [
                    F.pad(
                        item["labels"].to(images.device),
                        (
                            0,
                            images.shape[3] - item["labels"].shape[1],
                            0,
                            images.shape[2] - item["labels"].shape[0],
                        ),
                        value=IGNORED,
                    )
                    for item in inputs
                ]
            )
            return self.sem_seg_head.losses(features, labels)
        logits = resize(self.sem_seg_head.logits(features).float(), size=images.shape[2:])
        return [
            found[:, : item["image"].shape[1], : item["image"].shape[2]]
            for found, item in zip(logits, inputs, strict=True)
        ]
