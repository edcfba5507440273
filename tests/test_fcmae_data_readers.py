from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from images.readers import fingerprint, open_images
from images.shards import expand_braces


def write_tar(path, files):
    """``{name in the tar: bytes}`` -> a tar; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Three webdataset shards of two samples: picture, its segmentation and its class."""
    for shard in range(3):
        files = {}
        for key in range(2):
            value = 2 * shard + key
            files |= {
                f"{key:04d}.png": png(value),
                f"{key:04d}.seg.png": png(200),
                f"{key:04d}.cls": b"7",
            }
        write_tar(tmp_path / f"shards/train-{shard:03d}.tar", files)
    return tmp_path / "shards"


def hashes(reader) -> list[str]:
    return [hashlib.sha256(reader.open(i).read()).hexdigest() for i in range(len(reader))]


def reds(reader) -> list[int]:
    return [Image.open(reader.open(i)).getpixel((0, 0))[0] for i in range(len(reader))]


def test_folders_and_tars_hold_the_same_images(image_folder, tmp_path):
    found = sorted(image_folder.rglob("*.png"), key=lambda file: file.name)
    files = {file.name: file.read_bytes() for file in found}
    flat = tmp_path / "flat"
    flat.mkdir()
    for name, data in files.items():
        (flat / name).write_bytes(data)
    one = write_tar(tmp_path / "one.tar", files)
    halves = [dict(list(files.items())[start : start + 6]) for start in (0, 6)]
    inner = [write_tar(tmp_path / f"two/deep/{n}.tar", half) for n, half in enumerate(halves)]
    nested = write_tar(tmp_path / "nested.tar", {path.name: path.read_bytes() for path in inner})
    expected = sorted(hashlib.sha256(data).hexdigest() for data in files.values())
    for source in (image_folder, flat, one, tmp_path / "two", nested):
        reader = open_images(str(source))
        assert sorted(hashes(reader)) == expected, source
    assert open_images(str(nested)).name(7) == f"{nested}/1.tar/07.png"


def test_webdataset_fields_that_end_like_images_are_none(shards):
    assert reds(open_images(f"wds/{shards}")) == [0, 1, 2, 3, 4, 5]
    assert reds(open_images(str(shards))).count(200) == 6  # without wds/, a file is a file


def test_shard_patterns_choose_shards(shards):
    assert reds(open_images(f"wds/{shards}/train-{{001..002}}.tar")) == [2, 3, 4, 5]
    assert reds(open_images(f"wds/{shards}/train-{{000,002}}.tar")) == [0, 1, 4, 5]
    with pytest.raises(FileNotFoundError, match=r"2 of 4 shards do not exist: .*train-003\.tar, "):
        open_images(f"{shards}/train-{{001..004}}.tar")


def test_braces_expand_as_webdatasets_do():
    assert expand_braces("a-{08..11}.tar") == [f"a-{n}.tar" for n in ("08", "09", "10", "11")]
    assert expand_braces("{8..10}") == ["8", "9", "10"]
    assert expand_braces("{a,b}{0..1}") == ["a0", "a1", "b0", "b1"]
    assert expand_braces("plain.tar") == ["plain.tar"]


def test_relative_webdataset_names_are_sought_in_timms_folder(shards, monkeypatch):
    monkeypatch.setenv("TIMM_DATA_DIR", str(shards.parent))
    assert len(open_images("wds/shards")) == 6


def test_the_split_of_webdatasets_info_file_is_heeded(shards):
    splits = {"train": {"filenames": ["train-002.tar", "train-000.tar"]}}
    (shards / "_info.json").write_text(json.dumps({"splits": splits}))
    assert reds(open_images(f"wds/{shards}")) == [4, 5, 0, 1]
    with pytest.raises(ValueError, match="has no split 'test'; it has train"):
        open_images(f"wds/{shards}", "test")


class _Pixels:
    def __init__(self, reader):
        self.reader = reader

    def __len__(self):
        return len(self.reader)

    def __getitem__(self, index):
        return reds_at(self.reader, index)


def reds_at(reader, index):
    return Image.open(reader.open(index)).getpixel((0, 0))[0]


def test_workers_share_no_file_position_with_a_process_that_has_read(tmp_path):
    values = list(range(100))
    write_tar(tmp_path / "many.tar", {f"{value:04d}.png": png(value) for value in values})
    reader = open_images(str(tmp_path / "many.tar"))
    assert reds(reader) == values
    loader = DataLoader(_Pixels(reader), batch_size=5, num_workers=2)
    assert np.concatenate([batch.numpy() for batch in loader]).tolist() == values


def test_damaged_compressed_and_empty_shards_are_named(shards):
    broken = shards / "train-001.tar"
    broken.write_bytes(broken.read_bytes()[:700])
    (shards / "train-002.tar").write_bytes(gzip.compress((shards / "train-000.tar").read_bytes()))
    with pytest.raises(ValueError, match=r"no complete uncompressed tars") as caught:
        open_images(str(shards))
    assert "train-001.tar" in str(caught.value)
    assert "train-002.tar" in str(caught.value)
    assert "train-000.tar" not in str(caught.value)
    empty = write_tar(shards / "sub/empty.tar", {"notes.txt": b"no image"})
    with pytest.raises(ValueError, match=r"no images in 1 shard\(s\) such as .*empty\.tar"):
        open_images(str(empty))


@pytest.mark.parametrize(
    "name",
    ["wds/https://host/shard-{00..10}.tar", "wds/pipe:cat x.tar", "hfids/owner/name", "tfds/cifar"],
)
def test_streams_are_refused_with_what_to_do(name):
    with pytest.raises(ValueError, match=r"is a stream without an index.*download it"):
        open_images(name)


def test_tars_beside_images_are_said_not_to_be_read(image_folder, caplog):
    write_tar(image_folder / "more.tar", {"a.png": png(1)})
    assert len(open_images(str(image_folder))) == 12
    assert "holds images and 1 tar, not read" in caplog.text


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"no images in .*\.jpg"):
        open_images(str(tmp_path))
    with pytest.raises(ValueError, match=r"no \.tar shards in"):
        open_images(f"wds/{tmp_path}")
    with pytest.raises(ValueError, match=r"notes\.txt is a file; --data takes a folder"):
        open_images(str(tmp_path / "notes.txt"))


def test_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the image folder .*missing does not exist"):
        open_images(str(tmp_path / "missing"))


def test_fingerprint_tells_sources_apart_and_not_their_place(image_folder, shards, tmp_path):
    moved = tmp_path / "moved"
    before = [fingerprint(open_images(str(source))) for source in (image_folder, shards)]
    image_folder.rename(moved)
    assert fingerprint(open_images(str(moved))) == before[0] != before[1]
    (moved / "part0/00.png").write_bytes(png(0))
    assert fingerprint(open_images(str(moved))) != before[0]
    rewritten = write_tar(shards / "train-000.tar", {"0000.png": png(0) + b" "})
    assert fingerprint(open_images(str(rewritten.parent))) != before[1]


def test_hugging_face_images_need_no_labels(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    monkeypatch.setenv("TIMM_DATA_DIR", str(tmp_path / "cache"))
    features = datasets.Features({"photo": datasets.Image()})
    table = pyarrow.table({"photo": [{"bytes": png(v), "path": None} for v in range(5)]})
    (tmp_path / "rows").mkdir()
    parquet.write_table(table.cast(features.arrow_schema), str(tmp_path / "rows/train.parquet"))
    reader = open_images(f"hfds/{tmp_path}/rows")
    assert reds(reader) == [0, 1, 2, 3, 4]
    assert reader.name(3).endswith("rows row 3")
    assert fingerprint(reader) == fingerprint(open_images(f"hfds/{tmp_path}/rows"))
    with pytest.raises(ValueError, match="split"):
        open_images(f"hfds/{tmp_path}/rows", "nonesuch")


def test_hugging_face_without_the_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match="needs the package datasets: pip install datasets"):
        open_images("hfds/owner/name")
