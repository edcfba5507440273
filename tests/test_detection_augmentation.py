"""Augmentation: equal to detectron2's draws, alike on both engines, right on known pixels."""

import colorsys

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_coco import small_coco
from test_detection_decode import write_bands
from test_detection_transforms import (
    PLAIN,
    assert_equal_to_detectron2,
    configured,
    rasterised,
    small,
)

from detection.config import load_config, to_detectron2
from detection.data.augmentation.checks import augmentation_words
from detection.data.augmentation.copy_paste import Objects, copy_paste, pasted, tight_boxes
from detection.data.augmentation.geometry import Flip, Turn, draw_crop, draw_transforms
from detection.data.augmentation.photometry import blurred, change_values, hue_turned, noisy
from detection.data.transforms import DetectionSamples, transformed_box, transformed_mask
from detection.dataset import load_dataset
from training.data import seed_cpu_generators

A = "INPUT.AUGMENTATION."
PASTE = {f"{A}COPY_PASTE.ENABLED": True}
VALUES = {f"{A}{name}": 0.4 for name in ("BRIGHTNESS", "CONTRAST", "BLUR", "NOISE")}
COLOURS = {f"{A}SATURATION": 0.6, f"{A}HUE": 0.2}
CROPS = [
    ("relative", [0.6, 0.9]),
    ("relative_range", [0.4, 0.5]),
    ("absolute", [30, 300]),
    ("absolute_range", [20, 45]),
]
RAW = {"INPUT.FORMAT": "raw"}


def crop(kind, size):
    return {"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": kind, "INPUT.CROP.SIZE": size}


def detectron2s(config):
    """A ``DatasetMapper`` with detectron2's own augmentations in the config's order."""
    from detectron2 import data
    from detectron2.data import transforms as T

    options, changes = config.INPUT, config.INPUT.AUGMENTATION
    flips = {
        "none": [],
        "horizontal": [T.RandomFlip()],
        "vertical": [T.RandomFlip(horizontal=False, vertical=True)],
        "both": [T.RandomFlip(), T.RandomFlip(horizontal=False, vertical=True)],
    }[options.RANDOM_FLIP]
    steps = [T.ResizeShortestEdge(options.MIN_SIZE_TRAIN, options.MAX_SIZE_TRAIN, "choice"), *flips]
    if options.CROP.ENABLED:
        steps.insert(0, T.RandomCrop(options.CROP.TYPE, options.CROP.SIZE))
    if changes.ROTATE_90:
        steps.append(T.RandomRotation([0, 90, 180, 270], sample_style="choice"))
    for limit, kind in (
        (changes.BRIGHTNESS, T.RandomBrightness),
        (changes.CONTRAST, T.RandomContrast),
        (changes.SATURATION, T.RandomSaturation),
    ):
        if limit:
            steps.append(kind(1 - limit, 1 + limit))
    return data.DatasetMapper(
        is_train=True,
        augmentations=steps,
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
        recompute_boxes=options.CROP.ENABLED,
    )


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "changes",
    [
        *(crop(*each) for each in CROPS),
        {"INPUT.RANDOM_FLIP": "both"},
        {f"{A}ROTATE_90": True},
        {f"{A}BRIGHTNESS": 0.5},
        {f"{A}CONTRAST": 0.5},
        {f"{A}SATURATION": 0.9},
        {
            **crop(*CROPS[1]),
            "INPUT.RANDOM_FLIP": "both",
            f"{A}ROTATE_90": True,
            f"{A}BRIGHTNESS": 0.3,
            f"{A}CONTRAST": 0.3,
            f"{A}SATURATION": 0.3,
        },
    ],
    ids=[*(kind for kind, _ in CROPS), "both", "turn", "brightness", "contrast", "satur", "all"],
)
def test_samples_equal_detectron2s_own_augmentations_for_the_same_draws(tmp_path, changes):
    config = configured({**PLAIN, **changes})
    dataset = small(tmp_path, rasterised(small_coco()))
    samples, mapper = DetectionSamples(dataset, config, training=True), detectron2s(config)
    plain = set()
    for seed in range(10):
        for index, record in enumerate(samples.records):
            np.random.seed(seed)  # noqa: NPY002
            sample = samples[index]
            np.random.seed(seed)  # noqa: NPY002
            assert_equal_to_detectron2(sample, mapper(record))
            plain.add(np.asarray(sample["image"]).tobytes())
    assert len(plain) > 20


@pytest.mark.detectron2
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_changes_of_deep_values_are_detectron2s_cut_off_at_black_and_white(bands):
    from detectron2.data import transforms as T

    image = np.random.default_rng(0).random((20, 30, bands)).astype(np.float32)
    kinds = [("BRIGHTNESS", T.RandomBrightness), ("CONTRAST", T.RandomContrast)]
    form = {1: "L", 3: "RGB", 4: "raw"}[bands]
    if bands == 3:
        kinds.append(("SATURATION", T.RandomSaturation))
    for name, kind in kinds:
        config = configured({"INPUT.FORMAT": form, f"{A}{name}": 0.8})
        for seed in range(5):
            np.random.seed(seed)  # noqa: NPY002
            found = change_values(image, config)
            np.random.seed(seed)  # noqa: NPY002
            if name == "CONTRAST" and bands == 4:  # each band around its own mean
                weight = np.random.uniform(0.2, 1.8)  # noqa: NPY002
                expected = image.mean((0, 1)) * (1 - weight) + image * weight
            else:
                expected = kind(0.2, 1.8).get_transform(image).apply_image(image)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected.clip(0, 1), atol=1e-6)


@pytest.mark.detectron2
@pytest.mark.parametrize("jitter", [False, True], ids=["sizes", "jitter"])
@pytest.mark.parametrize(("bands", "dtype"), [(3, np.uint8), (1, np.uint8), (4, np.float32),
                                              (13, np.uint16)])  # fmt: skip
def test_both_engines_draw_the_same_of_everything(tmp_path, bands, dtype, jitter):
    from detection.engines.detectron2.data import Mapper, _SeededRecords

    form = {1: {"INPUT.FORMAT": "L"}, 3: COLOURS}.get(bands, RAW)
    changes = {**PLAIN, **form, **VALUES, **PASTE, "MODEL.CONVNEXT.IN_CHANS": bands,
               "INPUT.RANDOM_FLIP": "both", f"{A}ROTATE_90": True,
               "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False}  # fmt: skip
    changes |= {"INPUT.LSJ.ENABLED": True, "INPUT.LSJ.SIZE": 48} if jitter else crop(*CROPS[1])
    if dtype == np.float32:
        changes["INPUT.VALUE_RANGE"] = [0.0, 1.0]
    if bands != 3:
        changes |= {"MODEL.PIXEL_MEAN": [100.0] * bands, "MODEL.PIXEL_STD": [50.0] * bands}
    dataset = small(tmp_path) if bands == 3 else load_dataset(write_bands(tmp_path, bands, dtype))
    config = configured(changes)
    ours = DetectionSamples(dataset, config, training=True)
    theirs = _SeededRecords(ours.records, Mapper(to_detectron2(config), is_train=True), seed=5)
    counts = set()
    for epoch in range(6):
        for index in range(len(ours)):
            seed_cpu_generators(5, 0, epoch, index)
            sample, expected = ours[index], theirs[epoch, index]
            assert sample["image"].dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
            assert sample["image"].shape[0] == bands
            assert_equal_to_detectron2(sample, expected)
            counts.add(len(sample["labels"]))
    assert len(counts) > 2  # objects came and went


def marked(height, width, y, x):
    image = np.zeros((height, width, 2), np.uint8)
    image[y, x] = 1
    return image


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_turn_moves_each_pixels_box_with_it_and_four_turns_are_none(height, width, data):
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    image = marked(height, width, y, x)
    for quarters in (1, 2, 3):
        turn = Turn(quarters, height, width)
        moved = turn.pixels(image, Image.Resampling.NEAREST)
        ((row, column),) = np.argwhere(moved[:, :, 1])
        corners = np.array([[x, y], [x + 1, y + 1]], float)
        assert np.sort(turn.points(corners), axis=0).tolist() == [
            [column, row],
            [column + 1, row + 1],
        ]
    turned, points = image, np.array([[x, y]], float)
    for _ in range(4):
        turn = Turn(1, *turned.shape[:2])
        turned, points = turn.pixels(turned, Image.Resampling.NEAREST), turn.points(points)
    assert np.array_equal(turned, image)
    assert points.tolist() == [[x, y]]
    assert Turn(1, 3, 4).points(np.array([[4.0, 0.0]])).tolist() == [[0.0, 0.0]]  # to the left


def test_both_flips_are_half_a_turn():
    image = np.random.default_rng(0).random((5, 7, 3))
    flipped = Flip(1, 5).pixels(Flip(0, 7).pixels(image, 0), 0)
    assert np.array_equal(flipped, Turn(2, 5, 7).pixels(image, 0))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, *CROPS]))
def test_boxes_and_masks_move_with_the_pixels_of_any_geometry(seed, cropped):
    """A bright rectangle: its pixels, its mask, its polygon and its box stay together."""
    np.random.seed(seed)  # noqa: NPY002
    generator = np.random.default_rng(seed)
    height, width = (int(side) for side in generator.integers(60, 120, 2))
    x0, y0 = generator.integers(0, width - 30), generator.integers(0, height - 30)
    w, h = generator.integers(20, width - x0), generator.integers(20, height - y0)
    image = np.zeros((height, width, 3), np.uint8)
    image[y0 : y0 + h, x0 : x0 + w] = 255
    changes = crop(*cropped) if cropped else {}
    options = configured({**PLAIN, "INPUT.RANDOM_FLIP": "both", f"{A}ROTATE_90": True, **changes})
    transforms = draw_transforms(options.INPUT, height, width, training=True)
    rle = mask_util.encode(np.asfortranarray(image[:, :, 0] // 255))
    for transform in transforms:
        image = transform.pixels(image, Image.Resampling.BILINEAR)
    size = image.shape[:2]
    polygon = [[float(v) for v in (x0, y0, x0 + w, y0, x0 + w, y0 + h, x0, y0 + h)]]
    box = transformed_box([x0, y0, w, h], transforms, *size)
    seen = tight_boxes(torch.from_numpy(image[None, :, :, 0] > 127))[0].numpy()
    for segmentation in (rle, polygon):
        mask = transformed_mask(segmentation, transforms, *size)
        if min(box[2] - box[0], box[3] - box[1]) > 2:
            tight = tight_boxes(torch.from_numpy(mask.copy())[None])[0].numpy()
            assert np.abs(tight - box).max() <= 1.01
            assert np.abs(tight - seen).max() <= 1.01


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(CROPS), st.integers(0, 99))
def test_a_crop_lies_within_the_image_and_keeps_a_pixel(height, width, cropped, seed):
    np.random.seed(seed)  # noqa: NPY002
    found = draw_crop(*cropped, height, width)
    assert found.x >= 0
    assert found.y >= 0
    assert 1 <= found.height <= height - found.y
    assert 1 <= found.width <= width - found.x


@pytest.mark.parametrize("bands", [1, 3, 4, 13])
@pytest.mark.parametrize("name", ["BRIGHTNESS", "CONTRAST", "BLUR"])
def test_8_bits_and_floats_are_changed_alike(bands, name):
    image = np.random.default_rng(0).integers(0, 256, (24, 20, bands), dtype=np.uint8)
    form = {1: "L", 3: "RGB"}.get(bands, "raw")
    config = configured({"INPUT.FORMAT": form, f"{A}{name}": 0.9})
    for seed in range(4):
        np.random.seed(seed)  # noqa: NPY002
        found = change_values(image, config)
        np.random.seed(seed)  # noqa: NPY002
        deep = change_values(image.astype(np.float32) / 255, config)
        assert (found.dtype, deep.dtype) == (np.uint8, np.float32)
        assert np.abs(found - 255 * deep).max() <= 1.001
        assert np.abs(found - image.astype(float)).max() >= 2


def test_contrast_keeps_the_mean_of_each_band_and_brightness_multiplies():
    """A bright and a dark band: with the mean of both, the dark one would light up."""
    image = np.empty((16, 16, 4), np.float32)
    image[...] = np.array([0.8, 0.02, 0.5, 0.3]) + np.tile([0.01, -0.01], (16, 8))[..., None]
    np.random.seed(0)  # noqa: NPY002
    found = change_values(image, configured(RAW | {f"{A}CONTRAST": 0.5}))
    np.testing.assert_allclose(found.mean((0, 1)), image.mean((0, 1)), atol=1e-6)
    ratio = found.std((0, 1)) / image.std((0, 1))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    assert abs(ratio[0] - 1) > 0.01
    found = change_values(image, configured(RAW | {f"{A}BRIGHTNESS": 0.2}))
    np.testing.assert_allclose(found / image, (found / image)[0, 0, 0], rtol=1e-5)


@pytest.mark.parametrize("form", ["RGB", "BGR"])
def test_saturation_and_hue_are_of_the_colours_in_either_order(form):
    rgb = np.random.default_rng(0).random((6, 7, 3)).astype(np.float32)
    image = rgb[:, :, ::-1] if form == "BGR" else rgb
    for name in ("SATURATION", "HUE"):
        np.random.seed(3)  # noqa: NPY002
        found = change_values(image, configured({"INPUT.FORMAT": form, f"{A}{name}": 0.3}))
        np.random.seed(3)  # noqa: NPY002
        expected = change_values(rgb, configured({f"{A}{name}": 0.3}))
        ordered = found[:, :, ::-1] if form == "BGR" else found
        np.testing.assert_allclose(ordered, expected, atol=1e-6)
        luma = np.array([0.299, 0.587, 0.114])
        if name == "SATURATION":
            inside = ((expected > 0) & (expected < 1)).all(2)
            np.testing.assert_allclose((expected @ luma)[inside], (rgb @ luma)[inside], atol=1e-6)


@pytest.mark.parametrize("turns", [-0.4, 0.0, 0.25, 0.5])
def test_a_hue_turns_as_pythons_own_colours_do(turns):
    image = np.random.default_rng(0).random((4, 5, 3)).astype(np.float32)
    found = hue_turned(image, turns)
    for pixel, turned in zip(image.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*pixel.tolist())
        np.testing.assert_allclose(turned, colorsys.hsv_to_rgb((h + turns) % 1, s, v), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_blur_keeps_flat_images_and_sums_and_reaches_as_far_as_its_deviation(dtype):
    white = 255 if dtype == np.uint8 else 1
    flat = np.full((9, 12, 5), white, dtype)
    assert np.array_equal(blurred(flat, 2.0), flat)
    image = np.zeros((41, 41, 13), np.float32)
    image[20, 20] = 1
    spread = blurred(image, 2.0)
    np.testing.assert_allclose(spread.sum((0, 1)), 1, rtol=1e-3)
    rows = np.arange(41) - 20
    np.testing.assert_allclose((spread.sum(1) * rows[:, None] ** 2).sum(0), 4, rtol=0.01)
    assert np.array_equal(blurred(image, 0.0), image)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_noise_has_its_deviation_in_every_band_and_no_bias(dtype):
    white = 255 if dtype == np.uint8 else 1
    image = np.full((200, 200, 4), white * 0.5, dtype)
    np.random.seed(0)  # noqa: NPY002
    noise = (noisy(image, 0.05).astype(float) - image) / white
    np.testing.assert_allclose(noise.std((0, 1)), 0.05, rtol=0.03)
    assert np.abs(noise.mean((0, 1))).max() < 0.001
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02
    assert noisy(np.full_like(image, white), 0.5).max() == white


def test_nothing_is_drawn_and_nothing_changed_where_all_is_off():
    image = np.zeros((3, 3, 3), np.uint8)
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert change_values(image, configured({})) is image
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def objects(generator, count, height, width, channels=3):
    """Disjoint random masks on noise."""
    owner = generator.integers(0, count + 1, (height // 4 + 1, width // 4 + 1))
    owner = owner.repeat(4, 0).repeat(4, 1)[:height, :width]
    masks = torch.from_numpy(np.arange(count)[:, None, None] == owner)
    image = torch.from_numpy(generator.integers(0, 256, (channels, height, width), dtype=np.uint8))
    return Objects(image, masks, torch.from_numpy(generator.integers(0, 9, count)))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(-60, 60),
    st.integers(-60, 60),
)
def test_pasted_pixels_are_the_sources_and_masks_share_none(seed, ours, theirs, x, y):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(8, 50, 4)
    target = objects(generator, ours, *sizes[:2])
    source = objects(generator, theirs, *sizes[2:])
    subset = torch.from_numpy(generator.random(theirs) < 0.6)
    found = pasted(target, source, subset, x, y)
    # a naive loop over pixels
    image, owner = target.image.clone(), np.full(sizes[:2], -1)
    for index, mask in enumerate(target.masks):
        owner[mask.numpy()] = index
    for row in range(sizes[2]):
        for column in range(sizes[3]):
            at = row + y, column + x
            inside = 0 <= at[0] < sizes[0] and 0 <= at[1] < sizes[1]
            for index in np.flatnonzero(subset):
                if inside and source.masks[index, row, column]:
                    image[:, at[0], at[1]] = source.image[:, row, column]
                    owner[at] = ours + index
    assert torch.equal(found.image, image)
    kept = [index for index in range(ours + theirs) if (owner == index).any()]
    assert [mask.numpy().tolist() for mask in found.masks] == [
        (owner == index).tolist() for index in kept
    ]
    labels = torch.cat([target.labels, source.labels])
    assert found.labels.tolist() == labels[kept].tolist()
    assert (found.masks.sum(0) <= 1).all()
    boxes = tight_boxes(found.masks)
    for index, box in zip(kept, boxes, strict=True):
        rows, columns = np.nonzero(owner == index)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_what_is_pasted_varies_in_source_scale_place_and_number():
    options = configured(PASTE).INPUT
    generator = np.random.default_rng(0)
    target = objects(generator, 2, 40, 40)
    scales, sources, counts = [], set(), set()

    def read(index, scale):
        scales.append(scale)
        sources.add(index)
        return objects(np.random.default_rng(index), 4, round(40 * scale), round(40 * scale))

    for seed in range(60):
        np.random.seed(seed)  # noqa: NPY002
        counts.add(len(copy_paste(options, target, 5, read).labels))
    assert sources == set(range(5))
    assert 0.8 <= min(scales) < 0.85
    assert 1.2 < max(scales) <= 1.25
    assert len(counts) > 3
    options.LSJ.ENABLED = True  # has a jitter of its own
    scales.clear()
    copy_paste(options, target, 5, read)
    assert scales == [1.0]
    options.AUGMENTATION.COPY_PASTE.PROBABILITY = 0.0
    assert copy_paste(options, target, 5, read) is target


def test_images_of_different_depth_are_pasted_onto_each_other():
    generator = np.random.default_rng(0)
    target, source = objects(generator, 1, 12, 12), objects(generator, 1, 12, 12)
    deep = source._replace(image=source.image.float() + 0.25)
    found = pasted(target, deep, torch.tensor([True]), 0, 0)
    assert found.image.dtype == torch.float32
    assert torch.equal(found.image[:, source.masks[0]], deep.image[:, source.masks[0]])
    rest = ~source.masks[0]
    assert torch.equal(found.image[:, rest], target.image[:, rest].float())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("INPUT.FORMAT L MODEL.CONVNEXT.IN_CHANS 1 {A}HUE 0.1", "'L' have no colours"),
        ("INPUT.FORMAT raw MODEL.CONVNEXT.IN_CHANS 4 {A}SATURATION 0.1", "'raw' have no colours"),
        ("MODEL.MASK_ON False {A}COPY_PASTE.ENABLED True", "set MODEL.MASK_ON to True"),
        (
            "ENGINE detectron2 INPUT.MASK_FORMAT polygon {A}COPY_PASTE.ENABLED True",
            "set INPUT.MASK_FORMAT to bitmask",
        ),
        ("{A}COPY_PASTE.MIN_SCALE 2.0", "MIN_SCALE 2.0 is above MAX_SCALE 1.25"),
        ("INPUT.CROP.ENABLED True INPUT.LSJ.ENABLED True", "both crop"),
        ("INPUT.CROP.ENABLED True INPUT.CROP.SIZE [0.5,1.5]", "above 0 and at most 1"),
        (
            "INPUT.CROP.ENABLED True INPUT.CROP.TYPE absolute INPUT.CROP.SIZE [0.5,20]",
            "takes whole pixels, from 1",
        ),
        (
            "INPUT.CROP.ENABLED True INPUT.CROP.TYPE absolute_range INPUT.CROP.SIZE [50,20]",
            "the smallest side, then the largest",
        ),
    ],
)
def test_augmentation_that_contradicts_the_rest_is_told_the_remedy(tmp_path, overrides, message):
    path = tmp_path / "config.yaml"
    path.write_text("MODEL: {MASK_ON: true}\n")
    with pytest.raises(ValueError, match="INPUT") as caught:
        load_config(path, overrides.replace("{A}", A).split())
    assert message in str(caught.value)


def test_what_is_on_is_said_in_words():
    assert augmentation_words(configured({"INPUT.RANDOM_FLIP": "none"})) == []
    config = configured({**PLAIN, **PASTE, **crop(*CROPS[1]), "INPUT.RANDOM_FLIP": "both",
                         f"{A}ROTATE_90": True, f"{A}HUE": 0.1,
                         "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
                         "DATALOADER.REPEAT_THRESHOLD": 0.3})  # fmt: skip
    assert augmentation_words(config) == [
        "flips in both directions",
        "turns by 90 degrees",
        "crop relative_range [0.4, 0.5]",
        "sizes 48 to 72",
        "hue 0.1",
        "Copy-Paste with probability 1",
        "rare classes repeated below 0.3",
    ]
