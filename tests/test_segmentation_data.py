"""Class maps, data sets' names and the check: each value's meaning, and every problem at once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fvcore.common.config import CfgNode
from PIL import Image
from segmentation_scenes import NAMES, write_scenes

from backbones.errors import InputError
from images.files import Reading
from segmentation.check import check_segmentation, checked_or_refused
from segmentation.dataset import PUBLISHED, load_segmentation
from segmentation.label_maps import (
    Classes,
    class_map,
    draw_objects,
    read_classes,
    read_label_file,
)
from segmentation.run import load_datasets
from segmentation.upernet import IGNORED

RGB = Reading()


def save(path, values, mode=None):
    image = Image.fromarray(np.asarray(values))
    (image.convert(mode) if mode else image).save(path)
    return path


def test_8_and_16_bits_palettes_and_bilevel_maps_give_their_values(tmp_path):
    values = np.array([[0, 1, 2], [200, 2, 1]], np.uint8)
    assert np.array_equal(read_label_file(save(tmp_path / "8.png", values)), values)
    deep = values.astype(np.uint16) * 300
    assert np.array_equal(read_label_file(save(tmp_path / "16.png", deep)), deep)
    palette = Image.fromarray(values)
    palette = palette.convert("P")
    palette.putpalette([255 - i // 3 for i in range(768)])
    indices = np.asarray(palette).copy()
    palette.save(tmp_path / "p.png")
    assert np.array_equal(read_label_file(tmp_path / "p.png"), indices)
    Image.fromarray(values > 1).save(tmp_path / "1.png")
    assert np.array_equal(read_label_file(tmp_path / "1.png"), values > 1)


def test_a_picture_in_colours_and_a_damaged_file_are_no_class_maps(tmp_path):
    rgb = save(tmp_path / "rgb.png", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(InputError, match=r"rgb\.png has 3 channels; .* one value"):
        read_label_file(rgb)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(InputError, match=r"bad\.png does not decode"):
        read_label_file(tmp_path / "bad.png")


def test_each_value_means_what_the_rules_say():
    values = np.array([[0, 1, 2, 255]], np.uint16)
    plain = Classes(("a", "b", "c"), {})
    assert class_map(values, plain).tolist() == [[0, 1, 2, IGNORED]]
    reduced = Classes(("a", "b"), {}, reduce_zero_label=True)
    assert class_map(values, reduced).tolist() == [[IGNORED, 0, 1, IGNORED]]
    named = Classes(("ground", "object"), {0: 0, 255: 1}, ignore_label=2)
    with pytest.raises(InputError, match=r"values without a class: \[1\]"):
        class_map(values, named)
    assert class_map(values[:, [0, 2, 3]], named).tolist() == [[0, IGNORED, 1]]
    assert "255" not in named.said()


def test_a_value_that_the_classes_file_names_is_a_class_even_if_it_is_the_ignored_one():
    classes = Classes(("ground", "object"), {0: 0, 255: 1})
    assert class_map(np.array([[0, 255]], np.uint16), classes).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"a": 1}', "is not a list of class names"),
        ('["a", "a"]', "names a twice"),
        ('{"one": "a"}', "values are whole numbers"),
        ('{"70000": "a"}', r"names the values \[70000\]"),
        ("[]", "is not a list of class names"),
    ],
)
def test_a_faulty_classes_file_is_refused(tmp_path, text, message):
    path = tmp_path / "classes.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_classes(path)


def test_small_objects_lie_on_large_ones_and_crowds_are_ignored_below_both():
    def box(x, y, w, h):
        return [[x, y, x + w, y, x + w, y + h, x, y + h]]

    objects = [
        {"category_id": 5, "segmentation": box(4, 4, 2, 2)},
        {"category_id": 9, "segmentation": box(2, 2, 6, 6)},
        {"category_id": 5, "segmentation": box(0, 0, 10, 4), "iscrowd": 1},
    ]
    labels = draw_objects(objects, (10, 10), {5: 1, 9: 2})
    assert labels[4, 4] == 1
    assert labels[7, 7] == 2
    assert labels[3, 3] == 2
    assert labels[0, 0] == IGNORED
    assert labels[9, 9] == 0


def test_coco_objects_become_a_data_set_with_a_background(tmp_path):
    save(tmp_path / "a.png", np.zeros((8, 6, 3), np.uint8))
    tree = {
        "images": [{"id": 3, "file_name": "a.png", "height": 8, "width": 6}],
        "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": [
            {"image_id": 3, "category_id": 9, "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]}
        ],
    }
    (tmp_path / "x.json").write_text("\ufeff" + json.dumps(tree), encoding="utf-8")
    dataset = load_segmentation(f"json:{tmp_path / 'x.json'}:{tmp_path}")
    assert dataset.classes.names == ("background", "dog", "cat")
    assert dataset.class_map(dataset.records[0])[1, 1] == 2
    (tmp_path / "x.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="is not a COCO file"):
        load_segmentation(f"json:{tmp_path / 'x.json'}:{tmp_path}")


def test_all_that_is_wrong_with_cocos_objects_is_told_at_once(tmp_path):
    save(tmp_path / "a.png", np.zeros((8, 6, 3), np.uint8))
    square = [[0, 0, 3, 0, 3, 3, 0, 3]]
    good = {"image_id": 3, "category_id": 4, "segmentation": square}
    tree = {
        "images": [{"id": 3, "file_name": "a.png", "height": 8, "width": 6}],
        "categories": [{"id": 4, "name": "dog"}],
        "annotations": [
            good,
            good | {"image_id": 5},
            good | {"category_id": 7},
            good | {"segmentation": []},
            good | {"segmentation": "0 0 3 3"},
            good | {"segmentation": {"counts": "???", "size": [8, 6]}},
            good | {"segmentation": [[0, 0, 1, 1]]},
        ],
    }
    (tmp_path / "x.json").write_text(json.dumps(tree), encoding="utf-8")
    dataset = load_segmentation(f"json:{tmp_path / 'x.json'}:{tmp_path}")
    checked = check_segmentation(dataset, RGB)
    said = "\n".join(checked.errors)
    assert "objects of images that the file has not (1): annotations[1]" in said
    assert "objects of categories that the file has not (1): annotations[2]" in said
    assert "invalid segmentations: annotations[4]" in said
    assert checked.warnings == ["objects without a mask, which are left out (1): annotations[3]"]


def test_more_classes_than_a_map_of_8_bits_holds_are_refused(tmp_path):
    names = [f"class {number}" for number in range(256)]
    (tmp_path / "classes.json").write_text(json.dumps(names), encoding="utf-8")
    with pytest.raises(InputError, match="has 256 classes; a model has at most 255"):
        read_classes(tmp_path / "classes.json")
    tree = {"images": [], "annotations": []}
    tree["categories"] = [{"id": number, "name": name} for number, name in enumerate(names)]
    (tmp_path / "x.json").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(InputError, match=r"x\.json has 257 classes"):
        load_segmentation(f"json:{tmp_path / 'x.json'}:{tmp_path}")


def test_every_format_of_images_has_its_map_and_hidden_files_are_passed_over(tmp_path, caplog):
    caplog.set_level("INFO", "segmentation")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for ending in (".jfif", ".pgm", ".tga", ".gif", ".npy"):
        (tmp_path / f"images/{ending[1:]}{ending}").write_bytes(b"")
        save(tmp_path / f"labels/{ending[1:]}.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "images/._jfif.jfif").write_bytes(b"")
    (tmp_path / "images/notes.txt").write_bytes(b"")
    dataset = load_segmentation(f"masks:{tmp_path / 'images'}:{tmp_path / 'labels'}")
    assert len(dataset.records) == 5
    assert not dataset.without_partner
    assert "images: left out are 1 hidden files, 1 .txt" in caplog.text


def test_damaged_maps_without_a_classes_file_are_told_with_all_else(tmp_path):
    write_scenes(tmp_path)
    (tmp_path / "labels/03.png").write_bytes(b"no map")
    (tmp_path / "images/02.png").write_bytes(b"no image")
    dataset = load_segmentation(f"masks:{tmp_path / 'images'}:{tmp_path / 'labels'}")
    said = "\n".join(check_segmentation(dataset, RGB).errors)
    assert "03.png does not decode" in said
    assert "02.png" in said


def test_names_that_are_known_have_their_files_and_their_own_values(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    images = tmp_path / "cityscapes/leftImg8bit/val/bonn"
    labels = tmp_path / "cityscapes/gtFine/val/bonn"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    save(images / "bonn_1_leftImg8bit.png", np.zeros((2, 3, 3), np.uint8))
    save(labels / "bonn_1_gtFine_labelIds.png", np.array([[7, 8, 0], [33, 0, 26]], np.uint8))
    save(labels / "bonn_1_gtFine_color.png", np.zeros((2, 3, 3), np.uint8))
    dataset = load_segmentation("cityscapes_val")
    assert len(dataset.classes.names) == 19
    table = dataset.classes.table()
    assert [table[7], table[8], table[33], table[26]] == [0, 1, 18, 13]
    assert len(PUBLISHED["ade20k_val"].names) == 150
    assert len(PUBLISHED["coco_stuff_val"].names) == 171
    assert {"ceiling-other", "door-stuff", "food-other"} < set(PUBLISHED["coco_stuff_val"].names)


def test_cityscapes_values_outside_of_the_19_classes_are_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    images, labels = tmp_path / "cityscapes/leftImg8bit/val", tmp_path / "cityscapes/gtFine/val"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    save(images / "x_leftImg8bit.png", np.zeros((1, 2, 3), np.uint8))
    save(labels / "x_gtFine_labelIds.png", np.array([[7, 4]], np.uint8))
    dataset = load_segmentation("cityscapes_val")
    assert dataset.class_map(dataset.records[0]).tolist() == [[0, IGNORED]]


def test_a_name_of_no_form_says_the_forms():
    with pytest.raises(InputError, match=r"give masks:IMAGES:LABELS.*json:.*ade20k_train"):
        load_segmentation("my_images")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_segmentation("masks:nowhere:labels")


def test_every_problem_is_told_at_once(tmp_path):
    name = write_scenes(tmp_path)
    save(tmp_path / "images/lonely.png", np.zeros((4, 4, 3), np.uint8))
    save(tmp_path / "labels/00.png", np.zeros((64, 95), np.uint8))
    save(tmp_path / "labels/01.png", np.full((64, 96), 7, np.uint8))
    (tmp_path / "images/02.png").write_bytes(b"no image")
    dataset = load_segmentation(name)
    with pytest.raises(InputError) as caught:
        checked_or_refused({"train": dataset}, RGB)
    said = str(caught.value)
    assert "another size than their image" in said
    assert "64x95, image 64x96" in said
    assert "value 7: 6144 pixels" in said
    assert "REDUCE_ZERO_LABEL" in said
    assert "02.png" in said
    assert dataset.without_partner == (f"{tmp_path / 'images/lonely.png'} has no class map",)


def test_a_set_that_is_trained_and_tested_on_is_checked_and_said_once(tmp_path):
    name = write_scenes(tmp_path)
    config = CfgNode({"DATASETS": {"TRAIN": (name,), "TEST": (name,)}})
    config.INPUT = CfgNode({"IGNORE_LABEL": 255, "REDUCE_ZERO_LABEL": False})
    (tmp_path / "images/02.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"^1 problem in the data:"):
        checked_or_refused(load_datasets(config, eval_only=False), RGB)
    (tmp_path / "images").rename(tmp_path / "gone")
    with pytest.raises(InputError, match=r"^DATASETS.TRAIN, DATASETS.TEST: .*images") as found:
        load_datasets(config, eval_only=False)
    assert "\n" not in str(found.value)


def test_a_map_of_0_and_255_is_recognised_and_explained(tmp_path):
    write_scenes(tmp_path)
    for path in (tmp_path / "labels").iterdir():
        save(path, (np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255)
    two = f"masks:{tmp_path / 'images'}:{tmp_path / 'labels'}"
    with pytest.raises(InputError, match=r'background and object.*\{"0": "background", "255"'):
        checked_or_refused({"train": load_segmentation(two)}, RGB)
    classes = tmp_path / "two.json"
    classes.write_text('{"0": "background", "255": "object"}', encoding="utf-8")
    checked = check_segmentation(load_segmentation(f"{two}:{classes}"), RGB)
    assert not checked.errors
    assert (checked.pixels > 0).all()


def test_what_the_values_mean_unused_classes_and_shared_images_are_said(tmp_path, caplog):
    caplog.set_level("INFO", "segmentation")
    name = write_scenes(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps([*NAMES, "boat"]), encoding="utf-8")
    dataset = load_segmentation(name)
    checked_or_refused({"train": dataset, "test": dataset}, RGB)
    assert "IGNORE_LABEL: 255 is ignored" in caplog.text
    assert "classes that no pixel has (1): boat" in caplog.text
    assert "6 of the test images are trained on" in caplog.text


def test_without_a_classes_file_values_are_counted_and_named_by_number(tmp_path):
    write_scenes(tmp_path)
    dataset = load_segmentation(f"masks:{tmp_path / 'images'}:{tmp_path / 'labels'}")
    assert dataset.classes.names == ("0", "1", "2")
