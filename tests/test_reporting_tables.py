"""The writer of Markdown tables and CSV against a Markdown renderer's rules and csv's reader."""

from __future__ import annotations

import csv
import io

import pytest

from backbones.errors import InputError
from reporting.tables import by_column, csv_text, markdown_table, write_between


def test_a_pipe_or_a_line_end_in_a_cell_does_not_break_the_table():
    lines = markdown_table(["a|b", "c"], [["x\ny", r"done \| before"]]).splitlines()
    assert lines == [r"| a\|b | c |", "| --- | --- |", r"| x y | done \| before |"]


def test_numbers_stand_to_the_right_and_missing_ones_are_empty():
    text = markdown_table(*by_column([{"run": "a"}, {"run": "b", "AP": 0.12345}]), right=[1])
    assert text.splitlines() == ["| run | AP |", "| --- | ---: |", "| a |  |", "| b | 0.123 |"]


def test_csv_gives_back_what_was_written():
    records = [{"name": 'a, "b"\nc', "value": 0.1 + 0.2}, {"value": 1, "other": "|"}]
    read = list(csv.DictReader(io.StringIO(csv_text(*by_column(records)), newline="")))
    assert read == [
        {"name": 'a, "b"\nc', "value": repr(0.1 + 0.2), "other": ""},
        {"name": "", "value": "1", "other": "|"},
    ]


def test_columns_are_chosen_and_ordered_by_who_asks():
    assert by_column([{"a": 1, "b": 2}], ["b", "z"]) == (["b", "z"], [[2, None]])


def test_a_table_is_put_between_its_marks_and_the_rest_of_the_page_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("head\n<!-- a -->\nold\n<!-- end -->\nfoot\n")
    for text in ("new\nlines", "again"):
        write_between(page, ("<!-- a -->", "<!-- end -->"), text)
        assert page.read_text() == f"head\n<!-- a -->\n{text}\n<!-- end -->\nfoot\n"


def test_a_page_without_the_marks_is_refused_and_left_as_it_is(tmp_path):
    page = tmp_path / "page.md"
    for text in ("head\nfoot\n", "head\n<!-- a -->\nfoot\n"):
        page.write_text(text)
        with pytest.raises(InputError, match=r"page\.md has no lines <!-- a --> and <!-- end -->"):
            write_between(page, ("<!-- a -->", "<!-- end -->"), "new")
        assert page.read_text() == text
