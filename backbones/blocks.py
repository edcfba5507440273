"""The parts of a ConvNeXt: block, downsampling, norm and initialisation.

``Block.mix_channels`` accepts any ``[B, ..., C]``, so that the packed encoder of ``fcmae.packed``
can run the same modules on the visible sites only. Sources and licences: :mod:`backbones.convnext`.

Shape suffixes: B batch, C channels, H/W height and width of a stage.
"""

from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from backbones.kernels import products_are_fused
from backbones.kernels.fused import depthwise_convolution, gelu_grn, gelu_grn_runs
from backbones.normalization import (
    GRN,
    NORM_EPS,
    Convolve,
    GRNOptions,
    NoResponseNorm,
    build_response_norm,
    convolve_map,
)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of an NCHW tensor, computed on its channels-last view."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPS)

    def forward(self, x_nchw: Tensor) -> Tensor:
        return super().forward(x_nchw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, 1x1 to 4C, GELU, GRN (V2), 1x1 to C, layer scale (V1)."""

    gamma: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        version: int = 2,
        drop_path: float = 0.0,
        grn: GRNOptions | None = None,
        layer_scale: float = 1e-6,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(
            channels, channels, 7, padding=3 * dilation, dilation=dilation, groups=channels
        )
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.grn = build_response_norm(4 * channels, grn) if version == 2 else NoResponseNorm()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        if version == 1:
            self.gamma = nn.Parameter(layer_scale * torch.ones(channels))
        else:
            self.register_parameter("gamma", None)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def mix_channels(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """The residual branch after the depthwise convolution: ``[B, ..., C]`` -> the same.

        ``visible [B, ...]``, if given, limits GRN's statistic to the sites where it is 1.
        """
        return self.mix_normalised_channels(self.norm(x), visible)

    def mix_normalised_channels(
        self, x: Tensor, visible: Tensor | None = None, convolve: Convolve = convolve_map
    ) -> Tensor:
        """:meth:`mix_channels` after its LayerNorm.

        ``convolve`` is used by CBAM, in GRN's place, to convolve maps in the layout of ``x``.
        """
        grn = self._grn_behind_gelu()
        if visible is None and grn is not None and products_are_fused(x):
            from backbones.kernels.triton_mlp import fused_mlp

            return self._scaled(fused_mlp(x, self.pwconv1, grn.gamma, grn.beta, self.pwconv2))
        return self._scaled(self.pwconv2(self._expand(x, visible, convolve)))

    def _expand(
        self, x: Tensor, visible: Tensor | None = None, convolve: Convolve = convolve_map
    ) -> Tensor:
        """``[B, ..., C]`` -> ``[B, ..., 4C]``, the output of GRN."""
        x, grn = self.pwconv1(x), self._grn_behind_gelu()
        if visible is None and grn is not None and gelu_grn_runs(x):
            return gelu_grn(x, grn.gamma, grn.beta)
        return self.grn(self.act(x), visible, convolve)

    def _scaled(self, x: Tensor) -> Tensor:
        """Layer scale (V1) and drop path."""
        if self.gamma is not None:
            x = self.gamma * x
        return self.drop_path(x)

    def _grn_behind_gelu(self) -> GRN | None:
        """``grn``, if one function may replace ``act`` and it, because no hook is set on them."""
        if (
            isinstance(self.grn, GRN)
            and self.grn.options == GRNOptions()
            and isinstance(self.act, nn.GELU)
            and self.act.approximate == "none"
            and not any(
                module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                for module in (self.pwconv1, self.act, self.grn)
            )
        ):
            return self.grn
        return None

    def forward(self, x_nchw: Tensor) -> Tensor:
        y_nhwc = depthwise_convolution(self.dwconv, x_nchw).permute(0, 2, 3, 1)
        return x_nchw + self.mix_channels(y_nhwc).permute(0, 3, 1, 2)

    def forward_at(self, x_nchw: Tensor, sites: Tensor) -> Tensor:
        """The output of :meth:`forward` at some sites only, ``[N, C]``.

        Only the last product is saved at the other sites, because GRN's statistic needs all sites.

        Args:
            sites: their indices ``[N]`` in the flattened ``[B, H, W]``.
        """
        assert isinstance(self.drop_path, nn.Identity)  # drop path would need whole images
        y_nhwc = depthwise_convolution(self.dwconv, x_nchw).permute(0, 2, 3, 1)
        expanded = self._expand(self.norm(y_nhwc))
        x, y = (
            t.flatten(0, 2).index_select(0, sites) for t in (x_nchw.permute(0, 2, 3, 1), expanded)
        )
        return x + self._scaled(self.pwconv2(y))


class Downsampling(nn.Conv2d):
    """The 2x2 convolution before a stage; before a dilated stage it keeps the map's size.

    In that case its output, at every second site, equals that with stride 2 (à trous).
    """

    def __init__(self, c_in: int, c_out: int, dilation: int) -> None:
        """``dilation`` is that of the following stage, 1 for an ordinary stage."""
        margin = dilation // 2
        stride = 1 if margin else 2
        super().__init__(c_in, c_out, kernel_size=2, stride=stride, dilation=max(1, margin))
        self.margin = margin

    def forward(self, x_nchw: Tensor) -> Tensor:
        if self.margin:
            x_nchw = nn.functional.pad(x_nchw, (0, self.margin, 0, self.margin))
        return super().forward(x_nchw)


def init_weights(module: nn.Module) -> None:
    """The authors' initialisation: truncated normal of std 0.02, biases 0; for ``Module.apply``."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
