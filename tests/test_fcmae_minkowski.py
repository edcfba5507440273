from __future__ import annotations

import pytest
import torch

from backbones.convnext import build_convnext
from fcmae.masking import random_mask
from fcmae.minkowski import MinkowskiEncoder, has_minkowski
from fcmae.packed import MaskedDenseEncoder


@pytest.mark.skipif(not has_minkowski(), reason="MinkowskiEngine is not installed")
def test_minkowski_route_equals_masked_dense_so_that_the_benchmark_compares_like_with_like():
    torch.manual_seed(0)
    encoder = build_convnext("convnextv2_atto")
    for name, parameter in encoder.named_parameters():
        if "grn" in name:
            torch.nn.init.normal_(parameter)
    images, mask = torch.randn(2, 3, 96, 128), random_mask(2, (3, 4), 0.6)
    results = []
    for variant in (MaskedDenseEncoder(encoder), MinkowskiEncoder(encoder)):
        encoder.zero_grad()
        output = variant(images, mask)
        output.square().mean().backward()
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        results.append([output.detach(), *[g.clone() for g in gradients]])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
