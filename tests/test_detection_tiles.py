"""Tiles to train on: what they show is the whole image's, and both engines draw the same ones."""

import itertools

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiled_coco import HEIGHT, WIDTH, tiled_coco, write_tiled_coco

from backbones.errors import InputError
from detection.config import default_config, to_detectron2
from detection.data.pixels import read_record
from detection.data.records import Records
from detection.data.tile_records import cut_record, draw_tile, training_records
from detection.data.tiles import Tile, grid, resolve_tiles
from detection.data.transforms import DetectionSamples
from detection.dataset import load_dataset

SIZE = 96


def tiled(**changes):
    config = default_config()
    values = {"ENABLED": True, "SIZE": SIZE, "OVERLAP": 32, **changes}
    for name, value in values.items():
        config.merge_from_list([f"INPUT.TILES.{name}", value])
    return config


def whole_mask(item):
    segmentation = item["segmentation"]
    if not isinstance(segmentation, dict):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, HEIGHT, WIDTH))
    return mask_util.decode(segmentation).astype(bool)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    name = write_tiled_coco(tmp_path_factory.mktemp("tiles"), tiled_coco())
    return load_dataset(name)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(21, 100), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_tiles_cover_the_image_and_share_the_overlap(height, width, size, overlap):
    overlap = min(overlap, size - 1)
    tiles = grid(height, width, size, overlap)
    for side, place, long in ((width, 0, 2), (height, 1, 3)):
        starts = sorted({tile[place] for tile in tiles})
        lengths = {tile[long] for tile in tiles}
        assert lengths == {min(size, side)}
        assert starts[0] == 0
        assert starts[-1] + min(size, side) == side
        assert all(b - a <= size - overlap for a, b in itertools.pairwise(starts))
    if max(height, width) <= size:
        assert tiles == [Tile(0, 0, width, height)]


@pytest.mark.parametrize("min_visible", [0.0, 0.1, 0.5])
def test_a_tile_shows_the_whole_images_masks(dataset, min_visible):
    record = dataset.records[0]
    generator = np.random.default_rng(2)
    for _ in range(40):
        x, y = generator.integers(0, [WIDTH - SIZE + 1, HEIGHT - 71])
        tile = Tile(int(x), int(y), SIZE, 72)
        cut = cut_record(record, tile, min_visible)
        assert (cut["height"], cut["width"], cut["image_size"]) == (72, SIZE, (HEIGHT, WIDTH))
        found = iter(cut["annotations"])
        for item in record["annotations"]:
            whole = whole_mask(item)
            part = whole[y : y + 72, x : x + SIZE]
            enough = part.sum() >= min_visible * min(whole.sum(), SIZE * 72)
            if not part.any() or not (enough or item["iscrowd"]):
                continue
            other = next(found)
            assert (other["iscrowd"], other["category_id"]) == (
                item["iscrowd"],
                item["category_id"],
            )
            shown = other["segmentation"]
            ties = 0
            if not isinstance(shown, dict):  # not cut: polygons that were shifted
                shown = mask_util.merge(mask_util.frPyObjects(shown, 72, SIZE))
                ties = 2  # pycocotools rounds fifths of pixels
            assert (mask_util.decode(shown).astype(bool) != part).sum() <= ties
            rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
            left, top, wide, high = other["bbox"]
            assert left <= columns[0] + 1e-9
            assert left + wide >= columns[-1] + 1 - 1e-9
            assert top <= rows[0] + 1e-9
            assert top + high >= rows[-1] + 1 - 1e-9
            assert left >= 0
            assert left + wide <= SIZE + 1e-9
        assert next(found, None) is None


def test_objects_without_masks_are_cut_by_their_boxes():
    record = {"height": 100, "width": 100, "annotations": [
        {"bbox": [10, 10, 40, 40], "iscrowd": 0, "category_id": 0},
        {"bbox": [45, 20, 50, 10], "iscrowd": 0, "category_id": 1},
    ]}  # fmt: skip
    (first, second) = cut_record(record, Tile(0, 0, 64, 64), 0.1)["annotations"]
    assert first["bbox"] == [10, 10, 40, 40]
    assert second["bbox"] == [45, 20, 19, 10]
    assert len(cut_record(record, Tile(0, 0, 64, 64), 0.5)["annotations"]) == 1  # 38% are seen
    inside = cut_record(record, Tile(15, 12, 20, 20), 0.9)["annotations"]
    assert [item["bbox"] for item in inside] == [[0, 0, 20, 20]]  # larger than the tile, fills it


def test_of_a_mask_beyond_a_tile_that_its_box_meets_nothing_is_seen():
    """Boxes are often a little larger than their masks, and then no fault of the data."""
    mask = np.zeros((100, 100), np.uint8, order="F")
    mask[40:60, 40:60] = 1
    rle = mask_util.encode(mask)
    item = {"bbox": [38, 38, 24, 24], "iscrowd": 0, "category_id": 0, "segmentation": rle}
    record = {"height": 100, "width": 100, "annotations": [item]}
    for tile in (Tile(0, 0, 100, 39), Tile(0, 0, 39, 100), Tile(0, 0, 39, 39)):
        assert cut_record(record, tile, 0.0)["annotations"] == [], tile
    for tile in (Tile(0, 61, 100, 39), Tile(61, 0, 39, 100)):
        assert cut_record(record, tile, 0.0)["annotations"] == [], tile


def test_a_tile_is_the_images_own_pixels(dataset):
    record = dataset.records[0]
    config = tiled()
    whole = read_record(record, config)
    for seed in range(5):
        np.random.seed(seed)  # noqa: NPY002
        tile = draw_tile(record, config.INPUT.TILES)
        part = read_record(cut_record(record, tile, 0.1), config)
        x, y, width, height = tile
        np.testing.assert_array_equal(part, whole[y : y + height, x : x + width])


def test_tiles_of_objects_and_of_none_are_drawn_as_often_as_is_said():
    box = {"bbox": [400.0, 300.0, 30.0, 20.0], "iscrowd": 0, "category_id": 0}
    crowd = {"bbox": [0.0, 0.0, 200.0, 1000.0], "iscrowd": 1, "category_id": 0}
    record = {"height": 1000, "width": 1000, "annotations": [box, crowd]}
    np.random.seed(0)  # noqa: NPY002
    shown, places = 0, set()
    for _ in range(1000):
        x, y, width, height = draw_tile(record, tiled(BACKGROUND=0.3).INPUT.TILES)
        assert (width, height) == (SIZE, SIZE)
        whole = x <= 400 and y <= 300 and x + width >= 430 and y + height >= 320
        overlaps = x < 430 and y < 320 and x + width > 400 and y + height > 300
        assert whole == overlaps  # what is drawn for an object holds all of it
        if not whole:
            assert x >= 200  # where a crowd lies there may be objects
        shown += whole
        places.add((x, y))
    assert 650 < shown < 750
    assert len(places) > 800


def test_of_an_object_larger_than_a_tile_tiles_within_it_are_drawn():
    box = {"bbox": [100.0, 120.0, 500.0, 40.0], "iscrowd": 0, "category_id": 0}
    record = {"height": 300, "width": 900, "annotations": [box]}
    np.random.seed(0)  # noqa: NPY002
    tiles = [draw_tile(record, tiled(BACKGROUND=0.0).INPUT.TILES) for _ in range(200)]
    lefts = [tile.x for tile in tiles]
    assert 100 <= min(lefts) < 110
    assert 490 < max(lefts) <= 600 - SIZE
    assert all(tile.y <= 120 and tile.y + SIZE >= 160 for tile in tiles)


def test_an_image_counts_as_often_as_tiles_show_its_objects(dataset):
    assert len(training_records(dataset.records, default_config())) == 2
    boxes = np.array([item["bbox"] for item in dataset.records[0]["annotations"]][:-2])
    cells = {tuple(cell) for cell in ((boxes[:, :2] + boxes[:, 2:] / 2) // SIZE).tolist()}
    records = training_records(dataset.records, tiled())
    assert [record["image_id"] for record in records] == [1] * len(cells) + [2]


def test_size_and_overlap_are_found_by_the_objects():
    def records(*sides):
        items = [{"bbox": [0, 0, side, 5], "iscrowd": 0} for side in sides]
        return Records([{"annotations": items}])

    def found(config, *sides):
        tiles = resolve_tiles(config, records(*sides)).INPUT.TILES
        return tiles.SIZE, tiles.OVERLAP

    auto = tiled(SIZE=0, OVERLAP=-1)
    assert found(auto, *[20] * 50) == (256, 64)
    assert found(auto, *[120] * 50) == (512, 128)
    assert found(auto, *[600] * 50) == (1024, 512)
    assert found(auto) == (1024, 256)
    assert found(tiled(SIZE=128, OVERLAP=-1), 100, 100) == (128, 64)
    assert found(tiled(SIZE=0, OVERLAP=300), 20, 20) == (364, 300)
    assert found(tiled(), 500) == (SIZE, 32)
    with pytest.raises(InputError, match=r"OVERLAP is 96, but INPUT\.TILES\.SIZE 96"):
        found(tiled(OVERLAP=96))


@pytest.mark.detectron2
@pytest.mark.parametrize("mask_on", [True, False])
@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
def test_both_engines_draw_the_same_tiles(dataset, mask_on, direction):
    from detection.engines.detectron2.data import Mapper

    config = tiled()
    config.merge_from_list(["MODEL.MASK_ON", mask_on, "INPUT.RANDOM_FLIP", direction])
    samples = DetectionSamples(dataset, config, training=True)
    mapper = Mapper(to_detectron2(config), is_train=True)
    empty = 0
    for seed in range(25):
        np.random.seed(seed)  # noqa: NPY002
        sample = samples[0]
        np.random.seed(seed)  # noqa: NPY002
        other = mapper(samples.records[0])
        assert sample["image"].shape == (3, SIZE, SIZE)
        assert torch.equal(sample["image"], other["image"])
        assert torch.equal(sample["boxes"], other["instances"].gt_boxes.tensor)
        assert torch.equal(sample["labels"], other["instances"].gt_classes)
        if mask_on and len(sample["boxes"]):
            assert torch.equal(sample["masks"], other["instances"].gt_masks.tensor.bool())
        empty += not len(sample["boxes"])
    assert empty < 20
