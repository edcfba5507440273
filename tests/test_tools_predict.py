"""tools/predict.py: a tiny run of either engine, on images, folders, patterns and videos."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
from log_handlers import restored_log_handlers
from PIL import Image
from small_coco import write_small_coco
from small_detector import small_config

from backbones import compiling
from detection.data.checks.segmentations import as_rle
from detection.data.formats.convert import read_labels
from detection.dataset import load_dataset
from detection.engines import load_engine
from detection.run_record import collect_facts, write_facts
from images.inputs import find_files, output_names, read_frames

CONFIG = {
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 5,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": (),
}


@pytest.fixture(
    scope="module",
    params=["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)],
)
def trained(request, tmp_path_factory):
    """A run of two iterations and the folder of its test images."""
    folder = tmp_path_factory.mktemp(request.param)
    annotations, images = write_small_coco(folder)
    dataset = load_dataset(f"json:{annotations}:{images}")
    run = folder / "run"
    config = small_config(CONFIG | {"ENGINE": request.param, "OUTPUT_DIR": str(run)})
    with restored_log_handlers():
        engine = load_engine(request.param)
        engine.train(config, dataset, resume=False)
        engine.predict(config, dataset, None)
    (run / "config.yaml").write_text(config.dump())
    write_facts(run, collect_facts(config, dataset, None, False, ""))
    return run, images


def read(folder):
    return (json.loads((folder / name).read_text()) for name in ("predictions.json", "images.json"))


def compiled_graphs(monkeypatch):
    """A list that grows by what ``torch.compile`` is given, which runs as it is."""
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph

    monkeypatch.setattr(compiling, "BACKEND", backend)
    return seen


def by_file(results, images):
    """File stem -> the results of its image without the id, in their order."""
    stems = {image["id"]: image["file_name"].split("/")[-1].split(".")[0] for image in images}
    grouped = {stem: [] for stem in stems.values()}
    for result in results:
        grouped[stems[result["image_id"]]].append(result | {"image_id": 0})
    return grouped


def test_predictions_are_what_the_evaluation_wrote(trained, tmp_path, run_tool):
    run, images = trained
    done = run_tool("predict", "--run", run, "--input", images, "--output-dir", tmp_path / "out")
    assert done.code == 0, done.err
    results, listed = read(tmp_path / "out")
    evaluated = json.loads((run / "inference/coco_instances_results.json").read_text())
    names = [{"id": key, "file_name": f"{key}.png"} for key in (3, 7, 12, 20)]
    expected = by_file(evaluated, names)
    assert len(evaluated) == 20
    assert by_file(results, listed["images"]) == expected
    assert listed["categories"] == [{"id": 2, "name": "box"}, {"id": 9, "name": "disc"}]
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in listed["images"]}
    assert sizes[str(images / "3.png")] == (80, 60)
    assert f"20 detections on 4 images, 0 of them drawn: {tmp_path / 'out'}" in done.out


def test_compiled_predictions_and_evaluations_are_the_eager_ones(
    trained, tmp_path, run_tool, monkeypatch
):
    run, images = trained
    seen = compiled_graphs(monkeypatch)
    command = ("--run", run, "--input", images, "--output-dir", tmp_path / "out", "--compile")
    assert run_tool("predict", *command).code == 0
    assert len(seen) == 1  # images of several sizes
    shutil.copytree(run, tmp_path / "run")
    dataset = f"json:{images.parent / 'annotations.json'}:{images}"
    result = run_tool(
        *("train_net", "--config-file", tmp_path / "run/config.yaml", "--eval-only", "--compile"),
        *(
            "OUTPUT_DIR",
            tmp_path / "run",
            "DATASETS.TRAIN",
            "()",
            "DATASETS.TEST",
            f"('{dataset}',)",
        ),
    )
    assert result.code == 0, result.err
    assert len(seen) == 2
    eager, again = (
        json.loads((folder / "inference/coco_instances_results.json").read_text())
        for folder in (run, tmp_path / "run")
    )
    results, listed = read(tmp_path / "out")
    names = [{"id": key, "file_name": f"{key}.png"} for key in (3, 7, 12, 20)]
    expected = by_file(eager, names)
    for found in (by_file(results, listed["images"]), by_file(again, names)):
        for stem, of_image in expected.items():
            assert [r["category_id"] for r in found[stem]] == [r["category_id"] for r in of_image]
            for key in ("bbox", "score"):
                np.testing.assert_allclose(
                    [r[key] for r in found[stem]], [r[key] for r in of_image], rtol=1e-3, atol=1e-3
                )


def test_overlays_show_what_is_above_the_threshold_enlarged_to_be_read(trained, tmp_path, run_tool):
    run, images = trained
    arguments = ["predict", "--run", run, "--input", images / "3.png", "--output-dir"]
    assert run_tool(*arguments, tmp_path / "none", "--score-threshold", "1").code == 0
    done = run_tool(*arguments, tmp_path / "all", "--score-threshold", "0")
    assert "5 detections on 1 image, 5 of them drawn" in done.out
    plain, drawn = (
        np.asarray(Image.open(tmp_path / name / "overlays/3.png")) for name in ("none", "all")
    )
    assert plain.shape == drawn.shape == (480, 640, 3)
    original = np.asarray(Image.open(images / "3.png")).astype(float)
    assert abs(plain.mean() - original.mean()) < 2
    assert (plain != drawn).any(-1).mean() > 0.02


def write_video(path, count=6):
    """Frames whose brightness is 30 times their index."""
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 8.0, (80, 60))
    for index in range(count):
        video.write(np.full((60, 80, 3), 30 * index, np.uint8))
    video.release()
    return path


def test_a_video_gives_results_by_frame_and_an_overlay_video(trained, tmp_path, run_tool):
    run, _ = trained
    if "detectron2" in str(run):
        pytest.skip("files do not depend on the engine")
    video = write_video(tmp_path / "clip.avi")
    arguments = ["predict", "--run", run, "--input", video, "--every", "2"]
    done = run_tool(*arguments, "--output-dir", tmp_path / "video")
    assert done.code == 0, done.err
    results, listed = read(tmp_path / "video")
    assert [(i["id"], i["frame"], i["seconds"], i["overlay"]) for i in listed["images"]] == [
        (number + 1, 2 * number, 0.25 * number, "overlays/clip.mp4") for number in range(3)
    ]
    assert {result["image_id"] for result in results} == {1, 2, 3}
    shown = list(read_frames(tmp_path / "video/overlays/clip.mp4"))
    assert [frame.pixels.shape for frame in shown] == [(480, 640, 3)] * 3
    assert [round(float(frame.pixels.mean()) / 60) for frame in shown] == [0, 1, 2]
    assert shown[0].rate == pytest.approx(4)

    assert run_tool(*arguments, "--frames", "--output-dir", tmp_path / "frames").code == 0
    again, listed = read(tmp_path / "frames")
    assert again == results
    overlays = [image["overlay"] for image in listed["images"]]
    assert overlays == [f"overlays/clip/{index:06d}.jpg" for index in (0, 2, 4)]
    assert all((tmp_path / "frames" / name).is_file() for name in overlays)


def test_all_bad_inputs_are_one_message_before_anything_is_written(trained, tmp_path, run_tool):
    run, images = trained
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.png").write_text("not an image")
    (tmp_path / "no.mp4").write_text("not a video")
    inputs = [tmp_path / "empty", tmp_path / "no.png", tmp_path / "no.mp4", tmp_path / "gone.jpg"]
    done = run_tool(
        *("predict", "--run", run, "--input", images, *inputs, tmp_path / "*.tif"),
        *("--output-dir", tmp_path / "out"),
    )
    assert done.code == 1
    assert "Traceback" not in done.err
    for part in (
        "error: 5 problems in the inputs:",
        f"{tmp_path / 'empty'} holds no image and no video",
        f"{tmp_path / 'no.png'} cannot be read",
        f"{tmp_path / 'no.mp4'} does not decode: no frame",
        f"{tmp_path / 'gone.jpg'} is not there",
        f"{tmp_path / '*.tif'} matches no file",
    ):
        assert part in done.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run_and_one_that_holds_predictions_are_refused(
    trained, tmp_path, run_tool
):
    run, images = trained
    arguments = ["--input", images, "--output-dir", tmp_path / "out"]
    done = run_tool("predict", "--run", images, *arguments)
    assert done.code == 1
    assert "is not a run: it has no config.yaml and no run.json" in done.err
    copied = shutil.copytree(run, tmp_path / "run")
    facts = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps(facts | {"categories": []}))
    done = run_tool("predict", "--run", copied, *arguments)
    assert done.code == 1
    assert "--eval-only" in done.err
    (tmp_path / "out").mkdir()
    (tmp_path / "out/predictions.json").write_text("[]")
    done = run_tool("predict", "--run", run, *arguments)
    assert done.code == 1
    assert "holds predictions already" in done.err


@pytest.mark.detectron2
def test_a_run_of_one_engine_predicts_by_the_other(trained, tmp_path, run_tool):
    run, images = trained
    other = "torchvision" if "detectron2" in str(run) else "detectron2"
    arguments = ["predict", "--run", run, "--input", images / "3.png", "--output-dir"]
    assert run_tool(*arguments, tmp_path / "own").code == 0
    assert run_tool(*arguments, tmp_path / "other", "--engine", other).code == 0
    own, others = (next(read(tmp_path / name)) for name in ("own", "other"))
    assert [r["segmentation"] for r in own] == [r["segmentation"] for r in others]
    for ours, theirs in zip(own, others, strict=True):
        np.testing.assert_allclose(ours["bbox"], theirs["bbox"], atol=1e-4)
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_inputs_keep_their_order_come_once_and_other_files_are_counted(tmp_path, caplog):
    _, images = write_small_coco(tmp_path)
    (images / "deeper").mkdir()
    shutil.copy(images / "3.png", images / "deeper/3.png")
    (images / "notes.txt").write_text("")
    inputs = [str(images / "7.png"), str(images), str(images / "**/3.png")]
    found = [file.relative_to(images).as_posix() for file in find_files(inputs)]
    assert found == ["7.png", "12.png", "20.png", "3.png", "deeper/3.png"]
    assert "left out: 1 .txt" in caplog.text
    assert output_names(find_files(inputs)) == ["7", "12", "20", "3", "3_2"]


def test_tiles_of_a_run_that_was_trained_without(trained, tmp_path, run_tool):
    run, images = trained
    arguments = ["predict", "--run", run, "--input", images / "3.png", "--output-dir"]
    done = run_tool(*arguments, tmp_path / "tiles", "--tiles", "64,32")
    assert done.code == 0, done.err
    assert "was not trained on tiles" in done.err
    results, listed = read(tmp_path / "tiles")
    assert len(results) > 5  # DETECTIONS_PER_IMAGE, of each of two tiles
    assert [(image["width"], image["height"]) for image in listed["images"]] == [(80, 60)]
    for tiles in ("64,", "a", "64,b", "64,32,1"):
        assert run_tool(*arguments, tmp_path / "none", "--tiles", tiles).code == 2
    wrong = run_tool(*arguments, tmp_path / "none", "--tiles", "64,64")
    assert wrong.code == 1
    assert "INPUT.TILES.OVERLAP is 64" in wrong.err


def test_wrong_usage_is_exit_code_2_and_help_shows_commands(run_tool):
    assert run_tool("predict", "--run", "x").code == 2
    shown = run_tool("predict", "--help")
    assert shown.code == 0
    assert "python tools/predict.py --run runs/detector --input photos" in shown.out


def test_detections_are_labels_of_other_tools_that_come_back(trained, tmp_path, run_tool):
    run, images = trained
    out = tmp_path / "out"
    done = run_tool(
        *("predict", "--run", run, "--input", images, "--output-dir", out),
        *("--score-threshold", "0.0", "--format", "coco", "yolo", "labelme", "cvat", "masks"),
    )
    assert done.code == 0, done.err
    written = json.loads((out / "annotations.json").read_text())
    names = {image["id"]: image["file_name"] for image in written["images"]}
    expected = sorted(
        (names[one["image_id"]], one["segmentation"]["counts"])
        for one in written["annotations"]
        if one["area"]
    )
    assert expected
    for kind in ("yolo", "labelme", "cvat"):
        source = out / f"labels_{kind}" / ("labels" if kind == "yolo" else "")
        (builder,) = read_labels(source, kind, images).values()
        back = builder.tree()
        by_id = {image["id"]: image for image in back["images"]}
        found = []
        for one in back["annotations"]:
            image = by_id[one["image_id"]]
            rle = as_rle(one["segmentation"], image["height"], image["width"])
            counts = rle["counts"]
            text = counts if isinstance(counts, str) else counts.decode()
            found.append((image["file_name"], text))
        assert sorted(found) == expected
    assert len(list((out / "labels_masks/masks").iterdir())) == len(names)
