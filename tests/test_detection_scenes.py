from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detection.data.scenes import CATEGORIES, draw_scene, write_scenes
from detection.dataset import load_dataset


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=30, val=6, unlabelled=5, seed=3)
    return folder


def test_scenes_are_a_valid_coco_data_set_with_gaps_between_category_ids(scenes):
    dataset = load_dataset(f"json:{scenes}/annotations/train.json:{scenes}/images")
    assert len(dataset.records) == 30
    assert list(dataset.category_ids) == sorted(CATEGORIES)
    assert len(CATEGORIES) >= 4
    assert np.diff(sorted(CATEGORIES)).max() > 1
    found = {a["category_id"] for record in dataset.records for a in record["annotations"]}
    assert found == set(range(len(CATEGORIES)))


def test_pictures_vary_in_size_and_objects_from_small_to_large(scenes):
    content = json.loads((scenes / "annotations/train.json").read_text())
    assert len({(i["height"], i["width"]) for i in content["images"]}) == 3
    areas = [a["area"] for a in content["annotations"]]
    assert min(areas) < 32**2
    assert max(areas) > 64**2


def test_masks_are_the_visible_parts_and_do_not_overlap():
    overlapping = 0
    for index in range(20):
        picture, objects = draw_scene(np.random.default_rng([9, index]))
        for _, mask in objects:
            assert mask.shape == picture.shape[:2]
        if objects:
            assert sum(mask.astype(int) for _, mask in objects).max() == 1
        boxes = [cv2.boundingRect(mask.astype(np.uint8)) for _, mask in objects]
        overlapping += sum(
            abs(a[0] - b[0]) < min(a[2], b[2]) and abs(a[1] - b[1]) < min(a[3], b[3])
            for i, a in enumerate(boxes)
            for b in boxes[:i]
        )
    assert overlapping > 5, "shapes should overlap"


def test_annotations_equal_their_masks(scenes):
    content = json.loads((scenes / "annotations/val.json").read_text())
    for annotation in content["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        rows, columns = mask.nonzero()
        x, y, width, height = annotation["bbox"]
        assert annotation["area"] == mask.sum()
        assert (x, y) == (columns.min(), rows.min())
        assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)


def test_same_seed_draws_the_same_and_splits_share_no_picture(scenes, tmp_path):
    write_scenes(tmp_path, train=2, val=2, unlabelled=1, seed=3)
    for name in ("images/train_0001.png", "images/val_0000.png", "unlabelled/00000.jpg"):
        assert (tmp_path / name).read_bytes() == (scenes / name).read_bytes()
    pictures = [p.read_bytes() for p in (scenes / "images").iterdir()]
    assert len(set(pictures)) == 36
