"""The hand-written gradients against autograd's own, in float64 and under autocast."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from backbones.convnext import GRN, Block, ConvNeXt, GRNOptions, Size, build_convnext
from backbones.kernels import stock_operators
from backbones.kernels.fused import (
    BYTES_AT_ONCE,
    depthwise_convolution,
    gelu_grn,
    tiles_of,
)


def gradients(function, inputs, cotangent):
    for tensor in inputs:
        tensor.grad = None
    output = function()
    (output * cotangent).sum().backward()
    return [output.detach(), *[tensor.grad.clone() for tensor in inputs]]


@pytest.mark.parametrize("size", [(20, 33), (14, 14), (5, 3), (31, 16), (1, 1), (56, 56)])
def test_depthwise_gradients_equal_autograds_at_any_size(size):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(6, 6, 7, padding=3, groups=6).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    cotangent = torch.randn(2, 6, *size, dtype=torch.float64)
    inputs = [x, conv.weight, conv.bias]
    expected = gradients(lambda: conv(x), inputs, cotangent)
    actual = gradients(lambda: depthwise_convolution(conv, x), inputs, cotangent)
    for a, b in zip(actual, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-11)


def test_depthwise_gradient_over_several_chunks_equals_autograds():
    channels = 3 * BYTES_AT_ONCE // (4 * 4 * 13 * 13)  # one tile a chunk, five chunks
    conv = torch.nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
    x = torch.randn(5, channels, 7, 7)
    expected = gradients(lambda: conv(x), [conv.weight], 1.0)
    actual = gradients(lambda: depthwise_convolution(conv, x), [conv.weight], 1.0)
    assert torch.allclose(actual[1], expected[1], rtol=1e-4, atol=1e-4)


def test_depthwise_of_a_frozen_kernel_still_passes_gradients_to_its_input():
    conv = torch.nn.Conv2d(4, 4, 7, padding=3, groups=4).requires_grad_(False)
    x = torch.randn(1, 4, 9, 9, requires_grad=True)
    expected = gradients(lambda: conv(x), [x], 1.0)
    actual = gradients(lambda: depthwise_convolution(conv, x), [x], 1.0)
    assert torch.equal(actual[1], expected[1])


def test_gelu_grn_gradients_equal_autograds():
    torch.manual_seed(0)
    grn = GRN(12).double()
    torch.nn.init.normal_(grn.gamma)
    torch.nn.init.normal_(grn.beta)
    h = torch.randn(3, 5, 7, 12, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(h)
    inputs = [h, grn.gamma, grn.beta]
    expected = gradients(lambda: grn(F.gelu(h)), inputs, cotangent)
    actual = gradients(lambda: gelu_grn(h, grn.gamma, grn.beta), inputs, cotangent)
    for a, b in zip(actual, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)


def test_gelu_grn_of_a_dead_channel_has_finite_gradients():
    h = torch.randn(2, 6, 4)
    h[..., 1] = 0
    h.requires_grad_()
    gelu_grn(h, torch.ones(4), torch.zeros(4)).square().sum().backward()
    assert h.grad.isfinite().all()


def test_statistics_of_large_half_precision_activations_do_not_overflow():
    h = torch.full((1, 4096, 8), 200.0, dtype=torch.float16)  # the squares sum to 1.6e8
    grn = GRN(8)
    torch.nn.init.ones_(grn.gamma)
    expected = grn(F.gelu(h.float()))
    assert torch.allclose(gelu_grn(h, grn.gamma, grn.beta).float(), expected, rtol=2e-3)


def test_the_encoder_gives_the_same_with_and_without_gradients(encoder):
    images = torch.randn(1, 3, 64, 96)
    with_gradients = encoder.forward_features(images)["stage4"]
    with torch.no_grad():
        without = encoder.forward_features(images)["stage4"]
    assert torch.allclose(with_gradients, without, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (64, 57), (7, 7)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [BYTES_AT_ONCE, 3 * 2**12])
def test_inference_in_chunks_equals_the_two_modules(size, dtype, chunk, monkeypatch):
    monkeypatch.setattr("backbones.kernels.fused.BYTES_AT_ONCE", chunk)
    torch.manual_seed(0)
    grn = GRN(24).to(dtype)
    torch.nn.init.normal_(grn.gamma)
    torch.nn.init.normal_(grn.beta)
    h = torch.randn(3, *size, 24, dtype=dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    with torch.no_grad():
        expected = grn(F.gelu(h))
        found = gelu_grn(h, grn.gamma, grn.beta)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("shape", [(3, 3, 64, 96), (1, 3, 224, 160)])
def test_an_encoder_without_gradients_equals_its_stock_operators(encoder, shape, mode):
    images = torch.randn(shape)
    before = images.clone()
    with mode():
        found = encoder.forward_features(images)
        with stock_operators():
            expected = encoder.forward_features(images)
    assert torch.equal(images, before)
    for stage, features in found.items():
        torch.testing.assert_close(features, expected[stage], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("watched", ["pwconv1", "act", "grn"])
@pytest.mark.parametrize("gradients", [True, False])
def test_hooks_see_what_the_modules_give(watched, gradients):
    torch.manual_seed(0)
    block = Block(8)
    x = torch.randn(2, 8, 9, 9)
    seen = []
    getattr(block, watched).register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.set_grad_enabled(gradients):
        block(x)
        h = block.pwconv1(block.norm(block.dwconv(x).permute(0, 2, 3, 1)))
        expected = {"pwconv1": h, "act": F.gelu(h), "grn": block.grn(F.gelu(h))}[watched]
    torch.testing.assert_close(seen[0], expected)


def test_another_activation_is_not_taken_for_a_gelu():
    torch.manual_seed(0)
    block = Block(8)
    block.act = torch.nn.ReLU()
    x = torch.randn(2, 4, 4, 8)
    expected = block.pwconv2(block.grn(F.relu(block.pwconv1(x))))
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(block.mix_normalised_channels(x), expected)


def test_other_forms_of_grn_do_not_take_the_fused_path():
    encoder = build_convnext("convnextv2_atto", grn=GRNOptions(aggregate="l1"))
    for name, parameter in encoder.named_parameters():
        if "grn.gamma" in name:
            torch.nn.init.ones_(parameter)
    plain = build_convnext("convnextv2_atto")
    plain.load_state_dict(encoder.state_dict())
    images = torch.randn(1, 3, 64, 64)
    l1 = encoder.forward_features(images)["stage4"]
    l2 = plain.forward_features(images)["stage4"]
    assert not torch.allclose(l1, l2, rtol=1e-2)


def test_bfloat16_gradients_stay_within_its_rounding():
    torch.manual_seed(0)
    encoder = build_convnext("convnextv2_atto")
    images = torch.randn(2, 3, 64, 64)

    def gradient(precision):
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = encoder.forward_features(images)["stage4"].float().square().mean()
        loss.backward()
        return torch.cat([p.grad.flatten() for n, p in encoder.named_parameters() if "dwconv" in n])

    exact, rounded = gradient("fp32"), gradient("bf16")
    assert (rounded - exact).norm() / exact.norm() < 0.05


def test_tiles_with_margin_overlap_their_neighbours():
    x = torch.arange(1 * 10 * 14 * 1).view(1, 10, 14, 1)
    tiles = tiles_of(x, side=4, margin=3)
    assert tiles.shape == (1, 1, 2, 10, 10, 1)
    assert torch.equal(tiles[0, 0, 1], x[0, :10, 4:14])


@pytest.fixture(scope="module")
def encoder():
    """With GRN's gamma and beta away from 0, so that nothing of it is hidden. Tracing and compiling
    cost by the number of blocks: one a stage."""
    torch.manual_seed(0)
    encoder = ConvNeXt(Size((40, 80, 160, 320), (1, 1, 1, 1), 2))
    for name, parameter in encoder.named_parameters():
        if "grn" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return encoder


class Features(torch.nn.Module):
    """An encoder whose outputs are a tuple, as tracing wants them."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images):
        return tuple(self.encoder.forward_features(images).values())


def test_a_trace_with_gradients_on_saves_and_equals_eager_at_other_sizes(encoder, tmp_path):
    model = Features(encoder).eval()
    torch.jit.trace(model, torch.randn(1, 3, 64, 64)).save(tmp_path / "trace.pt")
    traced = torch.jit.load(tmp_path / "trace.pt")
    with torch.no_grad():
        for size in ((64, 64), (96, 64), (128, 160)):
            images = torch.randn(2, 3, *size)
            for found, expected in zip(traced(images), model(images), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradients", [True, False])
def test_exported_programs_and_compiled_models_hold_no_hand_written_gradient(encoder, gradients):
    """``fullgraph`` refuses every graph break."""
    model, images = Features(encoder).eval(), torch.randn(1, 3, 64, 64)
    with torch.set_grad_enabled(gradients):
        expected = model(images)
        exported = torch.export.export(model, (images,)).module()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for found in (exported(images), compiled(images)):
            for a, b in zip(found, expected, strict=True):
                assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_fvcore_counts_the_same_with_and_without_gradients(encoder):
    """Against a count by hand: the multiply-adds of every convolution and linear layer."""
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

    counts = []
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            arguments = (Features(encoder).eval(), torch.zeros(1, 3, 64, 64))
            flops = FlopCountAnalysis(*arguments).unsupported_ops_warnings(False)
            counts.append((flops.total(), ActivationCountAnalysis(*arguments).total()))
    assert counts[0] == counts[1]
    products = 0
    for module_name, module in encoder.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            stride = 4 * 2 ** int(module_name.split(".")[1])
            products += module.weight.numel() * (64 // stride) ** 2
    assert flops.by_operator()["conv"] + flops.by_operator()["linear"] == products


def test_torch_func_and_forward_mode_differentiate_the_encoder(encoder):
    from torch.autograd import forward_ad
    from torch.func import functional_call, grad, jvp, vmap

    model, images = Features(encoder).eval(), torch.randn(2, 3, 32, 32)
    parameters = dict(model.named_parameters())

    def loss(parameters, images):
        return functional_call(model, parameters, (images,))[3].square().mean()

    expected = torch.autograd.grad(loss(parameters, images), list(parameters.values()))
    found = grad(loss)(parameters, images)
    for name, value in zip(parameters, expected, strict=True):
        assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-7), name
    each = vmap(grad(loss), in_dims=(None, 0))(parameters, images.unsqueeze(1))
    stem = "encoder.downsample_layers.0.0.weight"
    assert torch.allclose(each[stem].mean(0), found[stem], rtol=1e-3, atol=1e-7)
    tangent = jvp(lambda x: model(x)[3], (images,), (images,))[1]
    with forward_ad.dual_level():
        dual = model(forward_ad.make_dual(images, images))[3]
        assert torch.allclose(forward_ad.unpack_dual(dual).tangent, tangent, atol=1e-5)


def test_hand_written_gradients_come_back_for_training_after_a_trace(encoder):
    torch.jit.trace(Features(encoder).eval(), torch.zeros(1, 3, 32, 32))
    graph, pending = set(), [encoder.forward_features(torch.zeros(1, 3, 32, 32))["stage4"].grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in graph:
            graph.add(node)
            pending += [following for following, _ in node.next_functions]
    names = {type(node).__name__ for node in graph}
    assert {"_GeluGrnBackward", "_DepthwiseConvolutionBackward"} <= names
