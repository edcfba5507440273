"""COCO data sets: what is loaded equals detectron2's; what is wrong is all reported."""

import json
import logging
import re

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_coco import small_coco, write_small_coco

from detection.dataset import load_dataset, locate_dataset
from detection.dataset_check import check_coco, check_overlap
from detection.segmentation_check import compressed_rle, mask_bounds


def errors(folder, tree=None, **options):
    annotations, images = write_small_coco(folder, tree)
    _, problems = check_coco(annotations, images, **options)
    return [str(problem) for problem in problems if problem.severity == "error"]


def warnings(folder, tree):
    annotations, images = write_small_coco(folder, tree)
    return [str(p) for p in check_coco(annotations, images)[1] if p.severity == "warning"]


def test_records_have_contiguous_classes_and_ascending_images(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    dataset = load_dataset(f"json:{annotations}:{images}")
    assert dataset.class_names == ("box", "disc")
    assert dataset.contiguous_ids == {2: 0, 9: 1}
    assert dataset.category_ids == [2, 9]
    assert [record["image_id"] for record in dataset.records] == [3, 7, 12, 20]
    assert dataset.num_instances == 5
    first = dataset.records[0]
    assert first["file_name"] == str(images / "3.png")
    assert (first["height"], first["width"]) == (60, 80)
    assert [item["category_id"] for item in first["annotations"]] == [0, 1]
    assert first["annotations"][0]["bbox"] == [10.5, 12.0, 30.0, 20.5]
    assert dataset.records[3]["annotations"] == []
    assert [item["iscrowd"] for item in dataset.records[2]["annotations"]] == [0, 1]


@pytest.mark.detectron2
def test_records_equal_detectron2s(tmp_path):
    coco = pytest.importorskip("detectron2.data.datasets.coco", reason="detectron2 is missing")
    annotations, images = write_small_coco(tmp_path)
    expected = coco.load_coco_json(str(annotations), str(images), f"small_{tmp_path.name}")
    assert load_dataset(f"json:{annotations}:{images}").records == expected


@pytest.mark.detectron2
@pytest.mark.parametrize("name", ["nuclei", "coco_mini", "fruits_nuts"])
def test_records_of_real_data_equal_detectron2s(real_data, name):
    coco = pytest.importorskip("detectron2.data.datasets.coco", reason="detectron2 is missing")
    annotations, images = real_data / name / "annotations/val.json", real_data / name / "images"
    expected = coco.load_coco_json(str(annotations), str(images), f"real_{name}")
    assert load_dataset(f"json:{annotations}:{images}", check_images=False).records == expected


def test_fingerprint_changes_with_annotations_and_images_only(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    name = f"json:{annotations}:{images}"
    before = load_dataset(name).fingerprint
    assert load_dataset(name).fingerprint == before
    Image.new("RGB", (80, 60)).save(images / "3.png")
    assert load_dataset(name).fingerprint != before
    annotations.write_text(annotations.read_text() + "\n")
    assert load_dataset(name).fingerprint != before


def test_names_are_located_and_unknown_ones_explained(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "root")
    annotations, images = locate_dataset("coco_2017_val")
    assert annotations.as_posix() == "root/coco/annotations/instances_val2017.json"
    assert images.as_posix() == "root/coco/val2017"
    assert [str(path) for path in locate_dataset("json:a/b.json:c/d")] == ["a/b.json", "c/d"]
    for name in ("coco_2017_tran", "json:a.json", "json::x", "nuclei"):
        with pytest.raises(ValueError, match=re.escape(name) + ".*json:ANNOTATIONS:IMAGE_FOLDER"):
            locate_dataset(name)


def test_sound_data_has_no_error(tmp_path):
    assert errors(tmp_path) == []


def test_every_problem_is_in_one_message(tmp_path):
    tree = small_coco()
    tree["annotations"][0]["category_id"] = 77
    tree["annotations"][1]["bbox"] = [30, 40, 50, 20]
    tree["annotations"][2]["image_id"] = 99
    annotations, images = write_small_coco(tmp_path, tree)
    (images / "20.png").unlink()
    (images / "7.png").write_bytes((images / "7.png").read_bytes()[:600])
    with pytest.raises(ValueError, match="5 problems in the data set json:") as caught:
        load_dataset(f"json:{annotations}:{images}")
    message = str(caught.value)
    for part in (
        "annotation 5 (image 3): category_id 77 is not in 'categories'",
        "annotation 6 (image 7): bbox [30, 40, 50, 20] reaches outside its image of 50 x 90",
        "annotation 8 (image 99): image_id 99 is not in 'images'",
        f"{images / '20.png'}: image 20: is missing; add the image",
        f"{images / '7.png'}: image 7: does not decode (OSError",
    ):
        assert part in message
    assert message.count("\n") == 5


def test_many_problems_are_counted_not_dropped(tmp_path):
    tree = small_coco()
    tree["annotations"] = [
        dict(tree["annotations"][0], id=number, category_id=77) for number in range(1, 61)
    ]
    annotations, images = write_small_coco(tmp_path, tree)
    with pytest.raises(ValueError, match="60 problems") as caught:
        load_dataset(f"json:{annotations}:{images}")
    assert "and 10 more (tools/check_dataset.py lists all)" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not COCO: it holds a list"),
        ('[{"score": 1}]', "looks like COCO results"),
        ('{"images": [], "annotations": []}', "it has no 'categories'"),
        ('{"images": {}, "annotations": [], "categories": []}', "'images' is a dict, not a list"),
        ('{"images": [1], "annotations": [], "categories": []}', r"images\[0\]: is not an object"),
        ('{"images": [], "annotations": [], "categories": []}', "has no images"),
    ],
)
def test_a_file_that_is_not_coco_is_named(tmp_path, content, message):
    annotations, images = write_small_coco(tmp_path)
    annotations.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(f"json:{annotations}:{images}")
    assert str(annotations) in str(caught.value)


def test_missing_annotation_file_and_image_folder(tmp_path):
    annotations, _ = write_small_coco(tmp_path)
    with pytest.raises(ValueError, match=r"no\.json: cannot be read \(No such file"):
        load_dataset(f"json:{tmp_path / 'no.json'}:{tmp_path}")
    with pytest.raises(ValueError, match="nowhere: is not a folder"):
        load_dataset(f"json:{annotations}:{tmp_path / 'nowhere'}")


def image(tree, **changes):
    tree["images"][0].update(changes)


def image_again(tree):
    tree["images"].append(tree["images"][0])


def annotation(tree, **changes):
    tree["annotations"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "values", "message"),
    [
        (image_again, {}, "id 20 is used twice"),
        (image, {"id": None}, "id is None"),
        (image, {"height": 0}, "height and width are (0, 40)"),
        (image, {"width": 41}, "is 40 x 40 pixels, but the annotations say 41 x 40"),
        (image, {"file_name": 5}, "file_name is 5"),
        (image, {"file_name": "../images/20.png"}, "lies outside the image folder"),
        (image, {"file_name": "/20.png"}, "lies outside the image folder"),
        (annotation, {"id": 6}, "id 6 is used twice"),
        (annotation, {"bbox": [1, 2, 3]}, "bbox is [1, 2, 3]"),
        (annotation, {"bbox": [1, 2, 3, float("nan")]}, "bbox is [1, 2, 3, nan]"),
        (annotation, {"bbox": [1, 2, -3, 4]}, "has a negative size"),
        (annotation, {"bbox": [-1.1, 2, 3, 4]}, "reaches outside"),
        (annotation, {"bbox": [1, 2, 80.1, 4]}, "reaches outside"),
        (annotation, {"iscrowd": 2}, "iscrowd is 2"),
        (annotation, {"ignore": 1}, "'ignore' is not supported"),
        (annotation, {"segmentation": None}, "MODEL.MASK_ON False"),
        (annotation, {"segmentation": []}, "MODEL.MASK_ON False"),
        (annotation, {"segmentation": "x"}, "is a str, not polygons or an RLE"),
        (annotation, {"segmentation": [1, 2, 3, 4, 5, 6]}, "not a list of numbers"),
        (annotation, {"segmentation": [[1, 2, 3, 4]]}, "no polygon of at least 3 points"),
        (annotation, {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "7 numbers; they come in pairs"),
        (annotation, {"segmentation": {"size": [80, 60], "counts": [4800]}}, "size is [80, 60]"),
        (annotation, {"segmentation": {"size": [60, 80], "counts": [479]}}, "add up to 479"),
        (annotation, {"segmentation": {"size": [60, 80], "counts": [-1]}}, "not all whole"),
        (annotation, {"segmentation": {"size": [60, 80], "counts": "é"}}, "not a compressed RLE"),
        (annotation, {"segmentation": {"size": [60, 80], "counts": ""}}, "not a compressed RLE"),
    ],
)
def test_each_kind_of_bad_value_is_one_error(tmp_path, change, values, message):
    tree = small_coco()
    change(tree, **values)
    found = errors(tmp_path, tree)
    assert len(found) == 1
    assert message in found[0]


def test_a_box_may_reach_one_pixel_out(tmp_path):
    tree = small_coco()
    annotation(tree, bbox=[-1, -0.5, 82, 61.5], segmentation=[[0, 0, 80, 0, 80, 60]])
    assert errors(tmp_path, tree) == []


def test_missing_masks_matter_only_where_masks_are_learnt(tmp_path):
    tree = small_coco()
    for item in tree["annotations"]:
        del item["segmentation"]
    assert len(errors(tmp_path, tree)) == 5
    assert errors(tmp_path, tree, masks=False) == []
    annotations, images = write_small_coco(tmp_path, tree)
    record = load_dataset(f"json:{annotations}:{images}", masks=False).records[0]
    assert "segmentation" not in record["annotations"][0]


def test_exif_rotation_counts_as_the_engines_read_it(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 80)).save(images / "3.png", exif=exif)
    assert [p for p in check_coco(annotations, images)[1] if p.severity == "error"] == []
    Image.new("RGB", (80, 60)).save(images / "3.png", exif=exif)
    (problem,) = [p for p in check_coco(annotations, images)[1] if p.severity == "error"]
    assert "is 60 x 80 pixels, as" not in str(problem)
    assert "rotated by its EXIF orientation, but the annotations say 80 x 60" in str(problem)


def test_headers_alone_find_a_file_that_is_no_image_and_decoding_finds_the_rest(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    (images / "3.png").write_text("not an image")
    (images / "7.png").write_bytes((images / "7.png").read_bytes()[:600])
    found = {decode: check_coco(annotations, images, decode=decode)[1] for decode in (False, True)}
    names = {
        decode: [p.where for p in problems if p.severity == "error"]
        for decode, problems in found.items()
    }
    assert names == {False: ["image 3"], True: ["image 7", "image 3"]}


def test_warnings_say_where_without_stopping(tmp_path, caplog):
    tree = small_coco()
    tree["annotations"][0].update(id=0, bbox=[1, 1, 10, 10])
    tree["annotations"][4].update(bbox=[40.0, 5.0, 0, 50.0])
    tree["categories"].append({"id": 4, "name": "unused"})
    tree["annotations"][2]["segmentation"].append([1, 2, 3, 4])
    annotations, images = write_small_coco(tmp_path, tree)
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(f"json:{annotations}:{images}")
    text = caplog.text
    for part in (
        "annotation 0 (image 3): id 0 means 'no match'",
        "annotation 0 (image 3), annotation 4 (image 3): box and mask are of different places",
        "annotation 4 (image 3): box has no area",
        "category 4: has no annotation",
        "image 20: has no annotation",
        "annotation 8 (image 12): has polygons of fewer than 3 points; they are dropped",
    ):
        assert part in text
    assert len(dataset.records[2]["annotations"][0]["segmentation"]) == 2


def test_sound_data_warns_of_the_empty_image_only(tmp_path):
    (found,) = warnings(tmp_path, small_coco())
    assert "image 20: has no annotation" in found


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_compressed_rle_of_any_mask_is_accepted_and_of_another_size_refused(h, w, seed, share):
    mask = (np.random.default_rng(seed).random((h, w)) < share).astype(np.uint8)
    encoded = mask_util.encode(np.asfortranarray(mask))
    rle = {"size": [h, w], "counts": encoded["counts"].decode()}
    assert compressed_rle(rle, h, w) is rle
    with pytest.raises(ValueError, match="add up to"):
        compressed_rle({**rle, "size": [h + 1, w]}, h + 1, w)
    if mask.any():
        rows, columns = np.nonzero(mask)
        bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert mask_bounds(rle, h, w)[0] == bounds


def test_shared_images_are_found_by_content(tmp_path):
    first = write_small_coco(tmp_path / "a")
    second = write_small_coco(tmp_path / "b")
    for name in ("3.png", "7.png", "20.png"):
        with Image.open(second[1] / name) as picture:
            Image.new("RGB", picture.size, "red").save(second[1] / name)
    with Image.open(second[1] / "12.png") as picture:
        picture.save(second[1] / "renamed.bmp")
    tree = small_coco()
    tree["images"][1]["file_name"] = "renamed.bmp"
    problems = check_overlap(
        (first[0], json.loads(first[0].read_text()), first[1]), (second[0], tree, second[1])
    )
    assert [(p.where, p.message) for p in problems] == [
        ("12.png", f"has the pixels of renamed.bmp of {second[0]}")
    ]
