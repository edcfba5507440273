"""Scripts that nothing imports still start: their imports and their arguments are as they say."""

from __future__ import annotations

import runpy
import sys

import pytest
from test_project_imports import ROOT

SCRIPTS = [
    pytest.param(
        path.relative_to(ROOT),
        marks=[pytest.mark.detectron2] if path.parent.name == "architectures" else [],
    )
    for folder in ("dev", "ablations")  # those of tools/: tests/test_tools_console.py
    for path in sorted((ROOT / folder).rglob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]


def end(monkeypatch, path, *arguments):
    """The exit code of a script, run in this process."""
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    monkeypatch.syspath_prepend(str((ROOT / path).parent))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / path), run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_every_script_prints_its_help(monkeypatch, capsys, script):
    assert end(monkeypatch, script, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: {script.name} ")


@pytest.mark.parametrize("arguments", [(), ("model.onnx", "photo.jpg")])
@pytest.mark.parametrize("example", ["onnx_inference.py", "onnx_segmentation.py"])
def test_an_example_that_lacks_arguments_prints_its_usage(monkeypatch, capsys, example, arguments):
    pytest.importorskip("onnxruntime")
    assert end(monkeypatch, f"examples/{example}", *arguments) == 2
    assert f"python examples/{example} " in capsys.readouterr().err
