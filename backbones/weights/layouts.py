"""Converts tensors between the layouts of formats, for :mod:`backbones.key_adapters`."""

from __future__ import annotations

import re
from math import isqrt

import torch
from torch import Tensor

from backbones.errors import InputError


def _is_pointwise(name: str) -> bool:
    return name.endswith((".pwconv1.weight", ".pwconv2.weight"))


def to_our_layout(name: str, tensor: Tensor) -> Tensor:
    if name.endswith((".grn.gamma", ".grn.beta")):
        return tensor.reshape(1, 1, 1, -1)
    if name.endswith(".bias"):
        return tensor.reshape(-1)
    if _is_pointwise(name) and tensor.shape[2:] == (1, 1):
        return tensor.flatten(1)
    if name.endswith(".dwconv.weight") and tensor.ndim == 2:
        return _from_kernel(tensor.unsqueeze(1))
    if re.fullmatch(r"downsample_layers\.[123]\.1\.weight", name) and tensor.ndim == 3:
        return _from_kernel(tensor)
    return tensor


def to_timm_layout(name: str, tensor: Tensor, convolutional: bool) -> Tensor:
    if ".grn." in name:
        return tensor.flatten()
    if _is_pointwise(name) and convolutional:
        return tensor[:, :, None, None]
    return tensor


def to_sparse_layout(name: str, tensor: Tensor) -> Tensor:
    if ".grn." in name:
        return tensor.reshape(1, -1)
    if name.endswith(".dwconv.bias") or re.fullmatch(r"downsample_layers\.[123]\.1\.bias", name):
        return tensor.reshape(1, -1)
    if name.endswith(".dwconv.weight"):
        return _to_kernel(tensor).squeeze(1)
    if re.fullmatch(r"downsample_layers\.[123]\.1\.weight", name):
        return _to_kernel(tensor)
    return tensor


def _from_kernel(kernel_kio: Tensor) -> Tensor:
    """MinkowskiEngine's ``[k*k, C_in, C_out]``, sites by column -> ``[C_out, C_in, k, k]``."""
    sites, c_in, c_out = kernel_kio.shape
    side = isqrt(sites)
    if side * side != sites:
        raise InputError(f"a kernel of {sites} sites is not square")
    return kernel_kio.permute(2, 1, 0).reshape(c_out, c_in, side, side).transpose(2, 3).contiguous()


def _to_kernel(weight_oiyx: Tensor) -> Tensor:
    """The reverse of :func:`_from_kernel`."""
    return weight_oiyx.transpose(2, 3).flatten(2).permute(2, 1, 0).contiguous()


def adapt_stem(weight_oiyx: Tensor, in_chans: int) -> Tensor:
    """Convert a stem's weight to another number of channels, by timm's rule and its reverse.

    For one channel the weights of all channels are summed, so a grey image gives the same as three
    equal channels did. For N channels the weights are repeated in turn and scaled by (old / N), so
    N equal channels give the same. From 3 to N and back to 3 is the identity if N is at least 3.

    Args:
        weight_oiyx: ``[C, old, 4, 4]``.
        in_chans: N.

    References:
        timm (Apache-2.0), ``timm.models.adapt_input_conv``, which begins with 3 channels.
    """
    theirs = weight_oiyx.shape[1]
    if in_chans == theirs:
        return weight_oiyx
    weight = weight_oiyx.float()
    if in_chans == 1:
        adapted = weight.sum(1, keepdim=True)
    else:
        adapted = weight[:, torch.arange(in_chans) % theirs] * (theirs / in_chans)
    return adapted.to(weight_oiyx.dtype)
