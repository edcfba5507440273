"""The decoders that the paper compares (section 3.1): from an encoder's stages to pixels.

Each takes the last stage, projected to the decoder's width, with mask tokens at removed sites, and
predicts the pixels of every 32x32 patch. The paper only names the decoders, and gives width and
depth of its own choice, one ConvNeXt block of width 512. Everything else follows the designs that
it names:

  * ``convnext``: ConvNeXt V2 blocks at 1/32, and a 1x1 prediction.
  * ``transformer``: MAE's decoder (arXiv 2111.06377): timm's ViT blocks of 32 channels per head,
    fixed 2D sine-cosine positions, a final LayerNorm.
  * ``unet``: three steps up to 1/4. Each is a 2x2 transposed convolution that halves the channels,
    and blocks of that width. Then a 1x1 prediction of 4x4 pixels.
  * ``unet-skips``: the same, with each earlier stage of the encoder added through a 1x1 projection
    (equivalent to a 1x1 convolution of the concatenation). Removed sites get a mask token at each
    scale.

Shape suffixes: b image, c channels, h/w rows and columns of 32x32 patches.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block as TransformerBlock
from torch import Tensor, nn

from backbones.convnext import STRIDES, Block
from backbones.errors import InputError
from fcmae.masking import PATCH, upsample_mask

HEAD_CHANNELS = 32  # MAE's 512 in 16 heads
UP = ("stage3", "stage2", "stage1")
# name of a decoder -> its width must be a multiple of this
DECODERS = {
    "convnext": 1,
    "unet": 2 ** len(UP),
    "unet-skips": 2 ** len(UP),
    "transformer": HEAD_CHANNELS,
}


def check_decoder(kind: str, width: int) -> None:
    """Check a decoder's name and width.

    Raises:
        InputError: if there is no such decoder of this width.
    """
    if kind not in DECODERS:
        raise InputError(f"decoder is {kind!r}; allowed: {', '.join(DECODERS)}")
    if width % DECODERS[kind]:
        raise InputError(
            f"decoder_dim is {width}; the {kind} decoder needs a multiple of {DECODERS[kind]}"
        )


class Transformer(nn.Module):
    """MAE's decoder on a map: ``[B, C, h, w]`` -> the same."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        heads = width // HEAD_CHANNELS
        self.blocks = nn.Sequential(
            *[TransformerBlock(width, heads, mlp_ratio=4, qkv_bias=True) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x_bchw: Tensor) -> Tensor:
        b, c, h, w = x_bchw.shape
        positions = build_sincos2d_pos_embed([h, w], dim=c, device=x_bchw.device)
        tokens_blc = x_bchw.flatten(2).transpose(1, 2) + positions.to(x_bchw.dtype)
        tokens_blc = self.norm(self.blocks(tokens_blc))
        return tokens_blc.transpose(1, 2).reshape(b, c, h, w)


class UNet(nn.Module):
    """From 1/32 to 1/4: ``[B, C, h, w]`` -> ``[B, C / 8, 8h, 8w]``.

    Args:
        width: C.
        depth: ConvNeXt V2 blocks at each scale, 1/32 included.
        skips: stage name -> channels, for the encoder's stages that are added; empty for none.
        mask_tokens: whether to put a mask token at the removed sites of each added stage.
    """

    def __init__(self, width: int, depth: int, skips: Mapping[str, int], mask_tokens: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.up, self.up_blocks = nn.ModuleDict(), nn.ModuleDict()
        self.skips, self.mask_tokens = nn.ModuleDict(), nn.ParameterDict()
        for name in UP:
            self.up[name] = nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2)
            width //= 2
            self.up_blocks[name] = nn.Sequential(*[Block(width) for _ in range(depth)])
            if name in skips:
                self.skips[name] = nn.Conv2d(skips[name], width, kernel_size=1)
                if mask_tokens:
                    self.mask_tokens[name] = new_mask_token(width)

    def forward(self, x_bchw: Tensor, features: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        x = self.blocks(x_bchw)
        for name in UP:
            x = self.up[name](x)
            if name in self.skips:
                skip = self.skips[name](features[name])
                if name in self.mask_tokens:
                    removed = upsample_mask(mask, PATCH // STRIDES[name]).unsqueeze(1)
                    skip = torch.where(removed, self.mask_tokens[name].to(skip.dtype), skip)
                x = x + skip
            x = self.up_blocks[name](x)
        return x


def new_mask_token(channels: int) -> nn.Parameter:
    """A learnt vector for removed sites, ``[1, C, 1, 1]``."""
    return nn.Parameter(nn.init.normal_(torch.empty(1, channels, 1, 1), std=0.02))
