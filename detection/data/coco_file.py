"""Read COCO annotation files (for checks, training and evaluation alike), and write them.

The reader accepts every Unicode encoding of JSON (PowerShell writes UTF-16). It also accepts some
other spellings, with a warning that counts them: ids as
1.0, ids that are text in one list and numbers in the other, ``null`` for what may be absent,
numbers for class names. For a file of another format the message names the format.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backbones.errors import counted
from backbones.whole_files import write_atomically
from detection.data.checks.problems import Findings
from detection.data.other_formats import FORM, IMPORT, other_format
from training.progress import progress

OTHER_TYPE = "is text where 'images' or 'categories' have numbers, or the other way round"
LISTS = ("images", "annotations", "categories")


def read_coco(path: Path, findings: Findings, any_text: bool = False) -> tuple[dict[str, Any], Any]:
    """Read a file.

    Args:
        findings: gets what is wrong with the file as a whole, and what is spelt otherwise.
        any_text: read text that is not Unicode as Windows-1252, which is only a guess.

    Returns:
        The file's three lists, with polygons as arrays of float64, or {} if it lacks them; and the
        SHA-256 object of the file's bytes, to be updated further.
    """
    digest = hashlib.sha256()
    try:
        data = Path(path).read_bytes()
        digest.update(data)
        with no_garbage_collection():
            tree = _parse(_decode_any(data, findings) if any_text else decode_json(data))
    except OSError as error:
        findings.error("", f"cannot be read ({error.strerror})", "correct the path")
        return {}, digest
    except (ValueError, RecursionError) as error:  # of lists in lists in lists ...
        what, remedy = _other_bytes(data, error)
        findings.error("", what, remedy)
        return {}, digest
    if not _is_coco(tree, findings):
        return {}, digest
    respell(tree, findings)
    return tree, digest


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Switch the garbage collector off: its search for cycles doubles the time to read COCO."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def decode_json(data: bytes) -> str:
    """The text of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        UnicodeDecodeError: if it is in none of these.
    """
    return data.decode(json.detect_encoding(data))


def _decode_any(data: bytes, findings: Findings) -> str:
    try:
        return decode_json(data)
    except UnicodeDecodeError:
        findings.warn("text", "is not Unicode", "it is read as Windows-1252, and written as UTF-8")
        return data.decode("cp1252", errors="replace")


def _parse(text: str) -> Any:
    """Parse JSON, with polygons as arrays: 8 bytes per number instead of a list's 32."""

    def compact(entry: dict[str, Any]) -> dict[str, Any]:
        if "image_id" in entry:
            bar.update()
        if isinstance(polygons := entry.get("segmentation"), list):
            entry["segmentation"] = list(map(_as_array, polygons))
        return entry

    with progress(text="reading", total=text.count('"image_id"'), unit="object") as bar:
        return json.loads(text, object_hook=compact)


def _as_array(polygon: Any) -> Any:
    """A list of numbers as an array; anything else as it is."""
    if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
        return polygon
    try:
        return array("d", polygon)
    except OverflowError:  # an integer beyond floating point: json has any
        return polygon


def _other_bytes(data: bytes, error: Exception) -> tuple[str, str]:
    """The format of a file that is not JSON, in words, and the remedy."""
    if data[:2] == b"\x1f\x8b":
        return "is packed by gzip", "unpack it by gunzip, or python -m gzip -d"
    if data[:2] == b"PK":
        return "is a zip archive", "unpack it, and give the json file that is in it"
    start = data[:2000].lstrip(b"\xef\xbb\xbf \r\n\t")
    if re.search(rb"<annotations>", start):
        return "is not JSON: it is XML of CVAT", f"{IMPORT} FILE --from cvat"
    if re.search(rb"<annotation[ >]", start):
        return "is not JSON: it is XML of Pascal VOC", f"{IMPORT} FOLDER --from voc"
    if isinstance(error, UnicodeDecodeError):
        remedy = "write it as UTF-8: tools/check_dataset.py --repair FIXED.json does"
        return f"is not JSON ({error})", remedy
    return f"is not JSON ({error})", FORM


def _is_coco(tree: Any, findings: Findings) -> bool:
    """Whether there are the three lists of objects; what is there instead is an error."""
    if other := other_format(tree):
        findings.error("", *other)
        return False
    if not isinstance(tree, dict):
        findings.error("", f"is not COCO: it holds a {type(tree).__name__}", FORM)
        return False
    before = len(findings.errors)
    for key in LISTS:
        if key not in tree:
            findings.error("", f"is not COCO: it has no {key!r}", FORM)
        elif not isinstance(tree[key], list):
            kind = type(tree[key]).__name__
            findings.error("", f"is not COCO: {key!r} is a {kind}, not a list", FORM)
        elif wrong := [i for i, item in enumerate(tree[key]) if not isinstance(item, dict)]:
            findings.error(
                f"{key}[{wrong[0]}]",
                f"is not an object, nor are {counted(len(wrong) - 1, 'other')}",
                FORM,
            )
    return len(findings.errors) == before


def respell(tree: dict[str, Any], findings: Findings) -> None:
    """Correct other spellings in place; each kind gives one warning with its count."""
    known = {kind: _respell_ids(tree[kind], kind, findings) for kind in ("images", "categories")}
    for category in tree["categories"]:
        name = category.get("name")
        if type(name) in (int, float):
            category["name"] = str(int(name) if name == name // 1 else name)
            findings.warn(f"category {name}", "name is a number", "it is read as text")
    for image in tree["images"]:
        for side in ("height", "width"):
            value = image.get(side)
            if type(value) is float and value.is_integer():
                image[side] = int(value)
                where = f"image {image.get('id')}"
                findings.warn(where, f"{side} is written as 1.0 for 1", "it is read so")
    for number, item in enumerate(tree["annotations"]):
        key = item.get("id")
        if type(key) is float and key.is_integer():
            item["id"] = int(key)
            findings.warn(f"annotation {key}", "id is written as 1.0 for 1", "it is read so")
        for name, kind in (("image_id", "images"), ("category_id", "categories")):
            value = item.get(name)
            try:
                if type(value) is not float and value in known[kind]:
                    continue
            except TypeError:  # a list
                continue
            if (meant := _same_id(value, known[kind])) is not None:
                item[name] = meant
                words = "is written as 1.0 for 1" if type(value) is float else OTHER_TYPE
                findings.warn(f"annotation {item.get('id')}", f"{name} {words}", "it is read so")
        for name in ("iscrowd", "area", "bbox", "segmentation"):
            if name in item and item[name] is None:
                del item[name]
                if name in ("iscrowd", "area"):
                    where = f"annotation {item.get('id', f'at place {number}')}"
                    findings.warn(where, f"{name} is null", "it is read as if it were not there")


def _respell_ids(items: list[dict[str, Any]], kind: str, findings: Findings) -> set[Any]:
    """The ids of images or categories, those that are whole floats and stray text as numbers."""
    for item in items:
        key = item.get("id")
        if type(key) is float and key.is_integer():
            item["id"] = int(key)
            findings.warn(f"{kind} {key}", "id is written as 1.0 for 1", "it is read so")
    ids = [item.get("id") for item in items]
    found = {key for key in ids if isinstance(key, (int, str))}
    if any(isinstance(key, str) for key in found) and any(type(key) is int for key in found):
        for item in items:
            number = _number(item.get("id"))
            if isinstance(item.get("id"), str) and number is not None and number not in found:
                findings.warn(
                    f"{kind} {item['id']}", "id is text and others are numbers", "it is read so"
                )
                found = found - {item["id"]} | {number}
                item["id"] = number
    return found


def _same_id(value: Any, known: set[Any]) -> Any:
    """The known id that a value spells otherwise: 1.0, "1" and 1 are one; None if there is none."""
    candidates: list[Any] = []
    if type(value) is float and value.is_integer():
        candidates = [int(value), str(int(value))]
    elif type(value) is int:
        candidates = [str(value)]
    elif isinstance(value, str):
        candidates = [_number(value)]
    return next((one for one in candidates if one is not None and one in known), None)


def _number(text: Any) -> int | None:
    """The whole number that a text is, in its usual spelling; else None."""
    if isinstance(text, str) and re.fullmatch(r"-?(0|[1-9][0-9]{0,17})(\.0)?", text):
        return int(float(text)) if "." in text else int(text)
    return None


def write_coco(tree: dict[str, Any], path: Path) -> None:
    """Write a COCO file, an entry a line, without a second copy of it in memory."""

    def pieces() -> Iterator[str]:
        others = {key: value for key, value in tree.items() if key not in LISTS}
        yield json.dumps(others)[:-1] + (", " if others else "")
        for number, name in enumerate(LISTS):
            yield f'{", " if number else ""}"{name}": ['
            for place, entry in enumerate(progress(tree[name], f"writing {name}", unit="entry")):
                yield (",\n" if place else "\n") + json.dumps(entry, default=_plain)
            yield "]"
        yield "}\n"

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8") as stream:
            stream.writelines(pieces())

    write_atomically(path, write)


def _plain(value: Any) -> Any:
    if isinstance(value, array):
        return [int(number) if number == number // 1 else number for number in value]
    raise TypeError(f"no JSON: {type(value)}")
