"""Runs a function over many files in several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

READERS, QUEUED = 8, 1024  # threads, and largest number of queued files

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield the results in order, like an executor's ``map`` but with a limited queue."""
    with ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(items), QUEUED):
            yield from readers.map(work, items[start : start + QUEUED])
