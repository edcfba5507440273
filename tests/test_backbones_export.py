"""Exported encoders: equal features at every size; float16 where sums of squares overflow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backbones.checkpoint import save_encoder
from backbones.convnext import STAGES, ConvNeXt, Size
from backbones.errors import InputError
from backbones.export import FIRST_TORCH, check_target, encoder_export, write_export
from backbones.normalization import GRN, GRNOptions
from backbones.quantization import quantize_calibrated

pytestmark = pytest.mark.skipif(torch.__version__ < FIRST_TORCH, reason="torch is too old")

SMALL = Size((8, 16, 24, 32), (1, 1, 1, 1), 2)
LARGE = 300.0  # activations at 32 x 32 sites: their squares sum to 1000 times float16's 65504


def encoder(scale: float = 1.0) -> ConvNeXt:
    """Random weights; ``scale`` multiplies what enters GRN and divides what leaves it."""
    torch.manual_seed(0)
    model = ConvNeXt(SMALL, out_norms=STAGES).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "grn" in name:
                parameter.normal_()
            elif name.endswith("weight") and parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            if "pwconv1" in name:
                parameter *= scale
            if "pwconv2.weight" in name:
                parameter /= scale
    return model


@pytest.fixture
def saved(tmp_path: Path):
    def save(scale: float = 1.0) -> Path:
        path = tmp_path / "encoder.safetensors"
        statistics = {"mean": "[0.1, 0.2, 0.3]", "std": "[1, 1, 1]"}
        save_encoder(encoder(scale), path, {"licence": "CC0", **statistics})
        return path

    return save


def test_grn_keeps_its_statistic_in_float32_where_float16_overflows() -> None:
    torch.manual_seed(0)
    x = LARGE * torch.rand(2, 32, 32, 16)
    grn = GRN(16)
    with torch.no_grad():
        grn.gamma.normal_()
        grn.beta.normal_()
        expected = grn(x)
        assert not x.half().square().sum((1, 2)).isfinite().all()  # the test is one
        halved = GRN(16).half()
        halved.load_state_dict(grn.state_dict())
        assert halved.aggregate(x.half()).dtype == torch.float32
        torch.testing.assert_close(halved(x.half()).float(), expected, rtol=5e-3, atol=1.0)


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_a_block_with_large_activations_is_finite_under_fp16_autocast(grad: bool) -> None:
    model = encoder(scale=LARGE)
    images = torch.randn(1, 3, 128, 128)
    seen: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.float16):
        rounded = model.forward_features(images)
    with torch.no_grad():
        exact = model.forward_features(images)
    assert max(float(x.float().square().sum((1, 2)).max()) for x in seen) > 65504
    for name in STAGES:
        torch.testing.assert_close(rounded[name].float(), exact[name], rtol=0.1, atol=0.1)


def test_the_fp16_onnx_file_takes_grns_norm_of_float32(saved, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    path = tmp_path / "fp16.onnx"
    write_export(encoder_export(saved(LARGE), "fp16"), path, "fp16")
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected = encoder(LARGE).forward_features(images)
    # onnx's own evaluator: onnxruntime computes float16 in float32 on a CPU, and hides overflow
    for name, stage in zip(
        STAGES, ReferenceEvaluator(str(path)).run(None, {"images": images.numpy()}), strict=True
    ):
        np.testing.assert_allclose(stage, expected[name], rtol=0.1, atol=0.1)
    model = onnx.load(path)
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_an_exported_encoder_gives_the_same_features_at_every_size(
    suffix: str, saved, tmp_path: Path
) -> None:
    path = tmp_path / f"encoder{suffix}"
    if suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    write_export(encoder_export(saved()), path)
    if suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        facts = session.get_modelmeta().custom_metadata_map
        assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]

        def run(images: Tensor) -> list[Tensor]:
            return [torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()})]

    else:
        extra = {"metadata.json": ""}
        module = torch.export.load(path, extra_files=extra).module()
        facts = json.loads(extra["metadata.json"])

        def run(images: Tensor) -> list[Tensor]:
            return list(module(images=images).values())

    assert json.loads(facts["pixel_mean"]) == [0.1, 0.2, 0.3]
    assert (facts["licence"], facts["kind"], facts["precision"]) == ("CC0", "encoder", "fp32")
    assert facts["size"].startswith("a ConvNeXt V2 of channels")
    for shape in ((1, 3, 64, 96), (3, 3, 97, 131), (2, 3, 160, 64)):
        images = torch.randn(shape)
        with torch.no_grad():
            expected = encoder().forward_features(images)
        for name, stage in zip(STAGES, run(images), strict=True):
            torch.testing.assert_close(stage, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "precision", "message"),
    [
        ("x.pth", "fp32", r"x\.pth: give a file name that ends in \.onnx or \.pt2"),
        ("x.pt2", "int8", r"int8 needs a file that ends in \.onnx"),
        ("x.pt2", "int4", r"precision is 'int4'; it is one of fp32, fp16, int8"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(name, precision, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_target(Path(name), precision)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match="needs onnxscript: pip install onnx onnxruntime"):
        check_target(Path("x.onnx"), "fp32")


def test_a_torch_that_is_too_old_is_said_before_any_work(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.6.0+cpu"))
    with pytest.raises(ValueError, match=r"torch 2\.6\.0\+cpu is too old for exports"):
        check_target(tmp_path / "encoder.pt2", "fp32")


@pytest.mark.parametrize(
    "grn", [GRNOptions("l1", "sum"), GRNOptions(kind="layernorm"), GRNOptions(kind="none")]
)
def test_an_encoder_with_another_grn_is_exported_as_the_function_that_it_is(
    grn: GRNOptions, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = ConvNeXt(SMALL, in_chans=2, grn=grn).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    save_encoder(model, tmp_path / "e.safetensors", {})
    export = encoder_export(tmp_path / "e.safetensors")
    assert export.metadata["grn"] == str(grn)
    images = torch.randn(1, 2, 64, 64)
    with torch.no_grad():
        expected, actual = model.forward_features(images), export.graph(images)
    for stage in STAGES:
        assert torch.equal(actual[stage], expected[stage])


def test_calibrated_int8_is_close_and_leaves_out_samples_that_give_nothing(caplog) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    shapes = {"conv.weight": (8, 3, 3, 3), "linear": (8, 5), "last.weight": (2, 8, 1, 1)}
    constants = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["c"], "c"),
        helper.make_node("Relu", ["c"], ["r"], "r"),
        helper.make_node("Transpose", ["r"], ["t"], "t", perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["t", "linear"], ["y"], "m"),
        helper.make_node("Conv", ["r", "last.weight"], ["z"], "l"),
        helper.make_node("NonZero", ["x"], ["found"], "n"),
    ]
    typed = {"y": TensorProto.FLOAT, "z": TensorProto.FLOAT, "found": TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "h", "w"])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in typed.items()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"kind": "small"})
    empty = {"x": np.zeros((1, 3, 9, 9), np.float32)}
    samples = [
        {"x": random.normal(size=(1, 3, 8, number)).astype(np.float32)} for number in (7, 9, 12)
    ]
    with caplog.at_level("INFO"):
        quantized = quantize_calibrated(model, [empty, *samples], ["last"])
    assert "calibrated by 3 of 4 images" in caplog.text
    assert [(p.key, p.value) for p in quantized.metadata_props] == [("kind", "small")]
    stored = {tensor.name: tensor.data_type for tensor in quantized.graph.initializer}
    assert stored["conv.weight_quantized"] == stored["linear_quantized"] == TensorProto.INT8
    assert stored["last.weight"] == TensorProto.FLOAT
    (y, z, _), (rounded, rounded_z, _) = (
        ort.InferenceSession(m.SerializeToString()).run(None, samples[1])
        for m in (model, quantized)
    )
    for exact, approximate in ((y, rounded), (z, rounded_z)):
        error = np.abs(exact - approximate).max() / np.abs(exact).max()
        assert 0 < error < 0.05
    with pytest.raises(InputError, match=r"finds nothing in the 2 calibration images"):
        quantize_calibrated(model, [empty, empty])
