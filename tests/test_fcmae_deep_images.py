"""Pretraining on images of deep values and many bands: stated ranges, their record, pictures."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from backbones.weight_files import read_metadata
from fcmae.data import pretraining_samples
from fcmae.pretrain import pretrain
from fcmae.pretrain_options import PretrainOptions
from fcmae.visualize import HEADER, TITLES, _grid, to_pixels

GENERATOR = np.random.default_rng(0)


def write_bands(folder, high=4096, bands=5, images=4):
    folder.mkdir()
    for number in range(images):
        values = GENERATOR.integers(200, high, (40, 44, bands)).astype(np.uint16)
        tifffile.imwrite(
            folder / f"{number}.tif", values, photometric="minisblack", planarconfig="contig"
        )
    return folder


def options(folder, **changes):
    return PretrainOptions(
        model="convnextv2_atto", data=str(folder / "images"), output_dir=str(folder / "run"),
        in_chans=5, image_size=(32, 32), batch_size=2, max_steps=1, workers=0, decoder_dim=32,
        trackers=(), **changes,
    )  # fmt: skip


def test_a_stated_range_is_read_recorded_and_shown(tmp_path):
    write_bands(tmp_path / "images")
    stated = options(tmp_path, value_range=(0.0, 4095.0), show_bands=(5, 3, 1))
    metadata = read_metadata(pretrain(stated))
    assert json.loads(metadata["value_range"]) == [0, 4095]
    assert json.loads(metadata["show_bands"]) == [5, 3, 1]
    values = np.concatenate(
        [tifffile.imread(path).reshape(-1, 5) for path in (tmp_path / "images").iterdir()]
    )
    np.testing.assert_allclose(json.loads(metadata["mean"]), values.mean(0) / 4095, rtol=1e-5)
    (panel,) = (tmp_path / "run/reconstructions").glob("*.png")
    picture = np.asarray(Image.open(panel).convert("RGB"))[
        HEADER:118, :96
    ]  # of 32 pixels, three times as large
    assert picture.min() == 0
    assert picture.max() == 255


def test_values_beyond_the_stated_range_are_refused_before_training(tmp_path):
    write_bands(tmp_path / "images", high=5000)
    with pytest.raises(ValueError, match=r"\d\.tif: holds values .* beyond the 0 to 4095 of --v"):
        pretrain(options(tmp_path, value_range=(0.0, 4095.0)))
    assert not (tmp_path / "run/metrics.json").exists()


def test_nan_is_refused_before_training(tmp_path):
    write_bands(tmp_path / "images")
    values = np.full((40, 44, 5), np.nan, np.float32)
    tifffile.imwrite(
        tmp_path / "images/9.tif", values, photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(ValueError, match=r"9\.tif: holds NaN or infinite values"):
        pretrain(options(tmp_path))
    assert not (tmp_path / "run/metrics.json").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"value_range": (5.0, 5.0)}, "--value-range is 5 5; give LOW and HIGH"),
        ({"value_range": (5.0,)}, "--value-range is 5; give LOW and HIGH"),
        ({"show_bands": (6,)}, "--show-bands is 6; give one or three of the channels 1 to 5"),
        ({"show_bands": (1, 2)}, "--show-bands is 1 2; give one or three"),
    ],
)
def test_ranges_and_bands_that_cannot_be_are_told(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        options(tmp_path, **changes)


def test_images_of_several_depths_are_one_warning(tmp_path, caplog):
    write_bands(tmp_path / "images", bands=3, images=2)
    Image.new("RGB", (40, 40)).save(tmp_path / "images/a.png")
    pretraining_samples(str(tmp_path / "images"), (32, 32), 0.6)
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "2 of 16 bits such as" in said
    assert "1 of 8 bits such as" in said
    caplog.clear()
    pretraining_samples(str(tmp_path / "images"), (32, 32), 0.6, value_range=(0, 65535))
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_chosen_bands_are_shown():
    images = torch.arange(5.0).view(1, 5, 1, 1).expand(2, 5, 3, 4)
    shown = to_pixels(images, [0.0] * 5, [0.1] * 5, (5, 3, 1))
    assert shown[0, :, 0, 0].tolist() == pytest.approx([0.4, 0.2, 0.0])
    assert to_pixels(images, [0.0] * 5, [0.1] * 5, (4,))[1, :, 2, 3].tolist() == pytest.approx(
        [0.3] * 3
    )


@pytest.mark.parametrize("side", [32, 64, 224])
def test_titles_stand_whole_above_small_pictures(side):
    columns = [np.full((1, side, side, 3), 128, np.uint8)] * 3
    panel = np.asarray(_grid(columns).convert("L"))
    head = panel[:HEADER]
    assert (head[:, -1] == 255).all()  # no letter is cut off at the right edge
    left = [int(x) for x in np.flatnonzero((head < 128).any(axis=0))]
    words = 1 + sum(b - a > 20 for a, b in itertools.pairwise(left))
    assert words == len(TITLES)  # with a space between them
    assert (panel[HEADER:] == 128).sum() % side**2 == 0
