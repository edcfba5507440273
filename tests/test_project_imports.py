"""The directions of import between the packages, as the architecture fixes them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"backbones", "fcmae", "detection", "training", "tools"}
ALLOWED = {
    "backbones": set(),
    "training": set(),
    "fcmae": {"backbones", "training"},
    "detection": {"backbones", "training"},
    "tools": {"backbones", "training", "fcmae", "detection"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_package_imports_only_what_the_architecture_allows(package):
    for path in (ROOT / package).rglob("*.py"):
        foreign = (imported(path) & PACKAGES) - ALLOWED[package] - {package}
        if package == "tools":
            foreign |= imported(path) & {"tools"}
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


def test_only_the_adapter_and_the_engine_import_detectron2():
    found = {
        str(path.relative_to(ROOT))
        for package in ("backbones", "fcmae", "training")
        for path in (ROOT / package).rglob("*.py")
        if "detectron2" in imported(path)
    }
    assert found == {"backbones/d2_adapter.py"}
