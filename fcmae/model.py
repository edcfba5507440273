"""The fully convolutional masked autoencoder, FCMAE (arXiv 2301.00808, section 3.1).

An independent implementation under Apache-2.0, with the authors' parameter names (``encoder``,
``proj``, ``mask_token``, ``decoder``, ``pred``).

Deliberate deviations from the authors' code (facebookresearch/ConvNeXt-V2):
  * the encoder is a dense ConvNeXt run by ``fcmae.packed``, so there is no second, sparse copy of
    it whose weights need converting; GRN's statistic is per image (see that module's header).
  * weights start with std 0.02 throughout. The authors' outer initialisation draws the
    encoder's again with std 1, which is one cause of the NaNs that users report.
  * any image size in multiples of 32 and any number of channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.convnext import Block, ConvNeXt, init_weights
from backbones.errors import InputError
from fcmae.decoders import UP, Transformer, UNet, check_decoder, new_mask_token
from fcmae.mask_token import MaskTokenEncoder
from fcmae.masking import PATCH, draw_mask, grid_size
from fcmae.packed import ENCODERS, MaskedDenseEncoder, PackedEncoder
from fcmae.packed_mask import PackedMask, plain_mask

MODES = (*ENCODERS, "mask-token")
UNET_PATCH = 4  # a UNet predicts at 1/4
PIXEL_EPS = 1e-6


class FCMAEOutput(NamedTuple):
    """The result of a forward pass.

    Attributes:
        loss: scalar; mean squared error over the pixels of removed patches.
        prediction: ``[B, 32*32*C, H/32, W/32]``; of normalised pixels if the model normalises. 0 at
            visible patches, which the loss does not need; only a UNet predicts them, too.
        mask: bool ``[B, H/32, W/32]``, True = removed.
    """

    loss: Tensor
    prediction: Tensor
    mask: Tensor


def patchify(images: Tensor, side: int = PATCH) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, s*s*C, H/s, W/s]`` of side s, values by (row, column, channel)."""
    b, c, height, width = images.shape
    grid_size(height, width)
    rows, columns = height // side, width // side
    x = images.reshape(b, c, rows, side, columns, side).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(b, side * side * c, rows, columns)


def removed_patches(images: Tensor, mask: Tensor) -> Tensor:
    """The N removed patches of images ``[B, C, H, W]`` as ``[N, 32*32*C]``, see :func:`patchify`.

    Args:
        mask: bool ``[B, H/32, W/32]``, True = removed.
    """
    b, c, height, width = images.shape
    rows, columns = grid_size(height, width)
    x = images.reshape(b, c, rows, PATCH, columns, PATCH).permute(0, 2, 4, 3, 5, 1)
    return x[mask].flatten(1)


def unpatchify(patches: Tensor, side: int = PATCH) -> Tensor:
    """The inverse of :func:`patchify`."""
    b, values, rows, columns = patches.shape
    c = values // side**2
    x = patches.reshape(b, side, side, c, rows, columns).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(b, c, rows * side, columns * side)


class FCMAE(nn.Module):
    """Encoder on visible patches, light decoder, loss on removed ones.

    Args:
        encoder: the ConvNeXt to pretrain; only its stages are used and trained.
        decoder_dim: channels of the decoder (paper, Table 1: 512).
        decoder_depth: its blocks (paper: 1), for a UNet at each scale.
        mask_ratio: fraction of patches removed (paper: 0.6).
        norm_pix_loss: predict pixels normalised per patch (paper: yes).
        encoder_mode: "packed"; "masked-dense" for the reference computation; "mask-token" for
            whole images with a learnt token at removed patches (``fcmae.mask_token``).
        decoder: "convnext", "unet", "unet-skips" or "transformer", see ``fcmae.decoders``.
        patch_size: side of the patches that are removed, a multiple of 32 pixels (paper: 32).

    Raises:
        InputError: for an encoder mode or decoder that does not exist, a width that the decoder
            cannot have, or a mask ratio outside [0, 1).
    """

    def __init__(
        self,
        encoder: ConvNeXt,
        decoder_dim: int = 512,
        decoder_depth: int = 1,
        mask_ratio: float = 0.6,
        norm_pix_loss: bool = True,
        encoder_mode: str = "packed",
        decoder: str = "convnext",
        patch_size: int = PATCH,
    ) -> None:
        super().__init__()
        if encoder_mode not in MODES:
            raise InputError(f"encoder mode is {encoder_mode!r}; allowed: {', '.join(MODES)}")
        check_decoder(decoder, decoder_dim)
        if not 0 <= mask_ratio < 1:
            raise InputError(f"mask ratio is {mask_ratio}; it must be in [0, 1)")
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self.patch_size = patch_size
        self.encoder_mode = encoder_mode
        self.encoder = encoder
        channels, tokens = encoder.out_channels, encoder_mode == "mask-token"
        self.proj = nn.Conv2d(channels["stage4"], decoder_dim, kernel_size=1)
        self.skips = UP if decoder == "unet-skips" else ()
        self.decoder: nn.Module
        pred_dim, pred_side = decoder_dim, PATCH
        if decoder == "convnext":
            self.decoder = nn.Sequential(*[Block(decoder_dim) for _ in range(decoder_depth)])
        elif decoder == "transformer":
            self.decoder = Transformer(decoder_dim, decoder_depth)
        else:
            skips = {name: channels[name] for name in self.skips}
            self.decoder = UNet(decoder_dim, decoder_depth, skips, mask_tokens=not tokens)
            pred_dim, pred_side = decoder_dim // 2 ** len(UP), UNET_PATCH
        self.pred = nn.Conv2d(pred_dim, pred_side**2 * encoder.in_chans, kernel_size=1)
        for module in (self.proj, self.decoder, self.pred):
            module.apply(init_weights)
        # the token is used in the decoder, or already in the encoder
        self.mask_token = None if tokens else new_mask_token(decoder_dim)
        self.input_token = new_mask_token(channels["stage1"]) if tokens else None

    def forward(
        self,
        images: Tensor,
        mask: Tensor | PackedMask | None = None,
        generator: torch.Generator | None = None,
    ) -> FCMAEOutput:
        """Mask, encode, decode and compare.

        Args:
            images: ``[B, C, H, W]``, normalised; H and W multiples of 32.
            mask: bool ``[B, H/32, W/32]``, True = removed, with the packed encoder's tables or
                without; drawn at random when None.
            generator: source of that randomness.

        Raises:
            InputError: for sizes that are no multiple of 32 or a mask that does not fit.
        """
        # 1. remove 60% of the patches, the same number of each image
        if mask is None:
            height, width = images.shape[-2:]
            ratio, patch = self.mask_ratio, self.patch_size
            mask = draw_mask(len(images), (height, width), ratio, patch, generator, images.device)
        # 2. encode what is left
        features = self.forward_encoder(images, mask)
        # 3. decode: project, put the mask token at removed sites, mix, predict their pixels
        removed = plain_mask(mask)
        patches, prediction = self._predict(features, removed)
        # 4. mean squared error on removed patches
        loss = self._loss(images, patches, removed)
        return FCMAEOutput(loss, prediction, removed)

    def forward_encoder(self, images: Tensor, mask: Tensor | PackedMask) -> dict[str, Tensor]:
        """The stages that the decoder takes, by name: ``[B, C, H/stride, W/stride]``."""
        names = ("stage4", *self.skips)
        if self.encoder_mode == "packed":
            return PackedEncoder(self.encoder).features(images, mask, names)
        removed = plain_mask(mask)
        if self.input_token is not None:
            return MaskTokenEncoder(self.encoder, self.input_token).features(images, removed, names)
        return MaskedDenseEncoder(self.encoder).features(images, removed, names)

    def forward_decoder(self, features: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """The encoder's stages -> predicted patches, see :attr:`FCMAEOutput.prediction`."""
        return self._predict(features, mask)[1]

    def _predict(self, features: Mapping[str, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """The N removed patches ``[N, 32*32*C]``, and all as a map.

        The prediction and the last block's last product are six tenths of the decoder's arithmetic.
        They are only computed at removed patches, which saves two fifths of that.
        """
        x = self.proj(features["stage4"])
        if self.mask_token is not None:
            x = torch.where(mask.unsqueeze(1), self.mask_token.to(x.dtype), x)
        if isinstance(self.decoder, UNet):
            small_patches = self.pred(self.decoder(x, features, mask))
            prediction = patchify(unpatchify(small_patches, UNET_PATCH))
            return prediction.permute(0, 2, 3, 1)[mask], prediction
        sites = mask.flatten().nonzero()[:, 0]
        removed_nc = self._decode_at(x, sites)
        patches = F.linear(removed_nc, self.pred.weight.flatten(1), self.pred.bias)
        prediction = patches.new_zeros(mask.numel(), patches.shape[1]).index_copy(0, sites, patches)
        return patches, prediction.unflatten(0, mask.shape).permute(0, 3, 1, 2)

    def _decode_at(self, x_nchw: Tensor, sites: Tensor) -> Tensor:
        """The decoder's output at the N sites, indices in the flattened mask, ``[N, C]``."""
        if isinstance(self.decoder, nn.Sequential) and len(self.decoder):
            *blocks, last = self.decoder.children()
            for block in blocks:
                x_nchw = block(x_nchw)
            assert isinstance(last, Block)
            return last.forward_at(x_nchw, sites)
        return self.decoder(x_nchw).permute(0, 2, 3, 1).flatten(0, 2).index_select(0, sites)

    def normalised(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The target for patches, and the mean and standard deviation that normalised them.

        Args:
            patches: ``[..., 32*32*C]`` of pixels.

        Returns:
            The same shape, and two tensors ``[..., 1]`` (0 and 1 if nothing is normalised), float32
            at least.
        """
        patches = patches.to(torch.promote_types(patches.dtype, torch.float32))
        if not self.norm_pix_loss:
            zero = patches.new_zeros(*patches.shape[:-1], 1)
            return patches, zero, zero + 1
        mean = patches.mean(-1, keepdim=True)
        std = (patches.var(-1, keepdim=True) + PIXEL_EPS).sqrt()
        return (patches - mean) / std, mean, std

    def targets(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The targets for images, see :meth:`normalised`, as maps ``[B, 32*32*C, h, w]``."""
        found = self.normalised(patchify(images).permute(0, 2, 3, 1).contiguous())
        patches, mean, std = (part.permute(0, 3, 1, 2) for part in found)
        return patches, mean, std

    def reconstruction_loss(self, images: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error over removed patches (0 when none is removed)."""
        return self._loss(images, prediction.permute(0, 2, 3, 1)[mask], mask)

    def _loss(self, images: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
        """That loss, from the prediction of the N removed patches, ``[N, 32*32*C]``."""
        if not len(patches):
            return patches.sum().float()  # no patch: torch would warn about the variance
        target, _, _ = self.normalised(removed_patches(images, mask))
        error = (patches.to(target.dtype) - target).square().mean(1)
        return error.sum() / mask.sum().clamp(min=1)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, mask: Tensor, prediction: Tensor) -> Tensor:
        """Images with removed patches replaced by their prediction, ``[B, C, H, W]``.

        If pixels are normalised per patch, the mean and standard deviation of the *original* patch
        bring the prediction back to pixels, as in MAE's and FCMAE's published pictures. So contrast
        and average colour of a removed patch are not predicted, only its content.
        """
        target, mean, std = self.targets(images)
        patches = torch.where(mask.unsqueeze(1), prediction.to(target.dtype), target) * std + mean
        return unpatchify(patches)
