"""The encoder through MinkowskiEngine, as the authors' released code runs it; for comparison only.

MinkowskiEngine (github.com/NVIDIA/MinkowskiEngine, MIT) is the sparse-convolution library that
FCMAE was released with and that nobody maintains. Where it is installed, ``tools/benchmark.py
encoder`` measures it beside the packed encoder, on the same weights: the stem on the dense image,
then the visible sites as a sparse tensor. GRN's norm is over each image, not over the batch as in
the authors' code, so that the result equals :class:`fcmae.packed.MaskedDenseEncoder`.

Shape suffixes: B image, N visible site of the whole batch, C channel.
"""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from backbones.convnext import STRIDES, Block, ConvNeXt
from backbones.fused import GRN_EPS
from backbones.normalization import GRN
from fcmae.masking import PATCH, check_mask, upsample_mask


def has_minkowski() -> bool:
    """Whether MinkowskiEngine is installed."""
    return importlib.util.find_spec("MinkowskiEngine") is not None


class MinkowskiEncoder(nn.Module):
    """A ConvNeXt V2's stages on MinkowskiEngine's sparse tensors.

    Args:
        encoder: whose weights are used; it stays a submodule and owns all that is trained.
    """

    def __init__(self, encoder: ConvNeXt) -> None:
        super().__init__()
        import MinkowskiEngine

        self.engine: Any = MinkowskiEngine
        self.encoder = encoder
        dims = encoder.size.dims
        self.depthwise = [
            self.engine.MinkowskiChannelwiseConvolution(c, 7, bias=True, dimension=2) for c in dims
        ]
        self.downsample = [
            self.engine.MinkowskiConvolution(
                c_in, c_out, kernel_size=2, stride=2, bias=True, dimension=2
            )
            for c_in, c_out in pairwise(dims)
        ]

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """As :meth:`fcmae.packed.MaskedDenseEncoder.forward`."""
        check_mask(mask, images)
        layers = self.encoder.downsample_layers
        visible = upsample_mask(~mask, PATCH // STRIDES["stage1"])
        sites = visible.nonzero().int().contiguous()
        x = self.engine.SparseTensor(layers[0](images).permute(0, 2, 3, 1)[visible], sites)
        for stage, blocks in enumerate(self.encoder.stages):
            if stage:
                norm, convolution = layers[stage].children()
                assert isinstance(norm, nn.LayerNorm)
                assert isinstance(convolution, nn.Conv2d)
                normed = F.layer_norm(x.F, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
                x = _convolve(self.downsample[stage - 1], convolution, self._with(x, normed))
            for block in blocks.children():
                x = self._block(block, self.depthwise[stage], x, len(images))
        b, i, j = x.C.long().unbind(1)
        stride = PATCH // STRIDES["stage1"]  # coordinates count sites of the first stage
        dense = x.F.new_zeros(*mask.shape, x.F.shape[1])
        return dense.index_put((b, i // stride, j // stride), x.F).permute(0, 3, 1, 2)

    def _with(self, x: Any, features_nc: Tensor) -> Any:
        """The same sites with other features."""
        return self.engine.SparseTensor(
            features_nc,
            coordinate_map_key=x.coordinate_map_key,
            coordinate_manager=x.coordinate_manager,
        )

    def _block(self, block: nn.Module, depthwise: nn.Module, x: Any, images: int) -> Any:
        assert isinstance(block, Block)
        assert isinstance(block.grn, GRN)
        y_nc = block.norm(_convolve(depthwise, block.dwconv, x).F)
        y_nc = F.gelu(block.pwconv1(y_nc))
        image_n = x.C[:, 0].long()
        squares = y_nc.new_zeros(images, y_nc.shape[1]).index_add(0, image_n, y_nc.square())
        g_bc = squares.sqrt()
        n_bc = g_bc / (g_bc.mean(1, keepdim=True) + GRN_EPS)
        gamma, beta = block.grn.gamma.flatten(), block.grn.beta.flatten()
        y_nc = y_nc * (gamma * n_bc + 1)[image_n] + beta
        return self._with(x, x.F + block.pwconv2(y_nc))


def _convolve(layer: nn.Module, convolution: nn.Conv2d, x: Any) -> Any:
    """MinkowskiEngine's layer with the weights of a dense convolution."""
    # [C_out, C_in, k, k] -> [k*k, C_in, C_out], sites down the columns first; depthwise [k*k, C]
    kernel = convolution.weight.transpose(2, 3).flatten(2).permute(2, 1, 0)
    if convolution.groups > 1:
        kernel = kernel.squeeze(1)
    assert convolution.bias is not None
    weights = {"kernel": kernel.contiguous(), "bias": convolution.bias.unsqueeze(0)}
    return functional_call(layer, weights, (x,))
