"""The page for Python: its code runs as a notebook does, and the notebook is what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_codec

from backbones.errors import InputError
from detection.detector import Detector

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/python.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder in which the page's code has run, and the code's names."""
    folder = tmp_path_factory.mktemp("python")
    names: dict = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
            exec(compile(block, "docs/python.md", "exec"), names)
    return folder, names


def test_the_pages_code_runs_to_its_report(ran):
    folder, names = ran
    assert (folder / "runs/fcmae/encoder.safetensors").is_file()
    assert {name: tuple(x.shape)[2:] for name, x in names["features"].items()} == {
        "stage1": (16, 24), "stage2": (8, 12), "stage3": (4, 6), "stage4": (2, 3)
    }  # fmt: skip
    assert "from FCMAE" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_detector_finds_in_an_array_what_the_run_wrote_of_the_file(ran, monkeypatch):
    folder, _ = ran
    monkeypatch.chdir(folder)
    tree = json.loads(Path("scenes/annotations/val.json").read_text(encoding="utf-8"))
    results = json.loads(
        Path("runs/detector/inference/coco_instances_results.json").read_text(encoding="utf-8")
    )
    image, names = tree["images"][0], {c["id"]: c["name"] for c in tree["categories"]}
    written = [r for r in results if r["image_id"] == image["id"]]
    pixels = np.asarray(Image.open(Path("scenes/images") / image["file_name"]).convert("RGB"))
    detector = Detector("runs/detector")
    found = detector(pixels, score_threshold=0.0)
    assert len(found) == len(written) > 3
    written.sort(key=lambda result: -result["score"])
    for mine, result in zip(found, written, strict=True):
        x, y, width, height = result["bbox"]
        assert mine.name == names[result["category_id"]]
        assert mine.score == pytest.approx(result["score"], abs=1e-6)
        assert mine.box == pytest.approx((x, y, x + width, y + height), abs=1e-3)
        assert mine.mask.shape == pixels.shape[:2]
        assert (mine.mask == rle_codec.decode(result["segmentation"])).all()
    middle = sorted(result["score"] for result in written)[len(written) // 2]
    assert len(detector(pixels, middle)) == sum(r["score"] >= middle for r in written)


@pytest.mark.parametrize("array", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8)])
def test_an_array_that_is_no_picture_is_refused(ran, array, monkeypatch):
    monkeypatch.chdir(ran[0])
    with pytest.raises(InputError, match=r"give uint8 \[height, width, 3\], RGB"):
        Detector("runs/detector")(array)


def test_the_notebook_is_the_pages(run_tool, tmp_path):
    assert run_tool("write_notebook", "--check").code == 0
    cells = json.loads((ROOT / "examples/python.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code == [block.strip("\n") for block in re.findall(r"```python\n(.*?)```", PAGE, re.S)]
    (tmp_path / "old.ipynb").write_text("{}")
    old = run_tool("write_notebook", "--check", "--output", tmp_path / "old.ipynb")
    assert old.code == 1
    assert "out of date: run dev/write_notebook.py" in old.err
