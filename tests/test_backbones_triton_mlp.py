"""The fused products in Triton's interpreter (or on a GPU) against the modules' own autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backbones.convnext import Block
from backbones.kernels import stock_operators, use_kernels, why_no_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROBLEM = why_no_triton(DEVICE)
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


def block_of(channels: int) -> Block:
    torch.manual_seed(0)
    block = Block(channels).to(DEVICE)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def with_gradients(block: Block, x: torch.Tensor, cotangent: torch.Tensor) -> list[torch.Tensor]:
    parts = (block.pwconv1, block.grn, block.pwconv2)
    parameters = [parameter for part in parts for parameter in part.parameters()]
    y = block.mix_normalised_channels(x)
    gradients = torch.autograd.grad((y * cotangent).sum(), [x, *parameters])
    return [y, *gradients]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("shape", "channels"), [((2, 1, 1), 4), ((2, 5, 3), 8), ((1, 9, 8), 20), ((3, 19, 1, 1), 12)]
)
def test_fused_products_equal_the_modules_with_every_gradient(shape, channels, dtype):
    block = block_of(channels).to(dtype)
    x = torch.randn(*shape, channels, device=DEVICE, dtype=dtype, requires_grad=True)
    cotangent = torch.randn_like(x)
    exact = x.detach().double().requires_grad_()
    with use_kernels("fused"):
        found = with_gradients(block, x, cotangent)
    with stock_operators():
        expected = with_gradients(block.double(), exact, cotangent.double())
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert a.shape == b.shape
        error = (a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3)
        assert error < TOLERANCE[dtype]


def test_under_autocast_the_products_are_in_its_type_and_weights_get_float32_gradients():
    block = block_of(8)
    x = torch.randn(2, 5, 3, 8, device=DEVICE, requires_grad=True)
    cotangent = torch.randn_like(x)
    with use_kernels("fused"), torch.autocast(DEVICE.type, torch.bfloat16):
        found = with_gradients(block, x, cotangent)
    with stock_operators():
        expected = with_gradients(block, x, cotangent)
    assert found[0].dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in found[1:])
    for a, b in zip(found, expected, strict=True):
        assert (a.float() - b).norm() / b.norm() < 0.05


def test_a_dead_channel_and_no_gradients():
    block = block_of(4)
    with torch.no_grad():
        block.pwconv1.weight[3], block.pwconv1.bias[3] = 0, 0
    x = torch.randn(1, 4, 4, 4, device=DEVICE, requires_grad=True)
    with use_kernels("fused"):
        found = with_gradients(block, x, torch.ones_like(x))
        assert all(value.isfinite().all() for value in found)
        with torch.no_grad():
            assert torch.allclose(block.mix_normalised_channels(x), found[0], atol=1e-6)


def test_auto_and_triton_do_not_take_what_was_not_measured(monkeypatch):
    monkeypatch.setattr(
        "backbones.kernels.triton_mlp.FusedMlp.apply", lambda *a: pytest.fail("taken")
    )
    block = block_of(4)
    for choice in ("auto", "triton", "torch"):
        with use_kernels(choice):
            block.mix_normalised_channels(torch.randn(1, 2, 2, 4, device=DEVICE))
