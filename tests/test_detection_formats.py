"""Labels of other tools become COCO, with what is lost counted, and come back the same."""

import base64
import io
import json
import random
from xml.etree import ElementTree

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image
from small_coco import small_coco, write_small_coco
from test_fuzz_inputs import mutated_bytes, mutated_tree

from backbones.errors import InputError
from detection.data.check import check_coco
from detection.data.coco_file import write_coco
from detection.data.formats.convert import WRITERS, guess, read_labels
from detection.data.formats.outlines import joined_outline, outlines

HEIGHT, WIDTH = 60, 80


def picture(path, size=(WIDTH, HEIGHT), value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)
    return path


def read(source, kind="auto", images=None, **options):
    """The one split, as a COCO tree, and what was noted, in words."""
    (builder,) = read_labels(source, kind, images, **options).values()
    return builder.tree(), "\n".join(map(str, builder.problems())), builder


def drawn(item, height=HEIGHT, width=WIDTH):
    segmentation = item["segmentation"]
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    return mask_util.decode(segmentation) > 0


def named(tree):
    names = {one["id"]: one["name"] for one in tree["categories"]}
    return [names[item["category_id"]] for item in tree["annotations"]]


def blobs(seed, threshold=0.5):
    noise = np.random.default_rng(seed).random((HEIGHT, WIDTH)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return smooth > np.quantile(smooth, threshold)


def rle_of(mask):
    rle = mask_util.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


# --- YOLO -----------------------------------------------------------------------------------------


def test_yolo_boxes_and_polygons_of_each_split_are_read_and_the_rest_is_counted(tmp_path):
    root = tmp_path / "set"
    for name in ("train/images/a", "train/images/b", "valid/images/c"):
        picture(root / f"{name}.jpg")
    lines = [
        "0 0.5 0.5 0.25 0.5",
        "1 0.25 0.5 0.5 0.5 0.5 0.75",
        "0 0.5 0.5 0.25 0.5",
        "0 0.5 0.5 0.25 0.5 0.9",
        "1 0.98 0.5 0.1 0.1",
        "7 0.5 0.5 0.2 0.2",
        "0 40 30 20 10",
        "0 0.1 0.2",
        "cat 0.5 0.5 0.1 0.1",
    ]
    (root / "train/labels").mkdir()
    (root / "valid/labels").mkdir()
    (root / "train/labels/a.txt").write_text("\n".join(lines) + "\n")
    (root / "train/labels/gone.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (root / "valid/labels/c.txt").write_text("")
    (root / "data.yaml").write_text(  # as Roboflow writes it
        "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n"
    )
    found = read_labels(root)
    assert list(found) == ["train", "val"]
    tree, notes = found["train"].tree(), "\n".join(map(str, found["train"].problems()))
    assert [image["file_name"] for image in tree["images"]] == [
        "train/images/a.jpg",
        "train/images/b.jpg",
    ]
    assert tree["annotations"][0]["bbox"] == [30, 15, 20, 30]
    assert "segmentation" not in tree["annotations"][0]
    assert tree["annotations"][1]["segmentation"] == [[20, 30, 40, 30, 40, 45]]
    assert tree["annotations"][1]["area"] == 150
    assert tree["annotations"][3]["bbox"] == [pytest.approx(74.4), 27, pytest.approx(5.6), 6]
    assert named(tree) == ["cat", "dog", "cat", "dog", "7"]
    for words in (
        "line 3: repeats another line; left out",
        "line 4: has a confidence; the confidence is left out",
        "line 5: box leaves its image; cut to it",
        "line 6: has a class that has no name",
        "line 7: is not in parts of the image",
        "line 8: has 3 numbers",
        "line 9: is not 'class x y width height'",
        "b.jpg: has no label file; kept",
        "gone.txt: is a label file without an image",
    ):
        assert words in notes
    assert found["train"].read == 9
    assert len(found["val"].images) == 1


def test_a_yolo_folder_without_data_yaml_takes_names_from_classes_txt(tmp_path):
    picture(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    tree, _, _ = read(tmp_path)
    assert named(tree) == ["dog"]
    assert tree["annotations"][0]["bbox"] == [20, 15, 40, 30]
    picture(tmp_path / "elsewhere/a.png")
    with pytest.raises(ValueError, match="no label of YOLO's is found"):
        read(tmp_path / "elsewhere", "yolo")


# --- Pascal VOC -----------------------------------------------------------------------------------


def voc(folder, name, objects, size=(WIDTH, HEIGHT)):
    lines = [f"<annotation><filename>{name}.jpg</filename><size>"]
    lines.append(f"<width>{size[0]}</width><height>{size[1]}</height></size>")
    for label, box, difficult in objects:
        corners = "".join(
            f"<{side}>{value}</{side}>"
            for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        lines.append(
            f"<object><name>{label}</name><difficult>{difficult}</difficult>"
            f"<bndbox>{corners}</bndbox></object>"
        )
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / f"Annotations/{name}.xml").write_text("".join([*lines, "</annotation>"]))
    picture(folder / f"JPEGImages/{name}.jpg")


def test_voc_counts_pixels_from_1_and_its_difficult_objects_are_crowds(tmp_path):
    voc(tmp_path, "a", [("cat", (1, 1, 80, 60), 0), ("dog", (11, 21, 30, 40), 1)])
    voc(tmp_path, "b", [("cat", (1, 1, "x", 60), 0)], size=(1, 1))
    tree, notes, _ = read(tmp_path)
    assert [item["bbox"] for item in tree["annotations"]] == [[0, 0, 80, 60], [10, 20, 20, 20]]
    assert [item["iscrowd"] for item in tree["annotations"]] == [0, 1]
    assert "is difficult" in notes
    assert "has no box in numbers" in notes
    assert "states another size than its image" in notes


@pytest.mark.detectron2
def test_voc_boxes_are_detectron2s(tmp_path):
    from detectron2.data.datasets.pascal_voc import load_voc_instances

    voc(tmp_path, "a", [("cat", (4, 9, 41, 33), 0), ("dog", (11, 21, 30, 40), 0)])
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    voc(tmp_path, "b", [])
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n")
    record, _ = load_voc_instances(str(tmp_path), "train", ["cat", "dog"])
    tree, _, _ = read(tmp_path)
    assert [
        [x, y, x + w, y + h] for x, y, w, h in (item["bbox"] for item in tree["annotations"])
    ] == [item["bbox"] for item in record["annotations"]]


def test_voc_masks_are_those_of_its_object_numbers(tmp_path):
    voc(tmp_path, "a", [("cat", (1, 1, 9, 9), 0), ("dog", (11, 21, 30, 40), 0)])
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    numbers[20:40, 10:30] = 2
    numbers[20, 10:30] = 255
    numbers[0:5, 0:5] = 1
    (tmp_path / "SegmentationObject").mkdir()
    Image.fromarray(numbers).save(tmp_path / "SegmentationObject/a.png")
    tree, _, _ = read(tmp_path / "Annotations", images=tmp_path / "JPEGImages")
    assert named(tree) == ["cat", "dog"]
    assert (drawn(tree["annotations"][1]) == (numbers == 2)).all()


# --- LabelMe --------------------------------------------------------------------------------------


def labelme(folder, shapes, name="a"):
    folder.mkdir(parents=True, exist_ok=True)
    picture(folder / f"{name}.jpg")
    tree = {"version": "5.0.0", "imagePath": f"{name}.jpg", "imageData": None, "shapes": shapes}
    tree |= {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    (folder / f"{name}.json").write_text(json.dumps(tree))


def shape(kind, points, label="cat", group=None, **more):
    return {"label": label, "points": points, "group_id": group, "shape_type": kind} | more


def test_labelme_shapes_of_every_kind(tmp_path):
    inside = np.zeros((4, 6), np.uint8)
    inside[1:, 2:] = 255
    png = io.BytesIO()
    Image.fromarray(inside).save(png, "PNG")
    labelme(
        tmp_path,
        [
            shape("polygon", [[1, 2], [11, 2], [11, 22], [1, 22]]),
            shape("polygon", [[20, 20], [30, 20], [30, 30]], "dog", 3),
            shape("polygon", [[40, 40], [50, 40], [50, 50]], "dog", 3),
            shape("rectangle", [[30, 5], [20, 1]]),
            shape("circle", [[60, 30], [60, 40]]),
            shape("mask", [[70, 50], [75, 53]], mask=base64.b64encode(png.getvalue()).decode()),
            shape("line", [[1, 1], [2, 2]]),
            shape("polygon", [[1, 1], [2, 2]]),
        ],
    )
    tree, notes, builder = read(tmp_path)
    items = tree["annotations"]
    assert named(tree) == ["cat", "dog", "cat", "cat", "cat"]
    assert items[0]["segmentation"] == [[1, 2, 11, 2, 11, 22, 1, 22]]
    assert (items[0]["bbox"], items[0]["area"]) == ([1, 2, 10, 20], 200)
    assert len(items[1]["segmentation"]) == 2
    assert items[1]["area"] == 100
    assert items[2]["segmentation"] == [[20, 1, 30, 1, 30, 5, 20, 5]]
    assert items[3]["area"] == pytest.approx(np.pi * 100, rel=0.01)
    assert items[3]["bbox"] == pytest.approx([50, 20, 20, 20])
    assert items[4]["bbox"] == [72, 51, 4, 3]
    assert "is a line, which has no area; left out" in notes
    assert "polygon has no area in its image; left out" in notes
    assert builder.read == 7


def test_labelme_rectangles_alone_are_boxes(tmp_path):
    labelme(tmp_path, [shape("rectangle", [[30, 5], [20, 1]])])
    tree, _, _ = read(tmp_path)
    assert tree["annotations"][0]["bbox"] == [20, 1, 10, 4]
    assert "segmentation" not in tree["annotations"][0]


# --- CVAT -----------------------------------------------------------------------------------------


def test_cvat_shapes_of_every_kind(tmp_path):
    picture(tmp_path / "images/a.jpg")
    mask = blobs(1)[10:40, 20:50]
    runs, last = [], 0
    for value in mask.reshape(-1).astype(int):  # as CVAT counts: row by row, zeros first
        if value != last or not runs:
            if not runs and value:
                runs.append(0)
            runs.append(0)
            last = value
        runs[-1] += 1
    rle = ", ".join(map(str, runs))
    (tmp_path / "annotations.xml").write_text(
        f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
<label><name>dog</name></label><label><name>cat</name></label></labels></task></meta>
<image id="0" name="a.jpg" width="80" height="60">
<box label="cat" xtl="10" ytl="20" xbr="30.5" ybr="40"/>
<polygon label="dog" points="1,2;11,2;11,22;1,22"/>
<mask label="cat" rle="{rle}" left="20" top="10" width="30" height="30"/>
<ellipse label="cat" cx="40" cy="30" rx="10" ry="5"/>
<box label="cat" xtl="30" ytl="20" xbr="50" ybr="30" rotation="90"/>
<polygon label="dog" points="1,2;11,2;11,22" group_id="4"/>
<polygon label="dog" points="41,2;51,2;51,22" group_id="4"/>
<polyline label="dog" points="1,2;11,2"/>
<points label="dog" points="1,2"/>
</image><image id="1" name="gone.jpg" width="8" height="6"></image></annotations>"""
    )
    tree, notes, _ = read(tmp_path / "annotations.xml")
    assert [one["name"] for one in tree["categories"]] == ["dog", "cat"]
    items = tree["annotations"]
    assert named(tree) == ["cat", "dog", "cat", "cat", "cat", "dog"]
    assert items[0]["bbox"] == [10, 20, 20.5, 20]
    assert items[1]["segmentation"] == [[1, 2, 11, 2, 11, 22, 1, 22]]
    whole = np.zeros((HEIGHT, WIDTH), bool)
    whole[10:40, 20:50] = mask
    assert (drawn(items[2]) == whole).all()
    assert items[2]["iscrowd"] == 0
    assert items[3]["area"] == pytest.approx(np.pi * 50, rel=0.01)
    assert items[4]["bbox"] == pytest.approx([35, 15, 10, 20])
    assert len(items[5]["segmentation"]) == 2
    assert "is a polyline, which has no area" in notes
    assert "gone.jpg: its image is not there" in notes


# --- Label Studio ---------------------------------------------------------------------------------


def brush(mask):
    """Label Studio's code of a mask as RGBA values: runs of 1 to 2**16 values of 8 bits."""
    values = np.repeat(mask.reshape(-1).astype(np.uint8) * 255, 4)
    bits = f"{values.size:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    place = 0
    while place < values.size:
        end = place + 1
        while end < values.size and values[end] == values[place] and end - place < 2**16:
            end += 1
        bits += f"1{3:02b}{end - place - 1:016b}{values[place]:08b}"
        place = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def test_label_studio_results_of_every_kind(tmp_path):
    picture(tmp_path / "images/a b.jpg")
    mask = blobs(2)

    def result(kind, value, label="cat"):
        return {"type": kind, "value": value | {kind: [label]}, "original_width": WIDTH}

    task = {
        "id": 5,
        "data": {"image": "/data/upload/1/0123abcd-a%20b.jpg"},
        "annotations": [
            {"was_cancelled": True, "result": []},
            {
                "result": [
                    result("rectanglelabels", {"x": 10, "y": 50, "width": 25, "height": 10}),
                    result("polygonlabels", {"points": [[0, 0], [50, 0], [50, 50]]}, "dog"),
                    result("ellipselabels", {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10}),
                    result("brushlabels", {"format": "rle", "rle": brush(mask)}, "dog"),
                    result(
                        "rectanglelabels",
                        {"x": 50, "y": 50, "width": 25, "height": 10, "rotation": 90},
                    ),
                    {"type": "choices", "value": {"choices": ["good"]}},
                    result("brushlabels", {"format": "rle", "rle": [1, 2, 3]}),
                ]
            },
            {"result": []},
        ],
    }
    (tmp_path / "export.json").write_text(json.dumps([task]))
    tree, notes, _ = read(tmp_path / "export.json", images=tmp_path / "images")
    items = tree["annotations"]
    assert named(tree) == ["cat", "dog", "cat", "dog", "cat"]
    assert items[0]["bbox"] == [8, 30, 20, 6]
    assert items[1]["segmentation"] == [[0, 0, 40, 0, 40, 30]]
    assert items[2]["bbox"] == pytest.approx([32, 24, 16, 12])
    assert (drawn(items[3]) == mask).all()
    assert items[4]["bbox"] == pytest.approx([34, 30, 6, 20])  # turned around its corner
    for words in ("is a choices", "was labelled several times", "lacks its numbers"):
        assert words in notes


# --- masks ----------------------------------------------------------------------------------------


def test_a_map_of_ids_and_a_map_of_colours_give_each_object_its_mask(tmp_path):
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    ids[5:20, 5:20], ids[30:50, 40:70] = 7, 300
    picture(tmp_path / "images/a.png")
    picture(tmp_path / "images/b.png")
    picture(tmp_path / "images/c.png")
    picture(tmp_path / "images/d.png")
    (tmp_path / "labels").mkdir()
    Image.fromarray(ids).save(tmp_path / "labels/a_masks.png")
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colours[ids == 7], colours[ids == 300] = (255, 0, 0), (0, 255, 0)
    Image.fromarray(colours).save(tmp_path / "labels/b.png")
    Image.fromarray(np.where(ids > 0, 255, 0).astype(np.uint8)).save(tmp_path / "labels/c.png")
    tree, notes, _ = read(tmp_path / "labels", "masks", tmp_path / "images", class_name="cell")
    assert len(tree["annotations"]) == 6
    assert set(named(tree)) == {"cell"}
    for pair in (0, 2, 4):
        found = [drawn(item) for item in tree["annotations"][pair : pair + 2]]
        assert sorted(mask.sum() for mask in found) == [225, 600]
        assert ((found[0] | found[1]) == (ids > 0)).all()
    assert "c.png: tells no objects apart; each connected part is an object" in notes
    assert "d.png: has no mask; kept" in notes


def test_a_folder_of_one_mask_per_object_as_in_the_data_science_bowl(tmp_path):
    picture(tmp_path / "abc/images/abc.png")
    (tmp_path / "abc/masks").mkdir()
    for number in range(3):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[number * 10 : number * 10 + 12, 5:15] = 255  # they overlap
        Image.fromarray(mask).save(tmp_path / f"abc/masks/{number}.png")
    Image.new("L", (3, 3)).save(tmp_path / "abc/masks/small.png")
    tree, notes, _ = read(tmp_path, "masks")
    assert [item["area"] for item in tree["annotations"]] == [120, 120, 120]
    assert "mask has another size than its image" in notes


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.5, 1.5, 4])
def test_outlines_are_drawn_to_the_same_pixels_again(sigma):
    for seed in range(20):
        noise = np.random.default_rng(seed).random((33, 47)).astype(np.float32)
        mask = cv2.GaussianBlur(noise, (0, 0), sigma) > 0.5
        if not mask.any():
            continue
        parts = outlines(rle_of(mask), 33, 47)
        again = mask_util.decode(mask_util.merge(mask_util.frPyObjects(parts, 33, 47))) > 0
        assert (again == mask).all()
        (whole,) = mask_util.frPyObjects([joined_outline(rle_of(mask), 33, 47)], 33, 47)
        assert ((mask_util.decode(whole) > 0) == mask).all()


@pytest.mark.parametrize("kind", ["yolo", "labelme", "cvat", "masks"])
def test_masks_with_holes_and_parts_come_back_pixel_by_pixel(tmp_path, kind):
    masks = [blobs(seed, 0.7) for seed in range(3)]
    if kind == "masks":  # a map tells no overlaps
        masks[1] &= ~masks[0]
        masks[2] &= ~(masks[0] | masks[1])
    images, annotations = [], []
    for number in (1, 2):
        picture(tmp_path / f"images/{number}.png", value=number)
        images.append(
            {"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH}
        )
    for number, mask in enumerate(masks, 1):
        annotations.append(
            {"id": number, "image_id": 1, "category_id": 4 + number % 2, "bbox": [0, 0, 1, 1]}
            | {"segmentation": rle_of(mask)}
        )
    tree = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 4, "name": "a & b"}, {"id": 5, "name": 'é "c"'}],
    }
    WRITERS[kind](tree, tmp_path / "out")
    back, _, _ = read(tmp_path / "out", "auto", tmp_path / "images")  # as docs/own_data.md has it
    assert [image["file_name"].rsplit("/")[-1] for image in back["images"]] == ["1.png", "2.png"]
    assert len(back["annotations"]) == 3
    for item, mask in zip(back["annotations"], masks, strict=True):
        assert (drawn(item) == mask).all()
    if kind != "masks":
        assert named(back) == [one["name"] for one in (tree["categories"][n] for n in (1, 0, 1))]


@pytest.mark.parametrize("kind", ["yolo", "labelme", "cvat"])
def test_boxes_come_back(tmp_path, kind):
    picture(tmp_path / "images/1.png")
    tree = {
        "images": [{"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 12.5, 30, 20.25]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    WRITERS[kind](tree, tmp_path)
    for images in [None, tmp_path / "images"] if kind == "yolo" else [tmp_path / "images"]:
        back, _, _ = read(tmp_path, kind, images)
        assert back["annotations"][0]["bbox"] == pytest.approx([10, 12.5, 30, 20.25], abs=1e-3)


def test_cvats_file_is_xml_whatever_the_names(tmp_path):
    tree = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "<\"&'>"}]}
    WRITERS["cvat"](tree, tmp_path)
    root = ElementTree.parse(tmp_path / "annotations.xml").getroot()
    assert root.findtext("meta/task/labels/label/name") == "<\"&'>"


def test_every_format_is_guessed(tmp_path):
    voc(tmp_path / "voc", "a", [("cat", (1, 1, 9, 9), 0)])
    labelme(tmp_path / "labelme", [])
    picture(tmp_path / "yolo/images/a.jpg")
    (tmp_path / "yolo/labels").mkdir()
    (tmp_path / "yolo/labels/a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "export.json").write_text('[{"data": {"image": "a.jpg"}, "annotations": []}]')
    (tmp_path / "cvat.xml").write_text("<annotations></annotations>")
    picture(tmp_path / "masks/a.png")
    assert [
        guess(tmp_path / name)
        for name in ("voc", "labelme", "yolo", "export.json", "cvat.xml", "masks")
    ] == ["voc", "labelme", "yolo", "labelstudio", "cvat", "masks"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="its format is not known; say it by --from"):
        guess(tmp_path / "empty")


def test_the_tool_writes_coco_that_passes_the_check(tmp_path, run_tool):
    labelme(tmp_path / "set", [shape("polygon", [[1, 2], [11, 2], [11, 22], [1, 22]])])
    (tmp_path / "set/other.json").write_text("{}")
    done = run_tool("import_dataset", tmp_path / "set", "--output-dir", tmp_path / "coco")
    assert done.code == 0, done.err
    assert "other.json: is no file of LabelMe" in done.out
    assert "1 label read; written: 1 object on 1 image, classes: cat" in done.out
    path = tmp_path / "coco/annotations.json"
    assert done.out.splitlines()[-1] == f"json:{path}:{(tmp_path / 'set').resolve()}"
    assert check_coco(path, tmp_path / "set")[1] == []
    again = run_tool("import_dataset", tmp_path / "set", "--output-dir", tmp_path / "coco")
    assert again.code == 1
    assert "exists already" in again.err
    missing = run_tool("import_dataset", tmp_path / "no", "--output-dir", tmp_path / "coco")
    assert missing.code == 1


def test_a_written_coco_file_is_read_as_it_was(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    write_coco(small_coco(), tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == small_coco()
    assert check_coco(annotations, images)[0].keys() == small_coco().keys()


@pytest.mark.parametrize("kind", ["labelme", "labelstudio", "voc", "cvat", "yolo"])
def test_labels_of_any_content_are_read_or_counted_or_refused(tmp_path, kind):
    draw = random.Random(kind)
    picture(tmp_path / "a.jpg")
    points = [[1, 2], [11, 2], [11, 22]]
    shapes = [shape("polygon", points), shape("circle", [[60, 30], [60, 40]])]
    tree = {"imagePath": "a.jpg", "shapes": [*shapes, shape("mask", points, mask="aGVsbG8=")]}
    value = {"x": 1, "y": 2, "width": 5, "height": 6, "rectanglelabels": ["cat"]}
    brushed = {"rle": [1, 2, 3, 4, 5, 6, 7], "brushlabels": ["cat"]}
    results = [{"value": value}, {"value": brushed}]
    task = {"data": {"image": "a.jpg"}, "annotations": [{"result": results}]}
    texts = {
        "voc": "<annotation><object><name>c</name><bndbox><xmin>1</xmin></bndbox></object>"
        "</annotation>",
        "cvat": '<annotations><image name="a.jpg"><box label="c" xtl="1" ytl="2" xbr="3" ybr="4"/>'
        '<mask label="c" rle="3, 4" left="2" top="1" width="3" height="3"/></image></annotations>',
        "yolo": "0 0.5 0.5 0.25 0.5\n1 0.25 0.5 0.5 0.5 0.5 0.75\n",
    }
    file = tmp_path / ("a." + {"voc": "xml", "cvat": "xml", "yolo": "txt"}.get(kind, "json"))
    for _ in range(60):
        if kind in texts:
            file.write_bytes(mutated_bytes(texts[kind].encode(), draw))
        else:
            whole = tree if kind == "labelme" else [task]
            file.write_text(json.dumps(mutated_tree(whole, draw)))
        try:
            found, _, builder = read(file if kind == "cvat" else tmp_path, kind)
        except InputError:
            continue
        assert len(found["annotations"]) <= builder.read
        write_coco(found, tmp_path / "coco.json")
        (tmp_path / "coco.json").unlink()
