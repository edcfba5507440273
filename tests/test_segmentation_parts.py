"""Class maps of large images: part by part what the whole gives, in bounded memory."""

import tracemalloc

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from images.files import Reading
from images.picture import picture_of
from images.png_writer import GreyPngWriter
from images.windows import Windows, open_windows
from segmentation import parts
from segmentation.config import load_config
from segmentation.inference import segment


class Local(torch.nn.Module):
    """Classes that depend on a pixel's own value alone."""

    def forward(self, inputs):
        image = inputs[0]["image"].float()
        return [torch.stack([100 - image[0], image[0], 50 + image[1] / 2])]


def options(*settings):
    return load_config("quick/upernet_convnextv2_atto_scratch_quick.yaml", list(map(str, settings)))


def image_of(height, width):
    values = np.random.default_rng(0).integers(0, 101, (height, width, 3)).astype(np.uint8)
    return Windows(picture_of(values), Reading(3)), values


def test_tiles_of_a_large_image_join_without_a_seam(monkeypatch):
    for name, value in (("WHOLE", 100), ("TILE", 32), ("MARGIN", 8)):
        monkeypatch.setattr(parts, name, value)
    image, values = image_of(75, 110)
    config = options("TEST.SCALE", [0, 0])
    found = np.concatenate(list(parts.class_bands(Local(), image, config)))
    scores = np.stack([100.0 - values[..., 0], values[..., 0], 50 + values[..., 1] / 2])
    assert np.array_equal(found, scores.argmax(0))


@pytest.mark.parametrize("more", [[], ["TEST.AUG.FLIP", True, "TEST.AUG.SCALES", [0.5, 1.0]]])
def test_scores_brought_to_the_images_size_by_rows_are_those_of_the_whole(monkeypatch, more):
    config = options("TEST.SCALE", [48, 32], *more)
    image, values = image_of(75, 110)
    whole = segment(Local(), values, parts.inference_options(config)).argmax(0).numpy()
    monkeypatch.setattr(parts, "WHOLE", 100)
    monkeypatch.setattr(parts, "SCORES", 3 * 110 * 7)  # seven rows at a time
    bands = list(parts.class_bands(Local(), image, config))
    assert [len(band) for band in bands] == [7] * 10 + [5]
    found = np.concatenate(bands)
    assert (found != whole).mean() < 1e-3  # near ties


def test_memory_of_a_map_does_not_grow_with_the_image(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "TILE", 512)
    peaks = []
    for side in (2560, 5120):
        path = tmp_path / f"{side}.tif"
        tile = np.full((512, 512, 3), 60, np.uint8)
        tiles = (tile for _ in range((side // 512) ** 2))
        tifffile.imwrite(
            path, tiles, shape=(side, side, 3), dtype=np.uint8, tile=(512, 512),
            compression="zlib", photometric="rgb",
        )  # fmt: skip
        monkeypatch.setattr("images.decoders.tiff_segments.KEPT", 2**23)
        tracemalloc.start()
        with (
            open_windows(path, Reading(3)) as image,
            GreyPngWriter(tmp_path / "map.png", side, side) as writer,
        ):
            for band in parts.class_bands(Local(), image, options("TEST.SCALE", [0, 0])):
                writer.write(band)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    with Image.open(tmp_path / "map.png") as written:
        assert written.size == (5120, 5120)
        assert written.getextrema() == (2, 2)
    assert peaks[1] < 1.4 * peaks[0]
    assert peaks[1] < 5120**2


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_a_png_written_by_rows_is_read_as_it_was(tmp_path, rows):
    values = np.random.default_rng(0).integers(0, 256, (40, 33)).astype(np.uint8)
    with GreyPngWriter(tmp_path / "a.png", 40, 33) as writer:
        for top in range(0, 40, rows):
            writer.write(values[top : top + rows])
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), values)
