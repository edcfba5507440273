"""Write the table of docs/dependencies.md: each direct dependency, its licence, and what it is for.

Names and lowest versions are setup.cfg's; a licence is what the installed package declares, so all
of them must be installed: pip install -e ".[test,export,openvino,wandb,tiff,dicom,heic,hf]".
"""

from __future__ import annotations

import configparser
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from backbones.errors import InputError
from reporting.tables import write_between
from training.cli import ToolParser, run_tool

ROOT = Path(__file__).resolve().parent.parent
MARKS = ("<!-- table -->", "<!-- end of table -->")
EXAMPLES = """\
examples:
  python dev/write_dependencies.py     # after a change of setup.cfg
"""
PURPOSES = {
    "torch": "tensors, gradients, data loaders, `torch.export`",
    "torchvision": "one of the two detection engines; box and mask operators",
    "timm": "augmentation, published weights, averaged weights",
    "accelerate": "several processes, mixed precision, trackers",
    "fvcore": "detection configs (`CfgNode`), counting of parameters and FLOPs",
    "pycocotools": "run-length encoded masks",
    "hotcoco": "COCO's matching and AP",
    "opencv-python-headless": "resizing, outlines",
    "av": "videos (PyAV; its wheels bring FFmpeg)",
    "safetensors": "weights in files that hold no code",
    "numpy": "arrays",
    "Pillow": "images in and out, text on pictures",
    "tifffile": "TIFF of any number of channels",
    "PyYAML": "configs",
    "scipy": "quantiles of Student's t",
    "Jinja2": "the pages of reports",
    "matplotlib": "curves in reports",
    "tensorboard": "logs; imported by torch, accelerate and detectron2, not by this project",
    "tqdm": "progress bars",
    "psutil": "the peak of memory on Windows; accelerate needs it anyway",
    "onnx": "ONNX files",
    "onnxruntime": "runs and quantises ONNX files",
    "onnxscript": "torch's exporter to ONNX, and an operator of ours in it",
    "openvino": "runs ONNX files, as `fcmae export --evaluate` asks",
    "wandb": "`--wandb`",
    "imagecodecs": "compressed TIFF; imported by tifffile",
    "pydicom": "DICOM",
    "pillow-heif": "HEIC",
    "datasets": "`--data hfds/...`; imported by timm too",
    "pytest": "tests",
    "pytest-timeout": "an end to tests that hang",
    "pytest-xdist": "tests side by side",
    "setuptools": "the wheel that the tests install",
    "hypothesis": "tests of properties",
    "scikit-learn": "the reference of probes, confusion matrices and class weights in the tests",
    "mkdocs-material": "this documentation",
    "ruff": "linter and formatter",
    "mypy": "types",
    "types-PyYAML": "types of PyYAML, for mypy",
    "transformers": "an independent ConvNeXt V2 to compare with",
    "playwright": "Chromium, which opens the reports in the tests",
}


def requirements() -> dict[str, tuple[str, str]]:
    """Name -> (lowest version, the extras that have it; empty for what every installation has)."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    groups = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    found: dict[str, tuple[str, list[str]]] = {}
    for extra, lines in groups.items():
        for line in lines.split():
            name, _, lowest = line.partition(">=")
            found.setdefault(name, (lowest, []))[1].append(extra)
    return {name: (lowest, ", ".join(sorted(extras))) for name, (lowest, extras) in found.items()}


def licence(package: str) -> str:
    """As the installed package declares it: by expression, by classifier or in its own words."""
    facts = metadata(package)
    if "License-Expression" in facts:
        return facts["License-Expression"]
    kinds = [c for c in facts.get_all("Classifier", []) if c.startswith("License :: OSI Approved")]
    return kinds[-1].rpartition(" :: ")[2] if kinds else facts["License"].splitlines()[0]


def table() -> list[str]:
    """The table's lines.

    Raises:
        InputError: naming what is not installed, or has no line in ``PURPOSES``.
    """
    lines = [
        "| package | at least | extra | licence | what for |",
        "| --- | --- | --- | --- | --- |",
    ]
    problems = []
    for name, (lowest, extras) in requirements().items():
        try:
            cells = (name, lowest, extras, licence(name), PURPOSES[name])
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
        except PackageNotFoundError:
            problems.append(f"{name} is not installed")
        except KeyError:
            problems.append(f"{name} has no purpose in dev/write_dependencies.py")
    if problems:
        raise InputError("; ".join(problems))
    return lines


def main() -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/dependencies.md")
    page = parser.parse_args().output
    write_between(page, MARKS, "\n".join(table()))


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
