"""What stands in GRN's place against loops in float64, and checkpoints between such encoders."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from backbones.checkpoint import load_encoder, save_encoder
from backbones.convnext import Block, ConvNeXt, Size
from backbones.key_adapters import from_ours
from backbones.normalization import GRNOptions, Kind, build_response_norm

KINDS = get_args(Kind)
SMALL = Size((8, 16, 24, 32), (1, 1, 1, 1), 2)
B, H, W, C = 2, 3, 4, 6


def lively(kind: str, channels: int = C) -> torch.nn.Module:
    """A module whose every parameter matters."""
    torch.manual_seed(1)
    module = build_response_norm(channels, GRNOptions(kind=kind)).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module


def example() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    visible = torch.rand(B, H, W) < 0.6
    visible[:, 0, 0] = True
    return torch.randn(B, H, W, C, dtype=torch.float64), visible


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def two_layers(module, values: list[float]) -> list[float]:
    """The hidden network of SE and CBAM, one neuron at a time."""
    hidden = [
        max(0.0, sum(w * v for w, v in zip(row, values, strict=True)) + bias)
        for row, bias in zip(module.fc1.weight.tolist(), module.fc1.bias.tolist(), strict=True)
    ]
    return [
        sum(w * v for w, v in zip(row, hidden, strict=True)) + bias
        for row, bias in zip(module.fc2.weight.tolist(), module.fc2.bias.tolist(), strict=True)
    ]


def seen(x: Tensor, visible: Tensor, b: int, c: int) -> list[float]:
    return [x[b, i, j, c].item() for i in range(H) for j in range(W) if visible[b, i, j]]


def naive(kind: str, module, x: Tensor, visible: Tensor) -> Tensor:
    """Each formula in loops; only visible sites of the result are meant."""
    y = x.clone()
    if kind == "affine":
        for c in range(C):
            y[..., c] = module.gamma.flatten()[c] * x[..., c] + module.beta.flatten()[c] + x[..., c]
    if kind == "lrn":
        for b, i, j in torch.cartesian_prod(torch.arange(B), torch.arange(H), torch.arange(W)):
            for c in range(C):
                near = x[b, i, j, max(0, c - 2) : c + 3]
                y[b, i, j, c] = x[b, i, j, c] / (1 + 1e-4 / 5 * (near**2).sum()) ** 0.75
    if kind == "batchnorm":
        for c in range(C):
            values = [v for b in range(B) for v in seen(x, visible, b, c)]
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / len(values)
            scale = module.weight[c] / math.sqrt(variance + 1e-5)
            y[..., c] = (x[..., c] - mean) * scale + module.bias[c]
    if kind == "layernorm":
        for b, i, j in torch.cartesian_prod(torch.arange(B), torch.arange(H), torch.arange(W)):
            values = x[b, i, j].tolist()
            mean = sum(values) / C
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / C + 1e-6)
            y[b, i, j] = (x[b, i, j] - mean) / deviation * module.weight + module.bias
    if kind in ("se", "cbam"):
        for b in range(B):
            columns = [seen(x, visible, b, c) for c in range(C)]
            gates = two_layers(module, [sum(v) / len(v) for v in columns])
            if kind == "cbam":
                by_max = two_layers(module, [max(v) for v in columns])
                gates = [a + m for a, m in zip(gates, by_max, strict=True)]
            for c in range(C):
                y[b, ..., c] = x[b, ..., c] * sigmoid(gates[c])
    if kind == "cbam":
        channels_gated = y.clone()
        for b, i, j in torch.cartesian_prod(torch.arange(B), torch.arange(H), torch.arange(W)):
            total = 0.0
            for di in range(-3, 4):
                for dj in range(-3, 4):
                    k, m = int(i) + di, int(j) + dj
                    if 0 <= k < H and 0 <= m < W and visible[b, k, m]:
                        site = channels_gated[b, k, m]
                        kernel = module.spatial.weight[0, :, di + 3, dj + 3]
                        total += (kernel[0] * site.mean() + kernel[1] * site.max()).item()
            y[b, i, j] = channels_gated[b, i, j] * sigmoid(total)
    return y


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "grn"])
def test_each_alternative_follows_its_formula_in_loops(kind: str, masked: bool) -> None:
    x, visible = example()
    if not masked:
        visible[:] = True
    module = lively(kind)
    with torch.no_grad():
        expected = naive(kind, module, x, visible)
        actual = module(x, visible if masked else None)
    torch.testing.assert_close(actual[visible], expected[visible], rtol=1e-10, atol=1e-12)
    assert torch.equal(actual, x) == (kind == "none")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_removed_changes_nothing_that_is_visible(kind: str) -> None:
    x, visible = example()
    other = torch.where(visible.unsqueeze(-1), x, 100 * torch.randn_like(x))
    module = lively(kind)
    with torch.no_grad():
        assert torch.equal(module(x, visible)[visible], module(other, visible)[visible])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "batchnorm"])
def test_images_are_independent_of_their_batch(kind: str) -> None:
    x, _ = example()
    module = lively(kind)
    alone = torch.cat([module(image[None]) for image in x])
    torch.testing.assert_close(module(x), alone, rtol=1e-12, atol=1e-12)


# Table 2d and 2e of arXiv 2301.00808: million parameters of base; GRN's is 89M
@pytest.mark.parametrize(("kind", "millions"), [("grn", 89), ("se", 109), ("cbam", 109)])
def test_parameter_counts_are_the_papers(kind: str, millions: int) -> None:
    size = Size((128, 256, 512, 1024), (3, 3, 27, 3), 2)
    with torch.device("meta"):
        model = ConvNeXt(size, num_classes=1000, grn=GRNOptions(kind=kind))
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.01)


def small(kind: str = "grn", seed: int = 0, **options) -> ConvNeXt:
    torch.manual_seed(seed)
    model = ConvNeXt(SMALL, grn=GRNOptions(kind=kind, **options))
    for name, parameter in model.named_parameters():
        if ".grn." in name:
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_each_kind_load_completely_and_give_the_same_features(kind, tmp_path):
    model, again = small(kind).eval(), small(kind, seed=1).eval()
    save_encoder(model, tmp_path / "e.safetensors", {})
    result = load_encoder(tmp_path / "e.safetensors", again)
    assert result.loaded == result.total == len(model.state_dict())
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        expected, actual = (m.forward_features(images)["stage4"] for m in (model, again))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("theirs", ["grn", "none", "batchnorm", "layernorm"])
@pytest.mark.parametrize("ours", ["grn", "affine", "none", "batchnorm", "se"])
def test_another_kind_is_refused_unless_allowed_and_then_nothing_of_it_is_used(
    theirs, ours, tmp_path, caplog
):
    if theirs == ours:
        return
    caplog.set_level("INFO", "backbones")
    path, source, model = tmp_path / "e.safetensors", small(theirs), small(ours, seed=1)
    save_encoder(source, path, {})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = str(GRNOptions(kind=theirs)).partition("(")[0]
    with pytest.raises(ValueError, match=rf"trained with {name}.*the model has.*ALLOW_OTHER_GRN"):
        load_encoder(path, model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    result = load_encoder(path, model, allow_other_grn=True)
    for name, tensor in model.state_dict().items():
        expected = before[name] if ".grn." in name else source.state_dict()[name]
        assert torch.equal(tensor, expected), name
    assert set(result.grn_left_out) == {n for n in source.state_dict() if ".grn." in n}
    assert result.grn_new == [n for n in before if ".grn." in n]
    assert result.total - result.loaded == len(result.grn_new)
    assert result.ignored == result.new == result.missing == []
    if result.grn_new:
        assert f"{len(result.grn_new)} tensors new, not in the file" in caplog.text
    if result.grn_left_out:
        assert f"{len(result.grn_left_out)} tensors of its GRN left out" in caplog.text


def test_another_form_of_grn_keeps_its_parameters_where_allowed(tmp_path):
    source, model = small(aggregate="l1"), small(residual=False, seed=1)
    save_encoder(source, tmp_path / "e.safetensors", {})
    with pytest.raises(ValueError, match=r"aggregate='l1'.*residual=False"):
        load_encoder(tmp_path / "e.safetensors", model)
    result = load_encoder(tmp_path / "e.safetensors", model, allow_other_grn=True)
    assert result.loaded == result.total
    assert torch.equal(model.stages[0][0].grn.gamma, source.stages[0][0].grn.gamma)


def test_weights_that_do_not_say_their_grn_have_the_papers(tmp_path):
    torch.save({"model": small().state_dict()}, tmp_path / "official.pt")
    load_encoder(tmp_path / "official.pt", small(seed=1))
    with pytest.raises(ValueError, match=r"trained with GRNOptions\(aggregate='l2'"):
        load_encoder(tmp_path / "official.pt", small(aggregate="avg"))


@pytest.mark.parametrize("kind", ["none", "se", "affine"])
def test_other_formats_cannot_hold_what_replaces_grn(kind):
    if kind != "affine":  # whose names are GRN's: the command line knows it by the metadata
        with pytest.raises(ValueError, match="which timm cannot store"):
            from_ours(small(kind).state_dict(), "timm")
    for target in ("ours", "detectron2"):
        assert len(from_ours(small(kind).state_dict(), target)[0]) == len(small(kind).state_dict())


def test_wrong_options_are_named_all_at_once():
    with pytest.raises(ValueError, match=r"aggregate is 'max'.*kind is 'gn'; allowed: grn, affine"):
        GRNOptions(aggregate="max", kind="gn")
    with pytest.raises(ValueError, match="kind is 'se', which has no aggregate"):
        GRNOptions(aggregate="l1", kind="se")
    with pytest.raises(ValueError, match="a ConvNeXt V1 has no GRN"):
        ConvNeXt(Size(SMALL.dims, SMALL.depths, 1), grn=GRNOptions("l1"))


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_stays_within_its_rounding(kind):
    torch.manual_seed(0)
    block = Block(8, grn=GRNOptions(kind=kind))
    x = torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        exact = block.mix_channels(x.permute(0, 2, 3, 1))
        with torch.autocast("cpu", torch.bfloat16):
            low = block.mix_channels(x.permute(0, 2, 3, 1)).float()
    assert (low - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize(
    "options",
    [
        GRNOptions(),
        GRNOptions(aggregate="avg", normalize="standardize", residual=False),
        *(GRNOptions(kind=kind) for kind in get_args(Kind)),
    ],
    ids=str,
)
def test_options_are_read_back_from_what_checkpoints_store(options: GRNOptions) -> None:
    assert GRNOptions.of_text(str(options)) == options


@pytest.mark.parametrize(
    "text", ["gn", "", "GRNOptions()x", "GRNOptions(size='l2')", "GRNOptions(aggregate=)"]
)
def test_a_text_that_is_no_form_of_grn_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|not a form of GRN"):
        GRNOptions.of_text(text)
