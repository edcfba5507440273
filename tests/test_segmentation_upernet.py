"""UPerNet against transformers' model on the same weights, and its losses by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ConvNextConfig,
    ConvNextV2Config,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from backbones.convnext import STAGES, ConvNeXt, Size, build_convnext
from backbones.errors import InputError
from backbones.export import write_export
from segmentation.benchmark import segmentation_case
from segmentation.export import graph_export
from segmentation.inference import InferenceOptions, segment
from segmentation.model import UPerNet
from segmentation.upernet import IGNORED, UPerNetOptions, pixel_loss
from segmentation.weights import load_segmenter, to_our_names

CLASSES = 5
SIZES = {1: Size((8, 16, 24, 32), (1, 1, 2, 1), 1), 2: Size((8, 16, 24, 32), (1, 1, 2, 1), 2)}


def theirs(version: int) -> UperNetForSemanticSegmentation:
    size = SIZES[version]
    kind = ConvNextV2Config if version == 2 else ConvNextConfig
    backbone = kind(
        hidden_sizes=list(size.dims), depths=list(size.depths), out_features=list(STAGES)
    )
    torch.manual_seed(0)
    model = UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=backbone,
            hidden_size=16,
            auxiliary_channels=12,
            num_labels=CLASSES,
            use_auxiliary_head=True,
            pool_scales=[1, 2, 3, 6],
        )
    )
    for name, parameter in model.named_parameters():  # nothing at its neutral value
        if "grn" in name or "norm" in name or "layer_scale" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def ours(version: int) -> UPerNet:
    encoder = ConvNeXt(SIZES[version], out_norms=STAGES)
    options = UPerNetOptions(CLASSES, channels=16, aux_channels=12)
    return UPerNet(encoder, options, [0.0] * 3, [1.0] * 3).eval()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [(512, 512), (357, 230)])
def test_logits_are_those_of_transformers(version, size):
    reference, model = theirs(version), ours(version)
    model.load_state_dict(to_our_names(reference.state_dict()))
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = reference(image).logits
        found = model.sem_seg_head.logits(model.backbone.forward_features(image))
        found = torch.nn.functional.interpolate(found, size=size, mode="bilinear")
    difference = (found - expected).abs().max() / expected.abs().max()
    assert difference < 1e-5


def test_losses_and_gradients_are_those_of_transformers():
    reference, model = theirs(2), ours(2)
    model.load_state_dict(to_our_names(reference.state_dict()))
    labels = torch.randint(0, CLASSES, (2, 64, 96))
    labels[0, :20] = IGNORED
    images = torch.randn(2, 3, 64, 96)
    reference(images, labels=labels).loss.backward()
    model.train()
    for module in model.modules():  # as evaluation has them: no dropout, stored statistics
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.Dropout2d)):
            module.eval()
    losses = model([{"image": i, "labels": label} for i, label in zip(images, labels, strict=True)])
    sum(losses.values()).backward()
    gradients = to_our_names({n: p.grad for n, p in reference.named_parameters()})
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-6)


def test_padding_and_ignored_pixels_do_not_count():
    torch.manual_seed(0)
    logits, labels = torch.randn(1, CLASSES, 4, 4), torch.randint(0, CLASSES, (1, 4, 4))
    labels[0, 0] = IGNORED
    chosen = logits[0, :, 1:].flatten(1).T.log_softmax(1)
    expected = -chosen.gather(1, labels[0, 1:].reshape(-1, 1)).mean()
    torch.testing.assert_close(pixel_loss(logits, labels), expected)


def test_a_batch_of_ignored_pixels_has_no_loss_instead_of_nan():
    logits = torch.randn(1, CLASSES, 4, 4, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 8, 8), IGNORED))
    loss.backward()
    assert loss == 0
    assert not logits.grad.isnan().any()


def test_class_weights_are_pytorchs():
    logits, labels = torch.randn(1, CLASSES, 4, 4), torch.randint(0, CLASSES, (1, 4, 4))
    labels[0, 0] = IGNORED
    weights = torch.rand(CLASSES) + 0.1
    expected = torch.nn.functional.cross_entropy(logits, labels, weights, ignore_index=IGNORED)
    torch.testing.assert_close(pixel_loss(logits, labels, weights), expected)


def test_images_of_several_sizes_are_padded_and_come_back_at_their_own():
    encoder = build_convnext("convnextv2_atto", out_norms=STAGES)
    model = UPerNet(encoder, UPerNetOptions(3, channels=32, aux_channels=0), [1.0] * 3, [2.0] * 3)
    images = [torch.rand(3, 40, 70), torch.rand(3, 64, 33)]
    with torch.no_grad():
        found = model.eval()([{"image": image} for image in images])
    assert [tuple(logits.shape) for logits in found] == [(3, 40, 70), (3, 64, 33)]
    batch = model.normalise(images)
    assert batch.shape == (2, 3, 64, 96)
    assert (batch[0, :, 40:] == 0).all()
    torch.testing.assert_close(batch[1, :, :64, :33], (images[1] - 1) / 2)


def test_group_norm_trains_on_one_image():
    encoder = build_convnext("convnextv2_atto", out_norms=STAGES)
    options = UPerNetOptions(3, channels=64, aux_channels=64, norm="GN")
    model = UPerNet(encoder, options, [0.0] * 3, [1.0] * 3).train()
    losses = model([{"image": torch.rand(3, 32, 32), "labels": torch.zeros(32, 32).long()}])
    assert set(losses) == {"loss_seg", "loss_aux"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_exported_graph_gives_the_models_logits_at_other_sizes(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    encoder = ConvNeXt(Size((8, 16, 24, 32), (1, 0, 0, 1), 2), out_norms=STAGES)
    options = UPerNetOptions(3, channels=16, pool_scales=(1, 2), aux_channels=0)
    model = UPerNet(encoder, options, [100.0] * 3, [50.0] * 3).eval()
    facts = {
        "kind": "segmentation",
        "input_format": "RGB",
        "value_range": "[]",
        "size_divisor": "32",
    }
    facts |= {"class_names": '["a", "b", "c"]', "pixel_mean": "[100.0, 100.0, 100.0]"}
    facts["scale"] = "[64, 48]"
    write_export(graph_export(model, facts), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for size in ((64, 96), (128, 32)):
        images = torch.randint(0, 256, (1, 3, *size)).float()
        with torch.no_grad():
            (expected,) = model([{"image": images[0]}])
        (found,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found[0]), expected, rtol=1e-3, atol=1e-4)
    picture = np.random.default_rng(0).integers(0, 256, (57, 90, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    example = Path(__file__).parent.parent / "examples/onnx_segmentation.py"
    run = [sys.executable, example, "model.onnx", "photo.png", "map.png"]
    said = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    scores = segment(model, picture, InferenceOptions(scale=(64, 48)))
    shown = np.asarray(Image.open(tmp_path / "map.png"))
    assert (shown == scores.argmax(0).numpy()).mean() > 0.999
    assert said.stdout.startswith("a: ")


def authors_names(name: str) -> str:
    """Our name -> that of the ConvNeXt authors' segmentation files (mmsegmentation 0.x)."""
    name = name.removeprefix("sem_seg_head.")
    for stage in range(4):
        name = name.replace(f"out_norms.stage{stage + 1}", f"norm{stage}")
    return name


def mmpretrain_names(name: str) -> str:
    """The same in mmsegmentation 1.x, whose encoder is mmpretrain's."""
    name = authors_names(name)
    if name.startswith("backbone.stages."):
        for ours, theirs in (
            ("dwconv", "depthwise_conv"),
            ("pwconv1", "pointwise_conv1"),
            ("pwconv2", "pointwise_conv2"),
        ):
            name = name.replace(f".{ours}.", f".{theirs}.")
    return name


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("rename", [authors_names, mmpretrain_names])
def test_published_layouts_load_by_name(tmp_path, rename, version):
    torch.manual_seed(1)
    source, model = ours(version), ours(version)
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    tensors = {rename(name): tensor for name, tensor in source.state_dict().items()}
    torch.save({"meta": {"epoch": 1}, "state_dict": tensors}, tmp_path / "upernet.pth")
    load_segmenter(tmp_path / "upernet.pth", model)
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_the_benchmark_measures_two_models_of_one_function():
    """That the losses are the same is asserted there; what it prints are ratios of the two."""
    cpu = torch.device("cpu")
    row = segmentation_case("convnextv2_atto", "fp32", 2, 64, 1, cpu, channels=16)
    ratio = row["ours ms"] / row["transformers ms"]
    assert row["time, ours / transformers"] == pytest.approx(ratio)
    assert 0.2 < row["memory, ours / transformers"] < 2
    with pytest.raises(InputError, match="at least 2 images"):
        segmentation_case("convnextv2_atto", "fp32", 1, 64, 1, cpu)
