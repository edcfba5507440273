"""The directions of import between wings and rooms, as the architecture fixes them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = ("backbones", "images", "training", "reporting")
WINGS = ("fcmae", "detection", "segmentation")
# wing -> the others that it may import; everybody may raise InputError and write whole files
ALLOWED: dict[str, set[str]] = {
    "backbones": set(),
    "training": {"backbones"},
    "images": {"backbones", "training"},
    "reporting": {"training"},
    "fcmae": set(BASE),
    "detection": set(BASE),
    "segmentation": set(BASE),
    "tools": {*BASE, *WINGS},
}
GROUND = {"backbones.errors", "backbones.whole_files"}
# The rooms of detection with their front doors, from the ground up: a room imports those below.
DETECTION = (
    [{"suppression"}],
    [{"schema", "config", "data", "dataset"}],
    [{"evaluation", "evaluate"}],
    [{"drawing"}],
    [{"reporting", "report"}, {"engines"}],  # neither imports the other
    [{"predict", "prediction", "detector"}, {"export", "exporting"}],
    [{"run", "run_record", "run_data"}],
    [{"plan"}],
    [{"benchmarks"}],
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for wing in (*ALLOWED, "dev")
    for path in sorted((ROOT / wing).rglob("*.py"))
}


def imported(path: Path) -> set[str]:
    """The modules that a file names anywhere: this project's as far as they are files of it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inner & set(MODULES)) or {node.module}
    return names


IMPORTS = {name: imported(path) for name, path in MODULES.items()}


@pytest.mark.parametrize("wing", sorted(ALLOWED))
def test_a_wing_imports_only_what_the_architecture_allows(wing):
    for module, names in IMPORTS.items():
        if module.split(".")[0] != wing:
            continue
        wings = {name.split(".")[0] for name in names - GROUND}
        foreign = (wings & {*ALLOWED, "dev"}) - ALLOWED[wing] - {wing}
        if wing == "tools":
            foreign |= wings & {"tools"}
        assert not foreign, f"{module} imports {sorted(foreign)}"


def room_of(module: str) -> tuple[int, int] | None:
    parts = module.split(".")
    if parts[0] != "detection" or len(parts) == 1:
        return None
    for level, rooms in enumerate(DETECTION):
        for place, names in enumerate(rooms):
            if parts[1] in names:
                return level, place
    raise AssertionError(f"{module} is in no room of DETECTION")


def test_no_arrow_inside_detection_runs_up():
    for module, names in IMPORTS.items():
        room = room_of(module)
        for name in names:
            other = room_of(name) if name in MODULES else None
            if room and other:
                assert other == room or other[0] < room[0], f"{module} imports {name}"


def test_no_circle_of_files():
    finished: set[str] = set()

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in finished:
            for name in sorted(IMPORTS[module] & set(MODULES)):
                follow(name, (*path, module))
            finished.add(module)

    for module in MODULES:
        follow(module, ())


def test_only_the_adapter_and_the_engine_import_detectron2():
    found = {
        module
        for module, names in IMPORTS.items()
        if any(name.split(".")[0] == "detectron2" for name in names)
        and module.split(".")[0] in (*BASE, "fcmae", "segmentation")
    }
    assert found == {"backbones.d2_adapter", "segmentation.d2_head"}
