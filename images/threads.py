"""Reading many files side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

READERS, QUEUED = 8, 1024  # threads, and files that they are given at once

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The results in order, as an executor's ``map``, which would queue all items at once."""
    with ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(items), QUEUED):
            yield from readers.map(work, items[start : start + QUEUED])
