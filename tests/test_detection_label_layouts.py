"""Layouts of labels as the tools' documentation and exporters have them: no wrong image, no shift.

Each is redrawn after the documentation of its tool: Ultralytics, Roboflow, CVAT, labelImg, LabelMe,
Label Studio, Cellpose, Pascal VOC, Cityscapes.
"""

import json

import numpy as np
import pytest
from PIL import Image
from test_detection_formats import HEIGHT, WIDTH, blobs, drawn, labelme, named, picture, read, shape
from test_detection_tool_exports import BOX, png, text

from backbones.errors import InputError
from detection.data.check import check_coco
from detection.data.formats.convert import WRITERS, guess, read_labels
from detection.data.formats.labels import Builder

CAT = '<box label="cat" xtl="{}" ytl="2" xbr="30" ybr="40" {}/>'


def split_of(found, name):
    return found[name].tree(), "\n".join(map(str, found[name].problems()))


def pairs(tree):
    """(file name, left edge of the box) of each object."""
    names = {one["id"]: one["file_name"] for one in tree["images"]}
    return [(names[item["image_id"]], item["bbox"][0]) for item in tree["annotations"]]


# --- the right image ------------------------------------------------------------------------------


def test_an_image_of_the_same_name_in_another_folder_is_not_taken_for_the_one_that_is_missing(
    tmp_path,
):
    picture(tmp_path / "images/cam2/1.jpg")
    images = [
        f'<image name="{name}">{CAT.format(left, "")}</image>'
        for left, name in ((1, "cam1/1.jpg"), (2, "cam2/1.jpg"))
    ]
    text(tmp_path / "annotations.xml", f"<annotations>{''.join(images)}</annotations>")
    tree, notes, _ = read(tmp_path / "annotations.xml", images=tmp_path / "images")
    assert pairs(tree) == [("cam2/1.jpg", 2)]
    assert "cam1/1.jpg: its image is not there" in notes
    (tmp_path / "images/cam2/1.jpg").rename(tmp_path / "images/1.jpg")
    tree, notes, _ = read(tmp_path / "annotations.xml", images=tmp_path / "images")
    assert not tree["annotations"]  # either may be meant
    assert notes.count("the only one of its name is another's") == 1


def test_labelmes_image_path_begins_at_the_label_file(tmp_path):
    for folder, left in (("set/x", 1), ("set/y", 5)):
        labelme(tmp_path / folder, [shape("rectangle", [[left, 2], [30, 40]])])
    picture(tmp_path / "set/a.jpg")  # which nobody means
    tree, notes, _ = read(tmp_path / "set")
    assert pairs(tree) == [("x/a.jpg", 1), ("y/a.jpg", 5)]
    assert "a.jpg: is an image without labels" in notes
    (tmp_path / "photos").mkdir()
    for folder in "xy":
        (tmp_path / "photos" / folder).mkdir()
        (tmp_path / f"set/{folder}/a.jpg").rename(tmp_path / f"photos/{folder}/a.jpg")
    assert pairs(read(tmp_path / "set", "labelme", tmp_path / "photos")[0]) == pairs(tree)


def test_labels_that_lie_beside_their_images_folder_give_names_that_training_takes(tmp_path):
    picture(tmp_path / "set/images/é.jpg")
    text(
        tmp_path / "set/labels/a.json",
        json.dumps(
            {"imagePath": "..\\images\\é.jpg", "shapes": [shape("rectangle", [[1, 2], [30, 40]])]}
        ),
    )
    tree, notes, builder = read(tmp_path / "set/labels")
    assert not notes
    assert builder.root == (tmp_path / "set").resolve()
    text(tmp_path / "coco.json", json.dumps(tree))
    problems = check_coco(tmp_path / "coco.json", builder.root, masks=False)[1]
    assert problems == []
    assert not read(tmp_path / "set/labels", "labelme", tmp_path / "set/images")[1]


def test_labelme_unpacks_only_the_images_that_are_nowhere_else(tmp_path):
    square = [shape("polygon", [[1, 2], [11, 2], [11, 22]])]
    labelme(tmp_path / "set", square, "a")
    labelme(tmp_path / "set", square, "b")
    file = tmp_path / "set/b.json"
    inside = png(np.full((HEIGHT, WIDTH, 3), 9, np.uint8))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"imageData": inside}))
    (tmp_path / "set/b.jpg").unlink()
    tree, notes, builder = read(tmp_path / "set", unpacked=tmp_path / "out/images")
    assert builder.root == tmp_path.resolve()
    assert [one["file_name"] for one in tree["images"]] == ["set/a.jpg", "out/images/b.png"]
    assert "b.json: has its image inside" in notes


def test_voc_is_of_the_image_that_is_called_as_the_file_whatever_is_written_in_it(tmp_path):
    names = ("a", "a_flipped")
    for left, name in enumerate(names, 1):
        picture(tmp_path / f"JPEGImages/{name}.jpg")
        text(tmp_path / f"Annotations/{name}.xml", voc_text((left + 1, 3, 30, 40)))
    assert pairs(read(tmp_path)[0]) == [("JPEGImages/a.jpg", 1), ("JPEGImages/a_flipped.jpg", 2)]
    for split, left in (("train", 5), ("valid", 6)):  # Roboflow: one name in two sets
        picture(tmp_path / f"robo/{split}/a.jpg")
        text(tmp_path / f"robo/{split}/a.xml", voc_text((left + 1, 3, 30, 40)))
    assert pairs(read(tmp_path / "robo")[0]) == [("train/a.jpg", 5), ("valid/a.jpg", 6)]


def test_a_bare_name_in_nested_folders_is_not_taken_for_the_image_above_them(tmp_path):
    square = [shape("rectangle", [[1, 2], [30, 40]])]
    for kind in ("labelme", "voc"):
        picture(tmp_path / kind / "a.jpg")
        for folder in "xy":
            if kind == "voc":
                text(tmp_path / f"voc/{folder}/a.xml", voc_text((2, 3, 30, 40)))
            else:
                labelme(tmp_path / "labelme" / folder, square)
                (tmp_path / f"labelme/{folder}/a.jpg").unlink()
        tree, notes, _ = read(tmp_path / kind)
        assert not tree["images"]
        assert "2 times" in notes or "a.xml, a.xml" in notes or "a.json, a.json" in notes
    tasks = [
        {"id": n, "data": {"image": f"s3://b/{n}/a.jpg"}, "annotations": [{"result": [region()]}]}
        for n in range(2)
    ]
    picture(tmp_path / "studio/a.jpg")
    file = text(tmp_path / "studio/export.json", json.dumps(tasks))
    assert not read(file)[0]["images"]
    text(file, json.dumps(tasks[:1]))
    assert len(read(file)[0]["annotations"]) == 1


def test_cvats_images_of_a_project_lie_in_folders_of_their_subsets(tmp_path):
    images = []
    for left, subset in ((1, "Train"), (2, "Validation")):
        picture(tmp_path / f"images/{subset}/a.jpg")
        images.append(f'<image name="a.jpg" subset="{subset}">{CAT.format(left, "")}</image>')
    text(tmp_path / "annotations.xml", f"<annotations>{''.join(images)}</annotations>")
    tree, _, _ = read(tmp_path)
    assert pairs(tree) == [("images/Train/a.jpg", 1), ("images/Validation/a.jpg", 2)]


# --- YOLO -----------------------------------------------------------------------------------------


def yolo(root, names, lines=(f"0 {BOX}",), **settings):
    for place in ("train", "val"):
        picture(root / f"images/{place}/a.jpg")
        text(root / f"labels/{place}/a.txt", "\n".join(lines))
    rest = "".join(f"{key}: {value}\n" for key, value in settings.items())
    return text(root / "data.yaml", f"names: {names}\n{rest}")


def test_yolo_class_names_are_what_is_written_and_not_what_yaml_makes_of_it(tmp_path):
    lines = [f"{number} {BOX[:-1]}{number + 1}" for number in range(5)]
    file = yolo(tmp_path, "[yes, on, 007, 1.0, null]", lines, train="images/train", test="null")
    tree, _ = split_of(read_labels(file), "train")
    assert named(tree) == ["yes", "on", "007", "1.0", "null"]


def test_yolo_an_empty_line_among_the_names_is_a_number_of_its_own(tmp_path):
    picture(tmp_path / "images/a.jpg")
    text(tmp_path / "labels/a.txt", f"0 {BOX}\n2 {BOX}")
    text(tmp_path / "classes.txt", "cat\n\ndog\n\n")
    assert named(read(tmp_path)[0]) == ["cat", "dog"]


@pytest.mark.parametrize(
    "place",
    [
        "/content/datasets/set/images/train",
        "C:\\Users\\me\\set\\images\\train",
        "../set/images/train",
        "[./images/train]",
        "train.txt",
        "/home/me/train.txt",
    ],
)
def test_yolo_folders_of_another_machine_and_lists_of_images_are_found(tmp_path, place):
    file = yolo(tmp_path / "here", "{0: cat}", train=place, val="images/val", path="/content/set")
    lines = ["/content/set/images/train/a.jpg", "./images/train/a.jpg"]
    text(tmp_path / "here/train.txt", "\n".join(lines))
    found = read_labels(file)
    for split in ("train", "val"):
        assert pairs(split_of(found, split)[0]) == [(f"images/{split}/a.jpg", 30)]


def test_yolo_images_outside_of_the_folder_of_data_yaml_have_names_that_training_takes(tmp_path):
    yolo(tmp_path / "photos", "[cat]")
    text(tmp_path / "set/data.yaml", "names: [cat]\ntrain: ../photos/images/train\n")
    found = read_labels(tmp_path / "set/data.yaml")["train"]
    assert found.root == tmp_path.resolve()
    assert pairs(found.tree()) == [("photos/images/train/a.jpg", 30)]


def test_yolo_turned_boxes_and_keypoints_are_not_taken_for_other_shapes(tmp_path):
    turned = "0 0.25 0.25 0.5 0.5 0.25 0.75 0.125 0.5"
    pose = f"0 {BOX} 0.4 0.4 2 0.5 0.5 1 0 0 0"
    with_score = f"{pose.replace('0.5 0.25', '0.5 0.24')} 0.9"
    file = yolo(tmp_path, "[cat]", [turned, pose, f"0 {BOX} 0.5 0.5 2.0"], train="images/train")
    tree, notes = split_of(read_labels(file), "train")
    assert tree["annotations"][0]["segmentation"] == [[20, 15, 40, 30, 20, 45, 10, 30]]
    assert [item["bbox"] for item in tree["annotations"][1:]] == [[30, 15, 20, 30]] * 2
    assert "has keypoints; the keypoints are left out" in notes
    file = yolo(
        tmp_path, "[cat]", [pose, with_score, turned], train="images/train", kpt_shape="[3, 3]"
    )
    tree, notes = split_of(read_labels(file), "train")
    assert len(tree["annotations"]) == 2
    assert "line 3: has 9 numbers: neither a box nor one with its keypoints" in notes


def test_yolo_tracks_are_boxes_and_no_triangles(tmp_path):
    lines = [f"0 {BOX} 0.9 1", f"0 {BOX[:-1]}6 0.8 2", "0 0.1 0.1 0.5 0.1 0.5 0.5"]
    file = yolo(tmp_path, "[cat]", lines, train="images/train")
    tree, notes = split_of(read_labels(file), "train")
    assert [item["bbox"] for item in tree["annotations"][:2]] == [
        [30, 15, 20, 30],
        [30, 12, 20, 36],
    ]
    assert tree["annotations"][2]["segmentation"] == [[8, 6, 40, 6, 40, 30]]
    assert "has the number of a track; the number is left out" in notes


def test_yolo_folders_of_several_sets_without_a_data_yaml_are_said_to_be_joined(tmp_path):
    yolo(tmp_path, "[cat]").unlink()
    text(tmp_path / "args.yaml", "epochs: 3")
    text(tmp_path / "things.yaml", "names: [cat]")
    tree, notes, _ = read(tmp_path, "yolo")
    assert named(tree) == ["cat", "cat"]
    assert "folders train, val: are of several sets; joined" in notes


# --- Pascal VOC -----------------------------------------------------------------------------------


def voc_text(box, name="cat", more=""):
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return (
        f"<annotation><folder/><filename>a.jpg</filename><object><name>{name}</name>"
        f"<bndbox>{corners}</bndbox>{more}</object></annotation>"
    )


def test_voc_corners_in_fractions_are_not_numbers_of_pixels(tmp_path):
    picture(tmp_path / "a.jpg")
    file = text(tmp_path / "a.xml", voc_text((10.5, 20.25, 30.75, 40.5)))  # as CVAT writes them
    tree, notes, _ = read(tmp_path)
    assert tree["annotations"][0]["bbox"] == [10.5, 20.25, 20.25, 20.25]
    assert "are fractions; all are counted from 0" in notes
    file.write_text(voc_text((10.5, 20, 30, 40)))  # one of VOC's own slips
    assert read(file)[0]["annotations"][0]["bbox"] == [9.5, 19, 20.5, 21]


def test_voc_objects_without_a_name_are_no_class_of_their_own(tmp_path):
    picture(tmp_path / "a.jpg")
    text(tmp_path / "a.xml", voc_text((2, 3, 30, 40), name=" "))
    tree, notes, builder = read(tmp_path)
    assert not tree["annotations"] + tree["categories"]
    assert builder.read == 1
    assert "a.xml, object 1: has no name; left out" in notes


def test_voc_polygons_of_roboflow_and_of_labelmes_older_xml(tmp_path):
    picture(tmp_path / "a.jpg")
    points = [(11, 21), (31, 21), (31, 41)]
    numbered = "".join(f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in enumerate(points, 1))
    file = text(
        tmp_path / "a.xml", voc_text((11, 21, 30, 40), more=f"<polygon>{numbered}</polygon>")
    )
    assert read(tmp_path)[0]["annotations"][0]["segmentation"] == [[10, 20, 30, 20, 30, 40]]
    listed = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in points)
    old = "<annotation><filename>a.jpg</filename>{}</annotation>"
    one = "<object><name>cat</name><deleted>{}</deleted><polygon>" + listed + "</polygon></object>"
    file.write_text(old.format(one.format(0) + one.format(1)))
    tree, notes, _ = read(tmp_path)
    assert [i["segmentation"] for i in tree["annotations"]] == [[[11, 21, 31, 21, 31, 41]]]
    assert "object 2: is deleted; left out" in notes


# --- CVAT -----------------------------------------------------------------------------------------


def test_cvats_tracks_are_read_frame_by_frame_and_turned_boxes_and_skeletons_are_said(tmp_path):
    for frame in (0, 7):
        picture(tmp_path / f"images/frame_{frame:06d}.PNG")
    shapes = [CAT.format(1, 'frame="0"'), CAT.format(2, 'frame="7"')]
    shapes.append(CAT.format(3, 'frame="8" outside="1"'))
    track = f'<track id="4" label="dog">{"".join(shapes)}</track>'
    labels = "".join(
        f"<label><name>{name}</name>{parent}</label>"
        for name, parent in (("cat", ""), ("dog", ""), ("nose", "<parent>cat</parent>"))
    )
    image = f'<image name="frame_000007.PNG">{CAT.format(9, "rotation=&quot;90&quot;")}</image>'
    image = image.replace("&quot;", '"')
    text(
        tmp_path / "annotations.xml",
        f"<annotations><meta><task><labels>{labels}</labels></task></meta>{image}{track}"
        "</annotations>",
    )
    tree, notes, _ = read(tmp_path)
    assert [one["name"] for one in tree["categories"]] == ["cat", "dog"]
    assert sorted(zip(pairs(tree), named(tree), strict=True)) == [
        (("images/frame_000000.PNG", 1), "dog"),
        (("images/frame_000007.PNG", 0.5), "cat"),
        (("images/frame_000007.PNG", 2), "dog"),
    ]
    assert "is a turned box; a polygon of its corners" in notes
    assert "track 4, frame 8: is outside of the picture" in notes


# --- Label Studio ---------------------------------------------------------------------------------


def studio(folder, results, **task):
    picture(folder / "a.jpg")
    whole = {"id": 3, "data": {"image": "/data/upload/1/0123abcd-a.jpg"}} | task
    whole |= {"annotations": [{"result": results}]}
    return text(folder / "export.json", json.dumps([whole]))


def region(name="image", **more):
    value = {"x": 10, "y": 50, "width": 25, "height": 10, "rectanglelabels": ["cat"]}
    return {"type": "rectanglelabels", "to_name": name, "value": value | more}


def test_label_studios_regions_of_turned_or_other_pictures_are_not_laid_on_this_one(tmp_path):
    point = {"type": "keypointlabels", "value": {"x": 1, "y": 2, "keypointlabels": ["cat"]}}
    results = [region(), region() | {"image_rotation": 90}, point, region(rotation=90)]
    tree, notes, builder = read(studio(tmp_path, results))
    assert (len(tree["annotations"]), builder.read) == (2, 4)
    for words in ("result 2: was drawn on a picture that was turned", "result 3: is a keypoint"):
        assert words in notes
    assert "result 4: is a turned box; a polygon of its corners" in notes
    brushed = {"original_width": WIDTH + 1, "original_height": HEIGHT, "value": {"rle": [1]}}
    brushed["value"]["brushlabels"] = ["cat"]
    assert "brushed on a picture of another size" in read(studio(tmp_path, [brushed]))[1]
    choice = {"type": "choices", "to_name": "text", "value": {"choices": ["good"]}}
    assert len(read(studio(tmp_path, [region(), choice]))[0]["annotations"]) == 1
    tree, notes, _ = read(studio(tmp_path, [region("left"), region("right")]))
    assert not tree["annotations"]
    assert "has several pictures; its labels are left out" in notes


def test_label_studios_short_export_has_a_task_for_each_annotator(tmp_path):
    picture(tmp_path / "a.jpg")
    one = {"image": "/data/local-files/?d=in%5Ca.jpg", "id": 1, "label": [region()["value"]]}
    tasks = [one | {"annotator": number, "annotation_id": number} for number in (1, 2)]
    text(tmp_path / "export.json", json.dumps(tasks))
    tree, notes, _ = read(tmp_path / "export.json", "labelstudio")
    assert len(tree["annotations"]) == 1
    assert "was labelled several times; the first labelling is taken" in notes


# --- masks ----------------------------------------------------------------------------------------


def ids(kind=np.uint16):
    value = np.zeros((HEIGHT, WIDTH), kind)
    value[3:9, 3:9], value[20:30, 20:40] = 1, 2
    return value


AREAS = [36, 200]


def test_masks_beside_their_images_are_no_images(tmp_path):
    for name in ("a.png", "b.png", "b_cp_output.png"):
        picture(tmp_path / name)
    Image.fromarray(ids()).save(tmp_path / "a_cp_masks.png")
    Image.fromarray(ids()).save(tmp_path / "b_masks.tif")
    tree, notes, _ = read(tmp_path)
    assert [one["file_name"] for one in tree["images"]] == ["a.png", "b.png"]
    assert [item["area"] for item in tree["annotations"]] == AREAS * 2
    assert "b_cp_output.png: is called as a picture beside its image; left out" in notes


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint32, np.int64, np.float32])
def test_maps_of_any_type_are_read_and_what_is_negative_is_no_object(tmp_path, kind):
    picture(tmp_path / "images/x/a.png")
    values = ids(kind)
    if np.issubdtype(kind, np.signedinteger) or kind is np.float32:
        values[values == 0] = -1
    (tmp_path / "masks/x").mkdir(parents=True)
    np.save(tmp_path / "masks/x/a.npy", values)  # in the same folders as the images
    tree, _, _ = read(tmp_path / "masks", "masks", tmp_path / "images")
    assert [item["area"] for item in tree["annotations"]] == AREAS


def test_colours_of_16_bits_are_told_apart(tmp_path):
    import cv2

    picture(tmp_path / "images/a.png")
    (tmp_path / "masks").mkdir()
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint16)
    colours[..., 2] = ids() + (ids() > 0) * 1000  # both the same in 8 bits
    cv2.imwrite(str(tmp_path / "masks/a.png"), colours)
    tree, _, _ = read(tmp_path / "masks", "masks", tmp_path / "images")
    assert [item["area"] for item in tree["annotations"]] == AREAS


def test_a_palette_whose_0_is_not_black_is_read_by_its_colours(tmp_path):
    (tmp_path / "masks/b").mkdir(parents=True)
    for name in ("a", "b"):
        picture(tmp_path / f"images/{name}.png")
    turned = Image.fromarray(np.where(ids() > 0, 0, 1).astype(np.uint8), mode="P")
    turned.putpalette([255, 255, 255, 0, 0, 0])  # 0 is white: an object
    for name in ("a", "b/0"):
        turned.save(tmp_path / f"masks/{name}.png")
    tree, _, _ = read(tmp_path / "masks", "masks", tmp_path / "images")
    assert [item["area"] for item in tree["annotations"]] == [*AREAS, sum(AREAS)]


def test_what_is_transparent_is_no_object_and_a_map_without_background_is_said(tmp_path):
    (tmp_path / "masks").mkdir()
    colours = np.full((HEIGHT, WIDTH, 4), 255, np.uint8)
    colours[..., :2], colours[..., 3] = ids()[..., None] * 100, (ids() > 0) * 255
    for name in ("a", "b"):
        picture(tmp_path / f"images/{name}.png")
    Image.fromarray(colours).save(tmp_path / "masks/a.png")
    Image.fromarray(ids() + 1).save(tmp_path / "masks/b.png")
    tree, notes, _ = read(tmp_path / "masks", "masks", tmp_path / "images")
    assert [item["area"] for item in tree["annotations"]][:2] == AREAS
    assert len(tree["annotations"]) == 5
    assert "b.png: has no 0, which is background; each value is an object" in notes


def palette_map(path, values):
    """A picture in VOC's palette, as the devkit draws it up."""
    colours = []
    for number in range(256):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= ((number >> (3 * bit + channel)) & 1) << (7 - bit)
        colours += rgb
    picture = Image.fromarray(values.astype(np.uint8), mode="P")
    picture.putpalette(colours)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return picture


def test_vocs_maps_have_edges_that_are_no_object_and_classes_beside_them(tmp_path):
    picture(tmp_path / "JPEGImages/x/a.jpg")
    objects = ids()
    objects[10, :] = 255
    kinds = np.select([objects == 1, objects == 2, objects == 255], [15, 8, 255])
    classes = tmp_path / "SegmentationClass/x/a.png"
    palette_map(tmp_path / "SegmentationObject/x/a.png", objects)
    drawn_classes = palette_map(classes, kinds)
    for source, images in ((tmp_path, None), (tmp_path / "SegmentationObject", None)):
        tree, notes, _ = read(source, "masks", images)
        assert [item["area"] for item in tree["annotations"]] == AREAS
        assert named(tree) == ["person", "cat"]  # the 15th and the 8th of VOC
        assert "has no labelmap.txt beside it; its classes are called as VOC's 20" in notes
        assert "has edges between objects" in notes
    text(tmp_path / "class_names.txt", "__ignore__\n_background_\n" + "x\n" * 7 + "dog\n")
    assert named(read(tmp_path)[0]) == ["object", "dog"]  # labelme2voc's: by their order
    drawn_classes.convert("RGB").save(classes)  # as CVAT writes them
    text(
        tmp_path / "labelmap.txt",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\na:b:192,128,128::\nc:64,0,0::\n",
    )
    assert named(read(tmp_path)[0]) == ["a:b", "c"]
    names = "".join(f"{number}:::\n" for number in range(20))  # datumaro's: in VOC's colours
    text(tmp_path / "labelmap.txt", names)
    assert named(read(tmp_path)[0]) == ["15", "8"]


def test_cityscapes_maps_have_classes_groups_and_regions(tmp_path):
    picture(tmp_path / "leftImg8bit/bonn/bonn_0_1_leftImg8bit.png")
    values = np.full((HEIGHT, WIDTH), 7, np.uint16)  # road
    values[3:9, 3:9], values[20:30, 20:40], values[40:50, 40:50] = 26001, 24000, 25
    (tmp_path / "gtFine/bonn").mkdir(parents=True)
    Image.fromarray(values).save(tmp_path / "gtFine/bonn/bonn_0_1_gtFine_instanceIds.png")
    tree, notes, _ = read(tmp_path / "gtFine", "masks", tmp_path / "leftImg8bit")
    found = [(item["area"], item["iscrowd"]) for item in tree["annotations"]]
    assert sorted(zip(named(tree), found, strict=True)) == [
        ("car", (36, 0)),
        ("person", (200, 0)),
        ("rider", (100, 1)),
    ]
    assert "id 7: is a region and no object" in notes


# --- what no reader takes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", {"objects": [], "size": {"height": 1, "width": 1}}, "Supervisely"),
        ("a.json", {"asset": {}, "regions": []}, "VoTT"),
        ("a.json", {"image": {}, "annotations": []}, "Segment Anything"),
        (
            "a.json",
            {"images": [], "categories": [], "annotations": [{"segments_info": []}]},
            "panoptic",
        ),
        ("a.json", {"_via_img_metadata": {"a": {"filename": "a", "regions": []}}}, "VGG Image"),
        ("a.json", [{"data_row": {}, "projects": {}}], "Labelbox"),
        ("a.json", {"categories": {}, "items": []}, "datumaro"),
        ("a.csv", '"image","xmin","ymin","xmax","ymax","label"\n', "VoTT"),
        ("a.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n", "TensorFlow"),
        ("a.csv", "#filename,file_size,region_shape_attributes\n", "VGG Image"),
        ("a.txt", "imagesource:GoogleEarth\ngsd:0.1\n", "DOTA"),
        ("a.txt", "12 4 90 4 90 30 12 30 small-vehicle 0\n", "DOTA"),
        ("a.txt", "Car 0.00 0 1.85 387.63 181.54 423.81 203.12 1.6 1.7 4 -1 1 5 1\n", "KITTI"),
    ],
)
def test_exports_that_are_not_read_are_named(tmp_path, name, content, words):
    picture(tmp_path / "a.png")  # which alone would be masks
    text(tmp_path / name, content if isinstance(content, str) else json.dumps(content))
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=words):
            guess(source)


def test_an_import_that_keeps_nothing_writes_nothing_and_says_why(tmp_path, run_tool):
    picture(tmp_path / "a.png")
    text(tmp_path / "a.xml", voc_text((2, 3, 30, 40)).replace("bndbox", "robndbox"))
    done = run_tool("import_dataset", tmp_path, "--output-dir", tmp_path / "coco")
    assert done.code == 1
    assert "has no box in numbers" in done.out
    assert "no object is left of 1 label " in done.err
    assert not (tmp_path / "coco").exists()


def test_masks_of_nested_folders_come_back_as_one_object_each(tmp_path):
    builder = Builder(tmp_path)
    for folder in "xy":
        picture(tmp_path / f"images/{folder}/a.png")
        image = builder.image(tmp_path / f"{folder}/a.png", (HEIGHT, WIDTH))
        builder.mask(image, "", "cat", blobs(ord(folder)))
    WRITERS["masks"](builder.tree(), tmp_path / "out")
    tree, _, _ = read(tmp_path / "out", "masks", tmp_path / "images")
    assert [one["file_name"] for one in tree["images"]] == ["x/a.png", "y/a.png"]
    for item, folder in zip(tree["annotations"], "xy", strict=False):
        assert (drawn(item) == blobs(ord(folder))).all()


def test_labelmes_files_lead_to_the_images_and_no_two_images_share_one(tmp_path):
    photo = picture(tmp_path / "photos/x/a.jpg")
    tree = {
        "info": {"image_root": str(tmp_path / "photos")},
        "images": [{"id": 1, "file_name": "x/a.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 12, 30, 20]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    WRITERS["labelme"](tree, tmp_path / "out")
    file = tmp_path / "out/x/a.json"
    path = json.loads(file.read_text())["imagePath"]
    assert (file.parent / path).resolve() == photo.resolve()  # else LabelMe does not open it
    assert pairs(read(tmp_path / "out", "labelme", tmp_path / "photos")[0]) == [("x/a.jpg", 10)]
    assert pairs(read(tmp_path / "out")[0]) == [("photos/x/a.jpg", 10)]
    tree["images"].append(tree["images"][0] | {"id": 2, "file_name": "x/a.png"})
    for kind in ("labelme", "yolo", "masks"):
        with pytest.raises(InputError, match=r"x/a.jpg and x/a.png: would have the same label"):
            WRITERS[kind](tree, tmp_path / kind)
        assert not (tmp_path / kind).exists()
