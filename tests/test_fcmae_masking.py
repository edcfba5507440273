from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcmae.masking import (
    check_mask,
    grid_size,
    random_mask,
    upsample_mask,
    visible_count,
    visible_patches,
)


@given(patches=st.integers(1, 400), percent=st.integers(0, 99))
def test_visible_count_is_the_exact_floor_and_at_least_one(patches, percent):
    assert visible_count(patches, percent / 100) == max(1, patches * (100 - percent) // 100)


def test_visible_count_is_the_papers_at_224():
    assert visible_count(49, 0.6) == 19


@given(
    batch=st.integers(1, 4), rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0)
)
def test_every_image_has_the_same_number_of_visible_patches(batch, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed % 2**31)
    mask = random_mask(batch, (rows, columns), 0.6, generator)
    assert mask.dtype == torch.bool
    assert mask.shape == (batch, rows, columns)
    assert ((~mask).flatten(1).sum(1) == visible_count(rows * columns, 0.6)).all()


def test_each_patch_is_removed_as_often_as_the_ratio_says():
    generator = torch.Generator().manual_seed(0)
    share = random_mask(4000, (3, 5), 0.6, generator).float().mean(0)
    assert (share - 0.6).abs().max() < 0.04  # 5 standard deviations of 4000 draws


def test_mask_repeats_with_its_generator_and_differs_between_images():
    first = random_mask(8, (7, 7), 0.6, torch.Generator().manual_seed(3))
    again = random_mask(8, (7, 7), 0.6, torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    assert len({tuple(m.flatten().tolist()) for m in first}) == 8


def test_visible_patches_are_flat_row_major_indices_in_order():
    mask = torch.tensor([[[True, False], [False, True]], [[False, True], [True, False]]])
    assert visible_patches(mask).tolist() == [1, 2, 4, 7]


def test_unequal_visible_counts_are_refused_with_the_counts():
    mask = torch.tensor([[[True, False]], [[False, False]]])
    with pytest.raises(ValueError, match=r"same number of visible patches.*\[1, 2\]"):
        visible_patches(mask)


def test_upsampled_mask_covers_each_patch():
    mask = torch.tensor([[[True, False], [False, False]]])
    up = upsample_mask(mask, 3)
    assert up.shape == (1, 6, 6)
    assert up[0, :3, :3].all()
    assert up.sum() == 9


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((100, 96), "height is 100.*multiple of 32: use 96 or 128"),
        ((64, 225), "width is 225.*use 224 or 256"),
        ((0, 32), "height is 0.*use 32"),
    ],
)
def test_sizes_that_are_no_multiple_of_32_are_refused_with_the_nearest(size, message):
    with pytest.raises(ValueError, match=message):
        grid_size(*size)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5])
def test_mask_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        visible_count(49, ratio)


def test_mask_that_does_not_fit_the_images_is_refused():
    images = torch.zeros(2, 3, 64, 96)
    check_mask(torch.zeros(2, 2, 3, dtype=torch.bool), images)
    with pytest.raises(ValueError, match=r"must be torch.bool \[2, 2, 3\]"):
        check_mask(torch.zeros(2, 3, 2, dtype=torch.bool), images)
    with pytest.raises(ValueError, match=r"torch.float32"):
        check_mask(torch.zeros(2, 2, 3), images)
