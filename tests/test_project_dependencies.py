"""Dependencies: all are declared, used, bounded by a version that exists, and listed."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from test_project_imports import ROOT, imported

IMPORTED_AS = {
    "Pillow": "PIL",
    "PyYAML": "yaml",
    "scikit-learn": "sklearn",
    "Jinja2": "jinja2",
    "opencv-python-headless": "cv2",
    "pytest-timeout": "pytest_timeout",
}
BY_OTHERS = {
    "tensorboard",
    "imagecodecs",
}  # torch and accelerate import the one, tifffile the other
UNDECLARED = {  # no index has it, or they come with it, with torch and with Jinja2
    "detectron2",
    "omegaconf",
    "triton",
    "markupsafe",
}
PACKAGES = (
    "backbones",
    "images",
    "training",
    "reporting",
    "fcmae",
    "detection",
    "segmentation",
    "det_configs",
)


def requirements(*extras: str) -> dict[str, Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].split()
    for extra in extras:
        lines += config["options.extras_require"][extra].split()
    return {item.name: item for item in map(Requirement, lines)}


EVERY = requirements("test", "export", "openvino", "wandb", "tiff", "hf")


def third_party(*folders: str) -> set[str]:
    """What the files of these folders import, lazily or not, from neither Python nor here."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    names = {name.split(".")[0] for path in paths for name in imported(path)}
    return names - set(sys.stdlib_module_names) - {*PACKAGES, "tools", "tests"}


def modules(names) -> set[str]:
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


def test_every_import_is_declared():
    extras = ("export", "openvino", "wandb", "dicom", "heic", "hf")
    declared = modules(requirements(*extras)) | UNDECLARED
    benchmarks = {"transformers"}  # what a benchmark compares with is of the tests' extra
    assert third_party(*PACKAGES) - benchmarks <= declared
    assert benchmarks <= modules(requirements("test"))
    beside = {path.stem for room in ("tests", "examples") for path in (ROOT / room).glob("*.py")}
    assert third_party("tools", "examples", "ablations") - beside - {"golden"} <= declared


def test_every_requirement_is_imported():
    used = third_party(*PACKAGES)
    assert modules(requirements()) - used == {"tensorboard"}
    assert modules(requirements("export", "openvino", "wandb", "tiff", "hf")) - used == BY_OTHERS


def test_every_requirement_has_a_lowest_version_alone():
    """So that .ci/oldest can take >= as ==."""
    for item in EVERY.values():
        (bound,) = item.specifier
        assert bound.operator == ">=", item


@pytest.mark.parametrize("name", EVERY)
def test_what_is_installed_is_not_older(name):
    if not is_installed(name):
        pytest.skip(f"{name} is not installed")
    assert EVERY[name].specifier.contains(version(name), prereleases=True)


def test_the_page_lists_every_requirement_with_its_bound_and_a_licence():
    page = (ROOT / "docs/dependencies.md").read_text().partition("<!-- end of table -->")[0]
    rows = [re.split(r" ?\| ?", line)[1:-1] for line in page.splitlines() if line[:2] == "| "]
    listed = {name: (bound, licence) for name, bound, _, licence, _ in rows[2:]}
    assert {name: Version(bound) for name, (bound, _) in listed.items()} == {
        name: Version(next(iter(item.specifier)).version) for name, item in EVERY.items()
    }
    assert all(licence for _, licence in listed.values())
    assert rows[1] == ["---"] * 5


def test_the_table_is_written_anew_and_the_text_around_it_stays(tmp_path, run_tool):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    result = run_tool("write_dependencies", "--output", page)
    missing = [name for name in EVERY if not is_installed(name)]
    if missing:
        assert result.code == 1
        assert result.err.strip() == "error: " + "; ".join(
            f"{name} is not installed" for name in missing
        )
        assert "old" in page.read_text()
    else:
        text = page.read_text()
        assert text.startswith("before\n<!-- table -->\n| package |")
        assert text.endswith("<!-- end of table -->\nafter\n")


def is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def test_the_oldest_versions_script_takes_every_requirement():
    """Its sed on setup.cfg gives name==version for each of them."""
    script = (ROOT / ".ci/oldest").read_text()
    (command,) = re.findall(r"^sed .* setup\.cfg", script, re.MULTILINE)
    lines = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(lines) == {str(item).replace(">=", "==") for item in EVERY.values()}
