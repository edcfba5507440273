"""What predictions leave in their folder, and that they go on where they ended: a fake engine."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image
from small_detector import small_config
from videos import write

from backbones.errors import InputError
from detection import predict as module
from detection.dataset import load_dataset
from detection.predict import predict

CATEGORIES = [{"id": 7, "name": "cell"}, {"id": 3, "name": "dead cell"}]


class Interrupted(Exception):
    """Stands for a process that is ended."""


@pytest.fixture
def engine(monkeypatch):
    """Finds a box with a mask of each class, by turns sure and unsure; may stop at a call."""
    state = SimpleNamespace(calls=0, stop_at=None)

    def detect(sample):
        state.calls += 1
        if state.calls == state.stop_at:
            raise Interrupted
        found = []
        for number, category in enumerate((7, 3, 7)):
            mask = np.zeros((sample["height"], sample["width"]), np.uint8, order="F")
            mask[2:6, 3 : 5 + number] = 1
            rle = mask_util.encode(mask)
            found.append(
                {"image_id": sample["image_id"], "category_id": category}
                | {"bbox": [3.0, 2.0, 2.0 + number, 4.0], "score": (0.9, 0.4, 0.5)[number]}
                | {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}
            )
        return found

    fake = SimpleNamespace(detector=lambda config, dataset, weights: detect)
    monkeypatch.setattr(module, "load_engine", lambda name: fake)
    return state


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        small_config({"MODEL.ROI_HEADS.NUM_CLASSES": 2, "OUTPUT_DIR": str(folder)}).dump()
    )
    (folder / "run.json").write_text(json.dumps({"categories": CATEGORIES}))
    (folder / "model_final.pth").write_bytes(b"")
    (folder / "last_checkpoint").write_text("model_final.pth")
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (40 + number, 30), (90, 120, 40 * number)).save(folder / f"{number}.jpg")
    write(folder / "clip.mp4", [0, 0.5, 2.0])
    return folder


def everything(folder):
    """Relative path -> bytes of all files, the journal and the lock included."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_annotations_are_a_coco_data_set_of_what_is_over_the_threshold(
    engine, run, photos, tmp_path
):
    counts = predict(run, [str(photos / "0.jpg"), str(photos / "1.jpg")], tmp_path / "out", 0.5)
    assert counts == {"images": 2, "detections": 6, "shown": 4}
    tree = json.loads((tmp_path / "out/annotations.json").read_text())
    assert tree["categories"] == CATEGORIES
    assert [(a["id"], a["image_id"], a["category_id"]) for a in tree["annotations"]] == [
        *((1, 1, 7), (2, 1, 7)),
        *((3, 2, 7), (4, 2, 7)),
    ]
    assert [a["area"] for a in tree["annotations"]] == [8, 16] * 2
    assert tree["info"] == {"image_root": str(photos)}
    read = load_dataset(f"json:{tmp_path / 'out/annotations.json'}:{photos}")
    assert set(read.class_names) == {"cell", "dead cell"}
    assert [len(record["annotations"]) for record in read.records] == [2, 2]


def test_counts_and_areas_are_told_per_image_and_class_with_zeros(engine, run, photos, tmp_path):
    predict(run, [str(photos / "0.jpg"), str(photos / "clip.mp4")], tmp_path / "out", 0.5)
    rows = list(csv.DictReader((tmp_path / "out/counts.csv").open(newline="")))
    assert [tuple(row.values()) for row in rows[:2]] == [
        ("1", str(photos / "0.jpg"), "", "", "cell", "2", "24"),
        ("1", str(photos / "0.jpg"), "", "", "dead cell", "0", "0"),
    ]
    cells = [row for row in rows if row["class"] == "cell"]
    assert [(row["frame"], row["seconds"]) for row in cells[1:]] == [
        ("0", "0.0"),
        ("1", "0.5"),
        ("2", "2.0"),
    ]


def test_classes_are_chosen_by_name_everywhere(engine, run, photos, tmp_path):
    out = tmp_path / "out"
    counts = predict(run, [str(photos / "0.jpg")], out, 0.0, classes=["dead cell"])
    assert counts == {"images": 1, "detections": 1, "shown": 1}
    found = json.loads((out / "predictions.json").read_text())
    assert [result["category_id"] for result in found] == [3]
    assert json.loads((out / "annotations.json").read_text())["categories"] == CATEGORIES[1:]
    with pytest.raises(InputError, match=r"no class 'cel' \(did you mean 'cell'\?\), 'x'; it has"):
        predict(run, [str(photos)], tmp_path / "other", classes=["cel", "x", "cell"])


@pytest.mark.parametrize("threshold", [50, -0.1, float("nan"), float("inf")])
def test_thresholds_that_are_no_score_are_refused(engine, run, photos, tmp_path, threshold):
    with pytest.raises(InputError, match="scores go from 0 to 1"):
        predict(run, [str(photos)], tmp_path / "out", threshold)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stop_at", [1, 3, 6, 7])
def test_an_interrupted_prediction_goes_on_to_the_same_files(
    engine, run, photos, tmp_path, stop_at
):
    arguments = (run, [str(photos)], tmp_path / "out")
    predict(run, [str(photos)], tmp_path / "whole")
    engine.calls, engine.stop_at = 0, stop_at
    with pytest.raises(Interrupted):
        predict(*arguments)
    journal = tmp_path / "out/unfinished.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"image": {"id"')  # as a killed process leaves it
    with pytest.raises(InputError, match="unfinished prediction: continue it with --resume"):
        predict(*arguments)
    with pytest.raises(InputError, match=r"score_threshold was 0\.5 and is now 0\.25"):
        predict(*arguments, score_threshold=0.25, resume=True)
    (run / "model_final.pth").write_bytes(b"trained on")
    with pytest.raises(InputError, match="weights_sha256 was"):
        predict(*arguments, resume=True)
    (run / "model_final.pth").write_bytes(b"")
    engine.calls, engine.stop_at = 0, None
    counts = predict(*arguments, resume=True)
    assert counts == {"images": 7, "detections": 21, "shown": 14}
    assert engine.calls == 7 - {1: 0, 3: 2, 6: 4, 7: 4}[stop_at]  # the clip is one file
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def test_what_was_interrupted_before_its_first_image_checks_its_files_when_it_goes_on(
    engine, run, photos, tmp_path
):
    engine.stop_at = 1
    with pytest.raises(Interrupted):
        predict(run, [str(photos)], tmp_path / "out")
    engine.stop_at = None
    (photos / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1 problem in the inputs:\n.*bad\.jpg cannot be read"):
        predict(run, [str(photos)], tmp_path / "out", resume=True)
    engine.calls, engine.stop_at = 0, 7  # in the clip, which comes last, and once more
    for _ in range(2):
        with pytest.raises(Interrupted):
            predict(run, [str(photos)], tmp_path / "out", resume=True, skip_bad_images=True)
        engine.calls, engine.stop_at = 0, 3
    (photos / "clip.mp4").write_bytes(b"no video")  # and only bad ones are left
    for _ in range(2):
        counts = predict(run, [str(photos)], tmp_path / "out", resume=True, skip_bad_images=True)
        assert counts["images"] == 4


def test_a_finished_prediction_is_told_and_not_made_again(engine, run, photos, tmp_path):
    first = predict(run, [str(photos)], tmp_path / "out")
    before, engine.calls = everything(tmp_path / "out"), 0
    assert predict(run, [str(photos)], tmp_path / "out", resume=True) == first
    assert engine.calls == 0
    with pytest.raises(InputError, match="holds predictions already"):
        predict(run, [str(photos)], tmp_path / "out")
    Image.new("RGB", (40, 30)).save(photos / "new.jpg")
    with pytest.raises(InputError, match=r"1 of 6 files are not among them, such as .*new\.jpg"):
        predict(run, [str(photos)], tmp_path / "out", resume=True)
    assert everything(tmp_path / "out") == before


def test_overlays_of_earlier_predictions_are_left_out_and_counted(
    engine, run, photos, tmp_path, caplog
):
    predict(run, [str(photos)], photos / "out1")
    assert predict(run, [str(photos)], photos / "out2")["images"] == 7
    assert "left out: 5 of earlier predictions, 1 .csv, 3 .json" in caplog.text.replace(
        "5 of earlier predictions, 3 .json, 1 .csv",
        "5 of earlier predictions, 1 .csv, 3 .json",
    )
    counts = predict(run, [str(photos / "**/*.jpg")], photos / "out3")
    assert counts["images"] == 4
    engine.calls, engine.stop_at = 0, 3
    with pytest.raises(Interrupted):
        predict(run, [str(photos)], photos / "out4")
    engine.stop_at = None
    assert predict(run, [str(photos)], photos / "out4", resume=True)["images"] == 7
    with pytest.raises(InputError, match="holds no image and no video; it holds 5 of earlier"):
        predict(run, [str(photos / "out1")], tmp_path / "out")


def test_an_overlay_video_lasts_as_long_as_the_video(engine, run, tmp_path):
    import av

    clip = write(tmp_path / "rec.webm", [0, 0.04, 1.04, 3.04], codec="libvpx", live="1")
    predict(run, [str(clip)], tmp_path / "out", every=2)
    listed = json.loads((tmp_path / "out/images.json").read_text())["images"]
    assert [(image["frame"], image["seconds"]) for image in listed] == [(0, 0.0), (2, 1.04)]
    with av.open(str(tmp_path / "out/overlays/rec.mp4")) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert float(stream.duration * stream.time_base) == pytest.approx(3.08, abs=0.05)


def test_an_image_of_other_channels_is_refused_without_a_setting_of_trainings(run, tmp_path):
    np.save(tmp_path / "bands.npy", np.zeros((40, 40, 4), np.float32))
    with pytest.raises(InputError, match=r"has 4 channel\(s\), not the 3") as caught:
        predict(run, [str(tmp_path / "bands.npy")], tmp_path / "out")
    assert "IN_CHANS" not in str(caught.value)
    assert "as they are" not in str(caught.value)
