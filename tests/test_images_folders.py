"""Which files of a folder are images; what is left out is counted by ending."""

from __future__ import annotations

import os
import sys
from collections import Counter

import pytest
from image_formats import image_bytes

from images.bad_images import BadImages
from images.folders import files_of_folder, is_passed_over, words_of
from images.inputs import find_files
from images.labels import read_labels
from images.readers import fingerprint, open_images

PNG = image_bytes(".png")


def write(folder, *names, data=PNG):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def names(found, folder):
    return [path.relative_to(folder).as_posix() for path in found.images]


def test_hidden_files_and_what_macos_and_jupyter_leave_are_passed_over_and_counted(tmp_path):
    write(tmp_path, "a/2.png", "a/10.PNG", "b/1.jpg")
    write(tmp_path, "a/._2.png", "__MACOSX/a/._2.png", ".hidden.png", data=b"\0\5\x16\7")
    write(tmp_path, "a/.ipynb_checkpoints/2-checkpoint.png", ".git/x/y.png")
    found = files_of_folder(tmp_path)
    assert names(found, tmp_path) == ["a/2.png", "a/10.PNG", "b/1.jpg"]
    assert found.words() == "5 hidden files"
    assert read_labels(open_images(str(tmp_path))).classes == ["a", "a", "b"]
    assert [f.name for f in find_files([str(tmp_path)])] == ["10.PNG", "2.png", "1.jpg"]


def test_a_hidden_folder_that_is_named_is_searched(tmp_path):
    write(tmp_path, ".cache/photos/a.png")
    assert len(open_images(str(tmp_path / ".cache/photos"))) == 1


def test_what_is_left_out_is_counted_by_ending_with_what_would_read_it(tmp_path, caplog):
    write(tmp_path, "a.png", "a.txt", "b.TXT", "README", "c.mp4", "x.exr")
    found = files_of_folder(tmp_path, also={".mp4"})
    assert names(found, tmp_path) == ["a.png", "c.mp4"]
    assert found.left_out == {".txt": 2, "": 1, ".exr": 1}
    assert found.words() == ("2 .txt, 1 without an ending, 1 .exr")
    assert words_of(Counter({".heic": 1})) == "1 .heic (pip install pillow-heif reads them)"
    caplog.set_level("INFO")
    open_images(str(tmp_path))
    assert "1 image; left out: 2 .txt, " in caplog.text
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"no images in .*: it holds 2 \.txt, .*\.jfif"):
        open_images(str(tmp_path))


@pytest.mark.parametrize("ending", [".jfif", ".gif", ".ppm", ".webp", ".npy", ".tga"])
def test_other_endings_that_decode_are_images(tmp_path, ending):
    write(tmp_path, f"a{ending}", data=image_bytes(ending))
    assert len(open_images(str(tmp_path))) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_folder_linked_into_itself_is_searched_once(tmp_path):
    write(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a/again").symlink_to(tmp_path)
    (tmp_path / "b/other").symlink_to(tmp_path / "a")
    outside = tmp_path.with_name(tmp_path.name + "_outside")
    write(outside, "3.png")
    (tmp_path / "linked").symlink_to(outside)
    found = files_of_folder(tmp_path)
    assert sorted(path.name for path in found.images) == ["1.png", "2.png", "3.png"]
    assert found.left_out["folders linked twice"] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_names_that_are_not_utf_8_are_read_hashed_and_listed(tmp_path):
    write(tmp_path / "images", "a.png")
    os.rename(tmp_path / "images/a.png", os.fsencode(tmp_path / "images") + b"/stra\xdfe.png")
    reader = open_images(str(tmp_path / "images"))
    assert reader.open(0).read() == PNG
    assert len(fingerprint(reader)) == 16
    for _ in range(2):
        with pytest.raises(ValueError, match="1 of 1 image cannot be used"):
            BadImages(tmp_path, reader).add({0: "is empty"})
    assert (tmp_path / "bad_images.txt").read_bytes().count(b"stra\xdfe.png\tis empty\n") == 1


def test_the_words_of_many_endings_are_bounded():
    said = words_of(Counter({f".{n}": 1 for n in range(30)}))
    assert said.endswith(", 18 more")


@pytest.mark.parametrize("name", ["./a/b.png", "../a.png", "a.b/c.png", "C:\\data\\a.png"])
def test_plain_paths_are_not_passed_over(name):
    assert not is_passed_over(name)


def test_predictions_pass_over_bad_images_only_where_asked(tmp_path, caplog):
    write(tmp_path, "a.png")
    write(tmp_path, "b.png", data=PNG[:60])
    with pytest.raises(ValueError, match=r"b\.png does not decode"):
        find_files([str(tmp_path)])
    assert [file.name for file in find_files([str(tmp_path)], skip_bad=True)] == ["a.png"]
    assert "left out: " in caplog.text
    assert "1 of 2 files do not decode" in caplog.text
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"b\.png does not decode"):
        find_files([str(tmp_path)], skip_bad=True)
