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
from small_coco import SIZES, small_coco, write_small_coco

from detection.data.check import check_coco
from detection.data.checks import images as image_check
from detection.data.checks.segmentations import compressed_rle, mask_bounds
from detection.data.checks.sets import check_overlap, image_files
from detection.dataset import load_dataset, locate_dataset, warn_of_shared_images


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
    from detectron2.data.datasets import coco

    annotations, images = write_small_coco(tmp_path)
    expected = coco.load_coco_json(str(annotations), str(images), f"small_{tmp_path.name}")
    assert list(load_dataset(f"json:{annotations}:{images}").records) == expected


@pytest.mark.detectron2
@pytest.mark.parametrize("name", ["nuclei", "coco_mini", "fruits_nuts"])
def test_records_of_real_data_equal_detectron2s(real_data, name):
    from detectron2.data.datasets import coco

    annotations, images = real_data / name / "annotations/val.json", real_data / name / "images"
    expected = coco.load_coco_json(str(annotations), str(images), f"real_{name}")
    assert (
        list(load_dataset(f"json:{annotations}:{images}", check_images=False).records) == expected
    )


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
    message = str(caught.value)
    assert message.count("\n") == 1  # of one cause: one line
    assert "60 times: annotation 1 (image 3), annotation 2 (image 3)" in message
    assert "and 55 more: category_id 77 is not in 'categories'" in message


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
        (image, {"file_name": "../other/20.png"}, "lies outside the image folder"),
        (image, {"file_name": "/20.png"}, "lies outside the image folder"),
        (annotation, {"id": 6}, "id 6 is used twice"),
        (annotation, {"bbox": [1, 2, 3]}, "bbox is [1, 2, 3]"),
        (annotation, {"bbox": [1, 2, 3, float("nan")]}, "bbox is [1, 2, 3, nan]"),
        (annotation, {"bbox": [1, 2, -3, 4]}, "has a negative size"),
        (annotation, {"bbox": [-1.1, 2, 3, 4]}, "reaches outside"),
        (annotation, {"bbox": [1, 2, 80.1, 4]}, "reaches outside"),
        (annotation, {"iscrowd": 2}, "iscrowd is 2"),
        (annotation, {"area": "615"}, "area is '615'"),
        (annotation, {"area": -1}, "area is -1"),
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
    (found,) = errors(tmp_path, tree)  # of one cause: one line
    assert "5 (image 3), annotation 6 (image 7)" in found
    assert errors(tmp_path, tree, masks=False) == []
    annotations, images = write_small_coco(tmp_path, tree)
    record = load_dataset(f"json:{annotations}:{images}", masks=False).records[0]
    assert "segmentation" not in record["annotations"][0]


def save_turned(path, size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_exif_rotation_counts_as_the_engines_read_it(tmp_path, orientation, decode):
    annotations, images = write_small_coco(tmp_path)
    save_turned(images / "3.png", (60, 80), orientation)
    _, problems = check_coco(annotations, images, decode=decode)
    assert [p for p in problems if p.severity == "error"] == []
    save_turned(images / "3.png", (80, 60), orientation)
    (problem,) = [p for p in check_coco(annotations, images)[1] if p.severity == "error"]
    assert "by its EXIF orientation, but the annotations say 80 x 60" in problem.message
    assert "is 60 x 80 pixels, " in problem.message
    assert "remove the orientation from the file, or turn" in problem.remedy


@pytest.mark.parametrize(
    ("name", "size", "orientation", "how"),
    [
        ("3.png", (80, 60), 2, "is mirrored"),
        ("3.png", (80, 60), 3, "is turned upside down"),
        ("12.png", (64, 64), 6, "is turned right"),
    ],
)
def test_a_rotation_that_the_size_does_not_tell_is_a_warning(
    tmp_path, name, size, orientation, how
):
    annotations, images = write_small_coco(tmp_path)
    save_turned(images / name, size, orientation)
    warnings = [p for p in check_coco(annotations, images)[1] if "EXIF" in p.message]
    assert [(p.severity, p.places) for p in warnings] == [
        ("warning", (f"image {name[:-4]} ({name})",))
    ]
    assert how in warnings[0].message


def save_16_bits(path, values, size=(60, 80)):
    pixels = np.full(size, values[0], np.uint16)
    pixels[5, 7] = values[1]
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("decode", [True, False])
def test_images_of_16_bits_among_others_are_a_warning(tmp_path, decode):
    annotations, images = write_small_coco(tmp_path)
    save_16_bits(images / "3.png", (0, 65535))
    problems = [p for p in check_coco(annotations, images, decode=decode)[1] if "16" in p.message]
    assert [(p.severity, p.places, p.message) for p in problems] == [
        ("warning", ("image 3 (3.png)",), "has 16 bits a channel, but 3 other images have 8 bits")
    ]
    assert "levels are kept" in problems[0].remedy


def test_images_all_of_16_bits_are_no_problem(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    for key, size in SIZES.items():
        save_16_bits(images / f"{key}.png", (0, 65535), size)
    assert not [p for p in check_coco(annotations, images)[1] if "16 bits" in p.message]


@pytest.mark.parametrize(("largest", "is_dim"), [(4095, True), (4096, False)])
def test_a_12_bit_image_in_16_bits_is_warned_of_as_dark(tmp_path, largest, is_dim):
    annotations, images = write_small_coco(tmp_path)
    save_16_bits(images / "3.png", (0, largest))
    found = [p for p in check_coco(annotations, images)[1] if "no value above 4095" in p.message]
    assert [p.severity for p in found] == is_dim * ["warning"]


def test_a_floating_point_image_is_read_unless_it_holds_no_number(tmp_path):
    tree = small_coco()
    tree["images"][3]["file_name"] = "3.tif"
    annotations, images = write_small_coco(tmp_path, tree)
    values = np.zeros((60, 80), np.float32)
    Image.fromarray(values).save(images / "3.tif")
    assert not [p for p in check_coco(annotations, images)[1] if p.severity == "error"]
    values[3, 4] = np.nan
    Image.fromarray(values).save(images / "3.tif")
    (found,) = [p for p in check_coco(annotations, images)[1] if p.severity == "error"]
    assert "NaN" in found.message


def test_a_wrong_image_folder_is_one_error_not_one_for_each_image(tmp_path):
    annotations, _ = write_small_coco(tmp_path)
    (found,) = [p for p in check_coco(annotations, tmp_path)[1] if p.severity == "error"]
    assert found.file == str(tmp_path)
    assert "none of the 4 images is there" in str(found)


def test_a_byte_order_mark_is_no_problem(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    annotations.write_bytes(b"\xef\xbb\xbf" + annotations.read_bytes())
    assert load_dataset(f"json:{annotations}:{images}").num_instances == 5


def test_numbers_and_strings_as_image_ids_are_not_sorted_but_reported(tmp_path):
    tree = small_coco()
    tree["images"][0]["id"] = "twenty"
    assert errors(tmp_path, tree) == [
        f"{tmp_path / 'annotations.json'}: images: ids are numbers and strings mixed; use numbers"
    ]


def test_areas_that_are_not_the_masks_are_warned_of(tmp_path):
    tree = small_coco()
    polygon, rle, parts, crowd, triangle = tree["annotations"]
    polygon["area"] = 400  # the polygon encloses 30 x 20.5 and is drawn with 30 x 21 pixels
    del rle["area"]
    parts["area"] = 20 * 30 + 15 * 25  # right, though the parts are not drawn for it
    crowd["area"] = 1
    triangle["area"] = 40 * 50  # the box's; the mask's is half
    found = warnings(tmp_path, tree)
    for part in (
        "annotation 5 (image 3): 400 for 630: area is not the mask's; write",
        "annotation 6 (image 7): has no area; evaluation takes",
        "annotation 4 (image 3): 2000 for 1000: area is the box's, not the mask's",
    ):
        assert sum(part in warning for warning in found) == 1
    assert not any("annotation 8" in w or "annotation 9" in w for w in found)


def test_the_area_of_overlapping_parts_may_be_their_sum_or_their_union(tmp_path):
    tree = small_coco()
    ring = [10, 10, 40, 10, 40, 40, 10, 40]
    annotation(tree, bbox=[10, 10, 30, 30], segmentation=[ring, ring])
    for area, is_right in ((1800, True), (900, True), (1350, False)):
        tree["annotations"][0]["area"] = area
        assert is_right != any("not the mask's" in w for w in warnings(tmp_path, tree))


def test_headers_alone_find_a_file_that_is_no_image_and_decoding_finds_the_rest(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    (images / "3.png").write_text("not an image")
    (images / "7.png").write_bytes((images / "7.png").read_bytes()[:600])
    found = {decode: check_coco(annotations, images, decode=decode)[1] for decode in (False, True)}
    names = {
        decode: ["".join(p.places) for p in problems if p.severity == "error"]
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


def overlap(first, second, pixels=True):
    sets = [
        image_files(json.loads(annotations.read_text()), images)
        for annotations, images in (first, second)
    ]
    problems = check_overlap(*sets, "train.json", "val.json", pixels)
    return [
        (re.split(r"[\\/]", p.file)[-1], p.message.replace(str(second[1]), "B")) for p in problems
    ]


def test_shared_images_are_found_by_bytes_and_by_pixels_whatever_their_names(tmp_path):
    first = write_small_coco(tmp_path / "a")
    tree = small_coco()
    _, _, by_bytes, turned = tree["images"]
    by_bytes["file_name"], turned["file_name"] = "other name.png", "turned.tif"
    second = write_small_coco(tmp_path / "b", tree)
    (second[1] / "7.png").rename(second[1] / "other name.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(second[1] / "3.png") as picture:
        stored = picture.transpose(Image.Transpose.ROTATE_90)
        stored.save(second[1] / "turned.tif", exif=exif)
    for name in ("12.png", "20.png"):
        with Image.open(second[1] / name) as picture:
            Image.new("RGB", picture.size, "red").save(second[1] / name)
    expected = [
        ("7.png", "has the bytes of B/other name.png"),
        ("3.png", "has the pixels of B/turned.tif"),
    ]
    assert overlap(first, second) == expected
    assert overlap(first, second, pixels=False) == expected[:1]
    (second[1] / "turned.tif").write_text("damaged")
    assert overlap(first, second) == expected[:1]


def test_files_listed_by_both_sets_are_in_both(tmp_path):
    first = write_small_coco(tmp_path)
    assert overlap(first, first, pixels=False) == [
        (f"{key}.png", "is in both") for key in (20, 12, 7, 3)
    ]


def test_only_files_of_equal_length_are_read_to_compare_bytes(tmp_path, monkeypatch):
    first, second = write_small_coco(tmp_path / "a"), write_small_coco(tmp_path / "b")
    for name in ("3.png", "7.png", "12.png"):
        with (second[1] / name).open("ab") as stream:
            stream.write(b"longer")
    read = []
    digest = image_check._digest_bytes
    monkeypatch.setattr(image_check, "_digest_bytes", lambda f: read.append(f.path) or digest(f))
    assert overlap(first, second, pixels=False) == [("20.png", "has the bytes of B/20.png")]
    assert sorted(read) == [str(first[1] / "20.png"), str(second[1] / "20.png")]


def test_training_warns_of_images_that_the_test_set_shows_too(tmp_path, caplog):
    names = [f"json:{':'.join(map(str, write_small_coco(tmp_path / folder)))}" for folder in "ab"]
    train, test = map(load_dataset, names)
    with caplog.at_level(logging.WARNING, "detection.dataset"):
        warn_of_shared_images(train, test)
    (entry,) = [e for e in caplog.records if "too, so the results" in e.message]
    assert f"4 of the 4 images of {names[1]} are in {names[0]} too" in entry.message
    assert f"{tmp_path}/b/images/3.png = {tmp_path}/a/images/3.png" in entry.message
