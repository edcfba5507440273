"""Data sets of COCO's size: the synthetic one is sound, and it is read in bounded memory."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from pycocotools.coco import COCO
from small_coco import write_small_coco
from torch.utils.data import DataLoader

from detection.benchmarks.load import HEIGHT, WIDTH, write_annotations
from detection.data.check import check_coco
from detection.data.records import Records
from detection.dataset import load_dataset
from images.threads import in_threads


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "train.json"
    write_annotations(path, images=300, objects=2000)
    return path


def test_the_synthetic_annotations_are_cocos_and_without_fault(large):
    coco = COCO(str(large))
    assert [len(part) for part in (coco.imgs, coco.anns, coco.cats)] == [300, 2000, 80]
    crowds = [entry for entry in coco.anns.values() if entry["iscrowd"]]
    assert len(crowds) == 20
    assert all(isinstance(entry["segmentation"]["counts"], list) for entry in crowds)
    corners = [len(e["segmentation"][0]) / 2 for e in coco.anns.values() if not e["iscrowd"]]
    assert 20 < np.mean(corners) < 32  # COCO's train2017 has 26
    for entry in list(coco.anns.values())[:200]:
        mask = coco.annToMask(entry)
        assert mask.shape == (HEIGHT, WIDTH)
        assert mask.sum() == pytest.approx(entry["area"], abs=1)
    _, problems = check_coco(large, large.parent, check_images=False)
    assert {problem.message for problem in problems} <= {"has no annotation"}


def test_loading_takes_memory_in_proportion_to_the_file(large):
    """Lists of Python's numbers take 4 times the file's bytes, and 6 while it is read."""
    size = large.stat().st_size
    tracemalloc.start()
    dataset = load_dataset(f"json:{large}:{large.parent}", check_images=False)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert dataset.num_instances == 2000
    assert held < 1.5 * size
    assert peak < 4.5 * size


def test_records_are_what_was_put_in_and_those_without_objects_can_be_left_out(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    items = list(load_dataset(f"json:{annotations}:{images}").records)
    records = Records(iter(items))
    assert (len(records), list(records), records[-1]) == (len(items), items, items[-1])
    assert records[1:3] == items[1:3]
    assert [
        head | {"annotations": i["annotations"]}
        for head, i in zip(records.heads(), items, strict=True)
    ] == items
    kept = records.with_objects()
    wanted = [r for r in items if any(not a["iscrowd"] for a in r["annotations"])]
    assert list(kept) == wanted
    assert 0 < len(wanted) < len(items)
    assert kept.objects.sum() == records.objects.sum() == 4
    with pytest.raises(IndexError):
        kept[len(kept)]
    assert list(Records().with_objects()) == []
    records[0]["height"] = 0  # a copy: no access changes another's
    assert records[0] == items[0]


def test_processes_of_a_loader_get_the_records(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    records = load_dataset(f"json:{annotations}:{images}").records
    loader = DataLoader(records, batch_size=None, num_workers=1, collate_fn=lambda record: record)
    assert list(loader) == list(records)


def test_threads_are_given_some_files_at_a_time_and_keep_their_order(monkeypatch):
    monkeypatch.setattr("images.threads.QUEUED", 10)
    begun: list[int] = []
    results = in_threads(lambda number: begun.append(number) or number**2, range(35))
    assert next(results) == 0
    assert len(begun) <= 10
    assert list(results) == [number**2 for number in range(1, 35)]


def test_tool_measures_each_work_of_the_size_that_was_asked_for(run_tool, monkeypatch):
    monkeypatch.setattr("detection.benchmarks.load._fresh", lambda work, *options: work(*options))
    for name, number in (("SAMPLES", 1), ("SHAPES", 200), ("DETECTIONS", 10)):
        monkeypatch.setattr(f"detection.benchmarks.load.{name}", number)
    arguments = ("--images", 20, "--objects", 100, "--json")
    tables = json.loads(run_tool("benchmark", "load", *arguments).out)
    data = {row["what"]: row for row in tables["20 images, 100 objects"]}
    (evaluated,) = (rows for name, rows in tables.items() if name.startswith("evaluation of 20"))
    assert [row["what"] for row in evaluated] == ["COCO metrics", "diagnosis"]
    assert "training: 1 samples of 1024 pixels" in data
    assert all(row["s"] >= 0 and row["peak MiB"] > 50 for row in [*data.values(), *evaluated])
    refused = run_tool("benchmark", "load", "--images", 0)
    assert (refused.code, "at least 1 of each" in refused.err) == (1, True)
