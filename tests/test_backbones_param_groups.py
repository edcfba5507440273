"""Layer ids and the no-decay rule against the authors' published scheme."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backbones.convnext import SIZES, ConvNeXt, Size, build_convnext
from backbones.param_groups import is_undecayed, last_layer_id, layer_id, parameter_groups

SMALL = Size((8, 16, 24, 32), (2, 2, 6, 2), 2)
BASE_DEPTHS = (3, 3, 27, 3)

# facebookresearch/ConvNeXt-V2, optim_factory.py: "Divide [3, 3, 27, 3] layers into 12 groups;
# each group is three consecutive blocks, including possible neighbouring downsample layers".
BASE_GROUPS = {
    0: ["downsample_layers.0"],
    1: ["stages.0.0", "stages.0.1", "stages.0.2"],
    2: ["downsample_layers.1", "stages.1.0", "stages.1.1", "stages.1.2"],
    3: ["downsample_layers.2", "stages.2.0", "stages.2.1", "stages.2.2"],
    **{3 + k: [f"stages.2.{3 * k + j}" for j in range(3)] for k in range(1, 9)},
    12: ["downsample_layers.3", "stages.3.0", "stages.3.1", "stages.3.2"],
    13: ["norm", "head", "out_norms"],
}


def base_model() -> ConvNeXt:
    with torch.device("meta"):
        return build_convnext("convnextv2_base", num_classes=10, out_norms=["stage4"])


def place(name: str) -> str:
    """``stages.2.4.norm.weight`` -> ``stages.2.4``; ``downsample_layers.1.0.bias`` -> ``...1``."""
    parts = name.split(".")
    length = {"stages": 3, "downsample_layers": 2}.get(parts[0], 1)
    return ".".join(parts[:length])


def test_base_has_the_authors_layer_ids_0_to_13() -> None:
    expected = {part: number for number, parts in BASE_GROUPS.items() for part in parts}
    for name, _ in base_model().named_parameters():
        assert layer_id(name, BASE_DEPTHS) == expected[place(name)], name
    assert last_layer_id(BASE_DEPTHS, "group") == 13


def test_single_gives_each_block_an_id_and_a_downsampling_that_of_its_next_block() -> None:
    order: dict[str, int] = {}
    for stage, depth in enumerate(BASE_DEPTHS):
        order[f"downsample_layers.{stage}"] = len([k for k in order if k.startswith("s")]) + 1
        for block in range(depth):
            order[f"stages.{stage}.{block}"] = len([k for k in order if k.startswith("s")]) + 1
    for name, _ in base_model().named_parameters():
        expected = order.get(place(name), 37)
        assert layer_id(name, BASE_DEPTHS, "single") == expected, name
    assert last_layer_id(BASE_DEPTHS, "single") == 37


@pytest.mark.parametrize("kind", ["group", "single"])
@pytest.mark.parametrize("size", SIZES)
def test_layer_ids_never_fall_along_the_forward_pass_and_leave_no_gap(size: str, kind) -> None:
    depths = SIZES[size].depths
    names = []
    for stage, depth in enumerate(depths):
        names.append(f"downsample_layers.{stage}.0.weight")
        names += [f"stages.{stage}.{block}.norm.weight" for block in range(depth)]
    names.append("head.weight")
    ids = [layer_id(name, depths, kind) for name in names]
    assert ids == sorted(ids)
    first = 0 if kind == "group" else 1
    assert sorted(set(ids)) == list(range(first, last_layer_id(depths, kind) + 1))


@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_every_trainable_parameter_is_in_exactly_one_group(layer_decay: float) -> None:
    model = ConvNeXt(SMALL, num_classes=5, out_norms=["stage1"])
    model.stages[0].requires_grad_(False)
    groups = parameter_groups(model, 1e-3, 0.05, SMALL.depths, layer_decay)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    by_name = dict(model.named_parameters())
    for group in groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            assert by_name[name] is parameter


@pytest.mark.parametrize("version", [1, 2])
def test_norms_biases_grn_and_layer_scale_are_not_decayed_and_all_else_is(version: int) -> None:
    size = Size(SMALL.dims, SMALL.depths, version)  # type: ignore[arg-type]
    model = ConvNeXt(size, num_classes=5, out_norms=["stage1"])
    weights = {  # by module type, not by name: an independent rule
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    groups = parameter_groups(model, 1e-3, 0.05, SMALL.depths, 0.8)
    decays = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    assert {name for name, decay in decays.items() if decay == 0.05} == weights
    assert {decay for name, decay in decays.items() if name not in weights} == {0.0}


def test_learning_rates_fall_by_the_factor_a_layer_id() -> None:
    model = base_model()
    groups = parameter_groups(model, 1e-3, 0.05, BASE_DEPTHS, 0.8)
    rates = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert rates["head.weight"] == rates["out_norms.stage4.weight"] == 1e-3
    assert rates["stages.3.0.dwconv.weight"] == pytest.approx(1e-3 * 0.8)
    assert rates["stages.2.26.dwconv.bias"] == pytest.approx(1e-3 * 0.8**2)
    assert rates["stages.0.0.grn.gamma"] == pytest.approx(1e-3 * 0.8**12)
    assert rates["downsample_layers.0.0.weight"] == pytest.approx(1e-3 * 0.8**13)
    assert len(groups) == 2 * 14


def test_without_layer_decay_there_are_two_groups_of_one_rate() -> None:
    groups = parameter_groups(ConvNeXt(SMALL), 2e-3, 0.05)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(2e-3, 0.05), (2e-3, 0.0)]


def test_a_detectors_own_parts_keep_the_full_rate_under_an_encoder_prefix() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.ModuleDict({"body": ConvNeXt(SMALL), "fpn": nn.Conv2d(8, 8, 1)})
            self.stages = nn.Linear(3, 3)  # a name like the encoder's, outside of it

    groups = parameter_groups(
        Detector(), 1e-3, 0.05, SMALL.depths, 0.5, encoder_prefix="backbone.body."
    )
    rates = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert rates["stages.weight"] == rates["backbone.fpn.weight"] == 1e-3
    last = last_layer_id(SMALL.depths, "group")
    assert last == 6
    assert rates["backbone.body.downsample_layers.0.0.weight"] == pytest.approx(1e-3 * 0.5**last)
    assert rates["backbone.body.stages.3.1.pwconv2.weight"] == pytest.approx(1e-3 * 0.5)


def test_grn_is_decayed_alone_where_the_authors_pretraining_is_asked_for() -> None:
    """Their rule in pretraining spares what has one dimension, and their GRN's have four."""
    model = build_convnext("convnextv2_atto")
    groups = parameter_groups(model, 1e-3, 0.05, decay_grn=True)
    decayed = {n for group in groups if group["weight_decay"] for n in group["param_names"]}
    assert decayed == {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 or ".grn." in name
    }


def test_no_decay_rule_spares_scalars_and_vectors_of_any_name() -> None:
    assert is_undecayed("temperature", 0)
    assert is_undecayed("norm.weight", 1)
    assert is_undecayed("grn.gamma", 4)
    assert is_undecayed("x.bias", 2)
    assert not is_undecayed("mask_token", 4)
    assert not is_undecayed("stages.0.0.pwconv1.weight", 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 0.0}, r"layer decay is 0.0; it must be in \(0, 1\]"),
        ({"layer_decay": 1.5}, "layer decay is 1.5"),
        (
            {"layer_decay": 0.8, "layer_decay_type": "block"},
            "'block'; allowed: single, group, stage",
        ),
        ({"layer_decay": 0.8, "depths": (3, 3)}, r"four depths, got \(3, 3\)"),
        ({"layer_decay": 0.8, "encoder_prefix": "body."}, r"no parameter is named body\.stages"),
    ],
)
def test_wrong_options_are_named_with_what_is_allowed(options: dict, message: str) -> None:
    arguments = {"depths": SMALL.depths, **options}
    with pytest.raises(ValueError, match=message):
        parameter_groups(ConvNeXt(SMALL), 1e-3, 0.05, **arguments)


def test_stage_wise_decay_is_the_segmentation_recipes():
    """Relative to the head, by the published formula: 0.9^9 and 0.9^13 at 12, 0.9^3, 0.9^7 at 6."""
    model = build_convnext("convnext_tiny", out_norms=("stage4",))
    for layers, stage4, stem in ((12, 0.9**9, 0.9**13), (6, 0.9**3, 0.9**7)):
        groups = parameter_groups(
            model,
            1.0,
            0.05,
            depths=model.size.depths,
            layer_decay=0.9,
            layer_decay_type="stage",
            stage_layers=layers,
        )
        rates = {name: group["lr"] for group in groups for name in group["param_names"]}
        assert rates["stages.3.0.dwconv.weight"] == pytest.approx(stage4)
        assert rates["downsample_layers.0.0.weight"] == pytest.approx(stem)
        assert rates["downsample_layers.3.1.weight"] == pytest.approx(stem)
        assert rates["out_norms.stage4.weight"] == 1.0
