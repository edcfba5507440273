from __future__ import annotations

import logging

import pytest
import torch
from torch.utils.data import DataLoader

from training.cli import log_to, run_tool


class Damaged(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise OSError("broken data stream")
        except OSError as error:
            raise ValueError("images/7.png does not decode;\nreplace it") from error


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_its_own_sentence_also_from_a_loaders_worker(capsys, workers):
    code = run_tool(lambda: list(DataLoader(Damaged(), num_workers=workers)) and 0)
    assert code == 1
    assert capsys.readouterr().err == "error: images/7.png does not decode;\nreplace it\n"


def test_exit_codes(capsys):
    assert run_tool(lambda: None) == 0
    assert run_tool(lambda: 3) == 3
    assert run_tool(lambda: open("missing/file").close()) == 1
    assert capsys.readouterr().err == "error: No such file or directory: missing/file\n"

    def interrupted():
        raise KeyboardInterrupt

    assert run_tool(interrupted) == 130
    with pytest.raises(ZeroDivisionError):
        run_tool(lambda: 1 // 0)


def test_log_goes_to_the_runs_folder_once(tmp_path):
    log_to(tmp_path / "a")
    log_to(tmp_path / "b")
    logging.getLogger("training").info("a line")
    assert (tmp_path / "a/log.txt").read_text() == ""
    assert (tmp_path / "b/log.txt").read_text().count("a line") == 1
