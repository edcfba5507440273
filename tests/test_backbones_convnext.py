"""The encoder against timm's, against naive loops and against its own options."""

from __future__ import annotations

import pytest
import timm
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.checkpoint import load_encoder, save_encoder
from backbones.convnext import (
    GRN,
    SIZES,
    STAGES,
    Block,
    ConvNeXt,
    GRNOptions,
    Size,
    build_convnext,
)
from backbones.errors import InputError
from backbones.key_adapters import from_ours, to_ours

SMALL = Size((8, 16, 24, 32), (1, 1, 2, 1), 2)
SMALL_V1 = Size((8, 16, 24, 32), (1, 1, 2, 1), 1)


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every scale and shift a visible value: GRN starts at 0 and layer scale at 1e-6."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("gamma", "beta", "bias")):
                parameter.copy_(0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(1 + 0.2 * noise)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def with_timm(name: str, num_classes: int = 7) -> tuple[ConvNeXt, nn.Module]:
    torch.manual_seed(0)
    ours = build_convnext(name, num_classes=num_classes)
    randomise(ours)
    theirs = timm.create_model(name, num_classes=num_classes)
    state_dict, dropped = from_ours(ours.state_dict(), "timm")
    assert not dropped
    theirs.load_state_dict(state_dict, strict=True)
    return ours, theirs


@pytest.mark.parametrize(
    ("name", "height_width"),
    [
        ("convnextv2_atto", (224, 224)),
        *((name, (160, 96)) for name in ("convnextv2_nano", "convnextv2_tiny", "convnext_tiny")),
    ],
)
def test_outputs_and_gradients_equal_timms(name: str, height_width: tuple[int, int]) -> None:
    ours, theirs = with_timm(name)
    images = torch.randn(2, 3, *height_width, generator=torch.Generator().manual_seed(1))
    ours_in = images.clone().requires_grad_()
    theirs_in = images.clone().requires_grad_()

    logits, expected = ours(ours_in), theirs(theirs_in)
    assert relative_error(logits, expected) < 1e-5
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    assert relative_error(ours_in.grad, theirs_in.grad) < 1e-5

    theirs_gradients = to_ours({n: p.grad for n, p in theirs.named_parameters()}).tensors
    ours_gradients = {n: p.grad for n, p in ours.named_parameters()}
    assert ours_gradients.keys() == theirs_gradients.keys()
    errors = {n: relative_error(g, theirs_gradients[n]) for n, g in ours_gradients.items()}
    assert max(errors.values()) < 1e-5, max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize(
    "name", ["convnextv2_atto", "convnextv2_nano", "convnextv2_tiny", "convnext_tiny"]
)
def test_features_of_all_stages_equal_timms_features_only(name: str) -> None:
    torch.manual_seed(0)
    ours = build_convnext(name)
    randomise(ours)
    theirs = timm.create_model(name, features_only=True)
    theirs.load_state_dict(from_ours(ours.state_dict(), "timm-features")[0], strict=True)
    images = torch.randn(2, 3, 160, 96)
    with torch.no_grad():
        features, expected = ours.forward_features(images), theirs(images)
    assert list(features) == list(STAGES)
    for stage, reference in zip(STAGES, expected, strict=True):
        assert relative_error(features[stage], reference) < 1e-5
    assert list(ours.out_channels.values()) == theirs.feature_info.channels()
    assert list(ours.out_strides.values()) == theirs.feature_info.reduction()


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts_equal_timms(name: str) -> None:
    with init_empty_weights():  # not the device meta: old versions of timm compute with numbers
        ours = build_convnext(name, num_classes=1000)
        theirs = timm.create_model(name, num_classes=1000)
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters())


# Million parameters with the ImageNet-1K head, as arXiv 2301.00808 and 2201.03545 give them.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("convnextv2_atto", 3.7),
        ("convnextv2_femto", 5.2),
        ("convnextv2_pico", 9.1),
        ("convnextv2_nano", 15.6),
        ("convnextv2_tiny", 28.6),
        ("convnextv2_base", 89),
        ("convnextv2_large", 198),
        ("convnextv2_huge", 660),
        ("convnext_atto", 3.7),  # timm's
        ("convnext_femto", 5.2),
        ("convnext_pico", 9.05),
        ("convnext_nano", 15.6),
        ("convnext_tiny", 29),
        ("convnext_small", 50),
        ("convnext_base", 89),
        ("convnext_large", 198),
        ("convnext_xlarge", 350),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = build_convnext(name, num_classes=1000)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.015)


def naive_grn(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Algorithm 1 of the paper in loops, float64; ``x [B, H, W, C]``."""
    result = torch.empty_like(x)
    batch, height, width, channels = x.shape
    for b in range(batch):
        norms = []
        for c in range(channels):
            squares = 0.0
            for i in range(height):
                for j in range(width):
                    squares += x[b, i, j, c].item() ** 2
            norms.append(squares**0.5)
        mean = sum(norms) / channels
        for c in range(channels):
            scale = norms[c] / (mean + 1e-6)
            result[b, :, :, c] = gamma[c] * (x[b, :, :, c] * scale) + beta[c] + x[b, :, :, c]
    return result


def random_grn(channels: int, options: GRNOptions | None = None) -> GRN:
    grn = GRN(channels, options).double()
    randomise(grn)
    return grn


def test_grn_equals_the_papers_algorithm_in_loops() -> None:
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    grn = random_grn(6)
    expected = naive_grn(x, grn.gamma.flatten(), grn.beta.flatten())
    torch.testing.assert_close(grn(x), expected, rtol=1e-12, atol=1e-12)


def test_grn_does_not_mix_the_images_of_a_batch() -> None:
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    grn = random_grn(6)
    alone = torch.cat([grn(image[None]) for image in x])
    torch.testing.assert_close(grn(x), alone, rtol=1e-12, atol=1e-12)


def test_grn_is_the_identity_at_initialisation() -> None:
    x = torch.randn(2, 3, 3, 4)
    assert torch.equal(GRN(4)(x), x)


def test_grn_counts_visible_sites_alone() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    visible = torch.rand(2, 3, 4) < 0.5
    visible[:, 0, 0] = True
    for aggregate in ("l2", "l1", "avg"):
        grn = random_grn(5, GRNOptions(aggregate=aggregate))
        limited = grn(x, visible)
        for b in range(2):
            sites = x[b][visible[b]][None]
            torch.testing.assert_close(limited[b][visible[b]], grn(sites)[0])


AGGREGATES = {
    "l2": lambda x: (x**2).sum((1, 2)).sqrt(),
    "l1": lambda x: x.abs().sum((1, 2)),
    "avg": lambda x: x.mean((1, 2)),
}
NORMALIZERS = {
    "mean": lambda g: g / (g.mean(1, keepdim=True) + 1e-6),
    "sum": lambda g: g / (g.sum(1, keepdim=True) + 1e-6),
    "standardize": lambda g: (g - g.mean(1, keepdim=True)) / (g.std(1, keepdim=True) + 1e-6),
}


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("normalize", NORMALIZERS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_grn_options_follow_their_formulas(aggregate: str, normalize: str, residual: bool) -> None:
    x = 1 + torch.randn(2, 3, 4, 5, dtype=torch.float64)
    grn = random_grn(5, GRNOptions(aggregate, normalize, residual))
    response = NORMALIZERS[normalize](AGGREGATES[aggregate](x))[:, None, None, :]
    expected = grn.gamma * x * response + grn.beta + (x if residual else 0)
    torch.testing.assert_close(grn(x), expected, rtol=1e-12, atol=1e-12)


def test_grn_statistic_does_not_overflow_in_half_precision() -> None:
    x = torch.full((1, 64, 64, 4), 100.0, dtype=torch.float16)
    assert GRN(4).aggregate(x).tolist() == [[6400.0] * 4]
    assert GRN(4, GRNOptions("l1")).aggregate(x).tolist() == [[409600.0] * 4]


def test_output_norms_normalise_each_named_stage_and_no_other() -> None:
    torch.manual_seed(0)
    raw = ConvNeXt(SMALL).eval()
    normed = ConvNeXt(SMALL, out_norms=("stage2", "stage4")).eval()
    normed.load_state_dict(raw.state_dict(), strict=False)
    with torch.no_grad():
        for norm in normed.out_norms.values():
            norm.weight.normal_(), norm.bias.normal_()
    images = torch.randn(2, 3, 64, 96)
    before, after = raw.forward_features(images), normed.forward_features(images)
    for stage in ("stage1", "stage3"):
        assert torch.equal(after[stage], before[stage])
    for stage in ("stage2", "stage4"):
        x, norm = before[stage], normed.out_norms[stage]
        mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        scale, shift = norm.weight[:, None, None], norm.bias[:, None, None]
        expected = (x - mean) / (variance + 1e-6).sqrt() * scale + shift
        torch.testing.assert_close(after[stage], expected, rtol=1e-4, atol=1e-5)


def test_activation_checkpointing_leaves_outputs_and_gradients_bit_identical() -> None:
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for stages in ((), STAGES):
        torch.manual_seed(0)
        model = ConvNeXt(SMALL, num_classes=5, drop_path_rate=0.5, checkpoint_stages=stages)
        randomise(model)
        torch.manual_seed(3)
        model(images).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("in_chans", [1, 4, 13])
def test_any_number_of_input_channels_sees_all_of_them(in_chans: int) -> None:
    torch.manual_seed(0)
    model = ConvNeXt(SMALL, in_chans=in_chans)
    images = torch.randn(1, in_chans, 64, 64, requires_grad=True)
    stem = model.downsample_layers[0][0]
    torch.testing.assert_close(
        stem(images), F.conv2d(images, stem.weight, stem.bias, stride=4), rtol=1e-5, atol=1e-6
    )
    model.forward_features(images)["stage4"].square().sum().backward()
    assert (images.grad.abs().sum((0, 2, 3)) > 0).all()


def test_drop_path_rates_rise_linearly_from_0_to_the_given_rate() -> None:
    model = build_convnext("convnextv2_atto", drop_path_rate=0.22)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.02 * i for i in range(12)])


def test_drop_path_drops_whole_images_in_training_only_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    block = Block(8, drop_path=0.4)
    randomise(block)
    x = torch.randn(1, 8, 7, 7).expand(400, -1, -1, -1)
    with torch.no_grad():
        branch = block.eval()(x) - x
        dropped = block.train()(x) - x
    alive = dropped.flatten(1).any(1)
    assert 0.5 < alive.float().mean() < 0.7
    torch.testing.assert_close(dropped[alive], branch[alive] / 0.6, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [SMALL, SMALL_V1])
def test_an_images_features_do_not_depend_on_its_batch(size: Size) -> None:
    torch.manual_seed(0)
    model = ConvNeXt(size).eval().double()
    randomise(model)
    images = torch.randn(3, 3, 64, 32, dtype=torch.float64)
    order = torch.tensor([2, 0, 1])
    together = model.forward_features(images)
    for stage, permuted in model.forward_features(images[order]).items():
        torch.testing.assert_close(permuted, together[stage][order])
    for stage, alone in model.forward_features(images[:1]).items():
        torch.testing.assert_close(alone, together[stage][:1])


def test_sizes_off_the_grid_lose_the_incomplete_border_as_in_timm() -> None:
    ours, theirs = with_timm("convnextv2_atto")
    images = torch.randn(1, 3, 75, 101)
    with torch.no_grad():
        assert relative_error(ours(images), theirs(images)) < 1e-5
        shapes = [tuple(x.shape[2:]) for x in ours.forward_features(images).values()]
    assert shapes == [(18, 25), (9, 12), (4, 6), (2, 3)]


def test_bf16_autocast_stays_within_its_rounding() -> None:
    torch.manual_seed(0)
    model = ConvNeXt(SMALL, num_classes=5).eval()
    randomise(model)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = model(images)
    with torch.no_grad():
        assert relative_error(low.float(), model(images)) < 0.03


def test_initialisation_is_the_authors() -> None:
    torch.manual_seed(0)
    model = build_convnext("convnext_tiny", num_classes=10)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert parameter.abs().max() <= 2
        elif name.endswith(".gamma"):
            assert torch.equal(parameter, torch.full_like(parameter, 1e-6)), name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, name.endswith("weight")))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_convnext("convnextv2_ato"), "unknown encoder 'convnextv2_ato'.*_atto"),
        (lambda: ConvNeXt(SMALL, out_norms=["stage5"]), r"out_norms names \['stage5'\].*stage1"),
        (lambda: ConvNeXt(SMALL, checkpoint_stages=["s"]), r"checkpoint_stages names \['s'\]"),
        (lambda: ConvNeXt(SMALL, drop_path_rate=1.0), r"drop_path_rate is 1.0.*\[0, 1\)"),
        (lambda: ConvNeXt(SMALL, in_chans=0), "in_chans is 0"),
        (lambda: GRNOptions(aggregate="max"), "aggregate is 'max'; allowed: l2, l1, avg"),
        (lambda: GRNOptions(normalize="max"), "normalize is 'max'; allowed: mean, sum"),
        (lambda: ConvNeXt(SMALL)(torch.zeros(1, 3, 32, 32)), "no head.*num_classes"),
    ],
)
def test_wrong_options_are_named_with_what_is_allowed(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_stages_behind_the_last_are_neither_built_nor_loaded(tmp_path):
    whole = build_convnext("convnextv2_atto", drop_path_rate=0.2)
    save_encoder(whole, tmp_path / "encoder.safetensors", {})
    part = build_convnext("convnextv2_atto", drop_path_rate=0.2, last_stage="stage3")
    loaded = load_encoder(tmp_path / "encoder.safetensors", part)
    behind = ("downsample_layers.3.", "stages.3.")
    assert set(part.state_dict()) == {n for n in whole.state_dict() if not n.startswith(behind)}
    assert loaded.loaded == loaded.total == len(part.state_dict())
    assert not loaded.unexpected
    assert {n for n in loaded.ignored if n.startswith(behind)} == {
        n for n in whole.state_dict() if n.startswith(behind)
    }
    part.eval(), whole.eval()
    images = torch.randn(1, 3, 48, 80)  # of 16s
    found, expected = part.forward_features(images), whole.forward_features(images)
    assert list(found) == ["stage1", "stage2", "stage3"]
    assert torch.equal(found["stage3"], expected["stage3"])
    rates = [[getattr(b.drop_path, "drop_prob", 0) for b in s] for s in (*part.stages,)]
    assert rates == [[getattr(b.drop_path, "drop_prob", 0) for b in s] for s in whole.stages[:3]]


def test_a_dilated_encoder_equals_timms():
    torch.manual_seed(0)
    theirs = timm.create_model("convnextv2_atto", output_stride=16, num_classes=0).eval()
    for name, parameter in theirs.named_parameters():
        if "grn" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ours = build_convnext("convnextv2_atto", output_stride=16).eval()
    tensors = to_ours(theirs.state_dict()).tensors
    ours.load_state_dict({n: tensors[n] for n in ours.state_dict()})
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found, expected = ours.forward_features(images)["stage4"], theirs.forward_features(images)
    assert ours.out_strides["stage4"] == 16
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output_stride", [16, 8])
def test_dilated_stages_give_the_strided_ones_values_at_their_sites(output_stride):
    """Of a V1, which has no statistic over sites."""
    torch.manual_seed(0)
    strided = build_convnext("convnext_tiny").eval()
    dilated = build_convnext("convnext_tiny", output_stride=output_stride).eval()
    for name, parameter in strided.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.ones_(parameter)
    dilated.load_state_dict(strided.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = dilated.forward_features(images), strided.forward_features(images)
    for stage in ("stage3", "stage4"):
        step = strided.out_strides[stage] // output_stride
        assert torch.allclose(found[stage][:, :, ::step, ::step], expected[stage], atol=1e-5)


def test_dilated_stages_train_with_autograds_own_gradient():
    encoder = build_convnext("convnextv2_atto", output_stride=8)
    encoder.forward_features(torch.randn(1, 3, 32, 32))["stage4"].square().sum().backward()
    assert all(p.grad is not None for n, p in encoder.named_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last_stage": "stage5"}, "last_stage names .*stage5"),
        ({"last_stage": "stage2", "out_norms": ["stage3"]}, "out_norms names .*stage3"),
        ({"last_stage": "stage3", "num_classes": 2}, "a classifier needs stage4"),
        ({"output_stride": 4}, "output_stride is 4; allowed: 8, 16, 32"),
    ],
)
def test_parts_that_are_not_built_cannot_be_asked_for(options, message):
    with pytest.raises(InputError, match=message):
        build_convnext("convnextv2_atto", **options)


@pytest.mark.parametrize("version", [1, 2])
def test_a_block_at_some_sites_gives_and_learns_what_the_whole_map_does_there(version) -> None:
    """GRN's statistic is of all sites, so the others' gradients are not 0."""
    torch.manual_seed(0)
    block = Block(6, version, layer_scale=0.5).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x, sites = torch.randn(2, 6, 5, 4).double().requires_grad_(), torch.tensor([0, 7, 19, 20, 33])
    wanted = [x, *block.parameters()]
    whole = block(x).permute(0, 2, 3, 1).reshape(-1, 6)[sites]
    some = block.forward_at(x, sites)
    torch.testing.assert_close(some, whole)
    cotangent = torch.randn(5, 6).double()
    for expected, found in zip(
        torch.autograd.grad(whole, wanted, cotangent),
        torch.autograd.grad(some, wanted, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)
        assert expected.abs().max() > 1e-3
