"""The reproduction's scripts: what is cut from the data sets, and what the page takes from runs."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_codec
from test_detection_arms import make_run

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "ablations/reproduction"
SYNSETS = ("n01440764", "n02085620", "n02113978", "n02514041", "n02666196", "n04613696",
           "n06359193", "n15075141")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small stand-ins for the three data sets: four photographs a synset, 100 images of squares."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for synset in SYNSETS:
        (folder / "imagenet_samples/train" / synset).mkdir(parents=True)
        for i in range(4):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(
                folder / f"imagenet_samples/train/{synset}/{synset}_{i}.png"
            )
    for name, splits in (("nuclei", {"train": 100, "val": 3}), ("coco_mini", {"train": 2})):
        (folder / name / "annotations").mkdir(parents=True)
        (folder / name / "images").mkdir()
        for split, count in splits.items():
            write_squares(folder / name, split, count, generator)
    return folder


def write_squares(folder, split, count, generator):
    images, annotations = [], []
    for i in range(1, count + 1):
        pixels = generator.integers(0, 256, (150, 140, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{split}_{i}.png")
        images.append({"id": i, "file_name": f"{split}_{i}.png", "width": 140, "height": 150})
        whole = np.zeros((150, 140), np.uint8, order="F")
        whole[40:90, 5:60] = 1  # wherever the tile is, a part of it is inside
        rle = rle_codec.encode(whole)
        annotations.append(
            {
                "id": i, "image_id": i, "category_id": 7, "iscrowd": 0, "area": 2750.0,
                "bbox": [5.0, 40.0, 55.0, 50.0],
                "segmentation": {"size": [150, 140], "counts": rle["counts"].decode()},
            }
        )  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "x"}]}
    (folder / f"annotations/{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def prepared(data):
    folder = data / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["prepare.py", str(data), str(folder), "--seeds", "2"])
        runpy.run_path(str(SCRIPTS / "prepare.py"), run_name="__main__")
    return folder


def read(path):
    return json.loads(path.read_text())


def test_tiles_hold_the_pixels_and_masks_of_their_images(prepared, data):
    tiles = read(prepared / "tiles/val.json")
    assert [image["id"] for image in tiles["images"]] == [1, 2, 3]
    for image, annotation in zip(tiles["images"], tiles["annotations"], strict=True):
        tile = np.array(Image.open(prepared / "tiles/images" / image["file_name"]))
        whole = np.array(Image.open(data / "nuclei/images" / image["file_name"]))
        places = [
            (top, left)
            for top in range(150 - 128 + 1)
            for left in range(140 - 128 + 1)
            if np.array_equal(whole[top : top + 128, left : left + 128], tile)
        ]
        ((top, left),) = places
        mask = rle_codec.decode(annotation["segmentation"])
        expected = np.zeros((150, 140), np.uint8)
        expected[40:90, 5:60] = 1
        assert np.array_equal(mask, expected[top : top + 128, left : left + 128])
        x, y, width, height = annotation["bbox"]
        assert (x, y) == (max(5 - left, 0), 40 - top)
        assert (x + width, y + height) == (60 - left, 90 - top)
        assert annotation["area"] == mask.sum()


def test_label_subsets_grow_and_nothing_is_tuned_on_what_is_trained_on(prepared):
    def ids(name):
        return {image["id"] for image in read(prepared / f"tiles/{name}.json")["images"]}

    train, tune = ids("train"), ids("tune")
    assert (len(train), len(tune)) == (40, 60)
    assert not train & tune
    for seed in (0, 1):
        assert len(ids(f"train_16_seed_{seed}")) == 16
        assert ids(f"train_16_seed_{seed}") < ids(f"train_64_seed_{seed}") <= train
    assert ids("train_16_seed_0") != ids("train_16_seed_1")


def test_classes_follow_wordnets_numbers_and_are_halved_but_for_what_is_tuned_on(prepared):
    folder = prepared / "classes"
    for name, counts in (("seed_0", (3, 3)), ("seed_1", (3, 3)), ("tune", (3, 2))):
        for split, count in zip(("train", "val"), counts, strict=True):
            sizes = {
                each.name: len(list(each.iterdir())) for each in (folder / name / split).iterdir()
            }
            assert sizes == dict.fromkeys(("animal", "dog", "artefact", "food_or_place"), count)
    dogs = {file.name[:9] for file in folder.glob("seed_0/*/dog/*")}
    assert dogs == {"n02085620", "n02113978"}

    def names(pattern):
        return {file.name for file in folder.glob(pattern)}

    assert not names("seed_0/train/*/*") & names("seed_0/val/*/*")
    assert names("seed_0/train/*/*") != names("seed_1/train/*/*")
    assert not names("tune/val/*/*") & names("seed_*/*/*/*")


def test_no_validation_image_is_pretrained_on(prepared):
    names = [file.name for file in (prepared / "images").rglob("*.png")]
    assert len(names) == 4 * len(SYNSETS) + 100 + 2
    assert not any(name.startswith("val") for name in names)


def write_page(root, monkeypatch, runs):
    monkeypatch.setattr("sys.argv", ["write_page.py", "--runs", str(runs)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(root / "ablations/reproduction/write_page.py"), run_name="__main__")
    return int(ended.value.code or 0)


def test_the_page_is_made_of_the_figures_and_the_script_beside_it(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    shutil.copytree(SCRIPTS, tmp_path / "ablations/reproduction")
    shutil.copy(ROOT / "docs/reproduction.csv", tmp_path / "docs")
    page = tmp_path / "docs/reproduction.md"
    shipped = (ROOT / "docs/reproduction.md").read_text()
    made = shipped[shipped.index("<!-- begin") :]
    page.write_text(re.sub(r"(?m)^\|.*\d.*\|$", "| changed |", made))
    assert write_page(tmp_path, monkeypatch, tmp_path / "no runs") == 0
    assert page.read_text() == made
    assert (tmp_path / "docs/reproduction.csv").read_text() == (
        ROOT / "docs/reproduction.csv"
    ).read_text()
    script = (SCRIPTS / "run.sh").read_text()
    written = {Path(name).name for name in re.findall(r"--output-dir (\S+)", script)}
    page.write_text("".join(
        f"<!-- begin command {name} -->\n<!-- end command {name} -->\n"
        for name in (written - {"$long"}) | {"pretraining_long"}
    ))  # fmt: skip
    assert write_page(tmp_path, monkeypatch, tmp_path / "no runs") == 0
    assert (
        page.read_text().count("\npython tools/") == len(written) == script.count("\npython tools/")
    )
    assert "$" not in page.read_text()
    page.write_text("<!-- begin command other -->\n<!-- end command other -->\n")
    assert write_page(tmp_path, monkeypatch, tmp_path / "no runs") != 0


def make_pretraining(grid, arm, lowest):
    """What pretrainings leave, a seed each, and their lines of runs.csv."""
    for seed, value in enumerate(lowest):
        folder = grid / f"pretrain/{arm}_seed_{seed}"
        folder.mkdir(parents=True)
        lines = [
            {"total_loss": loss, "feature_distance/mean": 0.5, "feature_distance/lowest": value}
            for loss in (0.9, 0.6)
        ]
        (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
        yield f"{arm},pretraining hours,{seed},{0.257 + seed}"


def test_the_page_is_filled_from_runs_and_keeps_the_figures_of_earlier_ones(tmp_path, monkeypatch):
    (tmp_path / "docs/images").mkdir(parents=True)
    shutil.copytree(SCRIPTS, tmp_path / "ablations/reproduction")
    page, kept = tmp_path / "docs/reproduction.md", tmp_path / "docs/reproduction.csv"
    names = ("detection_64", "detection_encoders", "by_iteration", "rates", "classification",
             "pretraining")  # fmt: skip
    page.write_text("before\n" + "\n".join(
        f"<!-- begin {name} -->\nold\n<!-- end {name} -->" for name in names
    ) + "\nafter\n")  # fmt: skip
    kept.write_text(
        "grid,row,metric,seed,value\n"
        "rates,fcmae 1e-3,box AP,9,18.6\nrates,fcmae 1e-3,mask AP,9,22.7\n"
        "classification,fcmae,top-1,0,56\nclassification,fcmae,top-1,1,58\n"
        "classification,no_grn,top-1,1,57\n"
    )
    runs = tmp_path / "runs"
    for arm, values in (("scratch", (1.0, 2.0)), ("fcmae", (4.0, 7.0))):
        for labels in ("16", "64", "all"):
            grid = runs / f"detection_{labels}"
            lines = []
            for seed, value in enumerate(values):
                make_run(grid / f"detect/{arm}_seed_{seed}", seed, value, value, losses=[2, 1])
                lines += [f"{arm},{metric},{seed},{value}" for metric in ("box AP", "mask AP")]
            with (grid / "runs.csv").open("a") as stream:
                stream.write("row,metric,seed,value\n" if arm == "scratch" else "")
                stream.write("".join(line + "\n" for line in lines))
    make_run(runs / "detection_64/detect/no_grn_seed_0", 0, 3.0, 3.0, losses=[2, 1])
    with (runs / "detection_64/runs.csv").open("a") as stream:
        stream.write("no_grn,box AP,0,3.0\nno_grn,mask AP,0,3.0\n")
    for arm, value in (("scratch", 0.5), ("fcmae", 2.0)):
        with (runs / f"detection_64/detect/{arm}_seed_0/metrics.json").open("a") as history:
            history.write("\n" + json.dumps({"iteration": 1, "bbox/AP": value}))
    make_run(runs / "rates/detect/fcmae_2e-3_seed_9", 9, 3.0, 4.0, losses=[2, 1])
    (runs / "rates/runs.csv").write_text(
        "row,metric,seed,value\nfcmae 2e-3,box AP,9,3.0\nfcmae 2e-3,mask AP,9,4.0\n"
    )
    (runs / "classification").mkdir()
    (runs / "classification/runs.csv").write_text("row,metric,seed,value\nno_grn,top-1,0,53\n")
    pretraining = runs / "pretraining"
    written = [*make_pretraining(pretraining, "fcmae", (0.44, 0.46)),
               *make_pretraining(pretraining, "no_grn", (0.41, 0.45))]  # fmt: skip
    (pretraining / "runs.csv").write_text("\n".join(["row,metric,seed,value", *written]) + "\n")
    assert write_page(tmp_path, monkeypatch, runs) == 0
    text = page.read_text()
    assert "old" not in text
    assert (
        "| fcmae 1e-3 | 9 | 18.60 | 22.70 |\n| fcmae 2e-3 | 9 | 3.00 | 4.00 |\n\n<!-- end rates"
        in text
    )
    # 53 less 56 and 57 less 58: a mean of -2, a deviation of 1.41, times 12.7062 / sqrt(2)
    assert "| no_grn | 0, 1 | 55.00 ± 25.41 | -2.00 ± 12.71 |" in text
    # 0.41, 0.45: mean 0.43, deviation 0.0283; -0.03 and -0.01 apart
    assert "| no_grn | 0, 1 | 0.600 ± 0.000 | +0.000 ± 0.000 | 0.500 ± 0.000 |" in text
    assert "| 0.430 ± 0.254 | -0.020 ± 0.127 | 0.757 ± 6.353 | +0.000 ± 0.000 |\n\n<!-- end" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| +4.00 ± 12.71 |" in text  # 3 and 5 apart
    to_64_labels, of_encoders = text.split("<!-- end detection_64 -->")
    assert "no_grn" not in to_64_labels
    assert "| no_grn | 0 | 3.00 | -1.00 | 3.00 | -1.00 |\n\n<!-- end" in of_encoders
    assert "| box AP at iteration | 1 | 2 |" in of_encoders
    assert "| FCMAE over random weights, 64 tiles | +1.50 | +4.00 ± 12.71 |" in of_encoders
    assert "| FCMAE over random weights, 16 tiles |  | +4.00 ± 12.71 |" in of_encoders
    assert "| without GRN over with it, 64 tiles |  | -1.00 |" in of_encoders
    for picture in ("reproduction_labels.png", "reproduction_iterations.png"):
        assert (tmp_path / "docs/images" / picture).stat().st_size > 1000
    # once more without the runs: the page is that of the figures kept
    assert write_page(tmp_path, monkeypatch, tmp_path / "no runs") == 0
    assert page.read_text() == text
    # runs that were tested on different data are not put beside each other
    shutil.rmtree(runs / "detection_64/detect/fcmae_seed_0")
    make_run(runs / "detection_64/detect/fcmae_seed_0", 0, 4.0, 4.0, "other", losses=[2, 1])
    assert write_page(tmp_path, monkeypatch, runs) != 0
    assert page.read_text() == text


def test_other_pages_take_their_tables_from_their_own_runs(tmp_path, monkeypatch):
    page, kept = tmp_path / "segmentation.md", tmp_path / "segmentation.csv"
    name = "segmentation_nuclei"
    page.write_text(f"<!-- begin {name} -->\n<!-- end {name} -->\n", encoding="utf-8")
    runs = tmp_path / "runs/nuclei"
    given = [
        "write_page.py",
        "--runs",
        str(runs.parent),
        "--page",
        str(page),
        "--figures",
        str(kept),
    ]

    def write():
        monkeypatch.setattr("sys.argv", given)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / "write_page.py"), run_name="__main__")
        assert not ended.value.code

    write()
    assert "| fcmae | not yet run |" in page.read_text(encoding="utf-8")
    assert not kept.exists()
    runs.mkdir(parents=True)
    lines = ["row,metric,seed,value"]
    lines += [
        f"{row},{metric},{seed},{value + seed}"
        for row, value in (("scratch", 80), ("fcmae", 84))
        for metric in ("mIoU", "pixel accuracy")
        for seed in (0, 1)
    ]
    (runs / "runs.csv").write_text("\n".join(lines), encoding="utf-8")
    write()
    assert "| fcmae | 0, 1 | 84.50 ± 6.35 | +4.00 ± 0.00 |" in page.read_text(encoding="utf-8")
    shutil.rmtree(runs)
    write()  # the figures stay
    assert "+4.00 ± 0.00" in page.read_text(encoding="utf-8")


def test_labels_of_chosen_images_are_written_once_for_each_way_of_choosing(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    write_squares(tmp_path, "train", 66, np.random.default_rng(0))
    given = ["choose_labels.py", "squares", str(tmp_path / "annotations/train.json")]
    given += [str(tmp_path / "images"), str(tmp_path / "out"), "--seeds", "0"]
    monkeypatch.setattr("sys.argv", [*given, "--encoder", "random:convnextv2_atto"])
    script = str(ROOT / "ablations/choosing/choose_labels.py")
    runpy.run_path(script, run_name="__main__")
    out = tmp_path / "out"
    chosen = {
        (by, count): {i["id"] for i in read(out / f"squares_{count}_{by}_seed_0.json")["images"]}
        for by in ("random", "k-centre", "typicality")
        for count in (16, 32, 64)
    }
    assert all(len(ids) == count for (_, count), ids in chosen.items())
    assert chosen["k-centre", 16] < chosen["k-centre", 32]
    assert chosen["k-centre", 16] != chosen["random", 16]
    tree = read(tmp_path / "out/squares_16_k-centre_seed_0.json")
    assert {a["image_id"] for a in tree["annotations"]} == chosen["k-centre", 16]
    monkeypatch.setattr("sys.argv", [*given, "--encoder", "nowhere.pt"])
    runpy.run_path(script, run_name="__main__")  # all is there: no encoder is read
