"""Damaged, misspelt and hostile files: an error or warning in words, or the same result as before.

A corpus of over 500 files is made by seeds from small valid ones. Of each it is asked that reading
it ends within seconds, raises nothing but what a tool turns into a sentence (``USER_ERRORS``), and
drops nothing silently.
"""

from __future__ import annotations

import copy
import json
import logging
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_formats import FORMATS, image_bytes
from safetensors.torch import save_file
from small_coco import small_coco, write_small_coco

from backbones.checkpoint import load_encoder
from backbones.convnext import ConvNeXt, Size
from backbones.weight_files import read_state_dict
from detection.config import load_config
from detection.data.transforms import transformed_mask
from detection.dataset import load_dataset
from detection.evaluation.inputs import prepare_annotations, read_ground_truth
from detection.evaluation.results import prepare_results, read_results
from detection.schema import SCHEMA
from images.files import Reading, open_picture, read_image
from training.cli import USER_ERRORS

SECONDS = 10  # for one file
ABSURD = [
    None, True, 0, -1, 1e308, -1e308, 10**9, 10**400, float("nan"), float("inf"), "", "x", "\ud800",
    "../../etc/passwd", "/etc/passwd", "a\0b", "x" * 5000, [], {}, [[]], [None], [1e9] * 6,
    [-1e300, 0, 1e300, 0, 5, 5], [10**400] * 4, {"size": [10**9, 10**9], "counts": "0"},
    {"size": [60.0, 80.0], "counts": "PPPP0"}, {"size": [60, 80], "counts": [2**63, 2**63, 4800]},
    {"size": [60, 80], "counts": "\xff"}, {"counts": 3}, [[[[[[]]]]]],
]  # fmt: skip


@contextmanager
def within_seconds() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise AssertionError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refusal(read: Callable[[], Any]) -> str:
    """What ``read`` says against its file, "" if nothing; other exceptions than words go on."""
    with within_seconds():
        try:
            read()
        except USER_ERRORS as error:
            return str(error) or pytest.fail(f"{type(error).__name__} without a word")
    return ""


def places(tree: Any, here: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a tree of lists and dictionaries."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*here, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*here, key))


def misspelt(word: str, draw: random.Random) -> str:
    place = draw.randrange(len(word))
    return word[:place] + draw.choice(["", word[place] * 2, "x"]) + word[place + 1 :]


def mutated_tree(tree: Any, draw: random.Random) -> Any:
    """One value made absurd, removed or repeated, or one key misspelt."""
    tree = copy.deepcopy(tree)
    *path, last = draw.choice(list(places(tree)))
    node = tree
    for step in path:
        node = node[step]
    kind = draw.choice(["absurd"] * 4 + ["remove", "repeat", "misspell"])
    if kind == "absurd":
        node[last] = copy.deepcopy(draw.choice(ABSURD))
    elif kind == "remove":
        del node[last]
    elif isinstance(node, list):
        node.append(node[last])
    else:
        node[misspelt(last, draw)] = node.pop(last)
    return tree


def mutated_bytes(data: bytes, draw: random.Random) -> bytes:
    """Cut off, a few bits flipped, a piece overwritten, or something else altogether."""
    kind, place = draw.choice(["cut", "flip", "flip", "zeros", "other"]), draw.randrange(len(data))
    if kind == "cut":
        return data[:place]
    if kind == "other":
        return draw.choice([b"", b"\0" * 100, draw.randbytes(200), b"{" * 50, b"\x80\x04."])
    changed = bytearray(data)
    if kind == "zeros":
        changed[place : place + 16] = bytes(len(changed[place : place + 16]))
    else:
        for _ in range(draw.randint(1, 8)):
            # headers are short and matter most
            at = draw.randrange(min(len(data), draw.choice([64, len(data)])))
            changed[at] ^= 1 << draw.randrange(8)
    return bytes(changed)


def check_annotation_file(annotations: Path, images: Path, caplog) -> str:
    """Load a data set as a training does; what was refused or warned of."""
    caplog.clear()

    def read() -> None:
        dataset = load_dataset(f"json:{annotations}:{images}")
        tree = json.loads(annotations.read_text())
        assert [r["image_id"] for r in dataset.records] == sorted(i["id"] for i in tree["images"])
        assert dataset.num_instances == len(tree["annotations"])
        assert sorted(dataset.category_ids) == sorted(item["id"] for item in tree["categories"])
        for record in dataset.records:
            for item in record["annotations"]:
                mask = transformed_mask(item["segmentation"], [], record["height"], record["width"])
                assert mask.shape == (record["height"], record["width"])

    said = refusal(read)
    return said + "".join(record.getMessage() for record in caplog.records if record.levelno > 20)


@pytest.mark.parametrize("seed", range(4))
def test_annotation_files_of_any_content_are_read_whole_or_refused(tmp_path, caplog, seed):
    draw = random.Random(seed)
    annotations, images = write_small_coco(tmp_path)
    usual = check_annotation_file(annotations, images, caplog)
    refused = 0
    for number in range(40):
        if number % 4:
            annotations.write_text(json.dumps(mutated_tree(small_coco(), draw)))
        else:
            annotations.write_bytes(mutated_bytes(json.dumps(small_coco()).encode(), draw))
        refused += check_annotation_file(annotations, images, caplog) != usual
    assert refused > 20  # most mutations are mistakes that can be told


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    part=st.sampled_from(["images", "annotations", "categories"]),
    key=st.sampled_from(
        [
            "id",
            "image_id",
            "category_id",
            "bbox",
            "segmentation",
            "area",
            "iscrowd",
            "width",
            "height",
            "name",
        ]
    ),
    value=json_values,
)
def test_any_json_value_at_any_key_is_taken_or_refused(tmp_path, caplog, part, key, value):
    tree = small_coco()
    tree[part][0][key] = value
    annotations, images = write_small_coco(tmp_path, tree)
    check_annotation_file(annotations, images, caplog)


@pytest.mark.parametrize("depth", [100_000])
def test_lists_within_lists_are_a_sentence(tmp_path, depth):
    annotations, images = write_small_coco(tmp_path)
    annotations.write_text('{"images": ' + "[" * depth)
    assert "is not JSON" in refusal(lambda: load_dataset(f"json:{annotations}:{images}"))
    assert "is not JSON" in refusal(lambda: read_ground_truth(annotations))
    config = tmp_path / "config.yaml"
    config.write_text("SEED: " + "[" * depth)
    assert "not readable as YAML" in refusal(lambda: load_config(config))


def test_files_to_evaluate_of_any_content_are_read_whole_or_refused(tmp_path):
    draw = random.Random(0)
    truth, _ = write_small_coco(tmp_path)
    results = [
        {key: item[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
        | {"score": 0.5}
        for item in small_coco()["annotations"]
    ]
    found, refused = tmp_path / "results.json", 0

    def read() -> None:
        tree = read_ground_truth(truth)
        sizes = {image["id"]: (image["height"], image["width"]) for image in tree["images"]}
        detections = read_results(found, tree, truth)
        kept = prepare_annotations(tree["annotations"], sizes, truth)
        assert len(kept) == len(json.loads(truth.read_text())["annotations"])
        if all("segmentation" in item for item in detections):
            kept = prepare_results(detections, sizes, "segm", found)
            assert len(kept) == len(json.loads(found.read_text()))

    for number in range(80):
        tree, listed = small_coco(), results
        if number % 2:
            tree = mutated_tree(tree, draw)
        else:
            listed = mutated_tree(results, draw)
        truth.write_text(json.dumps(tree))
        found.write_text(json.dumps(listed))
        refused += bool(refusal(read))
    assert refused > 30


def test_configs_of_any_content_are_read_whole_or_refused(tmp_path):
    draw = random.Random(0)
    tree = {
        "ENGINE": "torchvision",
        "INPUT": {"MIN_SIZE_TRAIN": [640, 800], "FORMAT": "RGB"},
        "MODEL": {"CONVNEXT": {"SIZE": "atto"}, "FPN": {"OUT_CHANNELS": 256}},
        "SOLVER": {"BASE_LR": 1e-4, "STEPS": [10, 20], "MAX_ITER": 30},
    }
    path, refused = tmp_path / "config.yaml", 0

    def read() -> None:
        load_config(path)
        known = {part for name in SCHEMA for part in name.split(".")}
        written = yaml.safe_load(path.read_text()) or {}
        keys = {key for *_, key in places(written) if isinstance(key, str)} - {"_BASE_"}
        assert keys <= known, f"dropped in silence: {keys - known}"

    for number in range(60):
        if number % 2:
            text = yaml.safe_dump(mutated_tree(tree, draw), allow_unicode=True)
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
        else:
            path.write_bytes(mutated_bytes(yaml.safe_dump(tree).encode(), draw))
        refused += bool(refusal(read))
    assert refused > 25


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoints_of_any_bytes_are_read_whole_or_refused(tmp_path, caplog, suffix):
    draw, path = random.Random(0), tmp_path / f"weights{suffix}"
    tensors = {f"stages.{n}.weight": torch.arange(6.0).reshape(2, 3) + n for n in range(4)}
    if suffix == ".pth":
        torch.save({"model": tensors}, path)
    else:
        save_file(tensors, path)
    whole, refused = path.read_bytes(), 0

    def read() -> None:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            found = read_state_dict(path)
        assert len(found) == len(tensors) or caplog.records

    for _ in range(40):
        path.write_bytes(mutated_bytes(whole, draw))
        said = refusal(read)
        assert not said or str(path) in said
        refused += bool(said)
    assert refused > 15


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path, dtype):
    model = ConvNeXt(Size((8, 16, 24, 32), (1, 1, 2, 1), 2))
    state = model.state_dict()
    name = next(iter(state))
    torch.save(state | {name: torch.ones_like(state[name]).to(dtype)}, tmp_path / "x.pth")
    said = refusal(lambda: load_encoder(tmp_path / "x.pth", model))
    assert name in said
    assert str(dtype) in said


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_images_of_any_bytes_are_decoded_or_refused_and_valid_ones_are_decoded(tmp_path, ending):
    draw, whole = random.Random(0), image_bytes(ending)
    path, refused = tmp_path / "picture.png", 0  # the name's ending is wrong for most

    def read() -> None:
        with path.open("rb") as file:
            picture = open_picture(file)
            assert picture.pixels().shape == (picture.height, picture.width, picture.channels)

    for number in range(20):
        path.write_bytes(mutated_bytes(whole, draw) if number else whole)
        said = [refusal(lambda: read_image(path, Reading(None))), refusal(read)]
        assert number or not any(said), "a valid file was refused"
        assert not said[0] or str(path) in said[0]
        refused += any(said)
    assert refused
