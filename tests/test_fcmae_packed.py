"""Packed equals masked-dense, and both equal what submanifold sparse convolution means."""

from __future__ import annotations

from copy import deepcopy
from typing import get_args

import pytest
import torch

from backbones.convnext import STAGES, STRIDES, build_convnext
from backbones.normalization import GRNOptions, Kind
from fcmae.masking import random_mask, upsample_mask, visible_patches
from fcmae.packed import (
    ENCODERS,
    MaskedDenseEncoder,
    PackedEncoder,
    _blocks_of,
    _depthwise,
    _downsample,
)
from fcmae.packed_mask import Places


def lively_encoder(name="convnextv2_atto", dtype=torch.float64, seed=0, **options):
    """An encoder whose every parameter matters: GRN and biases start at 0 otherwise."""
    torch.manual_seed(seed)
    encoder = build_convnext(name, **options).to(dtype)
    for parameter_name, parameter in encoder.named_parameters():
        if "grn" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.5)
        elif parameter_name.endswith((".bias", ".gamma")):
            torch.nn.init.normal_(parameter, std=0.1)
    return encoder


def outputs_and_gradients(mode, encoder, images, mask, cotangent):
    images = images.clone().requires_grad_()
    encoder.zero_grad()
    output = ENCODERS[mode](encoder)(images, mask)
    (output * cotangent).sum().backward()
    gradients = {name: p.grad.clone() for name, p in encoder.named_parameters()}
    return output.detach(), {**gradients, "images": images.grad}


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def assert_packed_equals_masked_dense(encoder, images, mask, tolerance):
    dims = encoder.size.dims
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(len(images), dims[-1], *mask.shape[1:], generator=generator)
    cotangent = cotangent.to(images.dtype)
    packed, packed_grads = outputs_and_gradients("packed", encoder, images, mask, cotangent)
    dense, dense_grads = outputs_and_gradients("masked-dense", encoder, images, mask, cotangent)
    assert relative_error(packed, dense) < tolerance
    for name, expected in dense_grads.items():
        assert relative_error(packed_grads[name], expected) < tolerance, name


def border_masks():
    """Masks that remove, and that keep, whole border rows and columns."""
    masks = torch.ones(4, 4, 5, dtype=torch.bool)
    masks[0, 0] = False
    masks[1, -1] = False
    masks[2, :, 0] = False
    masks[2, 0, 1] = False
    masks[3, 1:3, 1:3] = False
    masks[3, 0, 4] = False
    return masks


@pytest.mark.parametrize("name", ["convnextv2_atto", "convnextv2_tiny", "convnext_tiny"])
@pytest.mark.parametrize(
    ("batch", "height", "width"), [(2, 96, 96), (1, 96, 160), (3, 64, 128), (1, 32, 32)]
)
def test_packed_gradients_equal_masked_dense_in_float64(name, batch, height, width):
    encoder = lively_encoder(name)
    torch.manual_seed(2)
    images = torch.randn(batch, 3, height, width, dtype=torch.float64)
    mask = random_mask(batch, (height // 32, width // 32), 0.6)
    assert_packed_equals_masked_dense(encoder, images, mask, 1e-10)


def test_packed_gradients_equal_masked_dense_with_border_rows_removed_or_kept():
    encoder = lively_encoder()
    images = torch.randn(4, 3, 128, 160, dtype=torch.float64)
    assert_packed_equals_masked_dense(encoder, images, border_masks(), 1e-10)


def test_packed_gradients_equal_masked_dense_in_float32():
    encoder = lively_encoder("convnextv2_nano", torch.float32)
    images = torch.randn(2, 3, 128, 96)
    assert_packed_equals_masked_dense(encoder, images, random_mask(2, (4, 3), 0.6), 1e-4)


@pytest.mark.parametrize("aggregate", ["l2", "l1", "avg"])
def test_packed_equals_masked_dense_for_every_grn(aggregate):
    for normalize in ("mean", "sum", "standardize"):
        grn = GRNOptions(aggregate, normalize, residual=normalize != "sum")
        encoder = lively_encoder(grn=grn)
        images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
        assert_packed_equals_masked_dense(encoder, images, random_mask(2, (2, 3), 0.5), 1e-10)


@pytest.mark.parametrize("kind", [kind for kind in get_args(Kind) if kind != "grn"])
def test_packed_equals_masked_dense_for_all_that_replaces_grn(kind):
    """In outputs and gradients, and BatchNorm in the statistics that it keeps."""
    encoder = lively_encoder(grn=GRNOptions(kind=kind)).train()
    images, mask = torch.randn(2, 3, 64, 96, dtype=torch.float64), random_mask(2, (2, 3), 0.5)
    assert_packed_equals_masked_dense(encoder, images, mask, 1e-9)
    buffers = []
    for make in ENCODERS.values():
        copy = deepcopy(encoder)
        make(copy)(images, mask)
        buffers.append(dict(copy.named_buffers()))
    assert bool(buffers[0]) == (kind == "batchnorm")
    for name, tensor in buffers[0].items():
        torch.testing.assert_close(tensor, buffers[1][name], rtol=1e-10, atol=1e-12)
        assert not torch.equal(tensor, encoder.get_buffer(name)), name


def test_packed_equals_masked_dense_at_every_stage():
    encoder = lively_encoder()
    images, mask = torch.randn(2, 3, 64, 96, dtype=torch.float64), random_mask(2, (2, 3), 0.5)
    packed, dense = (make(encoder).features(images, mask, STAGES) for make in ENCODERS.values())
    assert list(packed) == list(dense) == list(STAGES)
    for name, stride in STRIDES.items():
        assert packed[name].shape[2:] == (64 // stride, 96 // stride)
        assert relative_error(packed[name], dense[name]) < 1e-10
        assert (packed[name][0][:, upsample_mask(mask, 32 // stride)[0]] == 0).all()


def test_packed_equals_masked_dense_for_thirteen_channels_and_nothing_removed():
    encoder = lively_encoder(in_chans=13)
    images = torch.randn(2, 13, 64, 64, dtype=torch.float64)
    assert_packed_equals_masked_dense(encoder, images, random_mask(2, (2, 2), 0.5), 1e-10)
    whole = torch.zeros(2, 2, 2, dtype=torch.bool)
    plain = encoder.forward_features(images)["stage4"]
    assert relative_error(PackedEncoder(encoder)(images, whole), plain) < 1e-12


def test_bfloat16_differs_between_the_encoders_no_more_than_from_float32():
    encoder = lively_encoder(dtype=torch.float32)
    images, mask = torch.randn(2, 3, 128, 128), random_mask(2, (4, 4), 0.6)
    exact = PackedEncoder(encoder)(images, mask)
    with torch.autocast("cpu", torch.bfloat16):
        packed = PackedEncoder(encoder)(images, mask).float()
        dense = MaskedDenseEncoder(encoder)(images, mask).float()
    rounding = relative_error(dense, exact)
    assert 0 < rounding < 0.1
    assert relative_error(packed, dense) < 2 * rounding
    assert relative_error(packed, exact) < 2 * rounding


def test_pixels_of_removed_patches_reach_nothing():
    encoder = lively_encoder()
    mask = random_mask(2, (3, 3), 0.6)
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    removed = upsample_mask(mask, 32).unsqueeze(1)
    other = torch.where(removed, torch.randn_like(images) * 100, images)
    for make in ENCODERS.values():
        assert torch.equal(make(encoder)(images, mask), make(encoder)(other, mask))


def test_an_image_is_encoded_independently_of_its_batch():
    """The authors' sparse GRN takes its norm over the whole batch; ours must not."""
    encoder = lively_encoder()
    images, mask = torch.randn(3, 3, 96, 96, dtype=torch.float64), random_mask(3, (3, 3), 0.6)
    together = PackedEncoder(encoder)(images, mask)
    for i in range(3):
        alone = PackedEncoder(encoder)(images[i : i + 1], mask[i : i + 1])
        assert relative_error(together[i : i + 1], alone) < 1e-12


def test_removed_sites_are_zero_and_black_visible_patches_are_kept():
    encoder = lively_encoder()
    images, mask = torch.zeros(1, 3, 96, 96, dtype=torch.float64), random_mask(1, (3, 3), 0.6)
    output = PackedEncoder(encoder)(images, mask)
    assert (output[0][:, mask[0]] == 0).all()
    assert (output[0][:, ~mask[0]].abs().sum(0) > 0).all()


def naive_submanifold_depthwise(x_chw, visible_hw, conv):
    """Each visible site sums the visible neighbours under the kernel, one at a time."""
    _, height, width = x_chw.shape
    out = torch.zeros_like(x_chw)
    for i, j in visible_hw.nonzero().tolist():
        for di in range(-3, 4):
            for dj in range(-3, 4):
                y, x = i + di, j + dj
                if 0 <= y < height and 0 <= x < width and visible_hw[y, x]:
                    out[:, i, j] += conv.weight[:, 0, di + 3, dj + 3] * x_chw[:, y, x]
        out[:, i, j] += conv.bias
    return out


@pytest.mark.parametrize("p", [1, 2, 4])
def test_packed_depthwise_is_submanifold_convolution_by_a_naive_loop(p):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 3, 7, padding=3, groups=3).double()
    mask = random_mask(2, (3, 4), 0.6)
    x_bhwc = torch.randn(2, 3 * p, 4 * p, 3, dtype=torch.float64)
    patches = visible_patches(mask)
    packed = _blocks_of(x_bhwc, p).index_select(0, patches)
    with torch.no_grad():
        actual = _depthwise(conv, packed, Places.of_stage(mask, patches, p))
        visible = upsample_mask(~mask, p)
        naive = torch.stack(
            [
                naive_submanifold_depthwise(x.permute(2, 0, 1), v, conv)
                for x, v in zip(x_bhwc, visible, strict=True)
            ]
        )
    expected = _blocks_of(naive.permute(0, 2, 3, 1), p).index_select(0, patches)
    assert relative_error(actual, expected) < 1e-12


def test_depthwise_equals_spconvs_submanifold_convolution():
    spconv = pytest.importorskip(
        "spconv.pytorch",
        reason="spconv is not installed: no independent SubMConv2d to compare with",
    )
    torch.manual_seed(0)
    channels, p = 4, 4
    mask = random_mask(2, (3, 4), 0.6)
    visible = upsample_mask(~mask, p)
    conv = torch.nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
    x_bhwc = torch.randn(2, 3 * p, 4 * p, channels)
    sub = spconv.SubMConv2d(channels, channels, 7, bias=True)
    with torch.no_grad():  # spconv has no groups: a depthwise kernel is a diagonal full one
        sub.weight.zero_()
        for c in range(channels):
            sub.weight[c, :, :, c] = conv.weight[c, 0]
        sub.bias.copy_(conv.bias)
        sites = visible.nonzero().int().contiguous()  # spconv reads the memory, not the strides
        tensor = spconv.SparseConvTensor(
            x_bhwc[visible], sites, list(visible.shape[1:]), batch_size=2
        )
        result = sub(tensor)  # its .dense() indexes by a list, which newer torch reads otherwise
        expected = torch.zeros_like(x_bhwc)
        expected[tuple(result.indices.long().T)] = result.features
        patches = visible_patches(mask)
        packed = _blocks_of(x_bhwc, p).index_select(0, patches)
        actual = _depthwise(conv, packed, Places.of_stage(mask, patches, p))
    assert relative_error(actual, _blocks_of(expected, p).index_select(0, patches)) < 1e-5


def test_drop_path_drops_whole_images_in_the_packed_layout():
    encoder = lively_encoder(drop_path_rate=0.9).train()
    mask = torch.zeros(1, 1, 2, dtype=torch.bool)
    images = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    torch.manual_seed(5)
    packed = PackedEncoder(encoder)(images, mask)
    torch.manual_seed(5)
    dense = MaskedDenseEncoder(encoder)(images, mask)
    assert relative_error(packed, dense) < 1e-10


def test_the_encoders_own_no_parameters_of_their_own():
    encoder = lively_encoder()
    for make in ENCODERS.values():
        names = {name for name, _ in make(encoder).named_parameters()}
        assert names == {f"encoder.{name}" for name, _ in encoder.named_parameters()}


def test_stem_in_the_packed_layout_is_the_convolution():
    encoder = lively_encoder()
    images = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    expected = encoder.downsample_layers[0](images)
    packed = _downsample(encoder.downsample_layers[0], _blocks_of(images.permute(0, 2, 3, 1), 32))
    assert relative_error(packed, _blocks_of(expected.permute(0, 2, 3, 1), 8)) < 1e-12


@pytest.mark.parametrize("mode", ["packed", "masked-dense"])
def test_checkpointed_stages_keep_less_for_backward_and_give_the_same_gradients(mode):
    torch.manual_seed(0)
    images, mask = torch.randn(2, 3, 64, 96), random_mask(2, (2, 3), 0.5)
    kept, gradients = [], []
    for stages in ((), STAGES):
        encoder = lively_encoder(dtype=torch.float32, drop_path_rate=0.5, checkpoint_stages=stages)
        bytes_kept = 0

        def keep(tensor):
            nonlocal bytes_kept
            bytes_kept += tensor.nbytes
            return tensor

        torch.manual_seed(1)  # of the drop path
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = ENCODERS[mode](encoder)(images, mask)
        kept.append(bytes_kept)
        output.square().sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
    assert kept[1] < kept[0] / 3
