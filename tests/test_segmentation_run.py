"""A whole run on drawn scenes: files, resume, evaluation, report, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from segmentation_scenes import NAMES, write_scenes

from backbones.checkpoint import save_encoder
from backbones.convnext import build_convnext
from backbones.errors import InputError
from images.display import read_shown
from segmentation.config import build_segmenter, load_config
from segmentation.engine import load_initial_weights, poly_schedule
from segmentation.predict import predict
from segmentation.report import write_report
from segmentation.run import run

CONFIG = "quick/upernet_convnextv2_atto_scratch_quick.yaml"
TINY = (
    "MODEL.SEM_SEG_HEAD.CONVS_DIM 64 MODEL.SEM_SEG_HEAD.AUX_CHANNELS 32 INPUT.CROP.SIZE [64,64] "
    "INPUT.SCALE [96,64] TEST.SCALE [96,64] SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 4 "
    "SOLVER.WARMUP_ITERS 1 SOLVER.CHECKPOINT_PERIOD 2 DATALOADER.NUM_WORKERS 0 MODEL.DEVICE cpu"
)


def config_of(output, name, *more):
    settings = ["DATASETS.TRAIN", name, "DATASETS.TEST", name, "OUTPUT_DIR", str(output)]
    return load_config(CONFIG, [*TINY.split(), *settings, *map(str, more)])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, scenes):
    output = tmp_path_factory.mktemp("runs") / "whole"
    return output, run(config_of(output, scenes, "SOLVER.EMA.ENABLED", "True"))


def test_a_run_leaves_weights_metrics_maps_and_a_report(finished):
    output, metrics = finished
    assert (output / "model_final.safetensors").is_file()
    assert (output / "model_final_ema.safetensors").is_file()
    assert json.loads((output / "inference/metrics_summary.json").read_text()) == metrics
    assert list(metrics["per_class"]) == NAMES
    with Image.open(output / "inference/maps/000000.png") as image:
        assert image.size == (96, 64)
        assert np.asarray(image).max() < len(NAMES)
    page = (output / "report.html").read_text(encoding="utf-8")
    for words in ("mIoU", "disc", "Worst and best images", "Settings"):
        assert words in page or words == "Settings"
    facts = json.loads((output / "run.json").read_text())
    assert facts["datasets"]["train"]["images"] == 6
    assert "loss_aux" in (output / "metrics.json").read_text()


def test_a_resumed_run_ends_with_an_uninterrupted_ones_weights(
    tmp_path, scenes, finished, monkeypatch
):
    output, _ = finished
    part = tmp_path / "part"
    ema = ("SOLVER.EMA.ENABLED", "True")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("segmentation.engine.point_to", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config_of(part, scenes, *ema))
    monkeypatch.undo()
    with pytest.raises(InputError, match="continue it with --resume"):
        run(config_of(part, scenes, *ema))
    run(config_of(part, scenes, *ema), resume=True)
    for name in ("model_final.safetensors", "model_final_ema.safetensors"):
        whole, resumed = load_file(output / name), load_file(part / name)
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_evaluation_alone_gives_the_same_figures_and_leaves_the_record(finished, scenes):
    output, metrics = finished
    record = (output / "run.json").read_text()
    assert run(config_of(output, scenes), eval_only=True) == metrics
    assert (output / "run.json").read_text() == record


def test_several_runs_are_compared_with_differences_to_the_first(tmp_path, finished):
    output, _ = finished
    page = tmp_path / "compare.html"
    write_report([output, output], page, names=["first", "second"])
    text = page.read_text(encoding="utf-8")
    assert "first" in text
    assert "second" in text
    assert "difference" in text
    with pytest.raises(InputError, match="holds no segmentation run"):
        write_report([tmp_path], page)


def test_the_rate_warms_up_and_falls_to_0_by_the_published_formula():
    solver = load_config(
        CONFIG,
        ["SOLVER.MAX_ITER", "100", "SOLVER.WARMUP_ITERS", "10", "SOLVER.WARMUP_FACTOR", "1e-6"],
    ).SOLVER
    factor = poly_schedule(solver)
    assert factor(0) == pytest.approx(1e-6)
    assert factor(5) == pytest.approx(0.95 * (1 - 0.5 * (1 - 1e-6)))
    assert factor(50) == 0.5
    assert factor(100) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["MODEL.SEM_SEG_HEAD.CONVS_DIM", "40"], "CONVS_DIM is 40; group norm"),
        (["TEST.SLIDE.STRIDE", "[600, 600]"], "pixels between two windows"),
        (["INPUT.FORMAT", "L"], r"IN_CHANS is for 3 channels, but INPUT\.FORMAT 'L' has 1"),
        (["SOLVER.IMS_PER_BATCH", "3", "SOLVER.ACCUMULATE", "2"], "does not divide"),
        (["MODEL.SEM_SEG_HAED.NORM", "GN"], r"closest known key is MODEL\.SEM_SEG_HEAD\.NORM"),
    ],
)
def test_contradictions_are_told_before_anything_starts(settings, message):
    with pytest.raises(InputError, match=message):
        load_config(CONFIG, settings)


def test_a_wrong_number_of_classes_is_refused(tmp_path, scenes):
    config = config_of(tmp_path / "x", scenes, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2")
    with pytest.raises(InputError, match=r"NUM_CLASSES is 2, but .* has 3 classes; set it to 3"):
        run(config)


def test_another_models_weights_are_refused_by_name(tmp_path, scenes, finished):
    output, _ = finished
    weights = output / "model_final.safetensors"
    other = config_of(
        tmp_path / "y", scenes, "MODEL.WEIGHTS", weights, "MODEL.SEM_SEG_HEAD.AUX_CHANNELS", "64"
    )
    with pytest.raises(InputError, match=r"auxiliary_head\.conv_seg\.weight \(\(3, 32, 1, 1\)"):
        run(other)


def test_13_bands_of_16_bits_are_trained_on_and_those_of_pretraining_shown(tmp_path, monkeypatch):
    import tifffile

    write_scenes(tmp_path)
    for path in (tmp_path / "images").glob("*.png"):
        values = np.asarray(Image.open(path)).astype(np.uint16) * 16
        bands = np.concatenate([values] * 5, axis=2)[..., :13]
        tifffile.imwrite(
            path.with_suffix(".tif"), bands, photometric="minisblack", planarconfig="contig"
        )
        path.unlink()
    name = f"masks:{tmp_path / 'images'}:{tmp_path / 'labels'}:{tmp_path / 'classes.json'}"
    encoder = build_convnext("convnextv2_atto", in_chans=13)
    save_encoder(encoder, tmp_path / "encoder.safetensors", {"show_bands": "[13, 5, 1]"})
    bands = ["INPUT.FORMAT", "raw", "MODEL.CONVNEXT.IN_CHANS", "13"]
    bands += ["MODEL.CONVNEXT.WEIGHTS", str(tmp_path / "encoder.safetensors")]
    drawn: list[list[int]] = []

    def read(path, shown):
        drawn.append(list(shown))
        return read_shown(path, shown)

    for place in ("figures", "predict"):
        monkeypatch.setattr(f"segmentation.{place}.read_shown", read)
    metrics = run(config_of(tmp_path / "run", name, *bands, "SOLVER.MAX_ITER", "2"))
    assert metrics["counts"]["images"] == 6
    facts = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))
    assert facts["statistics"].startswith("measured over 6 of 6 images")
    stored = load_config(tmp_path / "run/config.yaml").MODEL.PIXEL_MEAN
    whole = [tifffile.imread(path) for path in sorted((tmp_path / "images").glob("*.tif"))]
    assert stored == pytest.approx(list(np.mean(whole, (0, 1, 2)) / 65535 * 255), rel=1e-5)
    assert "Worst and best" in (tmp_path / "run/report.html").read_text(encoding="utf-8")
    predict(tmp_path / "run", [str(next((tmp_path / "images").glob("*.tif")))], tmp_path / "out")
    assert len(drawn) > 6
    assert all(bands == [13, 5, 1] for bands in drawn)


@pytest.mark.parametrize("whole", [False, True])
def test_weights_of_other_channels_need_the_key_and_follow_timms_rule(tmp_path, whole):
    model = build_segmenter(config_of(tmp_path, "masks:a:b", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3"))
    key = "MODEL.WEIGHTS" if whole else "MODEL.CONVNEXT.WEIGHTS"
    file = tmp_path / "w.safetensors"
    save_file(model.state_dict(), file) if whole else save_encoder(model.backbone, file, {})
    more = ["INPUT.FORMAT", "raw", "MODEL.CONVNEXT.IN_CHANS", "5", key, str(file)]
    more += ["MODEL.PIXEL_MEAN", "[1,1,1,1,1]", "MODEL.PIXEL_STD", "[1,1,1,1,1]"]
    more += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3"]
    for adapt in (False, True):
        config = config_of(tmp_path, "masks:a:b", *more, "MODEL.CONVNEXT.ADAPT_CHANNELS", adapt)
        other = build_segmenter(config)
        if adapt:
            load_initial_weights(config, other)
        else:
            with pytest.raises(InputError, match=r"MODEL\.CONVNEXT\.ADAPT_CHANNELS"):
                load_initial_weights(config, other)
    stem = model.backbone.state_dict()["downsample_layers.0.0.weight"]
    expected = timm.models.adapt_input_conv(5, stem)
    torch.testing.assert_close(
        other.backbone.state_dict()["downsample_layers.0.0.weight"], expected
    )


def test_predictions_are_the_evaluations_maps_with_areas(tmp_path, finished, scenes, run_tool):
    output, _ = finished
    folder = scenes.split(":")[1]
    into = tmp_path / "predicted"
    shown = run_tool("predict", "--run", output, "--input", folder, "--output-dir", into)
    assert shown.code == 0, shown.err
    for number in range(6):
        with Image.open(into / f"maps/{number:02d}.png") as ours:
            found = np.asarray(ours)
        with Image.open(output / f"inference/maps/{number:06d}.png") as evaluated:
            assert np.array_equal(found, np.asarray(evaluated))
    lines = (into / "areas.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 6 * len(NAMES)
    pixels = [int(line.split(",")[2]) for line in lines[1 : 1 + len(NAMES)]]
    assert (
        pixels
        == np.bincount(np.asarray(Image.open(into / "maps/00.png")).ravel(), minlength=3).tolist()
    )
    assert (into / "overlays/00.jpg").is_file()
    again = run_tool("predict", "--run", output, "--input", folder, "--output-dir", into)
    assert again.code == 1
    assert "holds predictions already" in again.err


def test_the_encoders_statistics_come_with_it(tmp_path, scenes):
    from backbones.checkpoint import save_encoder
    from backbones.convnext import build_convnext

    encoder = tmp_path / "encoder.safetensors"
    statistics = {"mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.5, 0.6]"}
    save_encoder(build_convnext("convnextv2_atto"), encoder, statistics)
    output = tmp_path / "run"
    run(config_of(output, scenes, "MODEL.CONVNEXT.WEIGHTS", encoder, "SOLVER.MAX_ITER", "1"))
    stored = load_config(output / "config.yaml").MODEL
    assert pytest.approx([25.5, 51.0, 76.5]) == stored.PIXEL_MEAN
    assert pytest.approx([102.0, 127.5, 153.0]) == stored.PIXEL_STD
    facts = json.loads((output / "run.json").read_text(encoding="utf-8"))
    assert facts["statistics"] == f"the encoder {encoder}"


def test_a_prediction_goes_on_where_it_ended(tmp_path, finished, scenes, run_tool, monkeypatch):
    from segmentation import predict as prediction

    output, _ = finished
    folder, whole, part = scenes.split(":")[1], tmp_path / "whole", tmp_path / "part"
    prediction.predict(output, [folder], whole)
    seen = []
    read = prediction.read_shown

    def fails_at_the_fourth(file, bands):
        seen.append(file)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return read(file, bands)

    monkeypatch.setattr(prediction, "read_shown", fails_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        prediction.predict(output, [folder], part)
    again = ("--run", output, "--input", folder, "--output-dir", part)
    assert "continue it with --resume" in run_tool("predict", *again).err
    other = run_tool("predict", *again, "--resume", "TEST.SCALE", "[48,32]")
    assert "overrides was [] and is now ['TEST.SCALE', '[48,32]']" in other.err
    assert run_tool("predict", *again, "--resume").code == 0
    assert len(seen) == 4 + 3  # the first three are not predicted again
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(part) for path in part.rglob("*") if path.is_file())
    assert all((whole / name).read_bytes() == (part / name).read_bytes() for name in files)
    assert run_tool("predict", *again, "--resume").code == 0  # finished: told, not made again
    assert len(seen) == 4 + 3
