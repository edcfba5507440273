"""What has one remedy is mended and listed; what passes the check evaluates."""

import gzip
import json
import random
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_coco import small_coco, write_small_coco
from test_fuzz_inputs import mutated_tree

from detection.data.check import check_coco
from detection.data.checks.sets import compare_classes, duplicate_images, image_files
from detection.data.coco_file import write_coco
from detection.data.repair import repair_coco
from detection.dataset import load_dataset
from detection.evaluate import coco_metrics
from detection.evaluation.inputs import read_ground_truth


def errors_of(annotations, images):
    _, problems = check_coco(annotations, images)
    return [str(problem) for problem in problems if problem.severity == "error"]


def repaired(folder, tree=None, masks=True):
    """The repaired tree as it is written, and the changes in words."""
    annotations, images = write_small_coco(folder, tree)
    fixed, changes = repair_coco(annotations, images, masks)
    write_coco(fixed, folder / "fixed.json")
    return folder / "fixed.json", images, [str(change) for change in changes]


def item(tree, number=0, **changes):
    tree["annotations"][number].update(changes)


def points(tree):
    flat = tree["annotations"][0]["segmentation"][0]
    return [list(pair) for pair in zip(flat[::2], flat[1::2], strict=True)]


def as_text(tree):
    for one in tree["annotations"]:
        one["bbox"] = list(map(str, one["bbox"]))
        one["area"] = str(one["area"])


def float_ids(tree):
    for part in ("images", "annotations", "categories"):
        for one in tree[part]:
            for key in ("id", "image_id", "category_id", "width", "height"):
                if key in one:
                    one[key] = float(one[key])


def string_ids(tree):
    for one in tree["annotations"]:
        one["image_id"], one["category_id"] = str(one["image_id"]), str(one["category_id"])


def rle_numbers(tree, kind):
    """The first uncompressed RLE with its numbers as another type."""
    for one in tree["annotations"]:
        rle = one.get("segmentation")
        if isinstance(rle, dict) and isinstance(rle["counts"], list):
            one["segmentation"] = {key: list(map(kind, rle[key])) for key in ("size", "counts")}
            return
    raise AssertionError("no RLE to change")


def drop(tree, part, key):
    for one in tree[part]:
        one.pop(key, None)


def null(tree, part, key):
    for one in tree[part]:
        if not one.get("iscrowd"):
            one[key] = None


def names(tree, change):
    for one in tree["images"]:
        one["file_name"] = change(one["file_name"])


def by_id(entries):
    return {one["id"]: {"iscrowd": 0} | one for one in entries}


GOOD = [10.5, 12.0, 40.5, 12.0, 40.5, 32.5, 10.5, 32.5]

# name -> what is done to a sound tree: all of it comes back by the repair
RESTORED = {
    "numbers as text": as_text,
    "whole floats": float_ids,
    "text ids against numbers": string_ids,
    "flat polygon": lambda tree: item(tree, segmentation=list(GOOD)),
    "points": lambda tree: item(tree, segmentation=points(tree)),
    "nested points": lambda tree: item(tree, segmentation=[points(tree)]),
    "a level too deep": lambda tree: item(tree, segmentation=[[GOOD]]),
    "short beside good": lambda tree: item(tree, segmentation=[GOOD, [1, 1, 9, 9]]),
    "odd beside good": lambda tree: item(tree, segmentation=[[1, 1, 9, 9, 3, 3, 3], GOOD]),
    "text in polygons": lambda tree: item(tree, segmentation=[list(map(str, GOOD))]),
    "points of x and y": lambda tree: item(
        tree, segmentation=[[{"x": x, "y": y} for x, y in points(tree)]]
    ),
    "RLE in a list": lambda tree: item(
        tree, 1, segmentation=[tree["annotations"][1]["segmentation"]]
    ),
    "RLE of whole floats": lambda tree: rle_numbers(tree, float),
    "RLE of text": lambda tree: rle_numbers(tree, str),
    "class listed twice": lambda tree: tree["categories"].append(dict(tree["categories"][0])),
    "sizes 0": lambda tree: tree["images"][0].update(width=0, height=-1),
    "upper case": lambda tree: names(tree, str.upper),
    "URL": lambda tree: names(tree, lambda name: f"https://host/a/{name}?download=1"),
    "iscrowd null": lambda tree: null(tree, "annotations", "iscrowd"),
    "iscrowd text": lambda tree: item(tree, iscrowd="0"),
    "iscrowd false": lambda tree: item(tree, iscrowd=False),
    "no sizes": lambda tree: (drop(tree, "images", "height"), drop(tree, "images", "width")),
    "back-slashes": lambda tree: names(tree, lambda name: f".\\{name}"),
    "escaped": lambda tree: names(tree, lambda name: name.replace(".", "%2E")),
    "absolute elsewhere": lambda tree: names(tree, lambda name: f"/home/me/set/{name}"),
    "windows path": lambda tree: names(tree, lambda name: f"C:\\set\\{name}"),
    "another prefix": lambda tree: names(tree, lambda name: f"train2017/{name}"),
    "orphan": lambda tree: tree["annotations"].append(
        tree["annotations"][0] | {"id": 99, "image_id": 12345}
    ),
    "class 0": lambda tree: tree["categories"].insert(0, {"id": 0, "name": "pets"}),
    "listed twice": lambda tree: tree["annotations"].append(dict(tree["annotations"][0])),
    "image listed twice": lambda tree: tree["images"].append(dict(tree["images"][0])),
    "shifted out and back": lambda tree: item(tree, 4, bbox=[40.0, 5.0, 40.5, 50.0]),
}


@pytest.mark.parametrize("case", RESTORED)
def test_what_has_one_remedy_is_brought_back_and_listed(tmp_path, case):
    tree = small_coco()
    RESTORED[case](tree)
    fixed, images, changes = repaired(tmp_path, tree)
    assert changes
    assert errors_of(fixed, images) == []
    found, expected = json.loads(fixed.read_text()), small_coco()
    for part in ("images", "categories", "annotations"):
        assert by_id(found[part]) == by_id(expected[part])
    once, changed = repair_coco(fixed, images)  # repairing the repaired changes nothing
    write_coco(once, tmp_path / "again.json")
    assert (changed, (tmp_path / "again.json").read_bytes()) == ([], fixed.read_bytes())
    # and a sound file stays as it is
    again, _, nothing = repaired(tmp_path / "sound", small_coco())
    assert nothing == []
    assert json.loads(again.read_text()) == small_coco()


def test_missing_boxes_and_areas_are_the_masks(tmp_path):
    tree = small_coco()
    for one in tree["annotations"]:
        one["bbox"] = None
        del one["area"]
    fixed, images, changes = repaired(tmp_path, tree)
    assert errors_of(fixed, images) == []
    assert any("has no box" in change for change in changes)
    found = {one["id"]: one for one in json.loads(fixed.read_text())["annotations"]}
    for one in small_coco()["annotations"]:
        assert found[one["id"]]["bbox"] == pytest.approx(one["bbox"], abs=1)
        if not one["iscrowd"]:
            assert found[one["id"]]["area"] == pytest.approx(one["area"], rel=0.06)


def test_a_box_is_cut_where_its_mask_agrees_and_refused_where_it_does_not(tmp_path):
    tree = small_coco()
    item(tree, bbox=[60, 10, 40, 24], segmentation=[[60, 10, 100, 10, 100, 34, 60, 34]], area=960)
    fixed, images, _ = repaired(tmp_path, tree)
    assert errors_of(fixed, images) == []
    box = json.loads(fixed.read_text())["annotations"][0]
    assert (box["bbox"], box["area"]) == ([60, 10, 20, 24], 480)
    item(tree, segmentation=[GOOD])  # the mask is elsewhere
    fixed, images, _ = repaired(tmp_path, tree)
    (error,) = errors_of(fixed, images)
    assert "reaches outside" in error


def test_objects_without_a_mask_go_unless_boxes_are_enough(tmp_path):
    tree = small_coco()
    item(tree, segmentation=[])
    item(tree, 4, segmentation=[[1, 1, 9, 9]])
    fixed, images, changes = repaired(tmp_path, tree)
    assert len(json.loads(fixed.read_text())["annotations"]) == 3
    assert any("annotation 5 (image 3), annotation 4 (image 3): has no mask" in c for c in changes)
    assert errors_of(fixed, images) == []
    fixed, images, _ = repaired(tmp_path, tree, masks=False)
    assert len(json.loads(fixed.read_text())["annotations"]) == 5
    load_dataset(f"json:{fixed}:{images}", masks=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: item(tree, bbox=[1, 2, -3, 4]),
        lambda tree: item(tree, category_id=77),
        lambda tree: tree["images"][0].update(width=41),
        lambda tree: item(tree, 1, segmentation={"size": [50, 90], "counts": [4500]}),
        lambda tree: item(tree, bbox=[1, 2, 3, float("nan")]),
        lambda tree: tree["images"].append(tree["images"][0] | {"width": 7}),
    ],
)
def test_what_contradicts_itself_stays_an_error(tmp_path, change):
    tree = small_coco()
    change(tree)
    fixed, images, _ = repaired(tmp_path, tree)
    assert len(errors_of(fixed, images)) == 1


def test_text_that_is_not_unicode_is_read_by_the_repair_alone(tmp_path):
    tree = small_coco()
    tree["categories"][0]["name"] = "Bärenklau"
    annotations, images = write_small_coco(tmp_path)
    annotations.write_bytes(json.dumps(tree, ensure_ascii=False).encode("cp1252"))
    (error,) = errors_of(annotations, images)
    assert "--repair" in error
    fixed, _ = repair_coco(annotations, images)
    assert fixed["categories"][0]["name"] == "Bärenklau"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_every_unicode_file_is_read_and_evaluated(tmp_path, encoding):
    annotations, images = write_small_coco(tmp_path)
    annotations.write_bytes(annotations.read_text().encode(encoding))
    assert load_dataset(f"json:{annotations}:{images}").num_instances == 5
    assert len(read_ground_truth(annotations)["annotations"]) == 5


@pytest.mark.parametrize(
    ("content", "words", "remedy"),
    [
        (b'{"version": "5.0", "shapes": [], "imagePath": "x.jpg"}', "LabelMe", "--from labelme"),
        (
            b'{"images": [], "categories": [], "annotations": [{"segments_info": []}]}',
            "COCO panoptic",
            "instances",
        ),
        (gzip.compress(b"{}", mtime=0), "gzip", "gunzip"),
        (b'[{"image_id": 1, "score": 0.5}]', "COCO results", "annotations"),
        (b'<?xml version="1.0"?><annotations></annotations>', "CVAT", "--from cvat"),
        (b"<annotation><folder/></annotation>", "Pascal VOC", "--from voc"),
        (b'[{"data": {}, "annotations": []}]', "Label Studio", "--from labelstudio"),
        (b'{"a.jpg": {"filename": "a.jpg", "regions": []}}', "VGG", "COCO"),
    ],
)
def test_a_file_of_another_format_is_named_with_the_command_that_imports_it(
    tmp_path, content, words, remedy
):
    annotations, images = write_small_coco(tmp_path)
    annotations.write_bytes(content)
    (error,) = errors_of(annotations, images)
    assert words in error
    assert remedy in error
    assert repair_coco(annotations, images)[0] == {}


def test_crowds_that_training_leaves_out_are_a_warning(tmp_path):
    tree = small_coco()
    for one in tree["annotations"][1:]:
        one["iscrowd"] = 1
    annotations, images = write_small_coco(tmp_path, tree)
    warnings = " ".join(map(str, check_coco(annotations, images)[1]))
    assert "4 of 5 objects are crowds (iscrowd 1) and are not trained on" in warnings
    assert "category 9: has crowds only" in warnings


@pytest.mark.parametrize(
    ("box", "segmentation"),
    [
        # a tip thinner than a pixel, which no mask shows
        ([10, 10, 20, 20], [[10, 10, 30, 10, 30, 30, 10, 30.3, 10, 45, 9.7, 45]]),
        # cut by the image's border: box within, polygon beyond
        ([60, 10, 20, 20], [[60, 10, 110, 10, 110, 30, 60, 30]]),
        ([0, 10, 20, 20], [[-30, 10, 20, 10, 20, 30, -30, 30]]),
    ],
)
def test_box_and_mask_of_one_place_are_not_said_to_be_of_two(tmp_path, box, segmentation):
    tree = small_coco()
    item(tree, bbox=box, segmentation=segmentation)
    annotations, images = write_small_coco(tmp_path, tree)
    assert "different places" not in " ".join(map(str, check_coco(annotations, images)[1]))


def test_duplicate_pictures_and_classes_of_one_split_are_warned_of(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    shutil.copy(images / "3.png", images / "7.png")
    tree = json.loads(annotations.read_text())
    (problem,) = duplicate_images(image_files(tree, images), annotations)
    assert "7.png" in str(problem)
    assert "are one picture" in str(problem)
    other = small_coco()
    other["categories"] = [{"id": 2, "name": "disc"}]
    words = "\n".join(map(str, compare_classes(tree, other, "a.json", "b.json")))
    assert "category 'box': is in a.json alone, not in b.json" in words
    assert "category 'disc' (9 and 2): has another id in b.json" in words


def results_of(tree):
    """Detections that are the ground truth itself."""
    return [
        {key: one[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
        | {"score": 0.5}
        for one in tree["annotations"]
    ]


def evaluates(annotations, images, folder):
    """Load as a training does and evaluate perfect detections, by data set and by path."""
    load_dataset(f"json:{annotations}:{images}")
    tree = read_ground_truth(annotations, images)
    (folder / "results.json").write_text(
        json.dumps(results_of(tree), default=lambda polygon: polygon.tolist())
    )
    by_path = coco_metrics(annotations, folder / "results.json", ("bbox", "segm"))
    assert by_path["counts"]["detections"] == len(tree["annotations"])


@pytest.mark.parametrize("seed", range(3))
def test_what_passes_the_check_evaluates_and_so_does_what_the_repair_lets_pass(tmp_path, seed):
    draw = random.Random(seed)
    annotations, images = write_small_coco(tmp_path)
    passed = 0
    for _ in range(60):
        annotations.write_text(json.dumps(mutated_tree(small_coco(), draw)))
        if not errors_of(annotations, images):
            evaluates(annotations, images, tmp_path)
            passed += 1
        fixed, _ = repair_coco(annotations, images)
        if fixed:
            write_coco(fixed, tmp_path / "fixed.json")
            if not errors_of(tmp_path / "fixed.json", images):
                evaluates(tmp_path / "fixed.json", images, tmp_path)
    assert passed


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    number=st.integers(0, 4),
    changes=st.dictionaries(
        st.sampled_from(["id", "area", "iscrowd", "bbox", "segmentation", "extra"]),
        st.none()
        | st.sampled_from(
            [0, 1, 1.0, "1", [], [[1, 2, 3, 4]], [[1, 2, 3, 4], GOOD], [GOOD, [1, 2]], [GOOD[:6]]]
        ),
        min_size=1,
    ),
)
def test_what_passes_the_check_evaluates_whatever_stands_in_an_annotation(
    tmp_path_factory, number, changes
):
    folder = tmp_path_factory.mktemp("case")
    tree = small_coco()
    item(tree, number, **changes)
    annotations, images = write_small_coco(folder, tree)
    if not errors_of(annotations, images):
        evaluates(annotations, images, folder)


def test_a_polygon_of_4_numbers_first_makes_no_boxes_of_the_others(tmp_path):
    tree = small_coco()
    tree["annotations"] = [tree["annotations"][4]]
    item(tree, area=None, segmentation=[[1, 1, 9, 9], *tree["annotations"][0]["segmentation"]])
    annotations, images = write_small_coco(tmp_path, tree)
    assert errors_of(annotations, images) == []
    triangle = small_coco()["annotations"][4]
    found = results_of({"annotations": [triangle]})
    (tmp_path / "results.json").write_text(json.dumps(found))
    assert coco_metrics(annotations, tmp_path / "results.json")["segm"]["AP"] == pytest.approx(100)


def test_more_than_100_objects_are_measured_at_the_limit_that_is_asked_for(tmp_path):
    boxes = [[x * 10, y * 10, 9, 9] for x in range(15) for y in range(20)]
    truth = {
        "images": [{"id": 1, "file_name": "1.png", "height": 200, "width": 150}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": box, "area": 81}
            for number, box in enumerate(boxes, 1)
        ],
    }
    results = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": 1 - number / 1000}
        for number, box in enumerate(boxes)
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    files = tmp_path / "truth.json", tmp_path / "results.json"
    for evaluator in ("hotcoco", "pycocotools"):
        metrics = coco_metrics(*files, evaluator=evaluator, max_detections=400)
        assert metrics["bbox"]["AP"] == pytest.approx(33.66, abs=0.01)
        assert metrics["at_limit"]["max_detections"] == 400
        assert metrics["at_limit"]["bbox"]["AP"] == pytest.approx(100)
    assert "at_limit" not in coco_metrics(*files)


def test_the_tool_repairs_lists_and_checks(tmp_path, run_tool):
    tree = small_coco()
    RESTORED["nested points"](tree)
    annotations, images = write_small_coco(tmp_path, tree)
    before = annotations.read_text()
    done = run_tool(
        "check_dataset", annotations, "--images", images, "--repair", tmp_path / "out/fixed.json"
    )
    assert done.code == 0
    assert "repaired: " in done.out
    assert "training uses 4 of 5 objects on 3 of 4 images" in done.out
    assert annotations.read_text() == before
    assert run_tool("check_dataset", tmp_path / "out/fixed.json", "--images", images).code == 0
    refused = run_tool("check_dataset", annotations, "--images", images, "--repair", annotations)
    assert refused.code == 1
    assert "would overwrite the file itself" in refused.err
    assert Image.open(images / "3.png").size == (80, 60)


def changed_and_repaired(tmp_path, change):
    """What a change of a sound file is after its repair: the tree, the changes and the errors."""
    tree = small_coco()
    change(tree)
    annotations, images = write_small_coco(tmp_path)
    annotations.write_text(json.dumps(tree))
    fixed, changes = repair_coco(annotations, images)
    write_coco(fixed, tmp_path / "fixed.json")
    problems = check_coco(tmp_path / "fixed.json", images)[1]
    return fixed, list(map(str, changes)), [str(p) for p in problems if p.severity == "error"]


def test_objects_that_name_their_image_by_its_file_or_with_zeros_are_kept(tmp_path):
    sound = [one["image_id"] for one in small_coco()["annotations"]]
    files = {one["id"]: one["file_name"] for one in small_coco()["images"]}
    for number, spelt in enumerate((files.get, "{:08d}".format, lambda key: files[key][:-4])):

        def change(tree, spelt=spelt):
            for one in tree["annotations"]:
                one["image_id"] = spelt(one["image_id"])

        fixed, changes, errors = changed_and_repaired(tmp_path / str(number), change)
        assert [one["image_id"] for one in fixed["annotations"]] == sound
        assert any("image_id" in change for change in changes)
        assert not errors


def test_objects_are_not_all_left_out_where_the_ids_of_most_lead_nowhere(tmp_path):
    def change(tree):
        for one in tree["annotations"]:
            one["image_id"] += 1000

    fixed, changes, errors = changed_and_repaired(tmp_path, change)
    assert len(fixed["annotations"]) == len(small_coco()["annotations"])
    assert not changes
    assert any("is not in 'images'" in error for error in errors)


def test_two_images_are_not_led_to_the_one_file_of_their_name(tmp_path):
    name = small_coco()["images"][0]["file_name"]

    def change(tree):
        for number, one in enumerate(tree["images"][:2]):
            one["file_name"] = f"camera{number}/{name}"

    fixed, changes, errors = changed_and_repaired(tmp_path, change)
    assert [one["file_name"] for one in fixed["images"][:2]] == [
        f"camera0/{name}",
        f"camera1/{name}",
    ]
    assert not changes
    assert errors
    assert "finds it by its name" not in "".join(errors)


def test_ignore_that_says_no_makes_no_crowd_and_null_polygons_and_boxes_go(tmp_path):
    def change(tree):
        for one, ignore in zip(tree["annotations"], ("0", "false", "1"), strict=False):
            one["ignore"] = ignore
        polygons = next(one for one in tree["annotations"] if isinstance(one["segmentation"], list))
        polygons["segmentation"].append(None)
        polygons["bbox"] = [None, float("nan"), None, 0]

    fixed, changes, errors = changed_and_repaired(tmp_path, change)
    sound = small_coco()["annotations"]
    crowds = [one.get("iscrowd", 0) for one in fixed["annotations"]]
    assert crowds == [*(one.get("iscrowd", 0) for one in sound[:2]), 1, *crowds[3:]]
    assert not errors
    for words in ("ignore is not written as 0 or 1", "polygons that are null", "has no box"):
        assert any(words in change for change in changes)
