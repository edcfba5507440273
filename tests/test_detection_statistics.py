"""Mean and deviation of a detector's images: whose they are, and that they are said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from small_coco import small_coco, write_small_coco
from small_detector import small_config

from backbones.checkpoint import save_encoder
from backbones.convnext import build_convnext
from detection.dataset import load_dataset
from detection.run import run
from images.configured import with_statistics, with_weights_statistics
from images.display import stretched

IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
BANDS = {"INPUT.FORMAT": "raw", "MODEL.CONVNEXT.IN_CHANS": 4}


def statistics_of(changes, dataset=None, continues=False):
    config, origin = with_statistics(
        small_config(changes), dataset and dataset.image_paths(), continues
    )
    return config.MODEL.PIXEL_MEAN, config.MODEL.PIXEL_STD, config.INPUT.VALUE_RANGE, origin


def write_bands(folder):
    """The small data set with four bands of 12 bits in 16; its name, and all its pixels."""
    annotations, images = write_small_coco(folder)
    generator, pixels = np.random.default_rng(0), []
    for image in small_coco()["images"]:
        shape = (image["height"], image["width"], 4)
        values = generator.integers(100, [500, 1000, 2000, 4096], shape).astype(np.uint16)
        tifffile.imwrite(images / image["file_name"], values, photometric="minisblack",
                         planarconfig="contig")  # fmt: skip
        pixels.append(values.reshape(-1, 4))
    return f"json:{annotations}:{images}", np.concatenate(pixels)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Encoders of 3 and of 4 channels that tell their statistics."""
    folder = tmp_path_factory.mktemp("encoders")
    for channels in (3, 4):
        told = {
            "mean": json.dumps([0.1, 0.2, 0.3, 0.4][:channels]),
            "std": json.dumps([0.05, 0.06, 0.07, 0.08][:channels]),
        }
        if channels == 4:
            told["value_range"] = json.dumps([0, 4095])
            told["show_bands"] = json.dumps([4, 2, 1])
        encoder = build_convnext("convnextv2_atto", in_chans=channels)
        save_encoder(encoder, folder / f"{channels}.safetensors", told)
    return folder


def test_eight_bit_rgb_has_imagenets(data):
    dataset = load_dataset(data)
    assert statistics_of({}, dataset) == (*IMAGENET, [], "ImageNet")
    mean, std, _, _ = statistics_of({"INPUT.FORMAT": "BGR"}, dataset)
    assert (mean, std) == tuple(values[::-1] for values in IMAGENET)


def test_the_encoders_are_taken_in_the_order_of_the_channels(data, encoders):
    weights = {"MODEL.CONVNEXT.WEIGHTS": str(encoders / "3.safetensors")}
    mean, std, _, origin = statistics_of(weights, load_dataset(data))
    np.testing.assert_allclose(mean, [25.5, 51, 76.5])
    np.testing.assert_allclose(std, [12.75, 15.3, 17.85])
    assert origin == f"the encoder {encoders / '3.safetensors'}"
    mean, *_ = statistics_of(weights | {"INPUT.FORMAT": "BGR"}, load_dataset(data))
    np.testing.assert_allclose(mean, [76.5, 51, 25.5])


def test_the_configs_win_over_the_encoders(data, encoders):
    given = {
        "MODEL.CONVNEXT.WEIGHTS": str(encoders / "3.safetensors"),
        "MODEL.PIXEL_MEAN": [1.0, 2.0, 3.0],
        "MODEL.PIXEL_STD": [4.0, 5.0, 6.0],
    }
    found = statistics_of(given, load_dataset(data))
    assert found == ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [], "the config")


def test_deep_images_without_an_encoder_are_measured(tmp_path, caplog):
    name, pixels = write_bands(tmp_path)
    caplog.set_level("INFO")
    mean, std, _, origin = statistics_of(BANDS, load_dataset(name))
    np.testing.assert_allclose(mean, pixels.mean(0) / 65535 * 255, rtol=1e-5)
    np.testing.assert_allclose(std, pixels.std(0) / 65535 * 255, rtol=1e-5)
    assert origin == "measured over 4 of 4 images"
    assert "(measured over 4 of 4 images)" in caplog.text


def test_a_range_of_values_travels_with_the_encoders_statistics(tmp_path, encoders):
    name, _ = write_bands(tmp_path)
    changes = BANDS | {"MODEL.CONVNEXT.WEIGHTS": str(encoders / "4.safetensors")}
    *_, stated, _ = statistics_of(changes, load_dataset(name))
    assert stated == [0, 4095]
    *_, stated, _ = statistics_of(changes | {"INPUT.VALUE_RANGE": [0, 9999]}, load_dataset(name))
    assert stated == [0, 9999]


def test_encoders_of_other_channels_are_refused_before_training(data, encoders, tmp_path):
    config = small_config(
        {
            "MODEL.CONVNEXT.WEIGHTS": str(encoders / "4.safetensors"),
            "MODEL.ROI_HEADS.NUM_CLASSES": 0,
            "DATASETS.TRAIN": (data,),
            "OUTPUT_DIR": str(tmp_path / "run"),
        }
    )
    with pytest.raises(ValueError, match=r"4 channels|takes images of 4|in_chans"):
        run(config)
    assert not (tmp_path / "run/metrics.json").exists()


def test_a_run_of_deep_bands_records_and_keeps_its_statistics(tmp_path, encoders):
    """From an encoder of bands through training to evaluation by the run alone, and predictions."""
    from detection.predict import predict

    name, _ = write_bands(tmp_path)
    config = small_config(
        BANDS
        | {
            "MODEL.CONVNEXT.WEIGHTS": str(encoders / "4.safetensors"),
            "MODEL.ROI_HEADS.NUM_CLASSES": 0,
            "SOLVER.MAX_ITER": 1,
            "SOLVER.STEPS": (),
            "DATASETS.TRAIN": (name,),
            "DATASETS.TEST": (name,),
            "OUTPUT_DIR": str(tmp_path / "run"),
        }
    )
    run(config)
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["eight_bit_images"] is False
    assert facts["pixel_statistics"] == f"the encoder {encoders / '4.safetensors'}"
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "mean 25.5 51 76.5 102, deviation 12.75 15.3 17.85 20.4 of 0 to 255 (the encoder" in page
    unset = small_config(BANDS | {"OUTPUT_DIR": str(tmp_path / "run")})
    mean, _, stated, origin = statistics_of(
        BANDS | {"OUTPUT_DIR": str(tmp_path / "run")}, None, continues=True
    )
    np.testing.assert_allclose(mean, [25.5, 51, 76.5, 102])
    assert stated == [0, 4095]
    assert origin == str(tmp_path / "run/config.yaml")
    by_weights = BANDS | {"MODEL.WEIGHTS": str(tmp_path / "run/model_final.safetensors")}
    assert statistics_of(by_weights)[0] == mean
    assert not unset.MODEL.PIXEL_MEAN
    images = name.rpartition(":")[2]
    counts = predict(tmp_path / "run", [images], tmp_path / "out", score_threshold=1.0)
    assert counts["images"] == 4
    for overlay in (tmp_path / "out/overlays").iterdir():  # enlarged, for these are tiny
        values = tifffile.imread(next(Path(images).glob(f"{overlay.stem}.*")))
        drawn = np.asarray(Image.open(overlay).convert("RGB"))
        seen = cv2.resize(drawn, values.shape[1::-1], interpolation=cv2.INTER_AREA).astype(int)
        assert abs(seen - stretched(values[..., [3, 1, 0]])).mean() < 30  # of any others: 80


def test_bands_to_show_travel_from_what_a_run_goes_on_from(tmp_path, encoders, caplog):
    """Whoever tells mean and deviation; those of images of other channels say nothing."""

    def bands(changes, continues=False):
        config = small_config(BANDS | changes)
        return list(with_weights_statistics(config, continues)[0].INPUT.SHOW_BANDS)

    weights = {"MODEL.CONVNEXT.WEIGHTS": str(encoders / "4.safetensors")}
    given = {"MODEL.PIXEL_MEAN": [1.0] * 4, "MODEL.PIXEL_STD": [1.0] * 4}
    caplog.set_level("INFO")
    assert bands({}) == []
    assert bands(weights) == [4, 2, 1]
    assert f"INPUT.SHOW_BANDS [4, 2, 1] (the encoder {encoders / '4.safetensors'})" in caplog.text
    assert bands(weights | given) == [4, 2, 1]
    assert bands(weights | {"INPUT.SHOW_BANDS": [3]}) == [3]
    five = {"MODEL.CONVNEXT.IN_CHANS": 5, "MODEL.PIXEL_MEAN": [1.0] * 5}
    assert bands(weights | five | {"MODEL.PIXEL_STD": [1.0] * 5}) == []
    run = tmp_path / "run"
    run.mkdir()
    trained = small_config(BANDS | given | {"INPUT.SHOW_BANDS": [2, 3, 4]})
    (run / "config.yaml").write_text(trained.dump(), encoding="utf-8")
    (run / "model_final.pth").touch()
    assert bands(given | {"OUTPUT_DIR": str(run)}, continues=True) == [2, 3, 4]
    assert bands(given | {"MODEL.WEIGHTS": str(run / "no.pth")}) == [2, 3, 4]


def test_a_classifier_without_a_stated_range_gives_a_detector_its_statistics(tmp_path, data):
    """Its file says of what was not stated that it is null."""
    told = {"mean": "[0.1, 0.2, 0.3]", "std": "[0.1, 0.1, 0.1]"}
    told |= {"value_range": "null", "show_bands": "null"}
    save_encoder(build_convnext("convnextv2_atto"), tmp_path / "c.safetensors", told)
    weights = {"MODEL.CONVNEXT.WEIGHTS": str(tmp_path / "c.safetensors")}
    mean, _, stated, _ = statistics_of(weights, load_dataset(data))
    np.testing.assert_allclose(mean, [25.5, 51, 76.5])
    assert stated == []


@pytest.mark.detectron2
@pytest.mark.parametrize("frozen", [True, False])
def test_detectron2s_own_trainer_takes_the_encoders(encoders, frozen, tmp_path):
    from detectron2.engine import DefaultTrainer

    import backbones.d2_adapter  # noqa: F401 - registers the builders
    from detection.config import to_detectron2

    cfg = to_detectron2(small_config())
    cfg.MODEL.CONVNEXT.WEIGHTS = str(encoders / "3.safetensors")
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [], []
    cfg.freeze() if frozen else None
    model = DefaultTrainer.build_model(cfg)
    np.testing.assert_allclose(model.pixel_mean.flatten(), [25.5, 51, 76.5], rtol=1e-6)
    np.testing.assert_allclose(model.pixel_std.flatten(), [12.75, 15.3, 17.85], rtol=1e-6)
    assert cfg.is_frozen() is frozen
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")  # then evaluated
    cfg.defrost()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [], []
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    evaluated = DefaultTrainer.build_model(cfg)
    np.testing.assert_allclose(evaluated.pixel_mean.flatten(), [25.5, 51, 76.5], rtol=1e-6)


def test_an_export_of_deep_bands_takes_real_numbers():
    from detection.engines.torchvision.model import build_mask_rcnn
    from detection.export import detector_export

    given = {"MODEL.PIXEL_MEAN": [1.0] * 4, "MODEL.PIXEL_STD": [2.0] * 4}
    config = small_config(BANDS | given | {"INPUT.VALUE_RANGE": [0, 4095]})
    export = detector_export(config, build_mask_rcnn(config), ".onnx")
    assert export.inputs["images"].dtype == torch.float32
    assert export.inputs["images"].shape[1] == 4
    assert json.loads(export.metadata["value_range"]) == [0, 4095]


def test_random_weights_on_images_unlike_imagenets_are_warned_of(tmp_path, caplog):
    """And told the setting, by the keys that the config has."""

    def said(name, low, high, **changes):
        annotations, images = write_small_coco(tmp_path / name)
        generator = np.random.default_rng(0)
        for image in small_coco()["images"]:
            values = generator.integers(low, high, (image["height"], image["width"], 3))
            Image.fromarray(values.astype(np.uint8)).save(images / image["file_name"], "png")
        caplog.clear()
        mean, *_, origin = statistics_of(changes, load_dataset(f"json:{annotations}:{images}"))
        return origin, mean, caplog.text

    origin, mean, text = said("dark", 0, 25)
    assert (origin, mean) == ("ImageNet", pytest.approx(IMAGENET[0]))  # it is said, not changed
    assert "mean is 12 12 12 and their deviation 7 7 7" in text
    assert re.search(r"MODEL.PIXEL_MEAN \[1[12]\.\d, .*\] MODEL.PIXEL_STD \[7\.\d, ", text)
    assert "not like ImageNet's" not in said("usual", 0, 230)[2]
    own = {"MODEL.PIXEL_MEAN": [12.0] * 3, "MODEL.PIXEL_STD": [7.0] * 3}
    assert "not like ImageNet's" not in said("told", 0, 25, **own)[2]
