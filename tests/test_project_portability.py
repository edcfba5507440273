"""What Linux forgives and macOS, Windows or Apple's GPU do not."""

from __future__ import annotations

import ast
import importlib.util
import multiprocessing
import os
import pickle
import re
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from test_project_imports import BASE, ROOT, WINGS

from backbones import whole_files
from backbones.errors import InputError
from backbones.weight_files import save_safetensors
from detection.config import load_config
from detection.run import run
from fcmae.classification.finetune import finetune
from fcmae.classification.options import FinetuneOptions
from fcmae.pretrain import pretrain
from fcmae.pretrain_options import PretrainOptions
from training.devices import to_float64
from training.guards import checkpoints
from training.guards.processes import process_state
from training.records import environment

FOLDERS = (*BASE, *WINGS, "tools", "dev", "examples", "ablations")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def reads_or_writes_text(call: ast.Call) -> bool:
    """Whether a call opens, reads or writes a file as text."""
    if not isinstance(call.func, (ast.Attribute, ast.Name)):
        return False
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
        return len(call.args) <= (call.func.attr == "write_text")  # the next one is the encoding
    if isinstance(call.func, ast.Name):
        mode = call.args[1:2] if call.func.id == "open" else None
    else:
        mode = call.args[:1] if call.func.attr == "open" else None
    if mode is None:
        return False
    mode += [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    # another first argument is that of Image.open(path), tarfile.open(path), ...
    return not mode or (isinstance(mode[0], ast.Constant) and "b" not in str(mode[0].value))


def without_encoding(text: str) -> list[int]:
    """The lines of calls that leave the encoding of a text file to the platform."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if reads_or_writes_text(call) and "encoding" not in {k.arg for k in call.keywords}
    ]


def test_every_text_file_is_read_and_written_with_a_stated_encoding():
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in FILES
        for line in without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("path.read_text()", [1]),
        ("path.write_text(text)", [1]),
        ("path.read_text('utf-8')\npath.write_text(text, 'utf-8')", []),
        ("path.open()\npath.open('w')", [1, 2]),
        ("open(path)\nopen(path, mode='a')", [1, 2]),
        ("open(path, 'rb')\npath.open('wb')\npath.read_text(encoding='utf-8')", []),
        ("Image.open(path)\nreader.open(index)\nos.open(path, flags)", []),
    ],
)
def test_the_search_for_encodings_finds_what_it_should(code, lines):
    assert without_encoding(code) == lines


@pytest.mark.parametrize("missing", ["resource", "fcntl"])
def test_no_module_needs_what_windows_lacks(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "psutil", raising=False)
    for path in FILES:
        at_import = [
            node.names[0].name if isinstance(node, ast.Import) else node.module
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        assert missing not in at_import, path
    spec = importlib.util.find_spec("training.records.environment")
    anew = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anew)
    assert anew.peak_rss_mb() > 100  # torch alone takes more


def test_the_peak_of_memory_is_windows_own(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: False)  # no /proc
    monkeypatch.setattr(sys, "platform", "win32")
    counters = SimpleNamespace(peak_wset=300 * 2**20)
    process = SimpleNamespace(memory_info=lambda: counters)
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert environment.peak_rss_mb() == 300


def test_windows_flushes_files_that_are_open_for_writing_and_no_folders(tmp_path, monkeypatch):
    fsync = os.fsync

    def windows_fsync(descriptor):
        os.write(descriptor, b"")  # refused, as by _commit(), where it is open for reading
        fsync(descriptor)

    def windows_open(path, *arguments, **options):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return os_open(path, *arguments, **options)

    os_open = os.open
    monkeypatch.setattr(os, "fsync", windows_fsync)
    monkeypatch.setattr(os, "open", windows_open)
    # not os.name itself, by which pathlib picks its classes
    monkeypatch.setattr(whole_files, "os", SimpleNamespace(**vars(os) | {"name": "nt"}))
    written = checkpoints.write_checkpoint(
        tmp_path, 3, lambda folder: (folder / "weights").write_text("w", encoding="utf-8"), 1
    )
    assert checkpoints.damage(written) is None
    save_safetensors({"a": torch.ones(2)}, tmp_path / "a.safetensors", {})
    assert (tmp_path / "a.safetensors").is_file()


def without_float64(monkeypatch):
    """Apple's GPU, stood in for by the CPU: a tensor's ``double()`` raises, as it does there."""

    def refuse(tensor):
        raise TypeError(
            "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it"
        )

    monkeypatch.setattr(torch.Tensor, "double", refuse)


def test_pretraining_and_its_measures_need_no_float64_of_the_device(
    monkeypatch, image_folder, tmp_path
):
    without_float64(monkeypatch)
    options = PretrainOptions(
        model="convnextv2_atto", data=str(image_folder), output_dir=tmp_path / "run",
        image_size=(64, 64), batch_size=4, max_steps=2, workers=0, device="cpu",
        measure_features_every=0.1,
    )  # fmt: skip
    pretrain(options)
    lines = (tmp_path / "run/metrics.json").read_text(encoding="utf-8").splitlines()
    assert any("feature_distance/mean" in line for line in lines)


def test_a_classification_needs_no_float64_of_the_device(monkeypatch, image_folder, tmp_path):
    without_float64(monkeypatch)
    finetune(FinetuneOptions(
        model="convnextv2_atto", data=str(image_folder), output_dir=tmp_path / "run",
        image_size=(32, 32), batch_size=4, max_steps=1, workers=0, device="cpu",
    ))  # fmt: skip
    assert (tmp_path / "run/metrics_summary.json").is_file()


def test_nothing_asks_a_device_for_float64():
    """But for ``to_float64``, which goes to the CPU first, and exports, which are made there."""
    for path in FILES:
        if path.name == "graph.py" or "kernels" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "double":
                raise AssertionError(f"{path}:{node.lineno}: take training.devices.to_float64")
            if isinstance(node, ast.Call):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                on_device = given.get("dtype") == "torch.float64" and "device" in given
                assert not on_device, f"{path}:{node.lineno}"


def test_float64_is_taken_on_the_cpu_for_apples_gpu():
    steps = []

    class OnApple:
        device = torch.device("mps")

        def cpu(self):
            steps.append("cpu")
            return torch.ones(2)

    assert to_float64(OnApple()).dtype == torch.float64
    assert steps == ["cpu"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuda", "--device is cuda, but PyTorch finds 0 GPU(s)"),
        ("mps", "--device is mps, but PyTorch finds no Apple GPU"),
        ("gpu", "--device is 'gpu'; it is one of cpu, cuda, mps"),
    ],
)
def test_a_device_that_is_not_here_is_said_before_anything_is_read(monkeypatch, name, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=re.escape(said)):
        PretrainOptions(model="convnextv2_atto", data="none", output_dir="none", device=name)


def test_training_on_a_gpu_after_one_on_the_cpu_is_on_the_gpu(monkeypatch):
    """And back; accelerate keeps the first device of a process."""
    default = property(lambda state: torch.device("mps"))
    monkeypatch.setattr(PartialState, "default_device", default)
    try:
        for kind in ("cpu", "mps", "mps", "cpu"):
            assert process_state(torch.device(kind)).device.type == kind
            assert PartialState().device.type == kind
    finally:
        PartialState._reset_state()


COMPUTES_NOTHING = {"check_dataset", "compare_arms", "make_report", "import_dataset"}
STARTS_OTHERS = {"ablate", "study"}  # whose settings name the device
ON_THE_CPU = {"convert_checkpoint", "export"}  # by their nature
TOOLS = {path.stem for path in (ROOT / "tools").glob("*.py")}


@pytest.mark.parametrize("tool", sorted(TOOLS - COMPUTES_NOTHING - STARTS_OTHERS - ON_THE_CPU))
def test_every_tool_that_computes_takes_the_three_devices(run_tool, monkeypatch, tool):
    monkeypatch.setenv("COLUMNS", "100")
    assert "--device {cpu,cuda,mps}" in run_tool(tool, "--help").out


@pytest.fixture
def pickled_loaders(monkeypatch) -> list[str]:
    """What each loader would send to its workers is sent through pickle, as spawn does; the data
    sets' names."""
    names = []
    build = torch.utils.data.DataLoader.__init__

    def through_pickle(loader, dataset, *arguments, **options):
        names.append(type(dataset).__name__)
        dataset = pickle.loads(pickle.dumps(dataset))
        for part in ("collate_fn", "worker_init_fn"):
            if part in options:
                options[part] = pickle.loads(pickle.dumps(options[part]))
        build(loader, dataset, *arguments, **options)

    monkeypatch.setattr(torch.utils.data.DataLoader, "__init__", through_pickle)
    return names


def test_loaders_of_pretraining_and_classification_can_be_sent_to_spawned_workers(
    pickled_loaders, image_folder, tmp_path
):
    shard = tmp_path / "shards/images.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as archive:
        archive.add(image_folder, "images")
    common = {"model": "convnextv2_atto", "image_size": (32, 32), "batch_size": 4}
    common |= {"max_steps": 1, "workers": 0, "device": "cpu"}
    for number, data in enumerate((image_folder, shard)):
        options = {"data": str(data), "output_dir": tmp_path / f"run{number}"}
        pretrain(PretrainOptions(**common, **options, statistics="measure"))
    finetune(FinetuneOptions(**common, data=str(image_folder), output_dir=tmp_path / "classes"))
    assert {"SeededSamples", "_Moments", "Subset"} <= set(pickled_loaders)


def test_loaders_of_detection_can_be_sent_to_spawned_workers(pickled_loaders, data, tmp_path):
    overrides = ["DATASETS.TRAIN", data, "DATASETS.TEST", data, "OUTPUT_DIR", str(tmp_path / "run")]
    overrides += ["SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", "0"]
    overrides += ["INPUT.MIN_SIZE_TRAIN", "[64]", "INPUT.MIN_SIZE_TEST", "64", "SEED", "0"]
    name = "quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml"
    run(load_config(name, [*overrides, "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "1"]))
    assert {"SeededSamples", "DetectionSamples"} <= set(pickled_loaders)


def test_pretraining_with_spawned_workers_trains_the_weights_of_none(image_folder, tmp_path):
    """As on macOS and Windows."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        for workers in (0, 1):
            pretrain(PretrainOptions(
                model="convnextv2_atto", data=str(image_folder), image_size=(32, 32), batch_size=4,
                output_dir=tmp_path / f"{workers}", max_steps=1, workers=workers, device="cpu",
            ))  # fmt: skip
    finally:
        multiprocessing.set_start_method(before, force=True)
    files = [tmp_path / f"{workers}/encoder.safetensors" for workers in (0, 1)]
    alone, spawned = (load_file(file) for file in files)
    assert all(torch.equal(alone[name], spawned[name]) for name in alone)
