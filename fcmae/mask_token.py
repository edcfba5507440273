"""Runs the encoder on whole masked images, with a learnt token in place of removed patches.

The paper (section 3.1) compares its sparse encoder with this one ("w/o sparse convolution"), which
costs as much as an unmasked image and sees tokens that do not occur after pretraining. As in SimMIM
(arXiv 2111.09886) the token replaces the embeddings, here the stem's output; stem patches of 4x4
pixels never cross a removed patch, so that no removed pixel is seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from backbones.convnext import STRIDES, ConvNeXt
from fcmae.masking import PATCH, check_mask, upsample_mask


class MaskTokenEncoder(nn.Module):
    """Runs an encoder on images whose removed patches are a token.

    Args:
        encoder: the encoder, whose weights are used.
        token: ``[1, C1, 1, 1]``, of the first stage's channels.
    """

    def __init__(self, encoder: ConvNeXt, token: nn.Parameter) -> None:
        super().__init__()
        self.encoder, self.token = encoder, token

    def features(self, images: Tensor, mask: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Images ``[B, C, H, W]`` and mask (True = removed) -> the named stages.

        Returns:
            By name, ``[B, C, H/stride, W/stride]``; removed sites have features like all others.

        Raises:
            ValueError: if the mask does not fit the images.
        """
        check_mask(mask, images)
        x, features = images.contiguous(memory_format=torch.channels_last), {}
        for name, downsample, blocks in zip(
            STRIDES, self.encoder.downsample_layers, self.encoder.stages, strict=True
        ):
            x = downsample(x)
            if name == "stage1":
                removed = upsample_mask(mask, PATCH // STRIDES[name]).unsqueeze(1)
                x = torch.where(removed, self.token.to(x.dtype), x)
            x = blocks(x)
            if name in names:
                features[name] = x
        return features
