"""Weights of every format: recognised, loaded completely or refused in words, written whole."""

from __future__ import annotations

import argparse
import logging
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor, nn

from backbones.checkpoint import (
    fingerprint,
    load_encoder,
    save_encoder,
)
from backbones.convnext import SIZES, STAGES, ConvNeXt, GRNOptions, Size, build_convnext
from backbones.key_adapters import FORMATS, from_ours, to_ours
from backbones.weight_files import (
    read_metadata,
    read_state_dict,
    save_pickle,
    write_atomically,
)
from backbones.weights import sources as sources_module
from backbones.weights.structure import ENCODER, guess_size, size_name

SMALL = Size((8, 16, 24, 32), (1, 1, 2, 1), 2)
CONVOLUTIONAL = Size((8, 16, 24, 32), (2, 1, 1, 1), 2)  # as timm's atto to nano
SMALL_V1 = Size((8, 16, 24, 32), (1, 1, 2, 1), 1)
ALL_SMALL = [SMALL, CONVOLUTIONAL, SMALL_V1]


def random_model(size: Size = SMALL, seed: int = 0, **options) -> ConvNeXt:
    """All tensors random, so that no two can be exchanged unseen."""
    torch.manual_seed(seed)
    model = ConvNeXt(size, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def assert_same_encoder(actual: nn.Module, expected: nn.Module) -> None:
    actual_tensors, expected_tensors = actual.state_dict(), expected.state_dict()
    names = [name for name in expected_tensors if name.startswith(ENCODER)]
    assert names
    for name in names:
        assert torch.equal(actual_tensors[name], expected_tensors[name]), name


# --- the adapters, alone ---


@pytest.mark.parametrize(
    ("target", "size"),
    [
        (target, size)
        for target in FORMATS
        for size in ALL_SMALL
        if (target, size) != ("official-sparse", SMALL_V1)  # exists for V2 alone
    ],
)
def test_every_format_round_trips_bit_identically_and_names_what_it_drops(
    target: str, size: Size
) -> None:
    for options in ({}, {"num_classes": 5}, {"out_norms": STAGES}):
        tensors = random_model(size, **options).state_dict()
        written, dropped = from_ours(tensors, target)
        read = to_ours(written)
        assert read.format == ("official" if target == "ours" else target)
        assert read.others == []
        assert sorted([*read.tensors, *dropped]) == sorted(tensors)
        assert not any(name.startswith(ENCODER) for name in dropped)
        for name, tensor in read.tensors.items():
            assert torch.equal(tensor, tensors[name]), name
            assert tensor.dtype == tensors[name].dtype


def test_the_sparse_format_of_a_v1_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="ConvNeXt V1; the sparse format exists only for V2"):
        from_ours(random_model(SMALL_V1).state_dict(), "official-sparse")


@pytest.mark.parametrize("name", SIZES)
def test_timm_has_the_written_names_and_shapes_in_all_sizes(name: str) -> None:
    with init_empty_weights():  # not the device meta: old versions of timm compute with numbers
        ours = build_convnext(name, num_classes=11)
        models = {
            "timm": timm.create_model(name, num_classes=11),
            "timm-features": timm.create_model(name, features_only=True),
        }
    for target, model in models.items():
        written, _ = from_ours(ours.state_dict(), target)
        expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
        assert {key: tensor.shape for key, tensor in written.items()} == expected


@pytest.mark.parametrize("name", SIZES)
def test_the_size_is_guessed_from_the_tensors(name: str) -> None:
    with torch.device("meta"):
        tensors = build_convnext(name).state_dict()
    assert size_name(guess_size(tensors)) == name
    del tensors["stages.1.0.norm.weight"]
    assert size_name(guess_size(tensors)) == "an incomplete encoder"


def transformers_models(version: int, size: Size, **options) -> tuple[type, type, type, object]:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    kind = "ConvNextV2" if version == 2 else "ConvNext"
    config = getattr(transformers, f"{kind}Config")(
        hidden_sizes=list(size.dims), depths=list(size.depths), **options
    )
    names = (f"{kind}Model", f"{kind}ForImageClassification", f"{kind}Backbone")
    model, classifier, backbone = (getattr(transformers, name) for name in names)
    return model, classifier, backbone, config


@pytest.mark.parametrize("size", [SMALL, SMALL_V1])
def test_transformers_models_load_the_written_weights_strictly_and_agree(size: Size) -> None:
    images = torch.randn(2, 3, 64, 96)
    model_type, classifier_type, backbone_type, config = transformers_models(
        size.version, size, num_labels=5, out_features=list(STAGES)
    )
    with torch.no_grad():
        ours = random_model(size, num_classes=5)
        written, dropped = from_ours(ours.state_dict(), "huggingface")
        assert not dropped
        theirs = classifier_type(config).eval()
        theirs.load_state_dict(written, strict=True)
        torch.testing.assert_close(theirs(images).logits, ours(images), rtol=1e-4, atol=1e-5)

        without_head = {n: t for n, t in ours.state_dict().items() if not n.startswith("head.")}
        theirs = model_type(config).eval()
        theirs.load_state_dict(from_ours(without_head, "huggingface")[0], strict=True)
        stage4 = ours.forward_features(images)["stage4"]
        torch.testing.assert_close(theirs(images).last_hidden_state, stage4, rtol=1e-4, atol=1e-4)

        ours = random_model(size, out_norms=STAGES)
        theirs = backbone_type(config).eval()
        theirs.load_state_dict(from_ours(ours.state_dict(), "huggingface")[0], strict=True)
        features = theirs(images).feature_maps
        for stage, theirs_map in zip(STAGES, features, strict=True):
            expected = ours.forward_features(images)[stage]
            torch.testing.assert_close(theirs_map, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [SMALL, SMALL_V1])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_transformers_own_weights_load_into_ours(size: Size, kind: int, tmp_path: Path) -> None:
    *types, config = transformers_models(size.version, size, out_features=["stage2", "stage4"])
    torch.manual_seed(0)
    theirs = types[kind](config).eval()  # type: ignore[operator]
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    theirs.save_pretrained(tmp_path)
    ours = ConvNeXt(size, out_norms=["stage2"] if kind == 2 else []).eval()
    result = load_encoder(tmp_path / "model.safetensors", ours)
    assert result.format == "huggingface"
    assert result.loaded == result.total
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        if kind == 2:
            expected = theirs(images).feature_maps[0]
            actual = ours.forward_features(images)["stage2"]
            assert sorted(result.ignored) == ["out_norms.stage4.bias", "out_norms.stage4.weight"]
        else:
            expected = theirs(images, output_hidden_states=True).hidden_states[-1]
            actual = ours.forward_features(images)["stage4"]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def sparse_state_dict(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' pretraining layout, element by element: site x * k + y of a kernel is (y, x)."""
    written = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        stem = parts[:2] == ["downsample_layers", "0"]
        if tensor.ndim == 4 and not stem and ".grn." not in name:
            c_out, c_in, side, _ = tensor.shape
            kernel = torch.empty(side * side, c_in, c_out)
            for y in range(side):
                for x in range(side):
                    kernel[x * side + y] = tensor[:, :, y, x].T
            written["encoder." + ".".join(parts[:-1]) + ".kernel"] = (
                kernel[:, 0] if parts[-2] == "dwconv" else kernel
            )
        elif name.endswith("bias") and not stem and (parts[-2] in ("dwconv", "1")):
            written["encoder." + name] = tensor[None]
        elif ".grn." in name:
            written["encoder." + name] = tensor[0, 0]
        elif not stem and (parts[-2] == "norm" or parts[0] == "downsample_layers"):
            written["encoder." + ".".join([*parts[:-1], "ln", parts[-1]])] = tensor
        elif "pwconv" in name:
            written["encoder." + ".".join([*parts[:-1], "linear", parts[-1]])] = tensor
        else:
            written["encoder." + name] = tensor
    return written


def test_sparse_kernels_are_read_in_minkowskis_order(tmp_path: Path) -> None:
    model = random_model()
    sparse = sparse_state_dict(model.state_dict())
    written, _ = from_ours(model.state_dict(), "official-sparse")
    assert written.keys() == sparse.keys()
    for name, tensor in sparse.items():
        assert torch.equal(written[name], tensor), name

    decoder = {"mask_token": torch.zeros(1, 16, 1, 1), "decoder.0.dwconv.weight": torch.zeros(3)}
    torch.save({"model": sparse | decoder, "epoch": 800}, tmp_path / "x.pth")
    other = ConvNeXt(SMALL)
    result = load_encoder(tmp_path / "x.pth", other)
    assert_same_encoder(other, model)
    assert result.format == "official-sparse"
    assert sorted(result.ignored) == sorted(decoder)


# --- loading files ---


def pretraining_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    rest = {"proj.weight": torch.zeros(2), "mask_token": torch.zeros(1), "pred.bias": torch.ones(2)}
    return {f"encoder.{name}": tensor for name, tensor in tensors.items()} | rest


def detector_state(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    rest = {"backbone.fpn_lateral2.weight": torch.zeros(2), "roi_heads.x.weight": torch.ones(2)}
    return {prefix + name: tensor for name, tensor in tensors.items()} | rest


@pytest.mark.parametrize("size", [SMALL, SMALL_V1])
@pytest.mark.parametrize(
    ("form", "state"),
    [
        ("official", lambda tensors: tensors),
        ("official", lambda tensors: {f"module.{n}": t for n, t in tensors.items()}),
        ("fcmae", pretraining_state),
        ("detectron2", lambda tensors: detector_state(tensors, "backbone.bottom_up.")),
        ("torchvision", lambda tensors: detector_state(tensors, "backbone.body.")),
        ("torchvision", lambda tensors: detector_state(tensors, "module.backbone.body.")),
        ("timm", lambda tensors: from_ours(tensors, "timm")[0]),
        ("timm-features", lambda tensors: from_ours(tensors, "timm-features")[0]),
        ("timm", lambda t: {f"visual.trunk.{n}": v for n, v in from_ours(t, "timm")[0].items()}),
    ],
)
@pytest.mark.parametrize("container", ["safetensors", "plain", "model", "state_dict"])
def test_files_of_every_format_are_recognised_and_loaded(
    form: str, state, container: str, size: Size, tmp_path: Path
) -> None:
    model = random_model(size)
    content = state(model.state_dict())
    if container == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(content, path)
    else:
        path = tmp_path / "weights.pth"
        torch.save(content if container == "plain" else {container: content, "epoch": 3}, path)
    other = random_model(size, seed=1)
    result = load_encoder(path, other)
    assert_same_encoder(other, model)
    total = len(model.state_dict())
    assert (result.format, result.loaded, result.total) == (form, total, total)
    assert str(result) == f"{total}/{total} encoder tensors loaded from {path} ({form} format)"
    assert len(result.ignored) == len(content) - total
    assert (result.missing, result.unexpected, result.new) == ([], [], [])
    assert result.fingerprint == fingerprint(model.state_dict())


def test_own_file_carries_its_metadata_and_reads_back(tmp_path: Path) -> None:
    model = random_model(SIZES["convnextv2_atto"], in_chans=4, out_norms=["stage4"], num_classes=3)
    path = tmp_path / "new" / "encoder.safetensors"
    given = {"config": "{}", "dataset_fingerprint": "ab", "git_commit": "cd", "licence": "CC0"}
    save_encoder(model, path, given)
    metadata = read_metadata(path)
    assert given.items() <= metadata.items()
    assert metadata["format_version"] == "1"
    assert metadata["size"] == "convnextv2_atto"
    assert metadata["in_chans"] == "4"
    assert metadata["fingerprint"] == fingerprint(model.state_dict())
    assert metadata["torch"] == torch.__version__
    assert metadata["timm"] == timm.__version__
    assert metadata["format"] == "pt"

    tensors = read_state_dict(path)
    assert set(tensors) == {n for n in model.state_dict() if not n.startswith(("norm.", "head."))}
    other = build_convnext("convnextv2_atto", in_chans=4, out_norms=["stage4"])
    result = load_encoder(path, other)
    assert_same_encoder(other, model)
    assert torch.equal(other.out_norms["stage4"].weight, model.out_norms["stage4"].weight)
    assert (result.format, result.licence) == ("ours", "CC0")


def test_output_norms_are_new_where_the_file_has_none_and_ignored_where_the_model_has_none(
    tmp_path: Path,
) -> None:
    save_encoder(random_model(out_norms=["stage1"]), tmp_path / "e.safetensors", {})
    model = random_model(seed=1, out_norms=["stage2"])
    before = model.out_norms["stage2"].weight.clone()
    result = load_encoder(tmp_path / "e.safetensors", model)
    assert result.new == ["out_norms.stage2.weight", "out_norms.stage2.bias"]
    assert sorted(result.ignored) == ["out_norms.stage1.bias", "out_norms.stage1.weight"]
    assert torch.equal(model.out_norms["stage2"].weight, before)
    assert result.loaded == result.total


def test_fingerprint_sees_one_changed_value_and_neither_head_nor_order() -> None:
    tensors = random_model(num_classes=3, out_norms=STAGES).state_dict()
    first = fingerprint(tensors)
    encoder = {n: t for n, t in reversed(tensors.items()) if n.startswith(ENCODER)}
    assert fingerprint(encoder) == first
    name = "stages.2.1.grn.gamma"
    changed = encoder[name].clone()
    changed[0, 0, 0, 3] = torch.nextafter(changed[0, 0, 0, 3], torch.tensor(9.0))
    assert fingerprint(encoder | {name: changed}) != first
    assert len(fingerprint(encoder | {name: changed.bfloat16()})) == 64
    with pytest.raises(ValueError, match="no encoder tensors"):
        fingerprint({"head.weight": torch.ones(1)})


# --- what does not fit ---


def saved(tmp_path: Path, model: nn.Module, **changes: Tensor | None) -> Path:
    content = {**model.state_dict(), **{k.replace("__", "."): v for k, v in changes.items()}}
    path = tmp_path / "weights.pth"
    torch.save({name: tensor for name, tensor in content.items() if tensor is not None}, path)
    return path


def refusal(path: Path | str, model: ConvNeXt, **options) -> str:
    """The message of the ValueError; the model must be left as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the callers test the text)
        load_encoder(path, model, **options)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} changed though loading failed"
    return str(caught.value)


def test_a_checkpoint_of_another_size_is_named_with_both_sizes_and_shapes(tmp_path: Path) -> None:
    path = saved(tmp_path, build_convnext("convnextv2_nano"))
    text = refusal(path, build_convnext("convnextv2_atto"))
    assert "is convnextv2_nano; the model is convnextv2_atto" in text
    assert str(path) in text
    assert "downsample_layers.0.0.weight is (80, 3, 4, 4); the model's is (40, 3, 4, 4)" in text
    assert "20 unexpected: stages.2.6.dwconv.weight, " in text
    assert "stages.2.7.pwconv2.bias" in text


def test_a_v1_checkpoint_for_a_v2_model_is_named_as_such(tmp_path: Path) -> None:
    text = refusal(saved(tmp_path, random_model(SMALL_V1)), random_model(SMALL))
    assert "is a ConvNeXt V1 of channels (8, 16, 24, 32) and depths (1, 1, 2, 1)" in text
    assert "10 missing: stages.0.0.grn.gamma, stages.0.0.grn.beta" in text
    assert "5 unexpected: stages.0.0.gamma" in text


def test_other_input_channels_are_named_as_such(tmp_path: Path) -> None:
    text = refusal(saved(tmp_path, random_model(in_chans=3)), random_model(in_chans=4))
    assert "takes images of 3 channels; the model's in_chans is 4" in text
    assert "--in-chans, MODEL.CONVNEXT.IN_CHANS with INPUT.FORMAT raw" in text


def test_every_missing_unexpected_and_broken_tensor_is_named(tmp_path: Path) -> None:
    changes = {
        "stages__2__1__norm__weight": None,
        "stages__3__0__pwconv1__bias": None,
        "stages__0__0__extra": torch.ones(1),
        "stages__1__0__dwconv__bias": torch.full((16,), float("nan")),
    }
    path = saved(tmp_path, random_model(), **changes)
    text = refusal(path, random_model(seed=1))
    assert "2 missing: stages.2.1.norm.weight, stages.3.0.pwconv1.bias" in text
    assert "1 unexpected: stages.0.0.extra" in text
    assert "1 with NaN or infinite values: stages.1.0.dwconv.bias" in text


def test_partial_loading_must_be_allowed_and_says_what_is_missing(tmp_path: Path, caplog) -> None:
    source = random_model(in_chans=3)
    path = saved(tmp_path, source, stages__2__1__norm__weight=None)
    model = random_model(in_chans=5, seed=1)
    refusal(path, model)
    stem = model.downsample_layers[0][0].weight.clone()
    with caplog.at_level(logging.WARNING, "backbones"):
        result = load_encoder(path, model, allow_partial=True)
    assert result.missing == ["stages.2.1.norm.weight", "downsample_layers.0.0.weight"]
    assert result.loaded == result.total - 2
    assert torch.equal(model.downsample_layers[0][0].weight, stem)
    assert torch.equal(model.stages[3][0].pwconv2.weight, source.stages[3][0].pwconv2.weight)
    assert "1 missing: stages.2.1.norm.weight" in caplog.text


def test_partial_loading_of_nothing_is_still_an_error(tmp_path: Path) -> None:
    path = saved(tmp_path, random_model(Size((9, 17, 25, 33), (1, 1, 2, 1), 2)))
    assert "another" in refusal(path, random_model(), allow_partial=True)


def test_a_network_that_is_no_convnext_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    path = saved(tmp_path, nn.Linear(2, 2))
    text = refusal(path, random_model())
    assert f"{path}: no ConvNeXt encoder in it" in text
    assert "2 tensors: bias, weight" in text


def test_a_file_with_two_encoders_is_refused_with_both_prefixes(tmp_path: Path) -> None:
    tensors = random_model().state_dict()
    content = {f"{who}.{n}": t for who in ("student", "teacher") for n, t in tensors.items()}
    torch.save(content, tmp_path / "x.pth")
    text = refusal(tmp_path / "x.pth", random_model())
    assert "more than one encoder in it, under the prefixes 'student.', 'teacher.'" in text


def test_an_encoder_of_another_grn_form_is_refused(tmp_path: Path) -> None:
    save_encoder(random_model(grn=GRNOptions("l1")), tmp_path / "e.safetensors", {})
    text = refusal(tmp_path / "e.safetensors", random_model())
    assert "trained with GRNOptions(aggregate='l1'" in text
    assert "the model has GRNOptions(aggregate='l2'" in text
    load_encoder(tmp_path / "e.safetensors", random_model(grn=GRNOptions("l1")))


# --- unsafe and damaged files ---


class Malicious:
    """A pickle of this touches a file when it is read without care."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True, "bare"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    legacy: bool | str, tmp_path: Path
) -> None:
    victim, path = tmp_path / "it_ran", tmp_path / "weights.pth"
    content = {"model": random_model().state_dict(), "x": Malicious(victim)}
    if legacy == "bare":
        path.write_bytes(pickle.dumps({"x": Malicious(victim)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    text = refusal(path, random_model())
    assert f"{path} is refused: it is a pickle that could run code when read" in text
    assert "system" in text
    assert "safetensors" in text
    assert "\n" not in text
    assert not victim.exists()
    if legacy == "bare":  # the test's own check: read without care, it does run
        pickle.loads(path.read_bytes())
        assert victim.exists()


def test_the_authors_training_checkpoints_with_their_command_line_are_read(tmp_path: Path) -> None:
    model = random_model()
    content = {"model": model.state_dict(), "args": argparse.Namespace(lr=1.0), "epoch": 3}
    torch.save(content, tmp_path / "x.pth")
    other = random_model(seed=1)
    load_encoder(tmp_path / "x.pth", other)
    assert_same_encoder(other, model)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "text", "noise", "empty"])
def test_a_damaged_file_is_refused_in_one_sentence(
    damage: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    tensors = random_model().state_dict()
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "text": b"weights of a model\n",
            "noise": bytes(range(256)) * 4,
            "empty": b"",
        }[damage]
    )
    text = refusal(path, random_model())
    assert str(path) in text
    assert ("is empty" if damage == "empty" else "damaged, cut off, or something else") in text
    assert "copy or fetch it again" in text
    assert "weights_only" not in text  # torch's own message would have it switched off
    assert "\n" not in text


def test_a_safetensors_file_is_read_whatever_its_extension(tmp_path: Path) -> None:
    tensors = random_model().state_dict()
    save_file(tensors, tmp_path / "weights.bin")
    assert read_state_dict(tmp_path / "weights.bin").keys() == tensors.keys()


def test_missing_files_folders_and_files_without_tensors_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file .*nowhere\.pth"):
        load_encoder(tmp_path / "nowhere.pth", random_model())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "encoder.safetensors").write_bytes(b"x")
    assert "run is a folder; give the file of weights in it (it holds encoder.safetensors)" in (
        refusal(tmp_path / "run", random_model())
    )
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    text = refusal(tmp_path / "x.pth", random_model())
    assert "holds no tensors of a model; its keys: epoch; give the file of the weights" in text
    torch.save([1, 2], tmp_path / "x.pth")
    assert "holds a list, not named tensors" in refusal(tmp_path / "x.pth", random_model())


def test_what_lies_beside_the_weights_is_said(tmp_path: Path, caplog) -> None:
    content = {"model": {**random_model().state_dict(), "step": 3}, "optimizer": {}, "epoch": 1}
    torch.save(content, tmp_path / "x.pth")
    with caplog.at_level(logging.INFO, "backbones"):
        read_state_dict(tmp_path / "x.pth")
    assert "reading 'model'; not reading optimizer, epoch" in caplog.text
    assert "not tensors, not read: step" in caplog.text


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_pickle({"x": torch.ones(2)}, path)

    def fail(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pth"]
    assert read_state_dict(path)["x"].tolist() == [1, 1]


# --- timm's hub and the licence ---


@pytest.mark.parametrize("in_chans", [3, 4])
def test_timm_names_go_through_timms_own_pretrained_loading(
    in_chans: int, monkeypatch, caplog
) -> None:
    torch.manual_seed(0)
    calls = []
    create_model = timm.create_model

    def fake_hub(name: str, pretrained: bool, **options):
        calls.append((name, pretrained, options))
        return create_model(name, pretrained=False, **options)

    monkeypatch.setattr(sources_module.timm, "create_model", fake_hub)
    model = build_convnext("convnextv2_atto", in_chans=in_chans)
    with caplog.at_level(logging.INFO, "backbones"):
        result = load_encoder("timm:convnextv2_atto.fcmae", model)
    assert calls == [("convnextv2_atto.fcmae", True, {"in_chans": in_chans})]
    assert result.licence == "CC BY-NC 4.0 (no commercial use)"
    assert result.loaded == result.total
    assert "136/136 encoder tensors loaded from timm:convnextv2_atto.fcmae (timm" in caplog.text
    assert "licence of these weights: CC BY-NC 4.0" in caplog.text
    assert ("timm adapts the stem's 3 channels to 4" in caplog.text) == (in_chans == 4)


def test_timms_failures_are_put_into_words(monkeypatch) -> None:
    model = build_convnext("convnextv2_atto")
    assert "timm has no ConvNeXt of this name" in refusal("timm:resnet50", model)
    assert "convnextv2_atto" in refusal("timm:convnextv2_ato.fcmae", model)

    def offline(*arguments, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(sources_module.timm, "create_model", offline)
    text = refusal("timm:convnextv2_atto.fcmae", model)
    assert "could not load these weights (ConnectionError: no route to host)" in text
    assert "fetch the file elsewhere and give its path" in text


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("convnextv2_atto_1k_224_fcmae.pt", "CC BY-NC 4.0"),
        ("convnextv2_tiny_22k_384_ema.pt", "CC BY-NC 4.0"),
        ("convnext_tiny_22k_1k_224.pth", "MIT"),
        ("mine.pth", "unknown (the source does not tell"),
    ],
)
def test_the_licence_of_a_download_is_told_from_its_name_or_said_to_be_unknown(
    name: str, licence: str, tmp_path: Path, caplog
) -> None:
    save_pickle(random_model().state_dict(), tmp_path / name, "model")
    with caplog.at_level(logging.INFO, "backbones"):
        result = load_encoder(tmp_path / name, random_model(seed=1))
    assert f"licence of these weights: {licence}" in caplog.text
    assert (result.licence is None) == (name == "mine.pth")
