"""The records of a data set in one piece of memory, as detectron2's ``DatasetFromList`` has them.

COCO's 860,000 objects are 45 million numbers, which take 1.4 GB as Python's and are copied into
every process of a loader that looks at them, since looking changes their reference counts.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        buffer, rows = bytearray(), []
        for record in records:
            start, annotations = len(buffer), record["annotations"]
            head = {key: value for key, value in record.items() if key != "annotations"}
            buffer += pickle.dumps(head, pickle.HIGHEST_PROTOCOL)
            middle = len(buffer)
            buffer += pickle.dumps(annotations, pickle.HIGHEST_PROTOCOL)
            crowds = sum(item["iscrowd"] for item in annotations)
            rows.append((start, middle, len(buffer), len(annotations) - crowds, crowds))
        self._buffer = np.frombuffer(buffer, np.uint8)  # no copy
        self._rows = np.array(rows, np.int64).reshape(-1, 5)

    @property
    def objects(self) -> np.ndarray:
        return self._rows[:, 3]

    @property
    def crowds(self) -> np.ndarray:
        return self._rows[:, 4]

    def heads(self) -> Iterator[dict[str, Any]]:
        """Each record without its annotations, which take most of an access's time."""
        for start, middle, *_ in self._rows:
            yield self._load(start, middle)

    def with_objects(self) -> Records:
        """Those that show an object which is no crowd; the memory is shared."""
        chosen = Records()
        chosen._buffer, chosen._rows = self._buffer, self._rows[self.objects > 0]
        return chosen

    def repeated(self, counts: Sequence[int]) -> Records:
        """Each as often as its count says, one after the other; the memory is shared."""
        chosen = Records()
        chosen._buffer, chosen._rows = self._buffer, np.repeat(self._rows, counts, axis=0)
        return chosen

    def with_categories(self, indices: Mapping[int, int]) -> Records:
        """The same with other class indices: old index -> new."""
        if all(old == new for old, new in indices.items()):
            return self

        def changed() -> Iterator[dict[str, Any]]:
            for record in self:
                for item in record["annotations"]:
                    item["category_id"] = indices[item["category_id"]]
                yield record

        return Records(changed())

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        start, middle, end = self._rows[index, :3]
        return self._load(start, middle) | {"annotations": self._load(middle, end)}

    def _load(self, start: int, end: int) -> Any:
        return pickle.loads(self._buffer[start:end].data)
