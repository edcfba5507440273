"""The conversion tool from end to end: files in, files out, exit codes, and nothing unsaid."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from golden import inputs

from backbones.checkpoint import load_encoder, open_encoder, save_encoder, save_ours
from backbones.convnext import SIZES, STAGES, ConvNeXt, GRNOptions, Size, build_convnext
from backbones.errors import InputError
from backbones.key_adapters import from_ours
from backbones.weight_files import (
    read_metadata,
    read_state_dict,
    read_weights,
    save_pickle,
    save_safetensors,
)
from detection.engines.renaming import detectron2_to_torchvision
from detection.engines.torchvision.model import build_mask_rcnn
from training.cli import run_tool

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "convert_checkpoint.py"
SMALL = Size((8, 16, 24, 32), (1, 1, 2, 1), 2)
SMALL_V1 = Size((8, 16, 24, 32), (1, 1, 2, 1), 1)
TARGETS = (
    "official",
    "official-sparse",
    "timm",
    "timm-features",
    "huggingface",
    "detectron2",
    "torchvision",
)

KINDS = ("affine", "none", "lrn", "batchnorm", "layernorm", "se", "cbam")

spec = importlib.util.spec_from_file_location("convert_checkpoint", TOOL)
assert spec is not None
assert spec.loader is not None
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


@pytest.fixture
def convert(monkeypatch, capsys):
    """Run the tool in this process; gives its exit code, its output and its errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
        code = run_tool(tool.main)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def random_model(size: Size = SMALL, seed: int = 0, **options) -> ConvNeXt:
    torch.manual_seed(seed)
    model = ConvNeXt(size, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def save_whole(model: ConvNeXt, path: Path) -> Path:
    """With its head, as an official checkpoint."""
    save_pickle(model.state_dict(), path, "model")
    return path


def assert_equal_files(actual: Path, expected: Path) -> None:
    first, second = read_state_dict(actual), read_state_dict(expected)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize(
    ("target", "version"),
    [(name, v) for name in TARGETS for v in (1, 2) if (name, v) != ("official-sparse", 1)],
)
def test_files_round_trip_bit_identically(target, version, convert, tmp_path: Path) -> None:
    size = SMALL if version == 2 else SMALL_V1
    ours = tmp_path / "ours.safetensors"
    save_encoder(random_model(size), ours, {})
    for suffix in (".pth",) if target == "detectron2" else (".pth", ".safetensors"):
        there, back = tmp_path / f"there{suffix}", tmp_path / "back.safetensors"
        code, out, _ = convert(ours, there, "--to", target)
        assert code == 0
        assert "not carried over" not in out
        assert f"read    {ours}: a ConvNeXt V{version} of channels" in out
        code, out, _ = convert(there, back, "--to", "ours")
        assert code == 0
        assert f"{target} format" in out
        assert_equal_files(back, ours)
        assert read_metadata(back)["fingerprint"] == read_metadata(ours)["fingerprint"]


@pytest.mark.parametrize("first", TARGETS)
@pytest.mark.parametrize("second", TARGETS)
def test_any_format_converts_to_any_other(first, second, convert, tmp_path: Path) -> None:
    ours = tmp_path / "ours.safetensors"
    save_encoder(random_model(Size((8, 16, 24, 32), (2, 1, 1, 1), 2)), ours, {})
    a, b, back = tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "back.safetensors"
    for arguments in ((ours, a, "--to", first), (a, b, "--to", second), (b, back, "--to", "ours")):
        assert convert(*arguments)[0] == 0
    assert_equal_files(back, ours)


@pytest.mark.parametrize("name", ["convnextv2_atto", "convnextv2_tiny", "convnext_tiny"])
def test_timm_loads_the_result_strictly_and_agrees(name, convert, tmp_path: Path) -> None:
    model = random_model(SIZES[name], num_classes=5)
    path = save_whole(model, tmp_path / "ours.pth")
    assert convert(path, tmp_path / "timm.safetensors", "--to", "timm")[0] == 0
    theirs = timm.create_model(
        name, num_classes=5, checkpoint_path=str(tmp_path / "timm.safetensors")
    ).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [SMALL, SMALL_V1])
def test_transformers_loads_the_result_from_its_folder_and_agrees(
    size: Size, convert, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    kind = "ConvNextV2" if size.version == 2 else "ConvNext"
    config = getattr(transformers, f"{kind}Config")(
        hidden_sizes=list(size.dims), depths=list(size.depths), num_labels=5
    )
    model = random_model(size, num_classes=5)
    path = save_whole(model, tmp_path / "ours.pth")
    code, *_ = convert(path, tmp_path / "model.safetensors", "--to", "huggingface")
    assert code == 0
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["hidden_sizes"] == config.hidden_sizes
    theirs, info = getattr(transformers, f"{kind}ForImageClassification").from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs.eval()(images).logits, model(images), rtol=1e-4, atol=1e-5
        )


@pytest.mark.detectron2
def test_detectron2s_checkpointer_loads_the_result(convert, tmp_path: Path) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    from backbones.d2_adapter import D2ConvNeXt

    model = random_model(SIZES["convnextv2_atto"], out_norms=STAGES)
    save_encoder(model, tmp_path / "ours.safetensors", {})
    assert convert(tmp_path / "ours.safetensors", tmp_path / "d2.pth", "--to", "detectron2")[0] == 0
    bottom_up = D2ConvNeXt("convnextv2_atto")
    detector = torch.nn.ModuleDict({"backbone": torch.nn.ModuleDict({"bottom_up": bottom_up})})
    DetectionCheckpointer(detector).load(str(tmp_path / "d2.pth"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(bottom_up.state_dict()[name], tensor), name


def test_what_the_target_has_no_place_for_is_listed(convert, tmp_path: Path) -> None:
    model = random_model(num_classes=5, out_norms=STAGES)
    content = {
        **{f"encoder.{n}": t for n, t in model.state_dict().items()},
        "pred.bias": model.norm.bias,
    }
    save_pickle(content, tmp_path / "in.pth")
    _, out, _ = convert(tmp_path / "in.pth", tmp_path / "out.pth", "--to", "detectron2")
    line = next(line for line in out.splitlines() if line.startswith("not carried over, 5"))
    assert sorted(line.partition(": ")[2].split(", ")) == [
        "head.bias",
        "head.weight",
        "norm.bias",
        "norm.weight",
        "pred.bias",
    ]
    assert "out_norms.stage1.weight" in str(sorted(read_state_dict(tmp_path / "out.pth")))
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(content) == ["model"]
    assert all(name.startswith("backbone.bottom_up.") for name in content["model"])


def test_metadata_and_licence_survive_a_change_of_format(convert, tmp_path: Path) -> None:
    ours, other, back = (tmp_path / f"{name}.safetensors" for name in ("ours", "timm", "back"))
    save_encoder(random_model(), ours, {"licence": "CC0", "git_commit": "abc"})
    _, out, _ = convert(ours, other, "--to", "timm")
    assert "licence of the weights: CC0" in out
    assert convert(other, back, "--to", "ours")[0] == 0
    assert read_metadata(back)["licence"] == "CC0"
    assert read_metadata(back)["converted_from"] == str(other)
    assert convert(ours, back, "--to", "ours")[0] == 0
    assert read_metadata(back)["git_commit"] == "abc"


@pytest.fixture(scope="module", params=["plain", "LN"])
def detectron2_detector(request, tmp_path_factory) -> Path:
    """A whole trained Mask R-CNN's weights as detectron2 saves them."""
    state = inputs.Case(request.param, "trained", ()).state({})
    path = tmp_path_factory.mktemp("detector") / f"{request.param}.pth"
    torch.save({"model": state, "iteration": 9}, path)
    return path


def test_whole_detectors_convert_between_the_engines_and_back_bit_by_bit(
    detectron2_detector: Path, convert, tmp_path: Path
) -> None:
    there, back, again = (tmp_path / name for name in ("a.safetensors", "b.pth", "c.safetensors"))
    code, out, _ = convert(detectron2_detector, there, "--to", "torchvision")
    assert code == 0
    assert "not carried over" not in out
    with inputs.tiny_encoder():
        model = build_mask_rcnn(inputs.Case(detectron2_detector.stem, "trained", ()).config())
    model.load_state_dict(read_state_dict(there), strict=True)
    assert convert(there, back, "--to", "detectron2")[0] == 0
    assert_equal_files(back, detectron2_detector)
    assert convert(back, again, "--to", "torchvision")[0] == 0
    assert_equal_files(again, there)


def test_what_a_detector_was_trained_on_stays_in_the_file_or_is_said_to_be_lost(
    convert, tmp_path: Path
) -> None:
    state = detectron2_to_torchvision(inputs.Case("plain", "trained", ()).state({}))
    metadata = {"licence": "CC0", "class_names": '["a", "b", "c"]', "grn": str(GRNOptions())}
    save_safetensors(state, tmp_path / "in.safetensors", metadata)
    output = tmp_path / "out.safetensors"
    code, out, _ = convert(tmp_path / "in.safetensors", output, "--to", "torchvision")
    assert code == 0
    assert read_metadata(output).items() >= metadata.items()
    assert "no place for" not in out
    _, out, _ = convert(tmp_path / "in.safetensors", tmp_path / "out.pth", "--to", "detectron2")
    assert read_metadata(tmp_path / "out.pth").items() >= metadata.items()
    assert convert(tmp_path / "out.pth", output, "--to", "torchvision")[0] == 0
    assert read_metadata(output).items() >= metadata.items()


@pytest.mark.parametrize(
    ("part", "rows", "message"),
    [("box_predictor.bbox_pred", 4, "1 box"), ("mask_head.predictor", 1, "1 mask")],
)
def test_heads_of_one_output_for_all_classes_are_not_for_torchvision(
    part: str, rows: int, message: str, convert, tmp_path: Path
) -> None:
    state = inputs.Case("plain", "trained", ()).state({})
    for name in (f"roi_heads.{part}.weight", f"roi_heads.{part}.bias"):
        state[name] = state[name][:rows]
    torch.save({"model": state}, tmp_path / "agnostic.pth")
    output = tmp_path / "out.safetensors"
    code, _, err = convert(tmp_path / "agnostic.pth", output, "--to", "torchvision")
    assert code == 1
    assert f"predict {message} for 3 classes, which the torchvision engine does not have" in err
    assert not output.exists()


def test_rows_that_detectron2_has_no_place_for_are_not_dropped(convert, tmp_path: Path) -> None:
    state = detectron2_to_torchvision(inputs.Case("plain", "trained", ()).state({}))
    state["roi_heads.box_predictor.bbox_pred.bias"][2] = 1e-9
    torch.save(state, tmp_path / "in.pth")
    code, _, err = convert(tmp_path / "in.pth", tmp_path / "out.pth", "--to", "detectron2")
    assert code == 1
    assert "background's rows are not 0 in roi_heads.box_predictor.bbox_pred.bias" in err
    assert not (tmp_path / "out.pth").exists()


def test_cascade_heads_are_not_for_torchvision(convert, tmp_path: Path) -> None:
    encoder = {f"backbone.bottom_up.{n}": t for n, t in random_model().state_dict().items()}
    cascade = {f"roi_heads.box_head.{stage}.fc1.bias": torch.zeros(4) for stage in range(3)}
    torch.save({"model": encoder | cascade}, tmp_path / "cascade.pth")
    code, _, err = convert(tmp_path / "cascade.pth", tmp_path / "out.pth", "--to", "torchvision")
    assert code == 1
    assert "Cascade heads, which the torchvision engine does not have" in err
    assert not (tmp_path / "out.pth").exists()


def test_a_detectors_encoder_is_taken_out_and_the_rest_is_listed(
    detectron2_detector: Path, convert, tmp_path: Path
) -> None:
    path = tmp_path / "encoder.safetensors"
    code, out, _ = convert(detectron2_detector, path, "--to", "ours")
    assert code == 0
    assert "roi_heads.box_predictor.cls_score.weight" in out.partition("not carried over")[2]
    source = read_state_dict(detectron2_detector)
    for name, tensor in read_state_dict(path).items():
        assert torch.equal(tensor, source["backbone.bottom_up." + name])


def test_a_timm_name_is_converted_like_a_file(convert, monkeypatch, tmp_path: Path) -> None:
    create_model = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda n, pretrained, **kw: create_model(n, **kw))
    path = tmp_path / "ours.safetensors"
    code, out, _ = convert("timm:convnextv2_atto.fcmae", path, "--to", "ours")
    assert code == 0
    assert "licence of the weights: CC BY-NC 4.0" in out
    assert read_metadata(path)["size"] == "convnextv2_atto"
    assert load_encoder(path, build_convnext("convnextv2_atto")).loaded == 136


def test_input_that_cannot_be_converted_is_refused_in_words(convert, tmp_path: Path) -> None:
    def refusal(content: dict, target: str = "timm") -> str:
        save_pickle(content, tmp_path / "in.pth")
        code, _, err = convert(tmp_path / "in.pth", tmp_path / "out.pth", "--to", target)
        assert code == 1
        assert not (tmp_path / "out.pth").exists()
        return err

    assert "no ConvNeXt encoder in it" in refusal({"x": torch.ones(1)})
    assert "sparse format exists only for V2" in (
        refusal(random_model(SMALL_V1).state_dict(), "official-sparse")
    )
    tensors = random_model().state_dict()
    incomplete = {n: t for n, t in tensors.items() if n != "stages.2.1.norm.bias"}
    assert "shape: stages.2.1.norm.bias" in refusal(incomplete)
    incomplete = {n: t for n, t in tensors.items() if not n.startswith("stages.3.")}
    assert "whole stages are missing" in refusal(incomplete)
    heads = {"backbone.body." + n: t for n, t in tensors.items()}
    assert "roi_heads.other" in refusal(heads | {"roi_heads.other": torch.ones(1)}, "detectron2")

    save_encoder(random_model(grn=GRNOptions("l1")), tmp_path / "l1.safetensors", {})
    code, _, err = convert(tmp_path / "l1.safetensors", tmp_path / "out.pth", "--to", "timm")
    assert code == 1
    assert "aggregate='l1'" in err
    assert "which timm cannot express" in err


def test_the_input_is_never_overwritten(convert, tmp_path: Path) -> None:
    path = save_whole(random_model(), tmp_path / "in.pth")
    before = path.read_bytes()
    code, _, err = convert(path, path, "--to", "timm")
    assert code == 1
    assert "is the input itself" in err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("output", "target"), [("x.txt", "timm"), ("x.pth", "ours"), ("x.safetensors", "detectron2")]
)
def test_an_extension_that_does_not_fit_the_format_is_wrong_usage(
    output: str, target: str, convert, capsys
) -> None:
    with pytest.raises(SystemExit) as caught:
        convert("in.pth", output, "--to", target)
    assert caught.value.code == 2
    assert f"a file --to {target} ends in" in capsys.readouterr().err


def test_the_command_line_exits_1_with_one_message_and_no_traceback(
    tmp_path: Path, run_tool
) -> None:
    arguments = (tmp_path / "nowhere.pth", tmp_path / "x.pth", "--to", "timm")
    result = run_tool("convert_checkpoint", *arguments)
    assert result.code == 1
    assert result.err.splitlines()[-1] == f"error: no checkpoint file {tmp_path / 'nowhere.pth'}"
    assert "Traceback" not in result.err


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}, {"out_norms": STAGES}])
def test_transformers_builds_the_model_from_the_written_configuration_alone(
    options: dict, convert, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = random_model(SMALL, in_chans=4, **options)
    metadata = {"classes": '["a", "b", "c"]'} if "num_classes" in options else {}
    save_ours(model.state_dict(), tmp_path / "ours.safetensors", metadata)
    output = tmp_path / "hf" / "model.safetensors"
    assert convert(tmp_path / "ours.safetensors", output, "--to", "huggingface")[0] == 0
    auto = {
        "num_classes": transformers.AutoModelForImageClassification,
        "out_norms": transformers.ConvNextV2Backbone,
    }.get(next(iter(options), ""), transformers.AutoModel)
    theirs = auto.from_pretrained(str(output.parent)).eval()
    images = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        if "num_classes" in options:
            assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
            actual, expected = theirs(images).logits, model(images)
        elif options:
            actual, expected = (
                theirs(images).feature_maps[1],
                model.forward_features(images)["stage2"],
            )
        else:
            actual = theirs(images).last_hidden_state
            expected = model.forward_features(images)["stage4"]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_transformers_sees_images_as_the_source_did(convert, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    told = {"mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.5, 0.6]", "image_size": "[96, 96]"}
    save_encoder(random_model(), tmp_path / "ours.safetensors", told)
    output = tmp_path / "hf" / "model.safetensors"
    assert convert(tmp_path / "ours.safetensors", output, "--to", "huggingface")[0] == 0
    processor = transformers.AutoImageProcessor.from_pretrained(str(output.parent))
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    back = open_encoder(output)  # and this project reads it again
    assert back.numbers("std") == (0.4, 0.5, 0.6)
    assert back.numbers("image_size") == (96, 96)


@pytest.mark.parametrize("form", [GRNOptions("l1", "sum"), *map(GRNOptions.of_text, KINDS)])
@pytest.mark.parametrize("target", ["torchvision", "detectron2"])
def test_what_stands_in_grns_place_is_never_lost(form, target, convert, tmp_path: Path) -> None:
    ours, there, back = (tmp_path / n for n in ("o.safetensors", "t.pth", "b.safetensors"))
    model = random_model(grn=form)
    save_encoder(model, ours, {})
    assert convert(ours, there, "--to", target)[0] == 0
    with pytest.raises(InputError, match="was trained with"):
        load_encoder(there, random_model())
    load_encoder(there, random_model(grn=form))
    assert convert(there, back, "--to", "ours")[0] == 0
    assert read_metadata(back)["grn"] == str(form)
    assert_equal_files(back, ours)
    for other in ("official", "timm", "huggingface", "mmpretrain", "official-sparse"):
        code, _, err = convert(ours, tmp_path / "x.pth", "--to", other)
        assert code == 1
        assert f"which {other} cannot express" in err


def test_the_key_takes_one_of_several_and_the_head_can_be_left_out(convert, tmp_path: Path) -> None:
    model, other = random_model(num_classes=5), random_model(seed=1)
    content = {"state_dict": other.state_dict(), "state_dict_ema": model.state_dict()}
    torch.save(content, tmp_path / "x.pth")
    output = tmp_path / "y.safetensors"
    code, out, _ = convert(
        tmp_path / "x.pth", output, "--to", "ours", "--key", "state_dict_ema", "--no-head"
    )
    assert code == 0
    assert "not carried over, 4 tensors: norm.weight, norm.bias, head.weight, head.bias" in out
    tensors = read_state_dict(output)
    assert torch.equal(tensors["stages.0.0.dwconv.weight"], model.stages[0][0].dwconv.weight)
    assert not [name for name in tensors if name.startswith(("norm.", "head."))]


def test_a_broken_head_is_refused_and_one_of_another_kind_left_out(convert, tmp_path: Path) -> None:
    tensors = random_model(num_classes=5).state_dict()
    torch.save(tensors | {"head.bias": torch.ones(4)}, tmp_path / "x.pth")
    code, _, err = convert(tmp_path / "x.pth", tmp_path / "y.pth", "--to", "timm")
    assert code == 1
    assert "classifier is not complete" in err
    theirs = from_ours(tensors, "timm")[0] | {"head.pre_logits.fc.weight": torch.ones(2, 2)}
    torch.save(theirs, tmp_path / "mlp.pth")
    output = tmp_path / "hf" / "model.safetensors"
    code, out, _ = convert(tmp_path / "mlp.pth", output, "--to", "huggingface")
    assert code == 0
    assert "the classifier's head was left out: its head has a hidden layer" in out
    assert json.loads((output.parent / "config.json").read_text())["architectures"] == [
        "ConvNextV2Model"
    ]
    assert not [name for name in read_state_dict(output) if name.startswith("classifier")]


@pytest.mark.parametrize("in_chans", [1, 4, 13])
def test_other_channels_need_the_flag_and_follow_timms_rule(
    in_chans: int, convert, tmp_path: Path
) -> None:
    model = random_model()
    save_encoder(model, tmp_path / "x.safetensors", {"mean": "[1, 2, 3]", "std": "[1, 1, 1]"})
    arguments = (tmp_path / "x.safetensors", tmp_path / "y.safetensors", "--to", "ours")
    code, _, err = convert(*arguments, "--in-chans", in_chans)
    assert code == 1
    assert "--adapt-channels" in err
    assert convert(*arguments, "--in-chans", in_chans, "--adapt-channels")[0] == 0
    tensors, metadata = read_weights(tmp_path / "y.safetensors")
    stem = "downsample_layers.0.0.weight"
    expected = timm.models.adapt_input_conv(in_chans, model.state_dict()[stem])
    torch.testing.assert_close(tensors[stem], expected)
    assert metadata["in_chans"] == str(in_chans)
    assert "mean" not in metadata
    assert convert(
        tmp_path / "y.safetensors", tmp_path / "z.safetensors", "--to", "ours", "--in-chans", 3,
        "--adapt-channels",
    )[0] == 0  # fmt: skip
    back = read_state_dict(tmp_path / "z.safetensors")[stem]
    if in_chans >= 3:
        torch.testing.assert_close(back, model.state_dict()[stem])
    grey = torch.rand(1, 1, 4, 4)  # an image of equal channels gives what it gave
    torch.testing.assert_close(
        (back * grey).sum((1, 2, 3)), (model.state_dict()[stem] * grey).sum((1, 2, 3))
    )
