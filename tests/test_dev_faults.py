"""Ten rows of the bench of faults, whose whole table stands in docs/reliability.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "dev"))

import fault_processes
import faults
from fault_processes import can_mount
from forked import IMPORTED

ROWS = (
    "SIGTERM pretrain",
    "twice pretrain",
    "overwrite pretrain",
    "fewer pretrain",
    "other pretrain",
    "worker pretrain",
    "files pretrain",
    "shm pretrain",
    "output on a full file system pretrain",
    "damage cut in half pretrain",
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    fault_processes.PRELOAD[:] = IMPORTED  # one server forks the processes of all tests
    return faults.Bench(tmp_path_factory.mktemp("bench"))


def test_the_bench_has_at_least_sixty_rows_and_these_ten(bench):
    names = [name for name, _ in faults.all_rows(bench)]
    assert len(names) >= 60
    assert len(set(names)) == len(names)
    assert set(ROWS) <= set(names)


@pytest.mark.parametrize("name", ROWS)
def test_a_fault_ends_as_it_should(bench, name):
    row = faults.make_row(name, dict(faults.all_rows(bench))[name], can_mount())
    assert row.right, row


def test_the_page_shows_the_benchs_table_with_nothing_lost():
    page = faults.PAGE.read_text(encoding="utf-8")
    table = page.partition(faults.MARKS[0])[2].partition(faults.MARKS[1])[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 60
    assert not [row for row in rows if not row.endswith("| yes |")]
