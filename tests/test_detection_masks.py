"""Masks within their boxes: the run lengths that pycocotools and detectron2 make of an image."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from detection.data.windows import decode_window, encode_strips
from detection.engines import masks as engine_masks
from detection.engines.masks import encode_masks, paste_masks


def by_pycocotools(mask):
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle | {"counts": rle["counts"].decode()}


@given(
    arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.booleans()),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(1, 9),
)
def test_strips_of_a_window_are_encoded_as_the_whole_image(inside, above, below, left, right, wide):
    image = np.pad(inside, ((above, below), (left, right)))
    strips = [
        (inside[:, first : first + wide], left + first) for first in range(0, inside.shape[1], wide)
    ]
    assert encode_strips(strips, above, *image.shape) == by_pycocotools(image)


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.booleans()))
def test_a_decoded_window_is_the_part_of_the_image_that_is_set(image):
    for rle in (by_pycocotools(image), mask_util.encode(np.asfortranarray(image, np.uint8))):
        window, (x, y) = decode_window(rle)
        again = np.zeros_like(image)
        again[y : y + window.shape[0], x : x + window.shape[1]] = window
        assert np.array_equal(again, image)
        assert not window.size or (window.any(0).all() or window.any())


def random_detections(seed, count, height, width):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([width, height])
    boxes = torch.cat((corners.amin(1), corners.amax(1)), 1)
    boxes[0] = torch.tensor([0.0, 0.0, width, height])
    return torch.rand(count, 28, 28, generator=generator), boxes


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([(37, 53), (90, 20), (1, 64)]))
def test_encoded_masks_are_the_pasted_ones_bit_for_bit(seed, size):
    masks, boxes = random_detections(seed, 6, *size)
    expected = [by_pycocotools(mask.numpy()) for mask in paste_masks(masks, boxes, size)]
    before = engine_masks.STRIP_PIXELS
    try:
        for engine_masks.STRIP_PIXELS in (before, 64, 1):
            assert encode_masks(masks, boxes, size) == expected
    finally:
        engine_masks.STRIP_PIXELS = before


@pytest.mark.detectron2
def test_detectron2s_pasting_gives_the_same_run_lengths():
    layers = pytest.importorskip("detectron2.layers")
    size = (211, 307)
    masks, boxes = random_detections(3, 40, *size)
    pasted = layers.paste_masks_in_image(masks, boxes, size)
    assert encode_masks(masks, boxes, size) == [by_pycocotools(mask.numpy()) for mask in pasted]


def test_memory_does_not_grow_with_the_number_of_detections():
    """Fifty masks of a whole image: pasted together they would be 50 times its pixels."""
    tracemalloc = pytest.importorskip("tracemalloc")
    size = (600, 800)
    masks, boxes = random_detections(0, 1, *size)
    tracemalloc.start()  # numpy's arrays; torch's parts are no larger
    encode_masks(masks.expand(50, -1, -1), boxes.expand(50, -1), size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * size[0] * size[1]
