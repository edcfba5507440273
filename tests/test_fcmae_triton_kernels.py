"""The Triton kernels against the stock operators' autograd.

Without a GPU they run in Triton's interpreter (``conftest.py`` asks for it) on toy sizes, and are
compiled for one without being run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbones.convnext import GRN, ConvNeXt, Size, build_convnext
from backbones.kernels import use_kernels, why_no_triton
from backbones.kernels.fused import gelu_grn
from fcmae.masking import random_mask, visible_patches
from fcmae.packed import PackedEncoder
from fcmae.packed_mask import Places

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
PROBLEM = why_no_triton(DEVICE)
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))
if PROBLEM is None:
    from fcmae.kernels import triton_depthwise
    from fcmae.kernels.triton_depthwise import _shared_out, depthwise_norm, neighbouring_blocks

ROOT = Path(__file__).resolve().parent.parent


def relative_errors(actual, expected):
    return [
        ((a.double() - e.double()).abs().max() / e.double().abs().max()).item()
        for a, e in zip(actual, expected, strict=True)
    ]


class DepthwiseNormCase:
    """A convolution with its norm, packed sites and a mask; everything random."""

    def __init__(self, mask, p, channels, dtype=torch.float64):
        torch.manual_seed(0)
        self.mask = mask.to(DEVICE)
        self.patches = visible_patches(self.mask)
        self.conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        for parameter in self.norm.parameters():
            nn.init.normal_(parameter)
        for module in (self.conv, self.norm):
            module.to(DEVICE, torch.float64 if dtype == torch.float64 else torch.float32)
        x = torch.randn(len(self.patches), p, p, channels, device=DEVICE).to(dtype)
        self.x = x.requires_grad_()
        self.cotangent = torch.randn_like(x)

    def with_gradients(self, forward, x):
        parameters = [*self.conv.parameters(), *self.norm.parameters()]
        output = forward(x)
        loss = (output * self.cotangent.to(output.dtype)).sum()
        return [output, *torch.autograd.grad(loss, [x, *parameters])]

    def by_triton(self):
        neighbours = neighbouring_blocks(self.mask, self.patches)
        return self.with_gradients(
            lambda x: depthwise_norm(self.conv, self.norm, x, neighbours), self.x
        )

    def expected(self):
        """Scattered into a dense map, by autograd, in float64."""
        self.conv.double(), self.norm.double()
        places = Places.of_stage(self.mask, self.patches, self.x.shape[1])

        def forward(x):
            y = self.conv(places.scatter(x).permute(0, 3, 1, 2))
            return self.norm(places.gather(y.permute(0, 2, 3, 1)))

        return self.with_gradients(forward, self.x.detach().double().requires_grad_())


def mask_of(text):
    """``"#."`` a row, ``/`` between rows, a space between images; ``#`` visible."""
    images = [[[site == "." for site in row] for row in i.split("/")] for i in text.split()]
    return torch.tensor(images)


MASKS = {
    "corners": mask_of("#..#/..../#..# .##./..../.##."),
    "a row and a column": mask_of("###/.../... #../#../#.."),
    "alone": mask_of(".../.#./..."),
    "one row of patches, all visible": mask_of("#####"),
}


@pytest.mark.parametrize("p", [4, 2, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_depthwise_and_norm_equal_the_dense_map_with_every_gradient(mask, p):
    case = DepthwiseNormCase(MASKS[mask], p, channels=10)
    assert max(relative_errors(case.by_triton(), case.expected())) < 1e-12


def test_depthwise_of_blocks_of_eight_equals_the_dense_map_with_every_gradient():
    case = DepthwiseNormCase(mask_of("#.#/.##"), p=8, channels=10)
    assert max(relative_errors(case.by_triton(), case.expected())) < 1e-12


@pytest.mark.parametrize("channels", [40, 64, 72])
def test_channels_that_fill_no_whole_tile_or_several(channels):
    case = DepthwiseNormCase(MASKS["corners"], 1, channels)
    assert max(relative_errors(case.by_triton(), case.expected())) < 1e-12


@pytest.mark.parametrize(("ratio", "grid"), [(0.0, (3, 4)), (0.5, (7, 2)), (0.9, (5, 8))])
def test_any_mask_ratio_and_grid(ratio, grid):
    torch.manual_seed(3)
    case = DepthwiseNormCase(random_mask(2, grid, ratio), p=2, channels=8)
    assert max(relative_errors(case.by_triton(), case.expected())) < 1e-12


def test_weight_gradient_does_not_depend_on_how_the_rows_are_shared_out(monkeypatch):
    case = DepthwiseNormCase(random_mask(2, (4, 5), 0.0), p=1, channels=8)  # 40 rows: 3 tiles
    monkeypatch.setattr(triton_depthwise, "NORM_TILE", 64)  # 8 sites
    monkeypatch.setattr(triton_depthwise, "NORM_PROGRAMS", 2)
    for programs in (7, 14):  # 1 and 2 for each row of the kernel
        monkeypatch.setattr(triton_depthwise, "WEIGHT_PROGRAMS", programs)
        assert max(relative_errors(case.by_triton(), case.expected())) < 1e-12


@pytest.mark.parametrize(("work", "tile", "programs"), [(1, 16, 9), (100, 16, 3), (64, 16, 100)])
def test_work_is_shared_out_in_whole_tiles_to_no_more_programs_than_asked(work, tile, programs):
    parts, each = _shared_out(work, tile, programs)
    assert each % tile == 0
    assert (parts - 1) * each < work <= parts * each
    assert parts <= programs


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_half_precision_stays_within_its_rounding(dtype, tolerance):
    case = DepthwiseNormCase(MASKS["corners"], 2, 40, dtype)
    actual = case.by_triton()
    assert actual[0].dtype == actual[1].dtype == dtype
    assert all(gradient.dtype == torch.float32 for gradient in actual[2:])
    assert max(relative_errors(actual, case.expected())) < tolerance


def test_norm_of_outputs_with_a_large_mean_keeps_its_digits():
    """A variance taken as E[x^2] - E[x]^2 would lose them."""
    case = DepthwiseNormCase(MASKS["corners"], 1, 72, torch.float32)
    nn.init.constant_(case.conv.bias, 1000.0)
    assert relative_errors(case.by_triton()[:1], case.expected()[:1])[0] < 1e-3


def test_neighbouring_blocks_by_a_naive_loop():
    mask = random_mask(2, (4, 5), 0.4)
    packed = {}
    for index, place in enumerate((~mask).nonzero().tolist()):
        packed[tuple(place)] = index
    table = neighbouring_blocks(mask, visible_patches(mask))
    for (image, row, column), index in packed.items():
        for i in range(7):
            for j in range(7):
                expected = packed.get((image, row + i - 3, column + j - 3), -1)
                assert table[index, i, j] == expected


def gelu_grn_and_gradients(kernels, h, gamma, beta, cotangent):
    inputs = [tensor.clone().requires_grad_() for tensor in (h, gamma, beta)]
    with use_kernels(kernels):
        if kernels == "triton":
            y = gelu_grn(*inputs)
        else:
            grn = GRN(len(gamma)).to(DEVICE)
            del grn.gamma, grn.beta
            grn.gamma, grn.beta = inputs[1], inputs[2]
            y = grn(F.gelu(inputs[0]))
    return [y, *torch.autograd.grad((y * cotangent).sum(), inputs)]


@pytest.mark.parametrize(
    "shape", [(2, 300, 40), (3, 5, 7, 12), (1, 1, 130)], ids=["chunks", "map", "one site"]
)
def test_gelu_grn_equals_autograds_gradients_in_float64(shape):
    torch.manual_seed(0)
    h = torch.randn(shape, dtype=torch.float64, device=DEVICE)
    gamma, beta = torch.randn(2, shape[-1], dtype=torch.float64, device=DEVICE)
    cotangent = torch.randn_like(h)
    actual = gelu_grn_and_gradients("triton", h, gamma, beta, cotangent)
    expected = gelu_grn_and_gradients("torch", h, gamma, beta, cotangent)
    assert max(relative_errors(actual, expected)) < 1e-12


def test_gelu_grn_of_a_dead_channel_passes_gelus_gradient_and_nothing_through_the_norm():
    h, cotangent = torch.randn(2, 2, 6, 4, dtype=torch.float64, device=DEVICE)
    h[..., 1] = 0  # GELU's slope there is 1/2; the norm has no derivative
    gamma = beta = torch.ones(4, dtype=torch.float64, device=DEVICE)
    gradient = gelu_grn_and_gradients("triton", h, gamma, beta, cotangent)[1]
    assert torch.allclose(gradient[..., 1], cotangent[..., 1] / 2)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.01), (torch.float16, 0.002)])
def test_gelu_grn_in_half_precision_stays_within_its_rounding(dtype, tolerance):
    torch.manual_seed(0)
    h = torch.randn(2, 20, 24, device=DEVICE).to(dtype)
    gamma, beta = torch.randn(2, 24, device=DEVICE)
    cotangent = torch.randn_like(h)
    actual = gelu_grn_and_gradients("triton", h, gamma, beta, cotangent)
    assert actual[0].dtype == actual[1].dtype == dtype
    doubles = [tensor.double() for tensor in (h, gamma, beta, cotangent)]
    assert max(relative_errors(actual, gelu_grn_and_gradients("torch", *doubles))) < tolerance


def test_gelu_grn_of_large_half_precision_activations_does_not_overflow():
    h = torch.full((1, 300, 8), 300.0, dtype=torch.float16, device=DEVICE)  # squares: 2.7e7
    ones = torch.ones(8, device=DEVICE)
    y, *gradients = gelu_grn_and_gradients("triton", h, ones, ones, torch.ones_like(h))
    assert torch.allclose(y.float(), torch.tensor(601.0, device=DEVICE), rtol=2e-3)
    assert all(gradient.isfinite().all() for gradient in gradients)


def tiny_encoder(dtype):
    torch.manual_seed(0)
    encoder = ConvNeXt(Size((8, 12, 16, 24), (1, 1, 1, 1), 2)).to(DEVICE, dtype)
    for name, parameter in encoder.named_parameters():
        if "grn" in name or "bias" in name:
            nn.init.normal_(parameter, std=0.5)
    return encoder


def encode(kernels, encoder, images, mask):
    encoder.zero_grad()
    with use_kernels(kernels):
        output = PackedEncoder(encoder)(images, mask)
    output.float().square().sum().backward()
    return [output.detach(), *[p.grad.clone() for p in encoder.parameters()]]


def test_packed_encoder_by_triton_equals_the_torch_path_with_every_gradient(monkeypatch):
    sides = []

    def watched(conv, norm, x_nppc, neighbours):
        sides.append(x_nppc.shape[1])
        return depthwise_norm(conv, norm, x_nppc, neighbours)

    monkeypatch.setattr(triton_depthwise, "depthwise_norm", watched)
    encoder = tiny_encoder(torch.float64)
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64, device=DEVICE)
    mask = random_mask(1, (2, 3), 0.5, device=DEVICE)
    actual = encode("triton", encoder, images, mask)
    assert sides == [8, 4, 2, 1]
    expected = encode("torch", encoder, images, mask)
    assert max(relative_errors(actual, expected)) < 1e-12
    fused = encode("fused", encoder, images, mask)
    assert max(relative_errors(fused, expected)) < 1e-11


def test_packed_encoder_by_triton_under_autocast_stays_within_bfloat16s_rounding():
    encoder = tiny_encoder(torch.float32)
    images = torch.randn(1, 3, 64, 64, device=DEVICE)
    mask = random_mask(1, (2, 2), 0.5, device=DEVICE)
    exact = encode("torch", encoder, images, mask)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        actual = encode("triton", encoder, images, mask)
        other = encode("torch", encoder, images, mask)
    assert actual[0].dtype == other[0].dtype
    assert max(relative_errors(actual, exact)) < 2 * max(relative_errors(other, exact)) < 0.2


# Launches everything as on a Hopper GPU, up to the machine code and without running it: the driver
# is a stand-in, and every launch becomes Triton's warm-up.
COMPILE = """
import torch
from torch import nn
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

class Driver:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

triton.runtime.driver.set_active(Driver())
launch = JITFunction.run
compiled = []

def compile_only(self, *arguments, **options):
    compiled.append((self.__name__, launch(self, *arguments, **{**options, "warmup": True})))

JITFunction.run = compile_only

from backbones.kernels.triton_gelu_grn import GeluGrn
from backbones.kernels.triton_mlp import FusedMlp
from fcmae.masking import visible_patches
from fcmae.kernels.triton_depthwise import depthwise_norm, neighbouring_blocks

mask = torch.zeros(1, 2, 2, dtype=torch.bool)
for p, c, dtype in ((8, 128, torch.bfloat16), (1, 40, torch.float16)):
    conv, norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c)
    x = torch.zeros(4, p, p, c, dtype=dtype, requires_grad=True)
    depthwise_norm(conv, norm, x, neighbouring_blocks(mask, visible_patches(mask))).sum().backward()
h = torch.zeros(1, 4, 512, dtype=torch.bfloat16, requires_grad=True)
GeluGrn.apply(h, torch.zeros(512), torch.zeros(512)).sum().backward()
for dtype in (torch.bfloat16, torch.float32):
    x, w1, b1, w2, b2 = (
        torch.zeros(*shape, dtype=dtype, requires_grad=True)
        for shape in ((1, 70, 128), (512, 128), (512,), (128, 512), (128,))
    )
    gamma, beta = torch.zeros(2, 512, requires_grad=True)
    FusedMlp.apply(x, w1, b1, gamma, beta, w2, b2).sum().backward()
for name, kernel in compiled:
    assert "sm_90" in kernel.asm["ptx"] and len(kernel.asm["cubin"]) > 1000, name
print(*[name for name, _ in compiled])
"""


def test_every_kernel_compiles_to_machine_code_for_a_gpu_that_is_not_here(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    depthwise = ["convolve", "norm_gradient", "convolve", "weight_gradient"]
    gelu = ["_square_sums", "_apply", "_gradient_sums", "_input_gradient"]
    mlp = ["_expand", "_contract", "_expand_gradient", "_contract_gradient", "_apply"]
    expected = [f"{name}_kernel" for name in 2 * depthwise + gelu + 2 * mlp]
    assert done.stdout.split() == expected


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU: full size, base at 224 in bf16")
def test_full_size_on_a_gpu_equals_the_torch_path_and_repeats_to_the_bit():
    torch.manual_seed(0)
    encoder = build_convnext("convnextv2_base").to(DEVICE)
    for name, parameter in encoder.named_parameters():
        if "grn" in name:
            nn.init.normal_(parameter, std=0.2)
    images = torch.randn(32, 3, 224, 224, device=DEVICE)
    mask = random_mask(32, (7, 7), 0.6, device=DEVICE)
    exact = encode("torch", encoder, images, mask)
    with torch.autocast("cuda", torch.bfloat16):
        once, again = (encode("triton", encoder, images, mask) for _ in range(2))
        other = encode("torch", encoder, images, mask)

    def distances(actual):
        return [
            ((a.float() - e).norm() / e.norm()).item() for a, e in zip(actual, exact, strict=True)
        ]

    for ours, stock in zip(distances(once), distances(other), strict=True):
        assert ours < 1.5 * stock + 0.01
    names = ["output", *[name for name, _ in encoder.named_parameters()]]
    for name, a, b in zip(names, once, again, strict=True):
        if "dwconv" in name or "grn" in name or "norm" in name or name == "output":
            assert torch.equal(a, b), name
