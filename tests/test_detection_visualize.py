"""detection.drawing.instances: what is drawn where, at every image size."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as rle_codec

from detection.data.checks.segmentations import rle_of
from detection.drawing import instances as visualize
from detection.drawing import labels
from detection.drawing.instances import Instance, coco_instances, draw_instances, readable_scale
from detection.drawing.labels import Label, contrast, draw_labels, drawable, font_for, text_colour
from reporting.palette import class_colour

GREY = 128


def canvas(height=200, width=300):
    return np.full((height, width, 3), GREY, np.uint8)


def square_mask(box, shape=(200, 300)):
    mask = np.zeros(shape, bool)
    x, y, w, h = box
    mask[y : y + h, x : x + w] = True
    return mask


def square_rle(box):
    return rle_of(square_mask(box))


def test_a_mask_is_blended_inside_and_nothing_is_touched_outside():
    box = (100, 60, 80, 50)
    drawing = draw_instances(canvas(), [Instance(box, 0, "", square_rle(box))])
    blended = (1 - visualize.MASK_OPACITY) * GREY + visualize.MASK_OPACITY * np.array(
        class_colour(0)
    )
    assert drawing.image[65:105, 105:175].reshape(-1, 3) == pytest.approx(
        np.broadcast_to(blended, (40 * 70, 3)), abs=1
    )
    outside = np.ones((200, 300), bool)
    outside[58:113, 98:183] = False
    assert (drawing.image[outside] == GREY).all()


def test_the_input_image_is_not_changed():
    image = canvas()
    draw_instances(image, [Instance((10, 10, 90, 90), 1, "cat", square_rle((10, 10, 90, 90)))])
    assert (image == GREY).all()


@pytest.mark.parametrize("long_side", [75, 300, 900])
def test_boxes_follow_the_image_when_it_is_resized(long_side):
    drawing = draw_instances(canvas(), [Instance((60, 40, 120, 80), 0, "")], long_side)
    assert max(drawing.image.shape[:2]) == long_side
    rows, columns = np.nonzero((drawing.image != GREY).any(-1))
    scale = long_side / 300
    corners = [columns.min(), rows.min(), columns.max(), rows.max()]
    assert corners == pytest.approx([60 * scale, 40 * scale, 180 * scale, 120 * scale], abs=1.5)


@pytest.mark.parametrize("size", [(1, 1), (8, 2000), (40, 30), (3000, 2200)])
def test_drawing_works_on_every_image_size_and_keeps_it(size):
    height, width = size
    mask = rle_of(np.ones(size, bool))
    entries = [
        Instance((0, 0, width, height), 3, "a rather long class name 0.99", mask),
        Instance((-50, -50, 10 * width, 10 * height), 4, "beyond the image"),
        Instance((0, 0, 0, 0), 5, "empty"),
    ]
    assert draw_instances(canvas(*size), entries).image.shape == (*size, 3)


def test_labels_do_not_cover_each_other_and_those_left_out_are_counted(monkeypatch):
    taken = []
    found = labels._free_place
    monkeypatch.setattr(labels, "_free_place", lambda *a: taken.append(found(*a)) or taken[-1])
    crowded = [Instance((100, 100, 20, 20), 0, f"object {i}") for i in range(30)]
    drawing = draw_instances(canvas(), crowded)
    placed = [place for place in taken if place]
    assert drawing.unlabelled == 30 - len(placed) > 0
    for i, (left, top, right, bottom) in enumerate(placed):
        assert min(left, top) >= 0
        assert right <= 300
        assert bottom <= 200
        for other in placed[:i]:
            apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert apart


def test_a_crowd_is_lighter_than_an_object():
    box = (100, 60, 80, 50)
    drawn = [
        draw_instances(canvas(), [Instance(box, 0, "", square_rle(box), crowd)]).image[85, 140]
        for crowd in (False, True)
    ]
    change = [np.abs(pixel.astype(int) - GREY).sum() for pixel in drawn]
    assert 0 < change[1] < change[0] / 2


def test_coco_entries_become_instances_best_score_first():
    mask = rle_codec.encode(np.asfortranarray(square_mask((5, 6, 7, 8)).astype(np.uint8)))
    names = {3: "cat", 90: "dog <b>"}
    instances = coco_instances(
        [
            {"category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.25},
            {"category_id": 90, "segmentation": mask, "score": 0.875},
        ],
        names,
        200,
        300,
    )
    assert [i.label for i in instances] == ["dog <b> 0.88", "cat 0.25"]
    assert [i.colour_index for i in instances] == [1, 0]
    assert instances[0].box == (5, 6, 7, 8)
    assert (rle_codec.decode(instances[0].mask) == square_mask((5, 6, 7, 8))).all()
    crowd = coco_instances(
        [{"category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1}], names, 200, 300
    )
    assert (crowd[0].crowd, crowd[0].label) == (True, "cat (crowd)")


def test_the_colours_of_eighty_classes_differ():
    colours = [class_colour(index) for index in range(80)]
    assert len(set(colours)) == 80
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)


def test_a_class_has_its_colour_however_many_classes_there_are():
    names = [{number: str(number) for number in range(count)} for count in (3, 80)]
    entry = {"category_id": 2, "bbox": [1, 2, 3, 4]}
    indices = [coco_instances([entry], of_set, 20, 30)[0].colour_index for of_set in names]
    assert indices == [2, 2]


# Eyes as Machado, Oliveira and Fernandes (2009) model them, distances in OKLab (Ottosson, 2020).
USUAL = np.eye(3)
NO_RED_CONES = np.array(
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
)
NO_GREEN_CONES = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
LMS_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def as_seen(colours: np.ndarray) -> np.ndarray:
    """``[N, 3]`` RGB 0-255 -> ``[3, N, 3]`` OKLab, as the three kinds of eyes see them."""
    values = np.asarray(colours) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    eyes = np.stack([linear @ view.T for view in (USUAL, NO_RED_CONES, NO_GREEN_CONES)]).clip(0, 1)
    return np.cbrt(eyes @ RGB_TO_LMS.T) @ LMS_TO_OKLAB.T


def test_the_first_colours_are_apart_for_usual_and_for_colour_blind_eyes():
    views = as_seen(np.array([class_colour(index) for index in range(12)]))
    distances = np.linalg.norm(views[:, :, None] - views[:, None], axis=-1)
    distances[:, range(12), range(12)] = np.inf
    usual, no_red, no_green = distances.min((1, 2))
    assert usual > 0.1
    assert min(no_red, no_green) > 0.06


def test_grey_is_grey_to_every_eye_and_red_and_green_are_near_to_the_colour_blind():
    views = as_seen(np.array([[128, 128, 128], [255, 0, 0], [120, 110, 0]]))
    assert views[:, 0, 1:] == pytest.approx(0, abs=2e-3)
    usual, _, no_green = np.linalg.norm(views[:, 1] - views[:, 2], axis=-1)
    assert no_green < usual / 2


def test_contrast_is_wcags():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.01)


def test_labels_can_be_read_on_the_colour_of_every_class():
    colours = [class_colour(index) for index in range(128)]
    assert min(contrast(text_colour(colour), colour) for colour in colours) >= 4.5
    assert text_colour((255, 255, 0)) == labels.DARK
    assert text_colour((90, 0, 140)) == labels.WHITE


def ink(box, text="cat 0.99", size=(400, 300), beside=(), font_size=16):
    """Where the label of the first box was drawn: left, top, right, bottom; None if nowhere."""
    picture = Image.new("RGB", size)
    placed = [Label(text, box, (255, 255, 255)), *(Label("", b, (255, 255, 255)) for b in beside)]
    draw_labels(ImageDraw.Draw(picture), placed, size, font_size)
    return picture.getbbox()


@pytest.mark.parametrize(
    "box",
    [(0, 0, 60, 40), (340, 0, 400, 40), (0, 260, 60, 300), (0, 0, 400, 300), (399, 0, 400, 9)],
)
def test_labels_of_boxes_at_the_border_are_whole_and_inside(box):
    left, top, right, bottom = ink(box)
    middle = ink((150, 120, 210, 160) if box[2] - box[0] > 9 else (200, 150, 201, 159))
    assert (right - left, bottom - top) == pytest.approx(
        (middle[2] - middle[0], middle[3] - middle[1]), abs=2
    )
    assert min(left, top) >= 0
    assert right <= 400
    assert bottom <= 300


def test_a_label_does_not_hide_a_neighbour_of_its_own_size():
    free = ink((100, 100, 160, 140))
    assert free[3] <= 102  # above its box
    neighbour = (90, 75, 170, 98)
    moved = ink((100, 100, 160, 140), beside=[neighbour])
    assert moved[1] >= 138  # below it


def test_labels_shrink_with_the_objects_and_never_below_what_can_be_read():
    heights = [
        bottom - top
        for side in (120, 45, 6)
        for _, top, _, bottom in [ink((100, 100, 100 + side, 100 + side), font_size=20)]
    ]
    assert heights[0] > heights[1] > heights[2] >= labels.SMALLEST


def test_labels_leave_most_of_a_crowded_picture_visible():
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 580, (400, 2))
    crowd = [
        Instance((x, y, 12, 12), 0, f"nucleus 0.{number:03d}")
        for number, (x, y) in enumerate(corners)
    ]
    image = canvas(600, 600)
    unlabelled = [Instance(i.box, 0, "") for i in crowd]
    differs = draw_instances(image, crowd).image != draw_instances(image, unlabelled).image
    assert 0.03 < differs.any(-1).mean() <= labels.LABELLED_SHARE * 1.06  # of whole pixels


@pytest.fixture
def no_cached_fonts():
    """Forget which font has which characters, before and after a test that changes the fonts."""
    caches = (labels.drawable, labels._font_with)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_names_that_no_font_has_are_replaced_and_said_once(monkeypatch, caplog, no_cached_fonts):
    monkeypatch.setattr(labels, "_other_fonts", list)
    with caplog.at_level(logging.WARNING):
        shown = [drawable(name) for name in ("猫", "dog 🐶", "köter", "собака", "猫")]
    assert shown == ["", "dog", "köter", "собака", ""]
    first, second = (entry.message for entry in caplog.records)
    assert "of '猫': pictures show the class's number" in first
    assert "of 'dog 🐶': pictures show 'dog'" in second
    (instance,) = coco_instances([{"category_id": 7, "bbox": [0, 0, 1, 1]}], {7: "猫"}, 9, 9)
    assert instance.label == "class 7"


def test_a_font_of_this_machine_draws_what_dejavu_lacks(monkeypatch, no_cached_fonts):
    other, lacking = Path("/fonts/with a cat.ttf"), Path("/fonts/a latin.ttf")
    added = {lacking: frozenset(map(ord, "cat 0.9")), other: frozenset(map(ord, "猫 0.9"))}
    characters = labels._characters
    monkeypatch.setattr(labels, "_other_fonts", lambda: [lacking, other])
    monkeypatch.setattr(labels, "_characters", lambda path: added.get(path) or characters(path))
    monkeypatch.setattr(labels, "_load", lambda path, pixels: (path, pixels))
    assert font_for("猫 0.9", 20) == (other, 20)
    assert font_for("cat 0.9", 20) == (labels.DEJAVU, 20)
    assert drawable("猫") == "猫"


def test_a_file_that_is_no_font_has_no_characters(tmp_path):
    (tmp_path / "a.ttf").write_text("not a font")
    assert labels._characters(tmp_path / "a.ttf") == frozenset()


@pytest.mark.parametrize("size", [(40, 60), (60, 2000), (1500, 50), (480, 640), (3000, 4000)])
def test_a_label_can_be_read_at_any_size_and_large_images_keep_theirs(size):
    height, width = size
    scale = readable_scale(*size)
    assert (scale == 1) == (min(size) >= 400)
    box = (0.3 * width, 0.3 * height, 0.4 * width, 0.4 * height)
    long_side = round(max(size) * scale)
    drawing = draw_instances(canvas(*size), [Instance(box, 0, "person 0.97")], long_side)
    assert drawing.unlabelled == 0
    background = draw_instances(canvas(*size), [Instance(box, 0, "")], long_side).image
    rows = np.flatnonzero((drawing.image != background).any((1, 2)))
    assert 12 <= np.ptp(rows) <= drawing.image.shape[0] / 3


@pytest.mark.parametrize("with_mask", [False, True])
def test_a_small_object_of_a_large_image_is_not_hidden_by_its_own_outline(with_mask):
    box = (1000, 500, 20, 24)
    mask = rle_of(square_mask(box, (1500, 3000))) if with_mask else None
    picture = draw_instances(canvas(1500, 3000), [Instance(box, 0, "", mask)]).image
    inside = picture[500:524, 1000:1020].reshape(-1, 3)
    outline = (inside == class_colour(0)).all(axis=1).mean()
    assert 0 < outline < 0.5
