"""Settings of every test: one thread, and the shared fixtures.

``CONVNEXT_TEST_DATA`` may point at a folder of real data sets (COCO-format ``nuclei``,
``coco_mini``, ``coco_oracle``, an ImageFolder ``imagenet_samples``); tests that use it are
skipped where it is unset.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
import runpy
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from log_handlers import restored_log_handlers
from PIL import Image
from small_coco import write_small_coco
from tracked import StubWandb

from training.command_line import console

if hasattr(signal, "SIGHUP"):  # under nohup it is ignored, in every child as well
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

torch.set_num_threads(1)
if not torch.cuda.is_available():  # Triton, not yet imported, interprets its kernels on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")
ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip every test marked ``detectron2`` where detectron2 is not installed."""
    if importlib.util.find_spec("detectron2") is None:
        missing = pytest.mark.skip(reason="detectron2 is not installed (docs/detectron2.md)")
        for item in items:
            if item.get_closest_marker("detectron2"):
                item.add_marker(missing)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which need not be there
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """``-n 2`` gives each process one half, in order, and the rest of a half to who is idle: what
    the tests of a file share is then made once. another ``--dist`` than load still counts.
    """
    if config.getoption("dist") != "load":  # the default of -n
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(autouse=True)
def _own_log_handlers():
    with restored_log_handlers():
        yield


@pytest.fixture(autouse=True)
def small_overlays(monkeypatch):
    """What every run of a detector draws for its trackers is small: it takes longer than a step."""
    if overlays := sys.modules.get("detection.engines.overlays"):
        monkeypatch.setattr(overlays, "LONG_SIDE", 96)


@pytest.fixture
def data(tmp_path) -> str:
    """A small COCO data set, as configs name it: ``json:ANNOTATIONS:IMAGES``."""
    annotations, images = write_small_coco(tmp_path / "data")
    return f"json:{annotations}:{images}"


class ToolResult(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run_tool(monkeypatch, capfd):
    """Run ``tools/NAME.py`` or ``dev/NAME.py`` with arguments as a command line would, in this
    process (imports are slow): ``run_tool("predict", "--run", ...) -> ToolResult(code, out, err)``.
    """

    def run(name: str, *arguments: object) -> ToolResult:
        folder = "tools" if (ROOT / "tools" / f"{name}.py").is_file() else "dev"
        path = ROOT / folder / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__")
        return ToolResult(int(ended.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def fcmae(monkeypatch, capfd):
    """Run the console command in this process: ``fcmae("predict", "--run", ...) -> ToolResult``."""

    def run(*arguments: object) -> ToolResult:
        monkeypatch.setattr(sys, "argv", ["fcmae", *map(str, arguments)])
        capfd.readouterr()
        try:
            code = console.main()
        except SystemExit as ended:
            code = ended.code
        return ToolResult(int(code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def wandb(monkeypatch) -> StubWandb:
    """A stand-in for Weights & Biases, which keeps what it is given."""
    stub = StubWandb()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return stub


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that ``CONVNEXT_TEST_DATA`` names."""
    folder = os.environ.get("CONVNEXT_TEST_DATA")
    if not folder:
        pytest.skip("CONVNEXT_TEST_DATA is unset: no real data to test on")
    return Path(folder)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Twelve small pictures with structure: coloured discs on a gradient, in nested folders."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:80, :96]
    for number in range(12):
        picture = np.stack([rows, columns, rows + columns], -1).astype(np.float64)
        for _ in range(3):
            y, x, radius = generator.integers(10, 70, 3)
            picture[(rows - y) ** 2 + (columns - x) ** 2 < (radius / 3) ** 2] = generator.integers(
                0, 256, 3
            )
        folder = tmp_path / "images" / f"part{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02d}.png")
    return tmp_path / "images"
