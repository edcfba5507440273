"""Outputs are whole or absent, with the umask's mode, and their errors name path and remedy."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backbones.weight_files import read_state_dict, save_pickle, save_safetensors
from backbones.whole_files import (
    linked_folder,
    try_writing,
    write_all,
    write_atomically,
    write_files,
    write_text,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_every_kind_of_file_has_the_mode_that_the_umask_gives(tmp_path, umask):
    tensors = {"a": torch.zeros(3)}
    save_safetensors(tensors, tmp_path / "a.safetensors", {})
    save_pickle(tensors, tmp_path / "a.pth")
    write_text(tmp_path / "a.txt", "text")
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path


def test_a_failure_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    def fail(partial):
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    write_files({tmp_path / "a.txt": "old", tmp_path / "b.txt": "old"})
    with pytest.raises(OSError, match="No space left") as caught:
        write_all({tmp_path / "a.txt": lambda p: p.write_text("new") and None,
                   tmp_path / "b.txt": fail})  # fmt: skip
    assert caught.value.filename == str(tmp_path / "b.txt")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "old", "b.txt": "old"}


def test_links_are_followed_and_the_longest_names_can_be_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "elsewhere/file.txt")
    write_text(link, "text")
    assert link.is_symlink()
    assert (tmp_path / "elsewhere/file.txt").read_text() == "text"
    write_text(tmp_path / ("n" * 251 + ".txt"), "text")
    write_atomically("/dev/null", lambda path: path.write_text("gone") and None)
    assert Path("/dev/null").is_char_device()


def test_each_error_of_the_system_names_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    (tmp_path / "folder").mkdir()
    wrong = {
        tmp_path / "file/a.txt": errno.EEXIST,  # mkdir's word for a file in a folder's place
        tmp_path / "file/deep/a.txt": errno.ENOTDIR,
        loop: errno.ELOOP,
        tmp_path / ("n" * 300): errno.ENAMETOOLONG,
        tmp_path / "folder": errno.EISDIR,
    }
    for path, number in wrong.items():
        with pytest.raises(OSError, match=r".") as caught:
            write_text(path, "text")
        assert (caught.value.errno, caught.value.filename) == (number, str(path))
    assert loop.is_symlink()


FULL = """
import sys, torch
from pathlib import Path
from backbones.weight_files import save_pickle, save_safetensors
folder = Path(sys.argv[1])
tensors = {"a": torch.zeros(2**20)}
for save in (save_pickle, lambda *values: save_safetensors(*values, {})):
    try:
        save(tensors, folder / "weights")
    except OSError as error:
        print(error.errno, error.filename, [*folder.iterdir()])
"""


def test_a_full_disk_is_said_by_each_library_that_writes(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = f'mount -t tmpfs -o size=1m tmpfs {small} && exec "$@"'
    command = [sys.executable, "-c", FULL, small]
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", mount, "-", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this machine mounts nothing for this user")
    line = f"{errno.ENOSPC} {small / 'weights'} []"
    assert done.stdout.splitlines() == [line, line], done.stderr


def test_no_permission_and_no_more_files_are_not_called_damage(tmp_path, monkeypatch):
    for name in ("a.safetensors", "a.pth"):
        save = save_pickle if name == "a.pth" else lambda t, p: save_safetensors(t, p, {})
        save({"a": torch.zeros(3)}, tmp_path / name)

    def refuse(number):
        def opened(*_args, **_options):
            raise OSError(number, os.strerror(number))

        return opened

    for number in (errno.EACCES, errno.EMFILE):
        for name, reader in (("a.safetensors", "safe_open"), ("a.pth", "torch.load")):
            with monkeypatch.context() as patch:
                patch.setattr(f"backbones.weight_files.{reader}", refuse(number))
                with pytest.raises(OSError, match=r"Permission denied|Too many open") as caught:
                    read_state_dict(tmp_path / name)
                assert caught.value.filename == str(tmp_path / name)


def test_a_folder_of_links_is_whole_or_absent_and_copies_where_there_are_no_links(
    tmp_path, monkeypatch
):
    source = tmp_path / "a.txt"
    source.write_text("a", encoding="utf-8")
    linked = linked_folder(tmp_path / "linked", {"deep/b.txt": source})
    assert (linked / "deep/b.txt").samefile(source)
    with pytest.raises(FileNotFoundError):
        linked_folder(tmp_path / "half", {"a.txt": source, "b.txt": tmp_path / "nowhere"})
    assert not (tmp_path / "half").exists()

    def refuse(*_):
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    copied = linked_folder(tmp_path / "copied", {"b.txt": source})
    assert not (copied / "b.txt").samefile(source)
    assert (copied / "b.txt").read_text(encoding="utf-8") == "a"


def test_a_place_is_tried_before_long_work_and_left_as_it_was(tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("kept")
    try_writing(kept)
    try_writing(tmp_path / "new/a.onnx")
    assert kept.read_text() == "kept"
    assert [path.name for path in (tmp_path / "new").iterdir()] == []
    for wrong in (kept / "a.onnx", tmp_path, tmp_path / ("n" * 300)):
        with pytest.raises(OSError, match=re.escape(str(wrong))) as error:
            try_writing(wrong)
        assert error.value.filename == str(wrong)
