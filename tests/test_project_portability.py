"""What Linux forgives and macOS, Windows or Apple's GPU do not."""

from __future__ import annotations

import ast

import pytest
from test_project_imports import BASE, ROOT, WINGS

FOLDERS = (*BASE, *WINGS, "tools", "dev", "examples", "ablations")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def reads_or_writes_text(call: ast.Call) -> bool:
    """Whether a call opens, reads or writes a file as text."""
    if not isinstance(call.func, (ast.Attribute, ast.Name)):
        return False
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
        return True
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
        ("path.open()\npath.open('w')", [1, 2]),
        ("open(path)\nopen(path, mode='a')", [1, 2]),
        ("open(path, 'rb')\npath.open('wb')\npath.read_text(encoding='utf-8')", []),
        ("Image.open(path)\nreader.open(index)\nos.open(path, flags)", []),
    ],
)
def test_the_search_for_encodings_finds_what_it_should(code, lines):
    assert without_encoding(code) == lines
