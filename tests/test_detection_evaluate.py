"""detection.evaluate against hand derivations, a naive loop, published tables and detectron2."""

import copy
import json
import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle_codec

from backbones.whole_files import write_json
from detection import evaluate as module
from detection.evaluate import METRICS, coco_metrics
from detection.evaluation.results import segmentation_to_rle

IOU_THRESHOLDS = [0.5 + 0.05 * i for i in range(10)]
AREA_RANGES = {"all": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}


def evaluate(tmp_path, truth, results, tasks=None):
    for name, content in (("truth.json", truth), ("results.json", results)):
        (tmp_path / name).write_text(json.dumps(content))
    return coco_metrics(tmp_path / "truth.json", tmp_path / "results.json", tasks)


def ground_truth(boxes, size=(200, 200), **extra):
    """One image and one class (id 7), boxes as given."""
    return {
        "images": [{"id": 1, "file_name": "1.png", "height": size[0], "width": size[1]}],
        "categories": [{"id": 7, "name": "thing"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 7, "bbox": box, "area": box[2] * box[3]} | extra
            for i, box in enumerate(boxes, 1)
        ],
    }


def detection(box, score, image_id=1, category_id=7, **extra):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score} | extra


# --- known by derivation ------------------------------------------------------------------------


@pytest.fixture
def known_case():
    """Found exactly (0.9), false (0.8), found with IoU 0.77 (0.7)."""
    truth = ground_truth([[0, 0, 40, 40], [100, 100, 100, 50]])
    results = [
        detection([0, 0, 40, 40], 0.9),
        detection([0, 150, 40, 40], 0.8),
        detection([100, 100, 77, 50], 0.7),
    ]
    return truth, results


def test_box_metrics_equal_the_derivation_by_hand(tmp_path, known_case):
    # Precision is 1 up to recall 0.5 (51 of the 101 recall points) and 2/3 up to recall 1 (50 of
    # them) for the 6 thresholds 0.50..0.75; for the other 4 the third detection is false as well.
    loose, strict = (51 + 50 * 2 / 3) / 101, 51 / 101
    bbox = evaluate(tmp_path, *known_case)["bbox"]
    expected = {
        "AP": (6 * loose + 4 * strict) / 10,
        "AP50": loose,
        "AP75": loose,
        "APs": None,
        # Both objects are medium, the false detection (1600 pixels) too.
        "APm": (6 * loose + 4 * strict) / 10,
        "APl": None,
        "AR1": 0.5,
        "AR10": (6 * 1 + 4 * 0.5) / 10,
        "AR100": (6 * 1 + 4 * 0.5) / 10,
        "ARs": None,
        "ARm": (6 * 1 + 4 * 0.5) / 10,
        "ARl": None,
    }
    assert list(bbox) == list(METRICS) == list(expected)
    for name, value in expected.items():
        assert bbox[name] == (None if value is None else pytest.approx(100 * value, abs=1e-9)), name


def test_a_class_without_ground_truth_is_none_and_does_not_lower_the_mean(tmp_path, known_case):
    truth, results = known_case
    without = evaluate(tmp_path, truth, results)["bbox"]
    truth["categories"].insert(0, {"id": 3, "name": "absent"})
    results.append(detection([5, 5, 9, 9], 0.99, category_id=3))
    metrics = evaluate(tmp_path, truth, results)
    assert metrics["bbox"] == without
    assert list(metrics["per_class"]) == ["absent", "thing"]
    absent = metrics["per_class"]["absent"]
    assert absent["bbox"] == {"AP": None, "AP50": None}
    assert (absent["category_id"], absent["instances"], absent["images"]) == (3, 0, 0)
    assert metrics["per_class"]["thing"]["bbox"]["AP"] == without["AP"]
    assert metrics["per_class"]["thing"]["instances"] == 2


def test_no_detections_at_all_score_zero_in_boxes_and_masks(tmp_path):
    square = [[0, 0, 40, 0, 40, 40, 0, 40]]
    truth = ground_truth([[0, 0, 40, 40]], segmentation=square)
    metrics = evaluate(tmp_path, truth, [])
    for task in ("bbox", "segm"):
        assert metrics[task]["AP"] == metrics[task]["APm"] == metrics[task]["AR100"] == 0.0
        assert metrics[task]["APs"] is None
    assert "segm" not in evaluate(tmp_path, ground_truth([[0, 0, 40, 40]]), [])


def test_no_ground_truth_at_all_gives_none_everywhere(tmp_path):
    metrics = evaluate(tmp_path, ground_truth([]), [detection([0, 0, 9, 9], 0.5)])
    assert set(metrics["bbox"].values()) == {None}
    assert metrics["counts"]["images_without_objects"] == 1


def test_a_crowd_absorbs_detections_and_is_not_counted_as_an_instance(tmp_path, known_case):
    truth, results = known_case
    plain = evaluate(tmp_path, truth, results)["bbox"]
    crowd = {"id": 9, "image_id": 1, "category_id": 7, "bbox": [0, 140, 60, 60], "area": 3600}
    truth["annotations"].append(crowd | {"iscrowd": 1})
    metrics = evaluate(tmp_path, truth, results)
    # The detection that was false now lies in the crowd and is ignored: precision 1 throughout.
    assert metrics["bbox"]["AP50"] == pytest.approx(100)
    assert plain["AP50"] < 84
    assert metrics["per_class"]["thing"]["instances"] == 2
    assert metrics["per_class"]["thing"]["crowds"] == 1
    assert (metrics["counts"]["instances"], metrics["counts"]["crowds"]) == (2, 1)


def test_annotation_ids_of_zero_or_used_twice_are_matched_all_the_same(
    tmp_path, known_case, caplog
):
    truth, results = known_case
    expected = evaluate(tmp_path, truth, results)["bbox"]
    assert not caplog.records
    for ids in ((0, 1), (4, 4), (None, None)):
        caplog.clear()
        for annotation, new in zip(truth["annotations"], ids, strict=True):
            annotation["id"] = new
            if new is None:
                del annotation["id"]
        with caplog.at_level(logging.WARNING):
            assert evaluate(tmp_path, truth, results)["bbox"] == expected, ids
        assert "renumbered" in caplog.text


def test_a_missing_area_is_taken_from_the_mask_or_else_the_box(tmp_path, caplog):
    # 40 x 40 is medium as a box; its lower left triangle of 800 pixels is small.
    truth = ground_truth([[0, 0, 40, 40]])
    del truth["annotations"][0]["area"]
    results = [detection([0, 0, 40, 40], 0.9)]
    bbox = evaluate(tmp_path, truth, results)["bbox"]
    assert (bbox["APs"], bbox["APm"]) == (None, pytest.approx(100))
    assert "1 annotation without area" in caplog.text
    truth["annotations"][0]["segmentation"] = [[0, 0, 40, 40, 0, 40]]
    bbox = evaluate(tmp_path, truth, results)["bbox"]
    assert (bbox["APs"], bbox["APm"]) == (pytest.approx(100), None)


def test_a_detections_size_is_its_boxs_for_boxes_and_its_masks_for_masks(tmp_path):
    # A false detection in a 40 x 40 box (medium) whose mask has 800 pixels (small): it costs
    # precision among the medium boxes and among the small masks, nowhere else.
    def square(x, y, side):
        return [[x, y, x + side, y, x + side, y + side, x, y + side]]

    truth = ground_truth([[0, 0, 20, 20], [100, 100, 50, 50]])
    truth["annotations"][0]["segmentation"] = square(0, 0, 20)
    truth["annotations"][1]["segmentation"] = square(100, 100, 50)
    results = [
        detection([0, 150, 40, 40], 0.9, segmentation=[[0, 150, 40, 190, 0, 190]]),
        detection([0, 0, 20, 20], 0.8, segmentation=square(0, 0, 20)),
        detection([100, 100, 50, 50], 0.7, segmentation=square(100, 100, 50)),
    ]
    metrics = evaluate(tmp_path, truth, results)
    assert (metrics["bbox"]["APs"], metrics["bbox"]["APm"]) == pytest.approx((100, 50))
    assert (metrics["segm"]["APs"], metrics["segm"]["APm"]) == pytest.approx((50, 100))


def test_polygons_plain_rle_and_compressed_rle_give_the_same_metrics(tmp_path):
    polygon = [[10, 10, 60, 10, 60, 40, 10, 40]]
    compressed = rle_codec.merge(rle_codec.frPyObjects(polygon, 80, 90))
    bitmap = rle_codec.decode(compressed)
    flat = bitmap.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    plain = {"size": [80, 90], "counts": np.diff([0, *edges, flat.size]).tolist()}
    assert flat[0] == 0  # so that the runs begin with zeros, as COCO's do
    compressed["counts"] = compressed["counts"].decode()
    truth = ground_truth([[10, 10, 50, 30]], size=(80, 90), segmentation=polygon)
    for mask in (polygon, plain, compressed):
        truth["annotations"][0]["segmentation"] = mask
        for other in (polygon, plain, compressed):
            results = [detection([10, 10, 50, 30], 0.9, segmentation=other)]
            assert evaluate(tmp_path, truth, results)["segm"]["AP"] == pytest.approx(100)


def test_results_without_boxes_or_without_masks_give_the_metrics_they_can(tmp_path, caplog):
    square = [[0, 0, 40, 0, 40, 40, 0, 40]]
    truth = ground_truth([[0, 0, 40, 40]], segmentation=square)
    boxes = [detection([0, 0, 40, 40], 0.9)]
    masks = [{k: v for k, v in boxes[0].items() if k != "bbox"} | {"segmentation": square}]
    both = [boxes[0] | {"segmentation": square}]
    assert {"bbox", "segm"} & set(evaluate(tmp_path, truth, boxes)) == {"bbox"}
    assert {"bbox", "segm"} & set(evaluate(tmp_path, truth, masks)) == {"segm"}
    assert {"bbox", "segm"} <= set(evaluate(tmp_path, truth, both))
    assert "segm" not in evaluate(tmp_path, truth, both, tasks=["bbox"])
    assert "segm" not in evaluate(tmp_path, ground_truth([[0, 0, 40, 40]]), both)
    assert "no masks" in caplog.text


def test_metrics_survive_json_and_nothing_is_printed(tmp_path, known_case, capfd):
    metrics = evaluate(tmp_path, *known_case)
    path = tmp_path / "new" / "metrics_summary.json"
    write_json(path, metrics, allow_nan=False)
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == metrics
    assert capfd.readouterr().out == ""


def test_images_with_more_objects_than_coco_looks_at_are_counted(tmp_path):
    truth = ground_truth([[0, 0, 10 + i, 10] for i in range(101)])
    counts = evaluate(tmp_path, truth, [])["counts"]
    assert counts["images_over_limit"] == 1
    truth["annotations"].pop()
    assert evaluate(tmp_path, truth, [])["counts"]["images_over_limit"] == 0


def test_two_categories_of_one_name_are_both_reported(tmp_path, known_case):
    truth, results = known_case
    truth["categories"].append({"id": 8, "name": "thing"})
    assert list(evaluate(tmp_path, truth, results)["per_class"]) == ["thing (7)", "thing (8)"]


# --- a naive loop -------------------------------------------------------------------------------


def random_case(seed, images=5, size=140):
    """Objects of three classes (ids with gaps), some crowds; detections are jittered objects."""
    random = np.random.default_rng(seed)
    truth = {
        "images": [{"id": 10 + i, "height": size, "width": size} for i in range(images)],
        "categories": [{"id": k, "name": f"class {k}"} for k in (2, 5, 90)],
        "annotations": [],
    }
    results = []

    def shape(box):
        x, y, w, h = (int(v) for v in box)
        bitmap = np.zeros((size, size), np.uint8, order="F")
        bitmap[y : y + h, x : x + w] = 1
        bitmap[y : y + h // 3, x : x + w // 2] = 0  # an L, so that masks differ from boxes
        rle = rle_codec.encode(bitmap)
        return rle | {"counts": rle["counts"].decode()}, float(bitmap.sum())

    for image in truth["images"][:-1]:  # the last image stays empty
        for _ in range(random.integers(0, 9)):
            extent = random.integers(8, 120, 2)
            corner = random.integers(0, size - extent)
            box, category = [*corner.tolist(), *extent.tolist()], int(random.choice([2, 5]))
            mask, area = shape(box)
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": image["id"], "bbox": box}
                | {"category_id": category, "area": area, "segmentation": mask}
                | {"iscrowd": int(random.random() < 0.15)}
            )
            for _ in range(random.integers(0, 3)):
                moved = np.clip(np.array(box) + random.integers(-6, 7, 4), 2, size - 1).tolist()
                named = int(random.choice([category, 2, 5, 90], p=[0.7, 0.1, 0.1, 0.1]))
                score = round(float(random.random()), 3)
                mask = shape(moved)[0]
                results.append(detection(moved, score, image["id"], named, segmentation=mask))
    return truth, results


def bitmap_of(entry, task, size=140):
    if task == "segm":
        return rle_codec.decode(entry["segmentation"]).astype(bool)
    x, y, w, h = entry["bbox"]
    bitmap = np.zeros((2 * size, 2 * size), bool)  # boxes may reach beyond the image
    bitmap[y : y + h, x : x + w] = True
    return bitmap


def naive_match(detections, objects, threshold, task, area_range):
    """(score, "true" | "false" | "ignored") for each detection of one image and class."""
    low, high = area_range
    counted = [not o["iscrowd"] and low <= o["area"] <= high for o in objects]
    taken = [False] * len(objects)
    verdicts = []
    for found in detections:
        overlaps = []
        for wanted in objects:
            a, b = bitmap_of(found, task), bitmap_of(wanted, task)
            union = a.sum() if wanted["iscrowd"] else (a | b).sum()
            overlaps.append((a & b).sum() / union)
        best = None
        for pool in (True, False):  # an object that counts is preferred to one that does not
            for index, overlap in enumerate(overlaps):
                free = not taken[index] or objects[index]["iscrowd"]
                if counted[index] is pool and free and overlap >= threshold - 1e-12:
                    better = best is None or overlap >= overlaps[best]
                    best = index if better else best
            if best is not None:
                break
        area = bitmap_of(found, task).sum()
        if best is not None:
            taken[best] = True
            verdicts.append((found["score"], "true" if counted[best] else "ignored"))
        else:
            verdicts.append((found["score"], "false" if low <= area <= high else "ignored"))
    return verdicts, sum(counted)


def naive_metric(truth, results, task, kind, thresholds, size, most):
    values = []
    for category in sorted(c["id"] for c in truth["categories"]):
        for threshold in thresholds:
            verdicts, total = [], 0
            for image in truth["images"]:
                mine = lambda e, i=image["id"], c=category: (  # noqa: E731
                    e["image_id"] == i and e["category_id"] == c
                )
                objects = list(filter(mine, truth["annotations"]))
                found = sorted(filter(mine, results), key=lambda r: -r["score"])[:most]
                judged, wanted = naive_match(found, objects, threshold, task, AREA_RANGES[size])
                verdicts, total = verdicts + judged, total + wanted
            if not total:
                continue
            hits = [v == "true" for _, v in sorted(verdicts, key=lambda v: -v[0]) if v != "ignored"]
            true = np.cumsum(hits)
            if kind == "AR":
                values.append(true[-1] / total if hits else 0)
                continue
            precision, recall = true / np.arange(1, len(hits) + 1), true / total
            for point in np.linspace(0, 1, 101):
                reached = precision[recall >= point]
                values.append(reached.max() if reached.size else 0)
    return 100 * float(np.mean(values)) if values else None


NAIVE = {
    "AP": ("AP", IOU_THRESHOLDS, "all", 100),
    "AP50": ("AP", [0.5], "all", 100),
    "AP75": ("AP", [0.75], "all", 100),
    "APs": ("AP", IOU_THRESHOLDS, "s", 100),
    "APm": ("AP", IOU_THRESHOLDS, "m", 100),
    "APl": ("AP", IOU_THRESHOLDS, "l", 100),
    "AR1": ("AR", IOU_THRESHOLDS, "all", 1),
    "AR10": ("AR", IOU_THRESHOLDS, "all", 10),
    "AR100": ("AR", IOU_THRESHOLDS, "all", 100),
    "ARs": ("AR", IOU_THRESHOLDS, "s", 100),
    "ARm": ("AR", IOU_THRESHOLDS, "m", 100),
    "ARl": ("AR", IOU_THRESHOLDS, "l", 100),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_metrics_equal_a_naive_loop_on_random_scenes(tmp_path, seed, task):
    truth, results = random_case(seed)
    assert any(a["iscrowd"] for a in truth["annotations"])
    metrics = evaluate(tmp_path, copy.deepcopy(truth), copy.deepcopy(results))[task]
    for name, arguments in NAIVE.items():
        expected = naive_metric(truth, results, task, *arguments)
        assert metrics[name] == (None if expected is None else pytest.approx(expected)), name


# --- the two evaluators -------------------------------------------------------------------------


@pytest.fixture
def both_arrays(monkeypatch):
    """Run both evaluators; returns the metrics after holding every array of the two equal."""
    found = {}

    def spied(truth, detections, task, evaluator):
        found[evaluator, task] = original(truth, detections, task, evaluator)
        return found[evaluator, task]

    original = module._evaluate
    monkeypatch.setattr(module, "_evaluate", spied)

    def run(truth_path, results_path):
        metrics = coco_metrics(truth_path, results_path)
        assert metrics == coco_metrics(truth_path, results_path, evaluator="pycocotools")
        tasks = [task for task in ("bbox", "segm") if task in metrics]
        for task in tasks:
            ours, reference = found["hotcoco", task], found["pycocotools", task]
            assert list(ours) == list(reference) == ["precision", "recall", "scores"]
            for name, array in ours.items():
                assert array.dtype == reference[name].dtype == np.float64
                assert array.shape == reference[name].shape
                assert array.tobytes() == reference[name].tobytes(), (task, name)
        found.clear()
        return metrics

    return run


def written(folder, truth, results):
    paths = folder / "truth.json", folder / "results.json"
    for path, content in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(content))
    return paths


COORDINATE = st.integers(0, 60) | st.floats(0, 60, width=32)
SIDE = st.integers(0, 60) | st.floats(0, 60, width=32)  # of no area, too
BOXES = st.tuples(COORDINATE, COORDINATE, SIDE, SIDE).map(list)


def some_mask(kind, box, size):
    """An L in a box as polygons, or as a plain or compressed RLE."""
    x, y, w, h = box
    parts = [[x, y, x + w / 2, y, x + w / 2, y + h, x, y + h]]
    parts.append([x, y + h / 2, x + w, y + h / 2, x + w, y + h, x, y + h])
    if kind == "polygons":
        return parts
    rle = rle_codec.merge(rle_codec.frPyObjects(parts, *size))
    text = rle["counts"].decode()
    return {"size": list(size), "counts": runs_of(text) if kind == "plain" else text}


@st.composite
def cases(draw):
    """Three images and three classes of any ids, crowds, missing areas, ties of scores."""
    ids = [
        st.lists(kind, min_size=3, max_size=3, unique=True)
        for kind in (st.integers(-5, 10**12), st.text(max_size=3))
    ]
    image_ids, category_ids = draw(st.one_of(ids)), draw(st.one_of(ids))
    truth = {
        "images": [{"id": i, "height": 70, "width": 90} for i in image_ids],
        "categories": [{"id": k, "name": f"class {k}"} for k in category_ids],
        "annotations": [],
    }

    def entry():
        box = draw(BOXES)
        kind = draw(st.sampled_from(["polygons", "plain", "compressed"]))
        return {
            "image_id": draw(st.sampled_from(image_ids)),
            "category_id": draw(st.sampled_from(category_ids)),
            "bbox": box,
            "segmentation": some_mask(kind, box, (70, 90)),
        }

    for number in range(draw(st.integers(0, 12))):
        extra = {"id": number, "iscrowd": int(draw(st.integers(0, 5)) == 0)}
        if draw(st.booleans()):
            extra["area"] = draw(st.floats(0, 5000))
        truth["annotations"].append(entry() | extra)
    scores = st.sampled_from([0.1, 0.5, 0.9, 1.0, 1]) | st.floats(-1, 1)
    results = []
    for _ in range(draw(st.integers(0, 20))):
        copied = truth["annotations"] and draw(st.booleans())
        source = draw(st.sampled_from(truth["annotations"])) if copied else entry()
        keys = ("image_id", "category_id", "bbox", "segmentation")
        results.append({key: source[key] for key in keys} | {"score": draw(scores)})
    return truth, results


def test_both_evaluators_give_the_same_bits_on_any_small_case(both_arrays, tmp_path):
    @settings(max_examples=60, deadline=None)
    @given(cases())
    def check(case):
        both_arrays(*written(tmp_path, *case))

    check()


def test_both_evaluators_give_the_same_bits_on_random_scenes(both_arrays, tmp_path):
    for seed in range(5):
        metrics = both_arrays(*written(tmp_path, *random_case(seed, images=12)))
        assert metrics["bbox"]["AP"] > 0


def test_both_evaluators_look_at_the_same_100_of_150_detections(both_arrays, tmp_path):
    # One object is found by a detection of rank 100, another by one of rank 101.
    truth = ground_truth([[10, 10, 40, 40], [100, 100, 40, 40]])
    results = [detection([60, 60, 9, 9], 0.9 - 0.001 * i) for i in range(99)]
    results += [detection([10, 10, 40, 40], 0.5), detection([100, 100, 40, 40], 0.4)]
    results += [detection([60, 60, 9, 9], 0.3) for _ in range(49)]
    metrics = both_arrays(*written(tmp_path, truth, results))
    assert metrics["bbox"]["AR100"] == 50
    assert metrics["bbox"]["AR10"] == 0


def test_both_evaluators_give_the_same_on_nothing(both_arrays, tmp_path):
    square = [[0, 0, 40, 0, 40, 40, 0, 40]]
    objects = ground_truth([[0, 0, 40, 40]], segmentation=square)
    assert both_arrays(*written(tmp_path, objects, []))["segm"]["AP"] == 0
    found = [detection([0, 0, 9, 9], 0.5)]
    assert both_arrays(*written(tmp_path, ground_truth([]), found))["bbox"]["AP"] is None
    assert both_arrays(*written(tmp_path, ground_truth([]), []))["per_class"]["thing"]


def test_both_evaluators_give_the_same_bits_on_cocos_own_results(both_arrays):
    folder = published("coco_fake100")
    truth = folder / "instances_val2014_100.json"
    for task in ("bbox", "segm"):
        both_arrays(truth, folder / f"instances_val2014_fake{task}100_results.json")
    folder = published("tiny")
    both_arrays(folder / "gt_dataset.json", folder / "dt_dataset.json")


def test_unknown_evaluators_are_refused(tmp_path, known_case):
    paths = written(tmp_path, *known_case)
    with pytest.raises(ValueError, match="unknown evaluator 'x'; allowed: hotcoco, pycocotools"):
        coco_metrics(*paths, evaluator="x")


def runs_of(counts):
    """The runs of a compressed RLE, by cocoapi's rleFrString; None if the text ends too early."""
    runs, value, shift = [], 0, 0
    for code in counts.encode():
        value |= (code - 48 & 31) << shift
        shift += 5
        if not code - 48 & 32:
            value -= (code - 48 & 16) << shift - 4
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return None if shift else runs


@given(
    st.lists(st.integers(0, 40), max_size=8),
    st.integers(-50, 50),
    st.none() | st.tuples(st.integers(0, 30), st.characters(min_codepoint=48, max_codepoint=111)),
)
@settings(deadline=None)
def test_an_rle_is_taken_if_and_only_if_its_runs_fill_its_size(runs, missing, damage):
    pixels = max(1, sum(runs) + missing)
    text = rle_codec.frPyObjects({"size": [1, 10**6], "counts": runs}, 1, 10**6)["counts"].decode()
    if damage and text:
        place, character = damage[0] % len(text), damage[1]
        text = text[:place] + character + text[place + 1 :]
    true_runs = runs_of(text)
    fills = true_runs is not None and sum(true_runs) == pixels and min(true_runs, default=0) >= 0
    rle = {"size": [1, pixels], "counts": text}
    if fills:
        assert segmentation_to_rle(rle, 1, pixels) == rle
    else:
        with pytest.raises(ValueError, match="nor an RLE whose runs fill its size"):
            segmentation_to_rle(rle, 1, pixels)
    if not damage:
        plain = {"size": [1, pixels], "counts": runs}
        if sum(runs) == pixels:
            assert segmentation_to_rle(plain, 1, pixels)["counts"] == text.encode()
        else:
            with pytest.raises(ValueError, match=r"runs end before pixel|exceed"):
                segmentation_to_rle(plain, 1, pixels)


def test_an_rle_on_which_pycocotools_does_not_return_is_refused_with_its_place(tmp_path):
    square = [[0, 0, 40, 0, 40, 40, 0, 40]]
    truth = ground_truth([[0, 0, 40, 40]], segmentation=square)
    short = {"size": [200, 200], "counts": [100, 20]}
    for results in ([detection([0, 0, 40, 40], 0.9, segmentation=short)], []):
        with pytest.raises(
            ValueError,
            match=r"detections\[0\] .*before pixel 40000|annotation 1 .*to 120 pixels",
        ):
            evaluate(tmp_path, truth, results)
        truth["annotations"][0]["segmentation"] = short


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, r: r[0].update(image_id=77), r"image_ids that are not in .*truth.json: 77"),
        (lambda t, r: r[0].update(category_id=0), r"category_ids that are not in .*: 0; were"),
        (lambda t, r: r[1].pop("score"), r"detections\[1\] lacks score"),
        (lambda t, r: r[1].update(score=float("nan")), r"detections\[1\] has the score nan"),
        (lambda t, r: r[1].update(bbox=[1, 2, 3]), r"detections\[1\] has the bbox \[1, 2, 3\]"),
        (lambda t, r: r[1].pop("bbox"), r"neither bbox nor segmentation"),
        (lambda t, r: r.insert(0, 5), r"detections\[0\] is 5"),
        (lambda t, r: t.pop("categories"), r"truth.json: is not COCO: it has no 'categories'"),
        (lambda t, r: t.update(categories=[]), r"no categories"),
        (lambda t, r: t["images"].append(t["images"][0]), r"images\[1\]: id 1 is used twice"),
        (
            lambda t, r: t["images"].append(t["images"][0] | {"id": "a"}),
            r"images: ids are numbers and strings mixed",
        ),
        (lambda t, r: t["images"][0].pop("height"), r"image 1: height and width are \(None, 200\)"),
        (
            lambda t, r: t["annotations"][0].update(image_id=3),
            r"annotation 1 \(image 3\): image_id 3 is not in 'images'",
        ),
        (lambda t, r: t["annotations"][1].pop("bbox"), r"annotation 2 \(image 1\): bbox is None"),
        (
            lambda t, r: t["annotations"][1].update(segmentation=[[1]]),
            r"annotation 2 .*has a polygon of 1 numbers",
        ),
    ],
)
def test_input_that_cannot_be_evaluated_is_said_with_file_place_and_value(
    tmp_path, known_case, change, message
):
    truth, results = known_case
    change(truth, results)
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path, truth, results)


def test_masks_of_another_size_are_refused(tmp_path):
    square = [[0, 0, 40, 0, 40, 40, 0, 40]]
    truth = ground_truth([[0, 0, 40, 40]], segmentation=square)
    rle = rle_codec.merge(rle_codec.frPyObjects(square, 100, 100))
    rle["counts"] = rle["counts"].decode()
    results = [detection([0, 0, 40, 40], 0.9, segmentation=rle)]
    with pytest.raises(ValueError, match=r"mask of \[100, 100\]; its image 1 is \[200, 200\]"):
        evaluate(tmp_path, truth, results)


def test_mask_metrics_that_were_asked_for_need_masks_on_both_sides(tmp_path, known_case):
    with pytest.raises(ValueError, match="2 annotations have no segmentation"):
        evaluate(tmp_path, *known_case, tasks=["bbox", "segm"])
    with pytest.raises(ValueError, match="unknown tasks keypoints; allowed: bbox, segm"):
        evaluate(tmp_path, *known_case, tasks=["keypoints"])


def test_masks_that_only_some_detections_have_are_refused(tmp_path):
    square = [[0, 0, 40, 0, 40, 40, 0, 40]]
    truth = ground_truth([[0, 0, 40, 40]], segmentation=square)
    results = [detection([0, 0, 40, 40], 0.9, segmentation=square), detection([0, 0, 9, 9], 0.5)]
    with pytest.raises(ValueError, match=r"results\.json: 1 detections have no segmentation.*: 1$"):
        evaluate(tmp_path, truth, results)


def test_files_that_are_missing_or_no_json_are_named(tmp_path):
    (tmp_path / "truth.json").write_text("{")
    with pytest.raises(ValueError, match=r"truth\.json: is not JSON"):
        coco_metrics(tmp_path / "truth.json", tmp_path / "results.json")
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        coco_metrics(tmp_path / "absent.json", tmp_path / "results.json")


# --- published numbers and detectron2 -----------------------------------------------------------


def published(folder):
    data = os.environ.get("CONVNEXT_TEST_DATA")
    if not data:
        pytest.skip("CONVNEXT_TEST_DATA is unset: the published COCO tables are not at hand")
    path = Path(data) / "coco_oracle" / folder
    if not path.is_dir():
        pytest.skip(f"{path} does not exist: the published COCO tables are not at hand")
    return path


@pytest.mark.parametrize(
    ("task", "full_digits"), [("bbox", "0.504580698725"), ("segm", "0.319545275858")]
)
def test_the_published_table_of_cocos_fake_results_is_reproduced(task, full_digits):
    folder = published("coco_fake100")
    metrics = coco_metrics(
        folder / "instances_val2014_100.json",
        folder / f"instances_val2014_fake{task}100_results.json",
    )[task]
    table = (folder / "val2014_fake_eval_res.txt").read_text()
    section = table.split(f"type={task}")[1].split("type=")[0]
    printed = re.findall(r"= (\d\.\d{3})$", section, re.MULTILINE)
    assert [f"{value / 100:.3f}" for value in metrics.values()] == printed
    assert len(printed) == 12
    assert f"{metrics['AP'] / 100:.12f}" == full_digits


def test_the_published_ap_of_the_tiny_set_is_reproduced():
    folder = published("tiny")
    metrics = coco_metrics(folder / "gt_dataset.json", folder / "dt_dataset.json")
    assert f"{metrics['bbox']['AP'] / 100:.6f}" == "0.694719"
    assert f"{metrics['segm']['AP'] / 100:.6f}" == "0.694719"


@pytest.mark.detectron2
def test_metrics_equal_detectron2s_evaluator(tmp_path):
    from detectron2.evaluation import coco_evaluation as evaluation
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = random_case(3)
    metrics = evaluate(tmp_path, truth, results)
    for task in ("bbox", "segm"):
        theirs = evaluation._evaluate_predictions_on_coco(
            COCO(str(tmp_path / "truth.json")), copy.deepcopy(results), task, cocoeval_fn=COCOeval
        )
        ours = [-1 if value is None else value / 100 for value in metrics[task].values()]
        assert ours == pytest.approx(theirs.stats.tolist(), abs=1e-12)
