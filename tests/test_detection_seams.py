"""Detections joined across seams: what tiles see of drawn objects becomes the whole's truth."""

from collections import Counter

import numpy as np
import pycocotools.mask as mask_util
import pytest
from scipy import ndimage

from detection.data.tiles import Tile, grid
from detection.engines.seams import join_tiles

HEIGHT, WIDTH = 310, 430


def objects(seed, largest=70):
    """Disjoint connected masks of every size, round, long and bent, and their classes."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    labels = np.zeros((HEIGHT, WIDTH), int)
    for key in range(1, 60):
        x, y = generator.uniform(0, [WIDTH, HEIGHT])
        a, b, angle = *generator.uniform(2, largest, 2), generator.uniform(0, np.pi)
        u = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        v = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        shape = (u / a) ** 2 + (v / b) ** 2 < 1
        if key % 3 == 0:  # bent: a ring's arc
            shape &= (u / a) ** 2 + (v / b) ** 2 > 0.6
            shape &= u > -a / 2
        labels[shape] = key
    found = []
    for key in range(1, 60):
        parts, count = ndimage.label(labels == key)
        if count:
            sizes = np.bincount(parts.ravel())[1:]
            found.append((parts == 1 + sizes.argmax(), int(generator.integers(2))))
    return found


def seen(truth, tile, generator=None):
    """What a detector finds on a tile that sees its part of each object, exactly or nearly."""
    x, y, width, height = tile
    results = []
    for mask, category in truth:
        part = mask[y : y + height, x : x + width]
        if generator is not None and part.any():
            change = generator.choice([ndimage.binary_dilation, ndimage.binary_erosion])
            part = change(part, border_value=0)
        if not part.any():
            continue
        rle = mask_util.encode(np.asfortranarray(part, np.uint8))
        results.append(
            {
                "image_id": 5,
                "category_id": category,
                "bbox": mask_util.toBbox(rle).tolist(),
                "score": float(generator.random()) if generator is not None else 0.5,
                "segmentation": {**rle, "counts": rle["counts"].decode()},
            }
        )
    return results


def joined(truth, size, overlap, generator=None, counts=None):
    tiles = grid(HEIGHT, WIDTH, size, overlap)
    found = [(tile, seen(truth, tile, generator)) for tile in tiles]
    return join_tiles(found, HEIGHT, WIDTH, counts)


def decoded(result):
    return mask_util.decode(result["segmentation"]).astype(bool)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("size", "overlap"), [(96, 32), (128, 16), (200, 100), (96, 64)])
def test_objects_across_seams_become_those_of_the_whole_image(seed, size, overlap):
    truth, counts = objects(seed), Counter()
    found = joined(truth, size, overlap, counts=counts)
    expected = {(mask.tobytes(), category) for mask, category in truth}
    assert {(decoded(r).tobytes(), r["category_id"]) for r in found} == expected
    assert len(found) == len(truth)
    for result in found:
        rows, columns = np.nonzero(decoded(result))
        x, y, w, h = result["bbox"]
        assert (x, y, x + w, y + h) == (
            columns.min(), rows.min(), columns.max() + 1, rows.max() + 1,
        )  # fmt: skip
        assert result["image_id"] == 5
    parts = counts["found"] - counts["repeated"] - counts["parts"] + counts["united"]
    assert parts == len(truth)
    assert counts["united"] > 0 or overlap >= 100


@pytest.mark.parametrize("seed", range(3))
def test_objects_that_tiles_see_roughly_are_found_once(seed):
    truth = [  # that a detector does not lose by a pixel less on each side
        (mask, category)
        for mask, category in objects(seed)
        if ndimage.binary_erosion(mask).sum() > 0.7 * mask.sum()
    ]
    assert len(truth) > 10
    found = joined(truth, 128, 48, np.random.default_rng(seed))
    masks = [decoded(result) for result in found]
    for mask, _ in truth:
        ious = [(mask & other).sum() / (mask | other).sum() for other in masks]
        assert max(ious) > 0.5
    assert len(found) <= 1.05 * len(truth)
    scores = [result["score"] for result in found]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("seed", range(3))
def test_boxes_alone_are_joined_by_themselves(seed):
    generator = np.random.default_rng(seed)
    truth = []
    for row in range(5):
        for column in range(6):  # apart from each other, some across two seams
            left, top = 70 * column + generator.integers(8), 60 * row + generator.integers(8)
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask[top : top + generator.integers(5, 50), left : left + generator.integers(5, 60)] = 1
            truth.append((mask, 0))
    tiles = grid(HEIGHT, WIDTH, 96, 32)
    found = [
        (tile, [{k: v for k, v in r.items() if k != "segmentation"} for r in seen(truth, tile)])
        for tile in tiles
    ]
    results = join_tiles(found, HEIGHT, WIDTH)
    expected = [
        mask_util.toBbox(mask_util.encode(np.asfortranarray(m, np.uint8))) for m, _ in truth
    ]
    assert sorted(r["bbox"] for r in results) == sorted(box.tolist() for box in expected)


def box(x, y, w, h, score, category=0):
    mask = np.zeros((64, 64), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = mask_util.encode(mask)
    return {
        "category_id": category,
        "bbox": [x, y, w, h],
        "score": score,
        "segmentation": {**rle, "counts": rle["counts"].decode()},
    }


LEFT, RIGHT = Tile(0, 0, 64, 64), Tile(40, 0, 64, 64)  # share columns 40 to 64


def test_the_whole_detection_stays_and_the_cut_one_goes_however_sure_it_is():
    found = [(LEFT, [box(50, 10, 14, 20, 0.99)]), (RIGHT, [box(10, 10, 30, 20, 0.7)])]
    (result,) = join_tiles(found, 64, 104)
    assert (result["bbox"], result["score"]) == ([50, 10, 30, 20], 0.7)


def test_two_touching_objects_stay_two_though_the_other_tile_takes_them_for_one():
    found = [
        (LEFT, [box(44, 5, 16, 12, 0.9), box(44, 17, 16, 12, 0.8)]),
        (RIGHT, [box(4, 5, 16, 24, 0.6)]),
    ]
    results = join_tiles(found, 64, 104)
    assert [r["score"] for r in results][:2] == [0.9, 0.8]
    assert len(results) <= 3  # the blurred one may stay; it joins neither twice


def test_classes_are_joined_one_by_one():
    found = [(LEFT, [box(45, 5, 10, 10, 0.9, 1)]), (RIGHT, [box(5, 5, 10, 10, 0.8, 2)])]
    assert [r["category_id"] for r in join_tiles(found, 64, 104)] == [1, 2]


def test_a_small_object_within_a_cut_one_of_its_class_stays():
    found = [
        (LEFT, [box(42, 20, 8, 8, 0.9), box(0, 0, 64, 64, 0.8)]),
        (RIGHT, [box(2, 20, 8, 8, 0.7), box(0, 0, 64, 64, 0.6)]),
    ]
    results = join_tiles(found, 64, 104)
    assert [r["bbox"] for r in results] == [[42, 20, 8, 8], [0, 0, 104, 64]]


def test_prongs_that_one_tile_sees_apart_are_one_object():
    # a U on its side: the left tile sees two arms, the right one the bow
    arms = [box(20, 5, 44, 10, 0.9), box(20, 40, 44, 10, 0.8)]
    mask = np.zeros((64, 64), np.uint8, order="F")
    mask[5:15, :50] = mask[40:50, :50] = mask[5:50, 40:50] = 1
    rle = mask_util.encode(mask)
    bow = box(0, 5, 50, 45, 0.7) | {"segmentation": {**rle, "counts": rle["counts"].decode()}}
    (result,) = join_tiles([(LEFT, arms), (RIGHT, [bow])], 64, 104)
    assert (result["bbox"], result["score"]) == ([20, 5, 70, 45], 0.9)


def test_an_image_of_one_tile_and_one_of_no_detections_stay_as_they_are():
    whole = [box(5, 5, 10, 10, 0.9), box(30, 5, 10, 10, 0.95)]
    assert join_tiles([(Tile(0, 0, 64, 64), whole)], 64, 64) == whole[::-1]
    assert join_tiles([(LEFT, []), (RIGHT, [])], 64, 104) == []
