"""Checkpoints as programs write them: what lies beside the weights, and which are meant."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import http
import inspect
import logging
import operator
import os
import pathlib
import pickle
import re
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import types
import uuid
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from backbones.checkpoint import load_encoder, open_encoder
from backbones.convnext import STAGES, ConvNeXt, Size
from backbones.errors import InputError
from backbones.key_adapters import from_ours, to_ours
from backbones.weight_files import read_state_dict
from backbones.weights.pickles import StandIn, read_pickle, stand_in
from backbones.weights.sources import run_of
from backbones.weights.structure import check_head
from fcmae.classification.head import read_classifier

SMALL = Size((8, 16, 24, 32), (1, 1, 2, 1), 2)


def tensors(seed: int = 0, **options) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = ConvNeXt(SMALL, **options)
    return {name: torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def assert_loads(path: str | Path, expected: dict[str, Tensor], key: str | None = None) -> None:
    model = ConvNeXt(SMALL)
    load_encoder(open_encoder(path, key=key), model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture
def foreign(monkeypatch):
    """A class of a package that this reader does not have, as a pickle would name it."""

    def make(module: str, name: str, base: type = object) -> type:
        package = types.ModuleType(module)
        made = type(name, (base,), {"__module__": module})
        setattr(package, name, made)
        parts = module.split(".")
        for length in range(1, len(parts)):
            parent = ".".join(parts[:length])
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, module, package)
        return made

    return make


@pytest.fixture
def history(foreign):
    """mmengine's message hub: buffers of numpy arrays, whose state names their methods."""
    buffer_type = foreign("mmengine.logging.history_buffer", "HistoryBuffer")
    config_type = foreign("mmengine.config.config", "ConfigDict", dict)
    buffer = buffer_type()
    buffer.values = np.arange(3.0)
    buffer.methods = {"mean": functools.partial(np.mean)}
    config = config_type(lr=1.0)
    config.nested = "x"
    return {"log_scalars": collections.OrderedDict(loss=buffer), "config": config}


def test_what_training_programs_put_beside_the_weights_is_read_past(
    history, foreign, tmp_path: Path, caplog
) -> None:
    own = foreign("my_project.options", "Options")
    beside = {
        "best": np.float64(1),
        "epoch": np.int64(3),
        "scores": np.arange(4, dtype=np.float32),
        "where": {"out": pathlib.PurePosixPath("x"), "windows": pathlib.PureWindowsPath("c:/x")},
        "args": argparse.Namespace(lr=1.0, out=pathlib.Path("x")),
        "started": datetime.datetime(2026, 1, 2),
        "queue": collections.deque([1, 2], maxlen=4),
        "counts": collections.defaultdict(int, a=1),
        "slice": slice(1, 2),
        "message_hub": history,
        "hyper_parameters": own(),
    }
    expected = tensors()
    for name, value in beside.items():
        path = saved(tmp_path / f"{name}.pth", {"model": expected, name: value})
        with caplog.at_level(logging.INFO, "backbones"):
            assert_loads(path, expected)
    assert "not read, beside the weights: my_project.options.Options" in caplog.text
    path = saved(tmp_path / "all.pth", {"model": expected, **beside})
    del sys.modules["my_project.options"]
    assert_loads(path, expected)
    assert isinstance(read_pickle(path)["hyper_parameters"], StandIn)
    torch.save(
        {"model": expected, **beside, "hyper_parameters": 1},
        path,
        _use_new_zipfile_serialization=False,
    )
    assert_loads(path, expected)


class Mode(enum.IntEnum):
    FAST = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Joined:  # as Python 3.11.2 pickles Access.READ | Access.WRITE
    def __reduce__(self):
        return operator.or_, (Access.READ, Access.WRITE)


class Task:
    class Kind(enum.Enum):  # pickled as an attribute of Task
        BOXES = "boxes"

    class Options:
        pass


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        signal.SIGINT, signal.SIG_DFL, signal.Signals, http.HTTPStatus.OK, re.IGNORECASE,
        socket.AF_INET, ssl.TLSVersion.TLSv1_2, uuid.SafeUUID.safe,
        inspect.Parameter.POSITIONAL_ONLY, Mode.FAST, Access.READ | Access.WRITE, Task.Kind.BOXES,
        Task.Options(), Joined(),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_enums_beside_the_weights_are_read_past(value, new_format: bool, tmp_path: Path) -> None:
    path, expected = tmp_path / "x.pth", tensors()
    content = {"model": expected, "ended_by": value, "by": {value: 1} if value else {}}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    assert_loads(path, expected)


@pytest.mark.parametrize("name", ["signal.SIGINT", "socket.AF_INET", "_operator.or_"])
def test_an_enums_member_that_is_pickled_by_its_name_is_a_value(name: str) -> None:
    assert stand_in(name) is not None  # as some versions of Python pickle them


@pytest.mark.parametrize("name", ["signal.raise_signal", "signal.signal", "socket.socket"])
def test_functions_beside_an_enum_stay_refused(name: str) -> None:
    assert stand_in(name) is None


class Runs:
    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (os.system, "touch {victim}"),
        (subprocess.getoutput, "touch {victim}"),
        (eval, "open({victim!r}, 'w')"),
        (exec, "open({victim!r}, 'w')"),
        (torch.load, "{victim}"),
        (__import__, "antigravity"),
    ],
)
def test_functions_of_python_are_refused_and_do_not_run(
    function, argument: str, kind: str, tmp_path: Path
) -> None:
    victim, path = tmp_path / "it_ran", tmp_path / "x.pth"
    content = {"model": tensors(), "x": Runs(function, argument.format(victim=str(victim)))}
    if kind == "bare":
        path.write_bytes(pickle.dumps(content["x"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(InputError, match="refused: it is a pickle that could run code"):
        read_state_dict(path)
    assert not victim.exists()


def test_a_foreign_class_is_neither_imported_nor_called(foreign, tmp_path: Path) -> None:
    victim = tmp_path / "it_ran"

    def setstate(self, state) -> None:
        victim.touch()

    made = foreign("evil.package", "Evil")
    made.__setstate__ = setattr(made, "__setstate__", setstate) or setstate
    thing = made()
    thing.x = 1
    path = saved(tmp_path / "x.pth", {"model": tensors(), "x": thing})
    assert_loads(path, tensors())
    assert not victim.exists()
    del sys.modules["evil.package"]
    assert_loads(path, tensors())
    assert "evil.package" not in sys.modules


def test_a_pickled_model_is_said_to_be_an_object_of_its_program(foreign, tmp_path: Path) -> None:
    made = foreign("ultralytics.nn.tasks", "DetectionModel", torch.nn.Sequential)
    path = saved(tmp_path / "yolo.pt", {"epoch": -1, "model": made(torch.nn.Conv2d(3, 4, 3))})
    del sys.modules["ultralytics.nn.tasks"]
    with pytest.raises(InputError, match=r"holds no tensors.*model \(a ultralytics.nn.tasks.Det"):
        read_state_dict(path)


@pytest.mark.parametrize("protocol", range(6))
def test_detectron2s_pkl_of_arrays_is_read(protocol: int, tmp_path: Path) -> None:
    expected = tensors()
    model = {f"backbone.bottom_up.{n}": t.numpy() for n, t in expected.items()}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": model, "__author__": "zoo"}, protocol=protocol))
    assert_loads(path, expected)


def test_arrays_that_numpy_saved_are_read(tmp_path: Path) -> None:
    expected = tensors()
    np.savez(tmp_path / "x.npz", **{f"module.{n}": t.numpy() for n, t in expected.items()})
    assert_loads(tmp_path / "x.npz", expected)
    whole = (tmp_path / "x.npz").read_bytes()
    place = whole.index(b"NUMPY") + 400
    (tmp_path / "x.npz").write_bytes(whole[:place] + b"x" + whole[place + 1 :])
    with pytest.raises(InputError, match=r"cannot be read as a file of arrays: it is damaged"):
        read_state_dict(tmp_path / "x.npz")


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".ckpt"])
def test_a_pickle_is_read_whatever_its_ending(ending: str, tmp_path: Path) -> None:
    expected = tensors()
    assert_loads(saved(tmp_path / f"x{ending}", expected), expected)


@pytest.mark.parametrize(
    "wrapper",
    [
        "_orig_mod.",
        "_checkpoint_wrapped_module.",
        "_fsdp_wrapped_module._checkpoint_wrapped_module.",
    ],
)
@pytest.mark.parametrize("place", ["", "stages.", "stages.2.1."])
def test_what_wrappers_put_into_names_is_left_off(wrapper: str, place: str, tmp_path: Path) -> None:
    expected = tensors()
    named = {
        (place + wrapper + n[len(place) :] if n.startswith(place) else n): t
        for n, t in expected.items()
    }
    assert_loads(saved(tmp_path / "x.pth", named), expected)


def test_what_holds_no_named_tensors_says_how_to_save_them(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    torch.jit.script(model).save(str(tmp_path / "jit.pt"))
    torch.save(model, tmp_path / "whole.pth")
    torch.save({"optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}, tmp_path / "rest.pth")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(tmp_path / "whole.pth", "weights/whole.pth")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "whole.pth", "whole.pth")
    save = r"torch\.save\(model\.state_dict\(\), FILE\)"
    for name, said in (
        ("jit.pt", f"is TorchScript, a program: load it by torch.jit.load, and save .*{save}"),
        ("whole.pth", f"holds a torch.nn.modules.linear.Linear, an object of .*; save .*{save}"),
        ("rest.pth", f"holds no tensors of a model; its keys: optimizer; give the file .*{save}"),
        ("x.zip", r"it holds weights/whole.pth\): unpack it and give the file of the weights"),
        ("x.tar", "is a tar archive: unpack it and give the file of the weights"),
    ):
        with pytest.raises(InputError, match=said) as found:
            read_state_dict(tmp_path / name)
        assert "weights_only" not in str(found.value)


def test_a_damaged_record_of_its_run_does_not_hide_the_weights(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model_final.safetensors")
    (tmp_path / "config.yaml").write_text("MODEL: {CONVNEXT: {SIZE: x}}", encoding="utf-8")
    for record in ("{", "[]", '{"categories": 3}', '{"categories": [{"id": 1}]}'):
        (tmp_path / "run.json").write_text(record, encoding="utf-8")
        assert "class_names" not in open_encoder(tmp_path / "model_final.safetensors").metadata


# --- which of several ---


@pytest.mark.parametrize(
    "name",
    ["model", "state_dict", "model_state_dict", "model_state", "module", "net", "teacher",
     "student", "ema", "model_ema", "state_dict_ema", "ema_state_dict"],
)  # fmt: skip
def test_one_set_of_tensors_is_found_under_any_key(name: str, tmp_path: Path) -> None:
    expected = tensors()
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}
    content = {name: expected, "epoch": 1, "optimizer": optimizer, "acc": 1.0}
    assert_loads(saved(tmp_path / "x.pth", content), expected)
    assert_loads(saved(tmp_path / "y.pth", {"checkpoint": content}), expected)


def test_weights_go_before_their_average_and_the_key_takes_it(tmp_path: Path, caplog) -> None:
    first, second = tensors(), tensors(seed=1)
    path = saved(tmp_path / "x.pth", {"state_dict": first, "state_dict_ema": second, "step": 3})
    with caplog.at_level(logging.INFO, "backbones"):
        assert_loads(path, first)
    assert (
        "reading 'state_dict'; not reading state_dict_ema, step (--key takes state_dict_ema)"
        in (caplog.text)
    )
    assert_loads(path, second, key="state_dict_ema")


def test_a_key_behind_the_file_takes_one_set_wherever_a_checkpoint_is_given(tmp_path: Path) -> None:
    student, teacher = tensors(), tensors(seed=1)
    path = saved(tmp_path / "x.pth", {"student": student, "teacher": teacher})
    assert_loads(f"{path}#teacher", teacher)
    save_file({f"teacher.{n}": t for n, t in teacher.items()}, tmp_path / "y.safetensors")
    assert_loads(f"{tmp_path}/y.safetensors#teacher", teacher)
    with pytest.raises(InputError, match="nothing under the key 'teecher'"):
        open_encoder(f"{path}#teecher")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file .*none\.pth$"):
        open_encoder(f"{tmp_path}/none.pth#teacher")
    named_so = path.rename(tmp_path / "x#1.pth")
    assert_loads(f"{named_so}#teacher", teacher)
    with pytest.raises(InputError, match="several sets"):
        open_encoder(named_so)


def test_several_sets_of_tensors_are_listed_and_a_key_takes_one(tmp_path: Path) -> None:
    student, teacher = tensors(), tensors(seed=1)
    path = saved(tmp_path / "x.pth", {"student": student, "teacher": teacher})
    with pytest.raises(InputError, match=r"several sets.*student \(\d+\), teacher \(\d+\).*--key"):
        read_state_dict(path)
    assert_loads(path, teacher, key="teacher")
    together = {f"{who}.{n}": t for who, found in (("student", student), ("teacher", teacher))
                for n, t in found.items()}  # fmt: skip
    path = saved(tmp_path / "y.pth", {"state_dict": together})
    with pytest.raises(InputError, match=r"'student.', 'teacher.'.*--key"):
        open_encoder(path)
    assert_loads(path, teacher, key="teacher")
    with pytest.raises(
        InputError, match=r"nothing under the key 'teecher'; it has .*student, teach"
    ):
        open_encoder(path, key="teecher")


# --- published layouts ---


def mmpretrain(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """mmpretrain's names, spelled out after its ConvNeXt."""
    written = {}
    for name, tensor in own.items():
        if name.startswith("norm."):
            name = "backbone.norm3." + name.removeprefix("norm.")
        elif name.startswith("head."):
            name = "head.fc." + name.removeprefix("head.")
        else:
            name = name.replace("dwconv", "depthwise_conv").replace("pwconv", "pointwise_conv")
            name = f"backbone.{name}"
        written[name] = tensor.flatten() if ".grn." in name else tensor
    return written


def spark(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """SparK's pretraining in mmpretrain: its encoder, its decoder, its mask tokens."""
    rest = {"neck.mask_tokens.0": torch.ones(1), "data_preprocessor.mean": torch.ones(3)}
    return {n: t for n, t in mmpretrain(own).items() if "norm3" not in n} | rest


ROWS = {
    "mmpretrain": (lambda t: {"meta": {}, "state_dict": mmpretrain(t)}, "mmpretrain"),
    "SparK in mmpretrain": (lambda t: {"state_dict": spark(t)}, "mmpretrain"),
    "SparK": (lambda t: {"module": from_ours(t, "timm")[0]}, "timm"),
    "lightly-train's export": (lambda t: from_ours(t, "timm")[0], "timm"),
    "lightly-train's checkpoint, its teacher": (
        lambda t: {"state_dict": {
            f"model.wrapped_model._model.{n}": v for n, v in from_ours(t, "timm")[0].items()}},
        "timm",
    ),
    "Lightning": (lambda t: {"state_dict": {f"model.{n}": v for n, v in t.items()}}, "official"),
    "Lightning around timm": (
        lambda t: {"state_dict": {f"net.enc.{n}": v for n, v in from_ours(t, "timm")[0].items()},
                   "pytorch-lightning_version": "2.4", "hyper_parameters": {}},
        "timm",
    ),
    "DDP": (lambda t: {"model": {f"module.{n}": v for n, v in t.items()}}, "official"),
    "torch.compile": (lambda t: {f"_orig_mod.{n}": v for n, v in t.items()}, "official"),
    "timm's training, averaged": (lambda t: {"state_dict_ema": from_ours(t, "timm")[0]}, "timm"),
    "AveragedModel": (
        lambda t: {"n_averaged": torch.tensor(3), **{f"module.{n}": v for n, v in t.items()}},
        "official",
    ),
    "OpenCLIP": (
        lambda t: {f"visual.trunk.{n}": v for n, v in from_ours(t, "timm")[0].items()}
        | {"visual.head.proj.weight": torch.ones(2), "logit_scale": torch.ones(())},
        "timm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_published_layouts_of_encoders_load_whole(row: str, tmp_path: Path) -> None:
    write, form = ROWS[row]
    expected = tensors()
    path = saved(tmp_path / "x.pth", write(expected))
    assert open_encoder(path).recognised.format == form
    assert_loads(path, expected)


@pytest.mark.parametrize("prefix", ["", "model.", "module.net."])
@pytest.mark.parametrize("target", ["huggingface", "mmpretrain"])
def test_a_head_beside_the_encoder_is_found_under_any_prefix(
    target: str, prefix: str, tmp_path: Path
) -> None:
    own = tensors(num_classes=5)
    written = from_ours(own, target)[0]
    content = {"state_dict": {prefix + n: t for n, t in written.items()}}
    source = read_classifier(str(saved(tmp_path / "x.pth", content)))
    assert source.rows == 5
    for name, tensor in source.head.items():
        assert torch.equal(tensor, own[name]), name


def test_mmpretrains_layout_is_written_as_it_is_read_and_has_a_detectors_norms() -> None:
    own = tensors(num_classes=5)
    written, dropped = from_ours(own, "mmpretrain")
    assert not dropped
    expected = mmpretrain(own)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    own = tensors(out_norms=STAGES)
    written, _ = from_ours(own, "mmpretrain")
    assert torch.equal(written["backbone.norm1.bias"], own["out_norms.stage2.bias"])
    assert to_ours(written).tensors.keys() == own.keys()
    # the authors' detectors have these norms beside our names
    authors = {f"backbone.{n}": t for n, t in own.items() if not n.startswith("out_norms.")} | {
        f"backbone.norm{int(n[len('out_norms.stage')]) - 1}.{n.split('.')[-1]}": t
        for n, t in own.items() if n.startswith("out_norms.")
    }  # fmt: skip
    assert to_ours(authors).tensors.keys() == own.keys()


# --- a head is whole or an error ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": None}, "missing: norm.weight"),
        ({"head.bias": None}, "missing: head.bias"),
        ({"head.weight": None}, "missing: head.weight"),
        ({"head.weight": torch.ones(5, 31)}, r"head.weight is \(5, 31\), not \(5, 32\)"),
        ({"head.bias": torch.ones(4)}, r"head.bias is \(4,\), not \(5,\)"),
        ({"head.bias": torch.full((5,), torch.nan)}, "NaN or infinite values: head.bias"),
        ({"norm.bias": torch.full((32,), torch.inf)}, "NaN or infinite values: norm.bias"),
        ({"head.scale": torch.ones(1)}, "unexpected: head.scale"),
    ],
)
def test_a_classifier_is_loaded_completely_or_not_at_all(
    change: dict, message: str, tmp_path: Path
) -> None:
    content = {n: t for n, t in {**tensors(num_classes=5), **change}.items() if t is not None}
    path = saved(tmp_path / "x.pth", content)
    with pytest.raises(InputError, match=f"classifier is not complete: .*{message}"):
        read_classifier(str(path))
    assert_loads(path, content)  # the encoder is


def test_a_whole_head_and_none_are_told_apart() -> None:
    assert check_head(tensors(num_classes=5), "x") == 5
    assert check_head(tensors(), "x") == 0
    without = {n: t for n, t in tensors(num_classes=5).items() if not n.startswith("head.")}
    assert check_head(without, "x") == 0


def test_a_run_in_a_folder_called_checkpoints_is_not_taken_for_a_step_of_one(tmp_path) -> None:
    run = tmp_path / "checkpoints" / "first"
    run.mkdir(parents=True)
    step = run / "checkpoints" / "step_00000010" / "model.safetensors"
    assert run_of(step) == run
    (run / "config.yaml").touch()
    assert run_of(run / "model_final.safetensors") == run
