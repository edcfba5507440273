"""docs/weights.md: each written format is loaded by the line that the page gives for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from backbones.checkpoint import save_ours
from backbones.convnext import build_convnext
from backbones.key_adapters import FORMATS

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
LINES = re.findall(r"^`--to ([\w-]+)`, as `([\w./]+)`.*?```python\n(.*?)```", PAGE, re.S | re.M)
NEEDS = {"huggingface": "transformers", "detectron2": "detectron2"}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = build_convnext("convnextv2_atto", num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape))
    path = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    save_ours(model.state_dict(), path, {"mean": "[0.1, 0.2, 0.3]", "std": "[1, 1, 1]"})
    return path


def test_the_page_has_a_line_for_every_format_that_is_written() -> None:
    documented = {name for name, _, _ in LINES}
    assert documented == FORMATS.keys() - {"fcmae", "official-sparse"}


@pytest.mark.parametrize(
    ("target", "name", "code"),
    [
        pytest.param(*line, id=line[0], marks=[pytest.mark.detectron2] * (line[0] == "detectron2"))
        for line in LINES
    ],
)
def test_the_line_of_the_page_loads_what_was_written(
    target: str, name: str, code: str, classifier: Path, run_tool, tmp_path: Path, monkeypatch
) -> None:
    if target in NEEDS:
        pytest.importorskip(NEEDS[target])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    result = run_tool("convert_checkpoint", classifier, tmp_path / name, "--to", target)
    assert result.code == 0, result.err
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, target, "exec"), names)
    loaded = names.get("model") or names.get("encoder") or names.get("backbone")
    if loaded is not None:
        expected = build_convnext("convnextv2_atto").state_dict()
        assert len(loaded.state_dict()) >= len(expected)
        assert any(p.std() > 0.05 for p in loaded.parameters() if p.ndim == 1)  # not as initialised
