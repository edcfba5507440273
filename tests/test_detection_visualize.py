"""detection.visualize: what is drawn where, at every image size."""

import numpy as np
import pytest
from pycocotools import mask as rle_codec

from detection import visualize
from detection.visualize import Instance, class_colour, coco_instances, draw_instances

GREY = 128


def canvas(height=200, width=300):
    return np.full((height, width, 3), GREY, np.uint8)


def square_mask(box, shape=(200, 300)):
    mask = np.zeros(shape, bool)
    x, y, w, h = box
    mask[y : y + h, x : x + w] = True
    return mask


def test_a_mask_is_blended_inside_and_nothing_is_touched_outside():
    box = (100, 60, 80, 50)
    drawing = draw_instances(canvas(), [Instance(box, 0, "", square_mask(box))])
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
    draw_instances(image, [Instance((10, 10, 90, 90), 1, "cat", square_mask((10, 10, 90, 90)))])
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
    mask = np.ones(size, bool)
    entries = [
        Instance((0, 0, width, height), 3, "a rather long class name 0.99", mask),
        Instance((-50, -50, 10 * width, 10 * height), 4, "beyond the image"),
        Instance((0, 0, 0, 0), 5, "empty"),
    ]
    assert draw_instances(canvas(*size), entries).image.shape == (*size, 3)


def test_labels_do_not_cover_each_other_and_those_left_out_are_counted(monkeypatch):
    taken = []
    found = visualize._free_place
    monkeypatch.setattr(visualize, "_free_place", lambda *a: taken.append(found(*a)) or taken[-1])
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
        draw_instances(canvas(), [Instance(box, 0, "", square_mask(box), crowd)]).image[85, 140]
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
    assert (instances[0].mask == square_mask((5, 6, 7, 8))).all()
    crowd = coco_instances(
        [{"category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1}], names, 200, 300
    )
    assert (crowd[0].crowd, crowd[0].label) == (True, "cat (crowd)")


def test_the_colours_of_eighty_classes_differ():
    colours = [class_colour(index) for index in range(80)]
    assert len(set(colours)) == 80
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)
