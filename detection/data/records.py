"""The records of a data set in one block of memory, as in detectron2's ``DatasetFromList``.

COCO's 860,000 objects are 45 million numbers. As Python objects they take 1.4 GB, and every worker
of a loader gets its own copy, because reading an object changes its reference count and so its
memory page.
"""

from __future__ import annotations

import os
import pickle
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from detection.data.checks.segmentations import usable_segmentation
from training.progress import progress

XYWH_ABS = 1  # detectron2's BoxMode.XYWH_ABS


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
        """Each record repeated by its count, in order; the memory is shared."""
        chosen = Records()
        chosen._buffer, chosen._rows = self._buffer, np.repeat(self._rows, counts, axis=0)
        return chosen

    def distinct(self) -> tuple[Records, np.ndarray]:
        """Each record once, and for each of these its place there, see :meth:`repeated`."""
        starts = self._rows[:, 0]
        _, first, places = np.unique(starts, return_index=True, return_inverse=True)
        chosen = Records()
        chosen._buffer, chosen._rows = self._buffer, self._rows[first]
        return chosen, places

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


def coco_records(
    tree: dict[str, Any], image_folder: Path, contiguous_ids: dict[Any, int]
) -> Iterator[dict[str, Any]]:
    """The records one by one; their parts are removed from the tree."""
    of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in tree.pop("annotations"):
        of_image[annotation["image_id"]].append(annotation)
    images = sorted(tree.pop("images"), key=lambda image: image["id"])
    for image in progress(images, "indexing", unit="image"):
        size = image["height"], image["width"]
        yield {
            "file_name": os.path.join(image_folder, image["file_name"]),
            "height": size[0],
            "width": size[1],
            "image_id": image["id"],
            "annotations": [
                _instance(annotation, size, contiguous_ids)
                for annotation in of_image.pop(image["id"], [])
            ],
        }


def _instance(
    annotation: dict[str, Any], size: tuple[int, int], contiguous_ids: dict[Any, int]
) -> dict[str, Any]:
    instance = {
        "iscrowd": annotation.get("iscrowd", 0),
        "bbox": annotation["bbox"],
        "category_id": contiguous_ids[annotation["category_id"]],
        "bbox_mode": XYWH_ABS,
    }
    if segmentation := annotation.get("segmentation"):
        instance["segmentation"] = usable_segmentation(segmentation, *size)
    return instance
