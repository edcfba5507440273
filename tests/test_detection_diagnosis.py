"""detection.evaluation.diagnosis against COCO's own AP50, hand derivations and a naive loop."""

import json

import numpy as np
import pytest

from detection.evaluate import coco_metrics
from detection.evaluation.diagnosis import diagnose


def write_case(folder, truth, results):
    for name, content in (("truth.json", truth), ("results.json", results)):
        (folder / name).write_text(json.dumps(content))
    return folder / "truth.json", folder / "results.json"


def scene(objects, detections, classes=2):
    """One image of 400 x 400; objects (box, class), detections (box, class, score)."""
    truth = {
        "images": [{"id": 5, "file_name": "5.png", "height": 400, "width": 400}],
        "categories": [{"id": 10 * c + 1, "name": f"class {c}"} for c in range(classes)],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": 10 * c + 1, "bbox": box, "iscrowd": crowd}
            for i, (box, c, crowd) in enumerate(
                ((*entry, 0) if len(entry) == 2 else entry for entry in objects), 1
            )
        ],
    }
    results = [
        {"image_id": 5, "category_id": 10 * c + 1, "bbox": box, "score": score}
        for box, c, score in detections
    ]
    return truth, results


def random_case(seed, images=12, classes=4):
    """Jittered, relabelled, doubled, missed and invented boxes, some crowds, equal scores."""
    random = np.random.default_rng(seed)
    truth = {"categories": [{"id": 3 * c + 2, "name": str(c)} for c in range(classes)]}
    truth["images"] = [{"id": i + 1, "height": 200, "width": 200} for i in range(images)]
    truth["annotations"], results = [], []
    for image in range(1, images + 1):
        for _ in range(random.integers(0, 7)):
            x, y, w, h = (int(v) for v in random.integers([0, 0, 10, 10], [120, 120, 80, 80]))
            category = int(random.integers(0, classes)) * 3 + 2
            entry = {"image_id": image, "category_id": category, "bbox": [x, y, w, h]}
            crowd = int(random.random() < 0.1)
            truth["annotations"].append(
                entry | {"id": len(truth["annotations"]) + 1, "area": w * h, "iscrowd": crowd}
            )
            for _ in range(random.integers(0, 3)):
                shifted = [int(v) for v in np.array([x, y, w, h]) + random.integers(-9, 10, 4)]
                shifted[2:] = [max(1, v) for v in shifted[2:]]
                guess = (
                    category if random.random() < 0.8 else int(random.integers(0, classes)) * 3 + 2
                )
                score = float(random.integers(1, 20)) / 20
                results.append(
                    {"image_id": image, "category_id": guess, "bbox": shifted, "score": score}
                )
    return truth, results


@pytest.mark.parametrize("seed", range(6))
def test_ap50_before_any_mending_is_cocos(tmp_path, seed):
    files = write_case(tmp_path, *random_case(seed))
    expected = coco_metrics(*files, ["bbox"])["bbox"]["AP50"]
    assert diagnose(*files, ["bbox"])["bbox"]["errors"]["AP50"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_ap50_of_published_results_is_cocos(real_data, task):
    folder = real_data / "coco_oracle/coco_fake100"
    results = folder / f"instances_val2014_fake{task}100_results.json"
    files = folder / "instances_val2014_100.json", results
    expected = coco_metrics(*files, [task])[task]["AP50"]
    assert diagnose(*files, [task])[task]["errors"]["AP50"] == pytest.approx(expected, abs=1e-9)


A, B, C = [0, 0, 100, 100], [200, 0, 100, 100], [0, 200, 100, 100]
FAR = [300, 300, 50, 50]

# name -> objects, detections, counts, costs. One class has a perfect detection unless said.
CASES = {
    # Class 0: A found at 0.9, B called class 1; mended, both of class 0 are found: 100.
    # Class 1: C found at 0.5 under the false 0.8: AP 50. Mended: 100. Before: mean(51/101, .5).
    "class": (
        [(A, 0), (B, 0), (C, 1)],
        [(A, 0, 0.9), (B, 1, 0.8), (C, 1, 0.5)],
        {"class": 1},
        {"class": 100 - 50 * (51 / 101 + 0.5)},
    ),
    # IoU of [0, 0, 100, 40] with A is 0.4. Mended it is found.
    "localisation": (
        [(A, 0)],
        [([0, 0, 100, 40], 0, 0.9)],
        {"localisation": 1},
        {"localisation": 100.0},
    ),
    "both": ([(A, 0)], [([0, 0, 100, 40], 1, 0.9)], {"class and place": 1, "missed": 1}, {}),
    # Of two on one object the better one counts, so the other costs nothing after it.
    "duplicate": (
        [(A, 0), (B, 0)],
        [(A, 0, 0.9), ([0, 0, 100, 90], 0, 0.8), (B, 0, 0.7)],
        {"duplicate": 1},
        {"duplicate": 100 - 100 * (51 + 50 * 2 / 3) / 101},
    ),
    "background": (
        [(A, 0)],
        [(FAR, 0, 0.9), (A, 0, 0.5)],
        {"background": 1},
        {"background": 50.0},
    ),
    "missed": ([(A, 0), (B, 0)], [(A, 0, 0.9)], {"missed": 1}, {"missed": 100 - 5100 / 101}),
    # In a crowd region nothing is an error.
    "crowd": ([(A, 0), (C, 0, 1)], [(A, 0, 0.9), ([20, 220, 30, 30], 0, 0.8)], {}, {}),
    # The meant object is found by a better one: mending only removes.
    "class, found": (
        [(A, 0)],
        [(A, 0, 0.9), (A, 1, 0.8)],
        {"class": 1},
        {"class": 0.0},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_errors_and_their_costs_equal_the_derivation_by_hand(tmp_path, name):
    objects, detections, counts, costs = CASES[name]
    found = diagnose(*write_case(tmp_path, *scene(objects, detections)), ["bbox"])["bbox"]["errors"]
    assert {k: v["count"] for k, v in found["kinds"].items() if v["count"]} == counts
    for kind, cost in costs.items():
        assert found["kinds"][kind]["cost"] == pytest.approx(cost, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_best_threshold_is_the_best_of_all_scores(tmp_path, seed):
    truth, results = random_case(seed)
    truth["annotations"] = [a for a in truth["annotations"] if not a["iscrowd"]]
    found = diagnose(*write_case(tmp_path, truth, results), ["bbox"])["bbox"]["thresholds"]
    for row in found:
        of_class = [r for r in results if r["category_id"] == row["category_id"]]
        objects = [a for a in truth["annotations"] if a["category_id"] == row["category_id"]]
        best = 0.0
        for threshold in sorted({r["score"] for r in of_class}):
            kept = [r for r in of_class if r["score"] >= threshold]
            best = max(best, 200 * naive_hits(kept, objects) / (len(kept) + len(objects)))
        assert row["F1"] == pytest.approx(best)


def naive_hits(detections, objects):
    """Greedy matching at IoU 0.5, one image after the other."""
    free, hits = list(objects), 0
    for detection in sorted(detections, key=lambda d: -d["score"]):
        of_image = [o for o in free if o["image_id"] == detection["image_id"]]
        overlaps = [naive_iou(detection["bbox"], o["bbox"]) for o in of_image]
        if overlaps and max(overlaps) >= 0.5:
            free.remove(of_image[int(np.argmax(overlaps))])
            hits += 1
    return hits


def naive_iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def test_calibration_equals_the_derivation_by_hand(tmp_path):
    detections = [(A, 0, 0.95), (FAR, 0, 0.91), (B, 0, 0.05)]
    found = diagnose(*write_case(tmp_path, *scene([(A, 0), (B, 0)], detections)), ["bbox"])
    calibration = found["bbox"]["calibration"]
    last = calibration["bins"][-1]
    assert (last["count"], last["score"], last["precision"]) == (2, pytest.approx(93), 50.0)
    assert calibration["bins"][0]["precision"] == 100.0
    assert calibration["bins"][5]["precision"] is None
    assert calibration["error"] == pytest.approx((2 * 43 + 95) / 3)


def test_confusion_counts_every_object_once(tmp_path):
    objects = [(A, 0), (B, 0), (C, 1)]
    detections = [(A, 0, 0.9), (B, 1, 0.8), (C, 1, 0.5), (FAR, 1, 0.7)]
    found = diagnose(*write_case(tmp_path, *scene(objects, detections)), ["bbox"])["bbox"]
    # Rows are the objects' classes, columns the detections', the last "nothing".
    assert found["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_confusion_rows_sum_to_the_objects_of_each_class(tmp_path, seed):
    truth, results = random_case(seed)
    found = diagnose(*write_case(tmp_path, truth, results), ["bbox"])["bbox"]
    for row, category in zip(found["confusion"], truth["categories"], strict=False):
        objects = [
            a
            for a in truth["annotations"]
            if a["category_id"] == category["id"] and not a["iscrowd"]
        ]
        assert sum(row) == len(objects)


def test_each_image_is_counted_at_the_best_thresholds(tmp_path):
    truth, results = scene([(A, 0), (B, 0)], [(A, 0, 0.9), (FAR, 0, 0.2)])
    truth["images"].append({"id": 9, "file_name": "9.png", "height": 10, "width": 10})
    rows = diagnose(*write_case(tmp_path, truth, results), ["bbox"])["bbox"]["images"]
    assert rows[0] == {
        "id": 5,
        "objects": 2,
        "found": 1,
        "false": 0,  # FAR lies under the threshold of the best F1
        "F1": pytest.approx(200 / 3),
        "IoU": 100.0,
        "errors": {"missed": 1},
    }
    assert rows[1] == {
        "id": 9,
        "objects": 0,
        "found": 0,
        "false": 0,
        "F1": None,
        "IoU": None,
        "errors": {},
    }


def test_nothing_detected_and_nothing_to_detect(tmp_path):
    truth, _ = scene([], [])
    found = diagnose(*write_case(tmp_path, truth, []), ["bbox"])["bbox"]
    assert found["errors"]["AP50"] is None
    truth, _ = scene([(A, 0)], [])
    found = diagnose(*write_case(tmp_path, truth, []), ["bbox"])["bbox"]
    assert found["errors"]["AP50"] == 0.0
    assert found["errors"]["kinds"]["missed"]["count"] == 1
    assert found["calibration"]["error"] is None
