"""The records of a data set in one piece of memory, as detectron2's ``DatasetFromList`` has them.

COCO's 860,000 objects are 45 million numbers, which take 1.4 GB as Python's and are copied into
every process of a loader that looks at them, since looking changes their reference counts.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np


class Records(Sequence[dict[str, Any]]):
    """Dictionaries with ``annotations``, pickled; each access makes a new one.

    Args:
        records: read once, so that a generator need not hold them all.

    Attributes:
        objects, crowds: ``[len(self)]``, annotations of each record, by ``iscrowd``.
    """

    def __init__(self, records: Iterable[dict[str, Any]] = ()) -> None:
        buffer, ends, counts = bytearray(), [0], []
        for record in records:
            buffer += pickle.dumps(record, pickle.HIGHEST_PROTOCOL)
            ends.append(len(buffer))
            crowds = sum(item["iscrowd"] for item in record["annotations"])
            counts.append((len(record["annotations"]) - crowds, crowds))
        self._buffer = np.frombuffer(buffer, np.uint8)  # no copy
        places = np.array(ends, np.int64)
        self._starts, self._ends = places[:-1], places[1:]
        self.objects, self.crowds = np.array(counts, np.int64).reshape(-1, 2).T

    def with_objects(self) -> Records:
        """Those that show an object which is no crowd; the memory is shared."""
        kept = np.flatnonzero(self.objects)
        chosen = Records()
        chosen._buffer = self._buffer
        for name in ("_starts", "_ends", "objects", "crowds"):
            setattr(chosen, name, getattr(self, name)[kept])
        return chosen

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return pickle.loads(self._buffer[self._starts[index] : self._ends[index]].data)
