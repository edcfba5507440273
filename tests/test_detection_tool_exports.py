"""Exports as the tools write them: what each leaves away, spells otherwise or brings beside."""

import base64
import io
import json
import zipfile

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image
from test_detection_formats import HEIGHT, WIDTH, drawn, labelme, named, picture, read, shape, voc

from backbones.errors import InputError
from detection.data.formats import labels
from detection.data.formats.convert import guess, read_labels

BOX = "0.5 0.5 0.25 0.5"  # 20 x 30 pixels from 30, 15


def text(path, content, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


def png(values, **options):
    stream = io.BytesIO()
    Image.fromarray(values, **options).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


# --- YOLO -----------------------------------------------------------------------------------------


def test_yolo_numbers_without_a_name_are_no_classes_and_no_number_is_too_large(tmp_path):
    picture(tmp_path / "images/a.jpg")
    lines = [f"1 {BOX}", f"3 {BOX}", f"999999999999 {BOX}", f"1e400 {BOX}", f"-1 {BOX}"]
    text(tmp_path / "labels/a.txt", "\n".join(lines))
    text(tmp_path / "data.yaml", "names: {1: cat, 2: dog, 3: cat}\n")  # labelformat starts at 1
    tree, notes, builder = read(tmp_path)
    assert [one["name"] for one in tree["categories"]] == ["cat", "dog"]
    assert named(tree) == ["cat", "cat"]
    assert "class cat: is named twice; it is one class" in notes
    assert builder.read == 5


def test_yolo_polygons_with_a_confidence_and_names_with_a_byte_order_mark(tmp_path):
    picture(tmp_path / "images/a.jpg")
    text(tmp_path / "labels/a.txt", "0 0.25 0.5 0.5 0.5 0.5 0.75 0.83\n", "utf-16")
    text(tmp_path / "classes.txt", "katze\r\nhund\r\n", "utf-8-sig")
    tree, notes, _ = read(tmp_path)
    assert tree["annotations"][0]["segmentation"] == [[20, 30, 40, 30, 40, 45]]
    assert "has a confidence" in notes
    assert named(tree) == ["katze"]


def test_yolo_images_that_are_a_link_and_labels_in_folders_as_deep_as_the_images(tmp_path):
    picture(tmp_path / "photos/x/a.jpg")
    text(tmp_path / "set/labels/x/a.txt", f"0 {BOX}")
    text(tmp_path / "set/data.yaml", "names: [cat]\ntrain: images\nval: images\n")
    (tmp_path / "set/images").symlink_to(tmp_path / "photos")
    linked = read(tmp_path / "set/data.yaml")[0]
    assert linked["images"][0]["file_name"] == "images/x/a.jpg"
    assert len(linked["annotations"]) == 1
    (tmp_path / "set/images").unlink()
    for source in ("set/labels", "set/data.yaml"):  # the names lie beside the labels
        tree, _, builder = read(tmp_path / source, "yolo", tmp_path / "photos")
        assert named(tree) == ["cat"]
        assert builder.root == (tmp_path / "photos").resolve()
    (tmp_path / "photos").rename(tmp_path / "set/images")
    assert named(read(tmp_path / "set/labels", "yolo")[0]) == ["cat"]


def test_yolo_a_test_set_that_is_named_but_not_there_is_said_and_no_training_set_is_refused(
    tmp_path,
):
    for split in ("train", "valid"):
        picture(tmp_path / f"{split}/images/a.jpg")
        text(tmp_path / f"{split}/labels/a.txt", f"0 {BOX}")
    lines = [f"{key}: ../{name}/images" for key, name in (("train", "train"), ("val", "valid"))]
    file = text(tmp_path / "data.yaml", "\n".join([*lines, "test: ../test/images", "names: [cat]"]))
    found = read_labels(tmp_path)
    assert list(found) == ["train", "val"]
    notes = "\n".join(map(str, found["train"].problems()))
    assert "test: ../test/images: is named by data.yaml, and is not there; left out" in notes
    text(file, file.read_text().replace("../train", "../trian"))
    with pytest.raises(InputError, match="trian"):
        read_labels(tmp_path)


def test_darknets_files_of_cvat(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"obj_train_data/{name}.jpg")
        text(tmp_path / f"obj_train_data/{name}.txt", f"1 {BOX}")
    picture(tmp_path / "obj_train_data/unlisted.jpg")
    text(tmp_path / "obj.names", "cat\ndog\n")
    text(
        tmp_path / "obj.data",
        "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
    )
    text(tmp_path / "train.txt", "data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
    assert guess(tmp_path) == "yolo"
    found = read_labels(tmp_path)
    assert list(found) == ["train"]
    tree = found["train"].tree()
    assert [one["file_name"] for one in tree["images"]] == [
        "obj_train_data/a.jpg",
        "obj_train_data/b.jpg",
    ]
    assert named(tree) == ["dog", "dog"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("names: {cat: 0}", "the key 'cat'"),
        ("nc: many", "nc is many"),
        ("names: [a]\nkpt_shape: 17", "kpt_shape is 17"),
        ("- a", "is no data.yaml"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_data_yaml_of_any_content_is_refused_in_words(tmp_path, content, words):
    picture(tmp_path / "images/a.jpg")
    text(tmp_path / "labels/a.txt", f"0 {BOX}")
    with pytest.raises(InputError, match=words):
        read_labels(text(tmp_path / "data.yaml", content))


# --- Pascal VOC -----------------------------------------------------------------------------------


def test_voc_corners_at_0_say_that_all_are_counted_from_0(tmp_path):
    voc(tmp_path, "a", [("cat", (0, 5, 80, 60), 0)])
    voc(tmp_path, "b", [("cat", (11.0, 21.0, 30.0, 40.0), 0)])
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    tree, notes, _ = read(tmp_path)
    assert "ImageSets: names parts of the set; they are not told apart" in notes
    assert [item["bbox"] for item in tree["annotations"]] == [[0, 5, 80, 55], [11, 21, 19, 19]]
    assert "are at pixel 0; all are counted from 0 and not from 1" in notes


def test_voc_in_a_chinese_encoding_with_a_size_in_words_and_parts(tmp_path):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "SegmentationClass/a.png")  # is no image, though it is called as one
    text(
        tmp_path / "a.xml",
        '<?xml version="1.0" encoding="GBK"?><annotation><filename>a.png</filename>'
        "<size><width>wide</width></size><object><name>猫</name><part><name>head</name></part>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        "</annotation>",
        "gbk",
    )
    tree, notes, _ = read(tmp_path)
    assert named(tree) == ["猫"]
    assert tree["images"][0]["file_name"] == "a.jpg"
    assert "states another size than its image" in notes
    assert "has parts, such as a head; the parts are left out" in notes
    text(tmp_path / "b.xml", '<?xml version="1.0" encoding="klingon"?><annotation/>')
    assert "b.xml: is no XML of Pascal VOC" in read(tmp_path)[1]


# --- LabelMe --------------------------------------------------------------------------------------


def test_labelme_images_that_are_in_the_files_are_unpacked(tmp_path):
    labelme(tmp_path / "set/x", [shape("polygon", [[1, 2], [11, 2], [11, 22]])])
    (tmp_path / "set/x/a.jpg").unlink()
    file = tmp_path / "set/x/a.json"
    tree = json.loads(file.read_text())
    pixels = np.full((HEIGHT, WIDTH, 3), 7, np.uint8)
    file.write_text(json.dumps(tree | {"imageData": png(pixels)}))
    file.with_name("broken.json").write_text(json.dumps(tree | {"imageData": "aGVsbG8="}))
    assert not read(tmp_path / "set")[0]["images"]  # nothing is written where nobody asks
    coco, notes, builder = read(tmp_path / "set", unpacked=tmp_path / "out/images")
    assert "has its image inside" in notes
    assert "broken.json: its image is not there" in notes
    assert coco["images"][0]["file_name"] == "x/a.png"
    assert (np.asarray(Image.open(builder.root / "x/a.png")) == pixels).all()
    assert len(coco["annotations"]) == 1


def test_labelme_shapes_without_a_label_flags_turned_boxes_and_images_without_labels(tmp_path):
    square = [[1, 2], [11, 2], [11, 22], [1, 22]]
    labelme(
        tmp_path,
        [
            shape("polygon", square, label=None),
            shape("polygon", square, flags={"blurred": True, "cut": False}),
            shape("oriented_rectangle", square, flags={"blurred": False}),
        ],
    )
    picture(tmp_path / "unlabelled.jpg")
    tree, notes, builder = read(tmp_path)
    assert len(tree["annotations"]) == 2
    assert builder.read == 3
    for words in (
        "shape 1: has no label; left out",
        "shape 2: has flags; the flags are left out",
        "unlabelled.jpg: is an image without labels; left out",
    ):
        assert words in notes


# --- CVAT -----------------------------------------------------------------------------------------


def test_cvat_attributes_and_subsets_are_said_and_an_image_of_two_files_is_one(tmp_path):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.jpg")
    line = (
        '<box label="cat" xtl="1" ytl="2" xbr="{}" ybr="9"><attribute name="n">1</attribute></box>'
    )
    for number, right in enumerate((9, 19)):
        images = "".join(
            f'<image name="{name}.jpg" subset="{subset}">{line.format(right)}</image>'
            for name, subset in (("a", "Train"), ("b", "Validation"))
        )
        text(tmp_path / f"{number}.xml", f"<annotations>{images}</annotations>")
    tree, notes, _ = read(tmp_path)
    assert [one["file_name"] for one in tree["images"]] == ["a.jpg", "b.jpg"]
    assert sorted(item["bbox"][2] for item in tree["annotations"]) == [8, 8, 18, 18]
    assert "labels an image that others label; their objects are joined" in notes
    assert "has attributes; the attributes are left out" in notes
    assert "subsets Train, Validation: are in one file; they are joined" in notes


# --- Label Studio ---------------------------------------------------------------------------------


def test_label_studio_leaves_out_what_nobody_has_drawn_and_says_so(tmp_path):
    box = {"x": 10, "y": 50, "width": 25, "height": 10, "rectanglelabels": ["cat"]}
    drawing = {"result": [{"type": "rectanglelabels", "value": box}]}
    tasks = [
        {"annotations": [drawing, drawing], "predictions": [drawing]},
        {"annotations": [drawing | {"was_cancelled": True}]},
        {"annotations": [], "predictions": [drawing]},
        {"annotations": [{"result": []}]},  # there is nothing to be seen
    ]
    for number, task in enumerate(tasks):
        picture(tmp_path / f"{number}.jpg")
        task |= {"id": number, "data": {"text": "1", "photo": f"s3://bucket/{number}.jpg"}}
    text(tmp_path / "export.json", json.dumps(tasks))
    tree, notes, _ = read(tmp_path / "export.json")
    assert [one["file_name"] for one in tree["images"]] == ["0.jpg", "3.jpg"]
    assert len(tree["annotations"]) == 1
    for words in (
        "task 0 (0.jpg), task 2 (2.jpg): has predictions; they are left out",
        "task 1 (1.jpg): was skipped by an annotator",
        "task 1 (1.jpg), task 2 (2.jpg): is not labelled; left out",
        "task 0 (0.jpg): was labelled several times",
    ):
        assert words in notes


def test_label_studios_short_export_and_its_masks_as_pictures(tmp_path):
    picture(tmp_path / "a.jpg")
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:20, 30:50] = True
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rgba[mask] = (0, 0, 0, 255)
    url = f"data:image/png;base64,{png(rgba)}"
    short = {
        "photo": "/data/local-files/?d=in/a.jpg",
        "id": 1,
        "annotator": 1,
        "shapes": [{"imageDataURL": url, "bitmasklabels": ["cat"]}],
        "boxes": [{"x": 0, "y": 0, "width": 50, "height": 50, "rectanglelabels": ["dog"]}],
        "quality": [{"choices": ["good"]}],
    }
    text(tmp_path / "export.json", json.dumps([short]))
    tree, _, _ = read(tmp_path / "export.json", "labelstudio")
    assert named(tree) == ["cat", "dog"]
    assert (drawn(tree["annotations"][0]) == mask).all()


# --- masks ----------------------------------------------------------------------------------------


def test_masks_of_single_objects_in_one_folder_are_known_by_their_images_name(tmp_path):
    for stem in ("a", "a_1", "b"):
        picture(tmp_path / f"images/{stem}.png")
    value = np.zeros((HEIGHT, WIDTH), np.uint8)
    value[3:9, 3:9] = 255
    (tmp_path / "masks").mkdir()
    for name in ("a_0", "a_mask_2", "a_1_0", "c_0", "b_x"):
        Image.fromarray(value).save(tmp_path / f"masks/{name}.png")
    tree, notes, _ = read(tmp_path / "masks", "masks", tmp_path / "images")
    names = {one["id"]: one["file_name"] for one in tree["images"]}
    assert [names[item["image_id"]] for item in tree["annotations"]] == ["a.png"] * 2 + ["a_1.png"]
    assert "b.png: has no mask" in notes


def test_a_map_of_palette_colours_is_read_by_its_numbers_and_pages_are_said(tmp_path):
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[3:9, 3:9], ids[20:30, 20:30] = 1, 2
    palette = Image.fromarray(ids, mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 128, 0, 0])  # two objects of one colour
    (tmp_path / "masks").mkdir()
    picture(tmp_path / "images/a.png")
    picture(tmp_path / "images/b.png")
    palette.save(tmp_path / "masks/a.png")
    Image.fromarray(ids).save(
        tmp_path / "masks/b.tif", save_all=True, append_images=[Image.fromarray(ids)]
    )
    tree, notes, _ = read(tmp_path / "masks", "masks", tmp_path / "images")
    assert [item["area"] for item in tree["annotations"]] == [36, 100, 36, 100]
    assert "b.tif: has 2 pages; the first is read" in notes


def test_a_map_of_many_objects_is_read_by_their_boxes_and_nan_is_no_object(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 60, (HEIGHT, WIDTH)).astype(np.float32)
    noise[noise == 7] = np.nan
    picture(tmp_path / "images/a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(noise).save(tmp_path / "masks/a.tif")
    monkeypatch.setattr(labels, "rle_of", None)  # which would encode whole images
    tree, _, builder = read(tmp_path / "masks", "masks", tmp_path / "images")
    expected = [noise == value for value in range(1, 60) if value != 7]
    assert len(tree["annotations"]) == builder.read == len(expected)
    for item, mask in zip(tree["annotations"], expected, strict=True):
        assert (drawn(item) == mask).all()
        assert item["area"] == mask.sum()
        assert item["bbox"] == mask_util.toBbox(item["segmentation"]).tolist()


def test_coco_itself_is_named_as_what_it_is(tmp_path):
    file = text(tmp_path / "train.json", '{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(InputError, match=r"is COCO already: .*check_dataset"):
        read_labels(file)
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:  # as CVAT and Roboflow give it
        archive.write(file, "train.json")
    for kind in ("auto", "cvat"):
        with pytest.raises(InputError, match="is a zip archive: unpack it"):
            read_labels(tmp_path / "export.zip", kind)
