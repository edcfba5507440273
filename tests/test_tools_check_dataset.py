"""tools/check_dataset.py: what it prints and its exit codes."""

import json
import shutil
from functools import partial
from pathlib import Path

import pycocotools.mask as mask_util
import pytest
from PIL import Image
from small_coco import SIZES, small_coco, write_small_coco


@pytest.fixture
def run(run_tool):
    return partial(run_tool, "check_dataset")


def test_sound_data_exits_0_and_says_what_it_saw(tmp_path, run):
    annotations, images = write_small_coco(tmp_path)
    result = run(annotations, "--images", images)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == (
        "4 images, 5 annotations, 2 categories: 0 errors, 1 warning"
    )


def test_every_problem_is_printed_and_the_exit_code_is_1(tmp_path, run):
    tree = small_coco()
    tree["annotations"][0]["bbox"] = [70, 0, 40, 10]
    tree["annotations"][1]["category_id"] = 4
    annotations, images = write_small_coco(tmp_path, tree)
    (images / "20.png").unlink()
    result = run(annotations, "--images", images)
    assert result.code == 1
    lines = result.out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["error"] * 3
    assert "annotation 5 (image 3): bbox [70, 0, 40, 10] reaches outside" in lines[0]
    assert lines[-1].endswith(": 3 errors, 2 warnings")
    repairing = f"python tools/check_dataset.py {annotations} --images {images} --repair fixed.json"
    assert lines[-2].endswith(repairing)
    assert result.err == ""


def test_boxes_without_area_are_not_counted_as_trained_on(tmp_path, run):
    tree = small_coco()
    tree["annotations"][0]["bbox"][2] = 0
    annotations, images = write_small_coco(tmp_path, tree)
    result = run(annotations, "--images", images)
    assert "training uses 3 of 5 objects on 3 of 4 images; it leaves out 1 crowd, 1 box" in (
        result.out
    )


def test_a_class_that_one_split_lists_but_does_not_show_is_named(tmp_path, run):
    """Exports list every class in each split."""
    first = write_small_coco(tmp_path / "a")
    tree = small_coco()
    tree["annotations"] = [a for a in tree["annotations"] if a["category_id"] == 2]
    second = write_small_coco(tmp_path / "b", tree)
    result = run(
        first[0], "--images", first[1], "--against", second[0], "--against-images", second[1]
    )
    assert f"category 'disc': has objects in {first[0]} alone, none in {second[0]}" in result.out
    assert "category 'box': has objects" not in result.out


def test_json_output_and_images_shared_with_another_set(tmp_path, run):
    first = write_small_coco(tmp_path / "a")
    second = write_small_coco(tmp_path / "b")
    result = run(
        *(first[0], "--images", first[1], "--against", second[0]),
        *("--against-images", second[1], "--json"),
    )
    assert result.code == 1
    problems = json.loads(result.out)
    shared = [problem for problem in problems if "has the bytes of" in problem["message"]]
    assert sorted(Path(problem["file"]).name for problem in shared) == [
        *("12.png", "20.png", "3.png", "7.png")
    ]
    assert set(shared[0]) == {"severity", "file", "places", "message", "remedy"}


def test_one_of_a_kind_is_counted_as_one(tmp_path, run):
    tree = small_coco()
    kept = tree["annotations"][0]
    tree["annotations"] = [kept]
    tree["categories"] = [c for c in tree["categories"] if c["id"] == kept["category_id"]]
    annotations, images = write_small_coco(tmp_path, tree)
    result = run(annotations, "--images", images)
    assert "4 images, 1 annotation, 1 category: 0 errors" in result.out


def test_a_file_that_is_not_there_is_one_message_without_a_traceback(tmp_path, run):
    result = run(tmp_path / "no.json", "--images", tmp_path)
    assert result.code == 1
    assert "no.json: cannot be read" in result.out
    assert "Traceback" not in result.err + result.out


def test_wrong_usage_exits_2_and_help_has_examples(run):
    assert run().code == 2
    result = run("--help")
    assert result.code == 0
    assert "python tools/check_dataset.py train.json --images images" in result.out


def planted(folder):
    """One data set with every kind of mistake, and a validation set that shares an image with it.

    Returns:
        The two (annotations, images) pairs, and place -> (severity, words) of each mistake.
    """
    tree = small_coco()
    sizes = {30: (60, 80), 31: (60, 80), 32: (60, 80), 33: (60, 80), 34: (60, 80)}
    tree["images"] += [
        {"id": key, "file_name": f"{key}.png", "height": h, "width": w}
        for key, (h, w) in sizes.items()
    ]
    tree["images"].append(dict(tree["images"][-1]))
    tree["categories"].append({"id": 5, "name": "unused"})
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    good = {"image_id": 3, "category_id": 2, "iscrowd": 0, "bbox": [10, 10, 20, 20], "area": 400}
    good["segmentation"] = square
    short = {"size": [60, 80], "counts": [100, 50, 4649]}  # 4799 of 4800
    compressed = mask_util.frPyObjects({**short, "counts": [100, 50, 4649]}, 60, 80)
    compressed["counts"] = compressed["counts"].decode()
    mistakes = {
        100: ({"bbox": [70, 10, 20, 20]}, "error", "reaches outside its image of 80 x 60"),
        101: ({"bbox": [90, 70, 5, 5]}, "error", "reaches outside its image of 80 x 60"),
        102: ({"bbox": [10, 10, 0, 20]}, "warning", "box has no area"),
        103: ({"segmentation": [[1, 1, 9, 9]]}, "error", "no polygon of at least 3 points"),
        104: ({"segmentation": [*square, [1, 1, 9, 9]]}, "warning", "fewer than 3 points"),
        105: ({"segmentation": {"size": [80, 60], "counts": [4800]}}, "error", "size is [80, 60]"),
        106: ({"segmentation": short}, "error", "add up to 4799 pixels, but its image has 4800"),
        107: ({"segmentation": compressed}, "error", "add up to 4799 pixels, but its image has"),
        108: ({"area": 40}, "warning", "area is not the mask's"),
        109: ({"bbox": [20, 20, 20, 20]}, "warning", "box and mask are of different places"),
        110: ({"category_id": 77}, "error", "category_id 77 is not in 'categories'"),
        111: ({"image_id": 99}, "error", "image_id 99 is not in 'images'"),
        0: ({}, "warning", "id 0 means 'no match'"),
    }
    expected = {f"annotation {key} (": found[1:] for key, found in mistakes.items()}
    tree["annotations"] += [{**good, "id": key, **m[0]} for key, m in mistakes.items()]
    tree["annotations"].append({**good, "id": 100})
    annotations, images = write_small_coco(folder / "train", tree)
    for key, (height, width) in sizes.items():
        Image.new("RGB", (width, height), (key, 0, 0)).save(images / f"{key}.png")
    (images / "30.png").unlink()
    (images / "31.png").write_bytes((images / "31.png").read_bytes()[:60])
    Image.new("RGB", (81, 60)).save(images / "32.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 60)).save(images / "33.png", exif=exif)
    expected |= {
        "image 30": ("error", "is missing"),
        "image 31": ("error", "does not decode"),
        "image 32": ("error", "is 81 x 60 pixels, but the annotations say 80 x 60"),
        "image 33": ("error", "by its EXIF orientation, but the annotations say 80 x 60"),
        # of one cause, so in the words of the first
        "images[9]": ("error", "is used twice"),
        f"annotations[{len(tree['annotations']) - 1}]": ("error", "is used twice"),
        "category 5": ("warning", "has no annotation"),
        "34.png": ("error", "has the bytes of"),
    }
    other = small_coco()
    other["images"][0]["file_name"] = "renamed.png"
    validation = write_small_coco(folder / "val", other)
    for key in (3, 7, 12):
        Image.new("RGB", (SIZES[key][1], SIZES[key][0])).save(validation[1] / f"{key}.png")
    shutil.copy(images / "34.png", validation[1] / "renamed.png")
    return (annotations, images), validation, expected


def test_each_kind_of_mistake_is_listed_in_one_go_as_error_or_warning(tmp_path, run):
    first, second, expected = planted(tmp_path)
    result = run(
        *(first[0], "--images", first[1], "--against", second[0]),
        *("--against-images", second[1], "--json"),
    )
    assert result.code == 1
    problems = json.loads(result.out)
    for place, (severity, words) in expected.items():
        found = [
            problem
            for problem in problems
            if words in problem["message"]
            and any(
                where.startswith(place)
                for where in [*problem["places"], problem["file"].rsplit("/")[-1]]
            )
        ]
        assert [problem["severity"] for problem in found] == [severity], (place, words)
        assert found[0]["remedy"]
    errors = sum(severity == "error" for severity, _ in expected.values())
    of_val = 1  # its renamed image has another size than its entry
    found = [max(1, len(p["places"])) for p in problems if p["severity"] == "error"]
    assert sum(found) == errors + of_val
