"""Samples: equal to detectron2's DatasetMapper for the same draws, and right on known geometry."""

import logging
import pickle

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_coco import small_coco, write_small_coco

from detection.config import default_config, to_detectron2
from detection.data.augmentation.copy_paste import tight_boxes
from detection.data.augmentation.geometry import (
    Crop,
    Flip,
    Resize,
    draw_transforms,
    resize_into_square,
    resize_shortest_edge,
)
from detection.data.transforms import (
    DetectionSamples,
    collate,
    transformed_box,
    transformed_mask,
)
from detection.dataset import load_dataset

PLAIN = {"INPUT.MIN_SIZE_TRAIN": (48, 72), "INPUT.MAX_SIZE_TRAIN": 100, "INPUT.MIN_SIZE_TEST": 50}
VARIANTS = {
    "choice": PLAIN,
    "range": {**PLAIN, "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range"},
    "vertical": {**PLAIN, "INPUT.RANDOM_FLIP": "vertical"},
    "no_flip": {**PLAIN, "INPUT.RANDOM_FLIP": "none"},
    "boxes": {**PLAIN, "MODEL.MASK_ON": False},
    "bgr": {**PLAIN, "INPUT.FORMAT": "BGR"},
    "grey": {**PLAIN, "INPUT.FORMAT": "L"},
}
JITTER = {"INPUT.LSJ.ENABLED": True, "INPUT.LSJ.SIZE": 32, **PLAIN}


def configured(values):
    config = default_config()
    for name, value in values.items():
        config.merge_from_list([name, value])
    return config


def small(folder, tree=None):
    annotations, images = write_small_coco(folder, tree)
    return load_dataset(f"json:{annotations}:{images}")


def rasterised(tree):
    """The same data set with every polygon as an RLE."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in tree["images"]}
    for item in tree["annotations"]:
        if isinstance(item["segmentation"], list):
            rle = mask_util.merge(
                mask_util.frPyObjects(item["segmentation"], *sizes[item["image_id"]])
            )
            item["segmentation"] = {**rle, "counts": rle["counts"].decode()}
    return tree


def assert_equal_to_detectron2(sample, expected):
    assert torch.equal(sample["image"], expected["image"])
    for key in ("file_name", "height", "width", "image_id"):
        assert sample[key] == expected[key]
    instances = expected["instances"]
    assert torch.equal(sample["boxes"], instances.gt_boxes.tensor)
    assert torch.equal(sample["labels"], instances.gt_classes)
    assert ("masks" in sample) == instances.has("gt_masks")
    if "masks" in sample:
        assert sample["masks"].dtype == torch.bool
        assert torch.equal(sample["masks"], instances.gt_masks.tensor.bool())


@pytest.mark.detectron2
@pytest.mark.parametrize("variant", VARIANTS)
def test_samples_equal_detectron2s_mapper_for_the_same_draws(tmp_path, variant):
    from detectron2 import data

    dataset, config = small(tmp_path), configured(VARIANTS[variant])
    samples = DetectionSamples(dataset, config, training=True)
    mapper = data.DatasetMapper(to_detectron2(config), is_train=True)
    for seed in range(8):
        for index, record in enumerate(samples.records):
            np.random.seed(seed)  # noqa: NPY002
            sample = samples[index]
            np.random.seed(seed)  # noqa: NPY002
            assert_equal_to_detectron2(sample, mapper(record))


@pytest.mark.detectron2
@pytest.mark.parametrize("variant", VARIANTS)
def test_test_images_equal_detectron2s(tmp_path, variant):
    from detectron2 import data

    dataset, config = small(tmp_path), configured(VARIANTS[variant])
    samples = DetectionSamples(dataset, config, training=False)
    mapper = data.DatasetMapper(to_detectron2(config), is_train=False)
    assert len(samples) == 4
    for index, record in enumerate(dataset.records):
        assert torch.equal(samples[index]["image"], mapper(record)["image"])
        assert set(samples[index]) == {"image", "height", "width", "image_id", "file_name"}


@pytest.mark.detectron2
def test_jittered_samples_equal_detectron2s_for_the_same_draws(tmp_path):
    from detectron2 import data
    from detectron2.data import transforms as T

    tree = small_coco()
    corner = {"id": 90, "bbox": [1, 1, 6, 6], "segmentation": [[1, 1, 7, 1, 7, 7, 1, 7]]}
    tree["annotations"].append({**tree["annotations"][0], **corner})
    dataset, config = small(tmp_path, rasterised(tree)), configured(JITTER)
    samples = DetectionSamples(dataset, config, training=True)
    mapper = data.DatasetMapper(
        is_train=True,
        augmentations=[
            T.RandomFlip(),
            T.ResizeScale(0.1, 2.0, 32, 32),
            T.FixedSizeCrop((32, 32), pad=False),
        ],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
        recompute_boxes=True,
    )
    lost = 0
    for seed in range(12):
        for index, record in enumerate(samples.records):
            np.random.seed(seed)  # noqa: NPY002
            sample = samples[index]
            np.random.seed(seed)  # noqa: NPY002
            assert_equal_to_detectron2(sample, mapper(record))
            objects = [item for item in record["annotations"] if not item["iscrowd"]]
            lost += len(objects) - len(sample["labels"])
    assert lost > 0  # some objects fell outside their crop, and both dropped the same ones


def test_known_picture_is_resized_flipped_and_labelled(tmp_path):
    dataset = small(tmp_path)
    config = configured({"INPUT.MIN_SIZE_TRAIN": (120,), "INPUT.MAX_SIZE_TRAIN": 1000})
    samples = DetectionSamples(dataset, config, training=True)
    seen = set()
    for seed in range(6):
        np.random.seed(seed)  # noqa: NPY002
        sample = samples[0]
        with Image.open(sample["file_name"]) as picture:
            expected = picture.resize((160, 120), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
        boxes = torch.tensor([[21.0, 24.0, 81.0, 65.0], [80.0, 10.0, 160.0, 110.0]])
        flipped = torch.equal(sample["image"], expected.flip(2))
        if flipped:
            boxes = torch.stack([160 - boxes[:, 2], boxes[:, 1], 160 - boxes[:, 0], boxes[:, 3]], 1)
        else:
            assert torch.equal(sample["image"], expected)
        assert torch.equal(sample["boxes"], boxes)
        assert sample["labels"].tolist() == [0, 1]
        assert (sample["height"], sample["width"], sample["image_id"]) == (60, 80, 3)
        x0, y0, x1, y1 = boxes[0].int().tolist()
        assert sample["masks"][0, y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].all()
        assert sample["masks"][0].sum() <= (x1 - x0) * (y1 - y0 + 1)
        seen.add(flipped)
    assert seen == {True, False}


def test_crowds_are_no_objects_and_empty_images_are_left_out_and_said(tmp_path, caplog):
    dataset = small(tmp_path)
    with caplog.at_level(logging.INFO):
        samples = DetectionSamples(dataset, configured(PLAIN), training=True)
    assert "1 of 4 images are left out of training" in caplog.text
    assert [record["image_id"] for record in samples.records] == [3, 7, 12]
    assert samples[2]["labels"].tolist() == [0]
    keep = configured({**PLAIN, "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False})
    empty = DetectionSamples(dataset, keep, training=True)[3]
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, *empty["image"].shape[1:])
    assert empty["labels"].shape == (0,)


def test_a_data_set_of_crowds_alone_is_refused(tmp_path):
    tree = small_coco()
    tree["annotations"] = [item for item in tree["annotations"] if item["iscrowd"]]
    with pytest.raises(ValueError, match="none of its 4 images shows an object"):
        DetectionSamples(small(tmp_path, tree), configured(PLAIN), training=True)


def test_an_image_that_changed_after_the_check_is_named(tmp_path):
    dataset = small(tmp_path)
    samples = DetectionSamples(dataset, configured(PLAIN), training=True)
    path = tmp_path / "images/3.png"
    Image.new("RGB", (80, 61)).save(path)
    with pytest.raises(ValueError, match=r"3\.png is 80 x 61 pixels, but .* say 80 x 60"):
        samples[0]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"3\.png does not decode .* remove image 3 from"):
        samples[0]


def test_exif_rotation_is_applied_to_the_pixels(tmp_path):
    dataset = small(tmp_path)
    pixels = np.zeros((80, 60, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: the upper left corner goes to the upper right
    Image.fromarray(pixels).save(tmp_path / "images/3.png", exif=exif)
    config = configured({"INPUT.MIN_SIZE_TEST": 0})
    image = DetectionSamples(dataset, config, training=False)[0]["image"]
    assert image.shape == (3, 60, 80)
    assert (image[:, 0, 79] == 255).all()
    assert image.sum() == 3 * 255


def test_samples_travel_to_worker_processes(tmp_path):
    samples = DetectionSamples(small(tmp_path), configured(PLAIN), training=False)
    copy = pickle.loads(pickle.dumps(samples))
    assert torch.equal(copy[1]["image"], samples[1]["image"])
    batch = [samples[0], samples[1]]
    assert collate(batch) is batch


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 900), st.integers(1, 1500))
def test_resized_sides_keep_within_the_limits(height, width, shortest, longest):
    resize = resize_shortest_edge(height, width, shortest, longest)
    sides = sorted((resize.new_height, resize.new_width))
    assert sides[1] <= max(longest, shortest)
    assert sides[0] == shortest or sides[1] == longest
    square = resize_into_square(height, width, longest)
    assert max(square.new_height, square.new_width) == longest
    assert min(square.new_height, square.new_width) >= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_boxes_and_masks_follow_the_same_transforms(seed, jitter):
    """A rectangle's mask and box stay together to within the resizing's rounding."""
    np.random.seed(seed)  # noqa: NPY002
    generator = np.random.default_rng(seed)
    height, width = generator.integers(40, 120, 2)
    x0, y0 = generator.integers(0, width - 20), generator.integers(0, height - 20)
    w, h = generator.integers(10, width - x0), generator.integers(10, height - y0)
    bitmap = np.zeros((height, width), np.uint8, order="F")
    bitmap[y0 : y0 + h, x0 : x0 + w] = 1
    options = configured({**PLAIN, "INPUT.LSJ.MIN_SCALE": 0.6, "INPUT.LSJ.SIZE": 64}).INPUT
    options.LSJ.ENABLED = jitter
    transforms = draw_transforms(options, int(height), int(width), training=True)
    image = np.zeros((height, width, 3), np.uint8)
    for transform in transforms:
        image = transform.pixels(image, Image.Resampling.BILINEAR)
    box = transformed_box([x0, y0, w, h], transforms, *image.shape[:2])
    polygon = [[x0, y0, x0 + w, y0, x0 + w, y0 + h, x0, y0 + h]]
    for segmentation in (mask_util.encode(bitmap), [[float(v) for v in polygon[0]]]):
        mask = transformed_mask(segmentation, transforms, *image.shape[:2])
        if box[2] - box[0] > 2 and box[3] - box[1] > 2:
            tight = tight_boxes(torch.from_numpy(mask)[None])[0].numpy()
            assert np.abs(tight - box).max() <= 1.01


def test_transforms_move_single_pixels_as_they_move_points():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    nearest = Image.Resampling.NEAREST
    assert Flip(0, 4).pixels(image, nearest)[1].tolist() == [7, 6, 5, 4]
    assert Flip(1, 3).pixels(image, nearest)[0].tolist() == [8, 9, 10, 11]
    assert Crop(1, 2, 2, 2).pixels(image, nearest).tolist() == [[9, 10]]
    assert Resize(3, 4, 6, 8).pixels(image, nearest)[2:4, 2:4].tolist() == [[5, 5], [5, 5]]
    point = np.array([[1.0, 2.0]])
    assert Flip(0, 4).points(point).tolist() == [[3.0, 2.0]]
    assert Flip(1, 3).points(point).tolist() == [[1.0, 1.0]]
    assert Crop(1, 2, 2, 2).points(point).tolist() == [[0.0, 0.0]]
    assert Resize(3, 4, 6, 8).points(point).tolist() == [[2.0, 4.0]]
    assert point.tolist() == [[1.0, 2.0]]


def test_box_and_mask_cut_by_the_crop():
    transforms = [Crop(10, 20, 30, 30)]
    assert transformed_box([5, 10, 20, 60], transforms, 30, 30).tolist() == [0, 0, 15, 30]
    polygon = [[5.0, 10.0, 25.0, 10.0, 25.0, 70.0, 5.0, 70.0]]
    mask = transformed_mask(polygon, transforms, 30, 30)
    assert mask[:, :15].all()
    assert not mask[:, 15:].any()


def test_tight_boxes_of_known_masks():
    masks = torch.zeros(3, 5, 6, dtype=torch.bool)
    masks[0, 1:3, 2:6] = True
    masks[2, 4, 0] = True
    assert tight_boxes(masks).tolist() == [[2, 1, 6, 3], [0, 0, 0, 0], [0, 4, 1, 5]]
