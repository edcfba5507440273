"""Classes and parts of a source's images, from the paths of real layouts."""

from __future__ import annotations

import pytest

from images.labels import labels_of_paths


def labels(*paths):
    return labels_of_paths([tuple(path.split("/")) for path in paths])


def each(folders, images=2):
    return [f"{folder}/{number}.jpg" for folder in folders for number in range(images)]


def test_the_class_is_the_folder_on_top_and_not_the_innermost():
    """benign/p1 and malignant/p1 were one class, of the patient."""
    found = labels(*each(["benign/p1", "benign/p2", "malignant/p1"]), "top.jpg")
    assert found.classes == ["benign"] * 4 + ["malignant"] * 2 + [""]
    assert set(found.parts) == {None}
    assert found.names[0] == "benign/p1/0.jpg"


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "val"),
        ("Training", "Testing"),
        ("Train", "Val"),
        ("TRAIN", "valid"),
        ("training_set", "test_set"),
        ("train-data", "ValSet"),
    ],
)
def test_parts_are_known_by_their_names_in_any_case(train, val):
    found = labels(*each([f"{train}/a", f"{train}/b"]), *each([f"{val}/a/p1", f"{val}/b"], 1))
    assert found.classes == ["a", "a", "b", "b", "a", "b"]
    assert found.of_part("train") == [0, 1, 2, 3]
    assert found.of_part("val", "test") == [4, 5]
    assert found.names == ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg", "a/p1/0.jpg", "b/0.jpg"]


def test_val_goes_before_test_and_what_is_beside_the_parts_is_left_out(caplog):
    folders = ["train/a", "train/b", "val/a", "test/a", "unlabelled"]
    found = labels(*each(folders, 1), "readme.jpg")
    assert found.of_part("val", "test") == [2]
    assert found.of_part("test") == [3]
    assert found.parts[4:] == [None, None]
    assert "2 images beside the folders test, train, val are left out" in caplog.text


@pytest.mark.parametrize("name", ["train", "Test", "val"])
def test_a_class_may_be_called_as_a_part(name):
    found = labels(*each(["bus", name, "truck"]))
    assert found.classes == ["bus"] * 2 + [name] * 2 + ["truck"] * 2
    assert not any(found.parts)
    deep = labels(*each(["bus/day", f"{name}/night", "truck/day"], 1))
    assert deep.classes == ["bus", name, "truck"]
    split = labels(*each([f"train/{name}", "train/bus", f"val/{name}", "val/bus"], 1))
    assert split.classes == [name, "bus"] * 2


def test_val_beside_the_classes_is_no_class_and_is_not_trained_on():
    found = labels(*each(["a", "b", "val/a", "val/b"], 1))
    assert found.classes == ["a", "b", "a", "b"]
    assert (found.of_part("train"), found.of_part("val")) == ([0, 1], [2, 3])


def test_what_cannot_be_told_is_an_error_that_names_the_folders():
    with pytest.raises(ValueError, match=r"folders Train, training are all called train: keep one"):
        labels(*each(["Train/a", "training/a", "val/a"]))
    with pytest.raises(ValueError, match=r"folder train, which holds folders.*\(bus, truck\)"):
        labels(*each(["bus", "truck", "train/old"]))
    with pytest.raises(ValueError, match=r"test, train hold images, and no folder for each class"):
        labels(*each(["train", "test"]))
