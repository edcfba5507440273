"""The measures against naive loops in float64, and the taps against hand-run blocks."""

from __future__ import annotations

import io
import json
import math
import tarfile

import numpy as np
import pytest
import timm
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file

from backbones.checkpoint import save_encoder
from backbones.convnext import ConvNeXt, Size, build_convnext
from backbones.key_adapters import from_ours
from backbones.normalization import GRNOptions
from fcmae.features.analysis import (
    ClassSelectivity,
    analyze,
    cosine_distance,
    dead_and_saturated,
    effective_rank,
)
from fcmae.features.channel_maps import kinds_of
from fcmae.features.images import AnalysisImages, View, choose_view
from fcmae.features.models import load_convnext, load_model
from fcmae.features.plots import _from_zero
from fcmae.features.taps import TAPS, run_features, tap_points, tapped

TINY = Size((4, 6, 8, 10), (1, 1, 2, 1), 2)
TINY_V1 = Size((4, 6, 8, 10), (1, 1, 2, 1), 1)


def random_features(seed, b=3, n=20, c=12):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(b, n, c, generator=generator) + torch.randn(1, 1, c, generator=generator)
    x[0, :, 3] = 0  # a channel that is 0 everywhere
    x[1, :, 4] = 1e-30  # nearly so, but with a direction
    x[2, :, 5] = x[2, :, 6] * 1e6
    return x


def naive_cosine_distance(x_nc):
    x = x_nc.double().numpy()
    channels = [x[:, c] for c in range(x.shape[1]) if np.any(x[:, c] != 0)]
    total = 0.0
    for a in channels:
        for b in channels:
            cosine = np.dot(a, b) / math.sqrt(np.dot(a, a)) / math.sqrt(np.dot(b, b))
            total += (1 - cosine) / 2
    return total / len(channels) ** 2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cosine_distance_equals_the_naive_double_loop(seed):
    x = random_features(seed)
    wanted = [naive_cosine_distance(image) for image in x]
    assert cosine_distance(x).tolist() == pytest.approx(wanted, abs=1e-12)
    assert cosine_distance(x.permute(0, 2, 1).contiguous().permute(0, 2, 1))[0] == pytest.approx(
        wanted[0], abs=1e-12
    )


def test_cosine_distance_of_known_channels():
    site = torch.eye(4)
    copies = site[:, :1].repeat(1, 5)
    assert cosine_distance(copies[None]).item() == pytest.approx(0)
    opposed = torch.stack([site[:, 0], -3 * site[:, 0]], -1)
    assert cosine_distance(opposed[None]).item() == pytest.approx(0.5)
    # of orthogonal channels each is at 1/2 from all but itself
    assert cosine_distance(site[None]).item() == pytest.approx(0.5 * (1 - 1 / 4))
    assert cosine_distance(torch.zeros(1, 4, 3)).isnan().item()


def test_cosine_distance_of_the_widest_block_needs_no_matrix_of_channels():
    """11,264 channels at 7 x 7 sites: 4 MB, where a float64 matrix of C x C has 1 GB."""
    x = torch.randn(1, 49, 11_264, generator=torch.Generator().manual_seed(0)).relu()
    with torch.profiler.profile(profile_memory=True) as profile:
        distance = cosine_distance(x).item()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 20e6
    part = x[0, :, ::16]
    assert distance == pytest.approx(naive_cosine_distance(part[:, :60]), abs=0.02)


def test_dead_and_saturated_channels_equal_their_definition_site_by_site():
    x = random_features(0)
    x[:, :, 0] = 5 + 0.3 * x[:, :, 1]  # hardly varies
    x[:, :, 7] *= 1e-4
    x[:, :, 8] *= 3e-3  # dead at a hundredth of the mean, alive at a thousandth
    dead, saturated = dead_and_saturated(x)
    for image in range(len(x)):
        maps = x[image].double().numpy()
        response = [math.sqrt(np.mean(maps[:, c] ** 2)) for c in range(maps.shape[1])]
        for c in range(maps.shape[1]):
            is_dead = response[c] <= 0.01 * sum(response) / len(response)
            assert dead[image, c] == is_dead
            flat = np.std(maps[:, c]) <= 0.1 * response[c]
            assert saturated[image, c] == (flat and not is_dead)
    assert dead[0, 3]
    assert dead[:2, 7:9].all()
    assert saturated[:2, 0].all()


def test_effective_rank_equals_the_entropy_of_the_singular_values():
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    features = features * torch.tensor([9.0, 4, 2, 1, 1, 0.5, 0.1, 0]) + 100
    centred = features.double().numpy() - features.double().numpy().mean(0)
    eigenvalues = np.linalg.eigvalsh(centred.T @ centred).clip(0)
    p = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum()
    wanted = math.exp(-sum(value * math.log(value) for value in p if value > 0))
    assert effective_rank(features) == pytest.approx(wanted, rel=1e-5)
    # four directions of equal size (rows +-e_i), and none
    crossed = torch.cat([torch.eye(4), -torch.eye(4)])
    assert effective_rank(crossed) == pytest.approx(4)
    assert effective_rank(torch.full((5, 3), 0.1)) == 0


def test_class_selectivity_equals_the_naive_loop_over_classes():
    x = random_features(3, b=9, c=7)
    x[:, :, 2] = -1  # positive for no image
    x[:3, :, 5], x[3:, :, 5] = 2, -1  # answers to one class alone
    labels = [0, 0, 0, 4, 4, 7, 7, 7, 7]
    measured = ClassSelectivity()
    for start in (0, 2, 4, 8):  # batches that cut classes
        stop = {0: 2, 2: 4, 4: 8, 8: 9}[start]
        measured.update(x[start:stop], labels[start:stop])
    index = measured.index()
    maps = x.double().numpy()
    for c in range(7):
        means = []
        for wanted in (0, 4, 7):
            members = [maps[i, :, c] for i in range(9) if labels[i] == wanted]
            means.append(np.mean([np.mean(np.maximum(m, 0)) for m in members]))
        highest = max(means)
        others = (sum(means) - highest) / 2
        if c == 2:
            assert index[c].isnan()
        else:
            assert index[c] == pytest.approx((highest - others) / (highest + others), abs=1e-12)
    assert index[5] == 1


def test_class_selectivity_refuses_classes_out_of_order_and_one_class_alone():
    measured = ClassSelectivity()
    measured.update(torch.ones(2, 3, 4), [0, 0])
    with pytest.raises(ValueError, match="two classes; there are 1"):
        measured.index()
    with pytest.raises(ValueError, match="class 0 comes back"):
        measured.update(torch.ones(2, 3, 4), [1, 0])


def small_encoder(size=TINY, **options):
    torch.manual_seed(0)
    model = ConvNeXt(size, **options)
    for name, parameter in model.named_parameters():
        if ".grn." in name:
            torch.nn.init.normal_(parameter)
    return model.eval()


def captured(model, tap, images):
    points = tap_points(model, tap)
    found = {}
    with torch.no_grad(), tapped(points, lambda n, x: found.update({points[n].block: x.clone()})):
        run_features(model, images)
    return found


@pytest.mark.parametrize("size", [TINY, TINY_V1])
def test_taps_of_our_encoder_are_the_tensors_of_a_block_run_by_hand(size):
    model, images = small_encoder(size), torch.randn(2, 3, 64, 32)
    x = model.downsample_layers[0](images)
    block = model.stages[0][0]
    y = block.dwconv(x)
    expanded = torch.nn.functional.gelu(block.pwconv1(block.norm(y.permute(0, 2, 3, 1))))
    after = block.grn(expanded)
    out = block.pwconv2(after) * (1 if block.gamma is None else block.gamma)
    wanted = {
        "dwconv": y.permute(0, 2, 3, 1),
        "gelu": expanded,
        "grn": after,
        "block": x.permute(0, 2, 3, 1) + out,
    }
    for tap in TAPS:
        found = captured(model, tap, images)
        assert list(found) == ["stages.0.0", "stages.1.0", "stages.2.0", "stages.2.1", "stages.3.0"]
        assert torch.allclose(found["stages.0.0"], wanted[tap].flatten(1, 2), atol=1e-6)


def test_timm_convnext_and_ours_give_the_same_measures_for_the_same_weights(tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model("convnextv2_atto")
    for name, parameter in theirs.named_parameters():
        if ".grn." in name:
            torch.nn.init.normal_(parameter)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    models = [
        load_model("ours", str(tmp_path / "weights.safetensors")).model,
        load_model("theirs", f"timm:convnextv2_atto@{tmp_path}/weights.safetensors").model,
    ]
    images = torch.randn(4, 3, 64, 64)
    for tap in TAPS:
        ours, timms = (analyze(m, [(images, [0, 0, 1, 2])], tap) for m in models)
        assert len(ours) == len(timms) == 12
        for a, b in zip(ours, timms, strict=True):
            assert a.channels == b.channels
            for measure in ("cosine_distance", "effective_rank", "class_selectivity"):
                assert getattr(a, measure) == pytest.approx(getattr(b, measure), abs=1e-4)


def test_vit_leaves_its_class_token_out_and_resnet_has_block_outputs():
    vit = load_model("vit", "random:vit_tiny_patch16_224", (64, 32)).model
    images = torch.randn(2, 3, 64, 32)
    assert {x.shape for x in captured(vit, "grn", images).values()} == {(2, 8, 768)}
    outputs = captured(vit, "block", images)
    with torch.no_grad():
        (tokens,) = vit.forward_intermediates(
            images, indices=[5], output_fmt="NLC", intermediates_only=True, norm=False
        )
    assert torch.equal(outputs["blocks.5"], tokens)
    resnet = load_model("r", "random:resnet18").model
    found = captured(resnet, "block", images)
    assert [name for name in found if name.startswith("layer")] == [
        f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)
    ]
    assert found["layer4.1"].shape == (2, 2, 512)


def test_models_without_a_tap_say_so():
    with pytest.raises(ValueError, match=r"no depthwise convolution in its block blocks\.0"):
        tap_points(load_model("vit", "random:vit_tiny_patch16_224").model, "dwconv")
    with pytest.raises(ValueError, match="give --tap block"):
        tap_points(load_model("r", "random:resnet18").model)
    with pytest.raises(ValueError, match="tap is 'mlp'; allowed: dwconv, gelu, grn, block"):
        tap_points(small_encoder(), "mlp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Linear has no blocks"):
        tap_points(torch.nn.Linear(1, 1))


def test_analysis_equals_naive_loops_over_the_captured_features():
    """Over batches of unlike size, to 1e-5; and the model is left as it was."""
    model = small_encoder().train()
    images = torch.randn(5, 3, 64, 96)
    labels = [0, 0, 1, 1, 1]
    measured = analyze(model, [(images[:3], labels[:3]), (images[3:], labels[3:])], "grn")
    assert model.training
    model.eval()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for block, (name, x) in zip(measured, captured(model, "grn", images).items(), strict=True):
        assert (block.block, block.channels) == (name, x.shape[-1])
        wanted = np.mean([naive_cosine_distance(image) for image in x])
        assert block.cosine_distance == pytest.approx(wanted, abs=1e-5)
        assert block.effective_rank == pytest.approx(effective_rank(x.mean(1)), rel=1e-4)
        dead, saturated = dead_and_saturated(x)
        assert block.dead == pytest.approx(dead.double().mean().item())
        assert block.saturated == pytest.approx(saturated.double().mean().item())
    assert [block.depth for block in measured] == [0, 0.25, 0.5, 0.75, 1]
    for block, x in zip(measured, captured(model, "block", images).values(), strict=True):
        per_class = torch.stack([x[:2].relu().mean((0, 1)), x[2:].relu().mean((0, 1))])
        index = (per_class.max(0)[0] - per_class.min(0)[0]) / per_class.sum(0)
        assert torch.allclose(block.selectivity.float(), index, atol=1e-5, equal_nan=True)


def test_features_that_are_not_finite_and_no_images_are_errors():
    model = small_encoder()
    with pytest.raises(ValueError, match=r"block stages\.0\.0 are not finite"):
        analyze(model, [(torch.full((1, 3, 32, 32), float("nan")), None)])
    with pytest.raises(ValueError, match="no images"):
        analyze(model, [])


def test_kinds_of_channels_are_found_among_all_of_the_block():
    x = torch.randn(25, 10, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 1e-5 * x[:, 3]  # a dead copy makes no duplicate of the living
    x[:, 2] = 3
    x[:, 9] = 2 * x[:, 0] + 0.01  # a copy of one shown, itself not shown
    x[:, 5] = 3.01  # saturated channels are no duplicates of each other
    assert kinds_of(x, [0, 1, 2, 3]) == ["duplicate", "dead", "saturated", ""]


def test_grn_and_statistics_come_from_the_checkpoint_or_from_its_run(tmp_path):
    model = small_encoder(grn=GRNOptions(aggregate="l1", residual=False), in_chans=5)
    mean, std = [0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.7, 0.8, 0.9, 1.0]
    metadata = {"mean": json.dumps(mean), "std": json.dumps(std)}
    save_encoder(model, tmp_path / "encoder.safetensors", metadata)
    loaded = load_model("a", str(tmp_path / "encoder.safetensors"))
    assert loaded.model.grn == model.grn
    assert (loaded.in_chans, loaded.statistics.mean) == (5, tuple(mean))

    step = tmp_path / "checkpoints/step_00000001"
    step.mkdir(parents=True)
    save_file(
        {f"encoder.{k}": v for k, v in model.state_dict().items()}, step / "model.safetensors"
    )
    with pytest.raises(ValueError, match="does not tell their mean and std"):
        load_model("b", str(step / "model.safetensors"))
    grn = {"aggregate": "l1", "normalize": "mean", "residual": False, "kind": "grn"}
    statistics = {"mean": mean, "std": std, "origin": "measured"}
    config = {"grn": grn, "derived": {"statistics": statistics}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    loaded = load_model("b", str(step / "model.safetensors"))
    assert loaded.model.grn == model.grn
    assert loaded.statistics.std == tuple(std)
    assert torch.equal(loaded.model.stages[3][0].grn.gamma, model.stages[3][0].grn.gamma)
    # a fine-tuning that was given no form of GRN has that of its --init
    config = {"grn": None, "derived": {"statistics": statistics, "grn": grn}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert load_model("b", str(step / "model.safetensors")).model.grn == model.grn


def test_a_model_that_timm_lacks_is_named():
    with pytest.raises(ValueError, match="timm has no model 'convnextv3_base'"):
        load_model("x", "timm:convnextv3_base")


def test_untrained_models_are_the_same_for_the_same_seed():
    first, second, other = (load_model("x", "random:convnextv2_atto", seed=s) for s in (0, 0, 1))
    name = "stages.0.0.pwconv1.weight"
    assert torch.equal(first.model.state_dict()[name], second.model.state_dict()[name])
    assert not torch.equal(first.model.state_dict()[name], other.model.state_dict()[name])


@pytest.fixture
def classes_folder(tmp_path):
    """Folders b, a and c of 4, 2 and 2 images, each of one grey value: its number."""
    number = 0
    for name, count in (("b", 4), ("a", 2), ("c", 2)):
        for image in range(count):
            path = tmp_path / "data" / name / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((40 + 8 * image, 60, 3), 10 * number, np.uint8)
            Image.fromarray(pixels).save(path)
            number += 1
    return tmp_path / "data"


def test_images_come_in_the_order_of_their_classes_spread_over_all(classes_folder):
    whole = AnalysisImages(str(classes_folder), View((32, 64)), images=None)
    assert whole.classes == ["a", "b", "c"]
    assert whole.labels == [0, 0, 1, 1, 1, 1, 2, 2]
    assert whole[2].shape == (3, 32, 64)
    assert [int(whole[i].float().mean()) for i in range(8)] == [40, 50, 0, 10, 20, 30, 60, 70]
    four = AnalysisImages(str(classes_folder), View((32, 64)), images=4)
    assert four.labels == [0, 1, 1, 2]
    one = AnalysisImages(str(classes_folder / "a"), View((32, 64)))
    assert one.labels is None
    with pytest.raises(ValueError, match="number of images is 0"):
        AnalysisImages(str(classes_folder), View((32, 64)), images=0)


def test_classes_of_shards_are_webdatasets_and_never_the_shards(classes_folder, tmp_path):
    """Two shards of two classes each: a flat .tar says nothing of classes, its fields may."""
    (tmp_path / "wds").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / f"wds/s-{shard}.tar", "w") as archive:
            for number in range(4):
                archive.add(classes_folder / f"b/{number}.png", f"{shard}{number}.png")
                info = tarfile.TarInfo(f"{shard}{number}.cls")
                info.size = 1
                archive.addfile(info, io.BytesIO(b"71"[number % 2 : number % 2 + 1]))
    found = AnalysisImages(f"wds/{tmp_path}/wds/s-{{0..1}}.tar", View((32, 64)))
    assert (found.classes, found.labels) == (["1", "7"], [0] * 4 + [1] * 4)
    flat = AnalysisImages(f"{tmp_path}/wds/s-{{0..1}}.tar", View((32, 64)))
    assert (len(flat), flat.labels) == (8, None)


def test_images_without_a_class_beside_others_have_no_class_selectivity(classes_folder):
    (classes_folder / "a/0.png").rename(classes_folder / "0.png")
    assert AnalysisImages(str(classes_folder), View((32, 64))).labels is None


def test_images_are_those_of_timms_evaluation_transform(image_folder):
    """Resized to 1 / 0.875 by the shorter side and cropped at the centre."""
    images = AnalysisImages(str(image_folder), View((64, 64)))
    transform = timm.data.create_transform(
        64, interpolation="bicubic", crop_pct=0.875, mean=(0,) * 3, std=(1,) * 3
    )
    path = images._samples.describe(images.indices[3])
    wanted = transform(Image.open(path).convert("RGB")) * 255
    assert (images[3].float() - wanted).abs().max() <= 2


@pytest.mark.parametrize("told", [True, False])
def test_a_source_that_tells_size_crop_and_interpolation_is_analysed_so(
    image_folder, told, tmp_path
):
    """Hugging Face's preprocessor file beside the weights; without one 224, 0.875, bicubic."""
    encoder = build_convnext("convnextv2_atto")
    tensors = {
        f"convnextv2.{n}": t for n, t in from_ours(encoder.state_dict(), "huggingface")[0].items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    if told:
        processor = {"size": {"shortest_edge": 96}, "crop_pct": 0.75, "resample": 2}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    _, loaded = load_convnext(str(tmp_path / "model.safetensors"))
    view = choose_view([loaded.view], None)
    size, crop, mode = (96, 0.75, "bilinear") if told else (224, 0.875, "bicubic")
    images = AnalysisImages(str(image_folder), view)
    transform = timm.data.create_transform(
        size, interpolation=mode, crop_pct=crop, mean=(0,) * 3, std=(1,) * 3
    )
    path = images._samples.describe(images.indices[3])
    wanted = transform(Image.open(path).convert("RGB")) * 255
    assert (images[3].float() - wanted).abs().max() <= 2
    assert choose_view([loaded.view], (64, 32)).image_size == (64, 32)
    assert choose_view([View((32, 32)), View((64, 64))], None).image_size == (224, 224)


def test_real_features_of_a_real_photograph_equal_the_naive_loop(real_data):
    images = AnalysisImages(str(real_data / "imagenet_samples"), View((64, 64)), images=2)
    model = build_convnext("convnextv2_atto").eval()
    batch = torch.stack([images[0], images[1]]).float() / 255
    measured = analyze(model, [(batch, None)], "grn")
    for block, x in zip(measured, captured(model, "grn", batch).values(), strict=True):
        if block.channels <= 160:
            wanted = np.mean([naive_cosine_distance(image) for image in x])
            assert block.cosine_distance == pytest.approx(wanted, abs=1e-5)


def test_no_figure_cuts_its_highest_marker():
    """Lines of nearly one height leave matplotlib's own margin next to nothing."""
    axis = Figure().subplots()
    axis.plot([0, 1], [0.4985, 0.4995], "o")
    _from_zero(axis)
    low, high = axis.get_ylim()
    assert low == 0
    assert high > 0.5
