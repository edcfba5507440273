"""detection.report: what the page says is what the files say; nothing crashes, nothing leaks."""

import base64
import itertools
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from backbones.whole_files import write_json
from detection.evaluate import METRICS, coco_metrics
from detection.evaluation.diagnosis import diagnose
from detection.report import write_report
from detection.reporting import figures as report_figures
from detection.reporting.diagnosis import KINDS
from detection.reporting.facts import duration
from detection.reporting.gallery import changed_most, choose_images
from detection.reporting.predictions import changed_detections
from detection.reporting.run import Run, read_run
from reporting.blocks import Chart, Number, RunName, Series
from reporting.charts import MAX_POINTS, chart_svg, downsample, ticks
from reporting.pictures import encode_jpeg

SECTIONS = [
    *("headline", "metrics", "classes", "errors", "scores", "confusion"),
    *("curves", "predictions", "facts"),
]
CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The page's sections, tables (full and shown values) and attributes, read back."""

    def __init__(self, path):
        super().__init__()
        self.text, self.sections, self.tables = path.read_text(), [], {}
        self.images, self.tags, self.urls, self.cell, self.row = [], set(), [], None, []
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.urls += [attributes[key] for key in ("src", "href") if key in attributes]
        if tag == "section":
            self.sections.append(attributes["id"])
        elif tag == "table":
            self.table = self.tables.setdefault(self.sections[-1], [])
        elif tag == "tr":
            self.row = []
        elif tag in ("th", "td"):
            self.cell = {"text": "", "value": None}
        elif tag == "data" and self.cell is not None:
            self.cell["value"] = float(attributes["value"])
        elif tag == "small" and self.cell is not None:
            self.cell["text"] += " "
        elif tag == "img":
            self.images.append(attributes | {"section": self.sections[-1]})

    def handle_data(self, data):
        if self.cell is not None:
            self.cell["text"] += data

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.row.append(self.cell)
            self.cell = None
        elif tag == "tr":
            self.table.append(self.row)

    def images_in(self, section):
        return [image for image in self.images if image["section"] == section]

    def rows(self, section):
        """First cell's text -> the other cells."""
        return {row[0]["text"]: row[1:] for row in self.tables[section]}


def make_data(folder, class_names=("disc", "bar", "never there"), images=15, size=(90, 120)):
    """Images of discs and bars with their annotations; every fifth image is empty."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    truth = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3 * i + 1, "name": name} for i, name in enumerate(class_names)],
    }
    height, width = size
    for number in range(images):
        picture = random.integers(60, 120, (height, width, 3), dtype=np.uint8)
        name = f"{number:03d}.png"
        for kind in (0, 1) if number % 5 else ():
            x, y = (int(v) for v in random.integers(5, 50, 2))
            w, h = (30, 30) if kind == 0 else (60, 12)
            cv2.rectangle(picture, (x, y), (x + w - 1, y + h - 1), (200, 60 * kind, 90), -1)
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": number, "bbox": [x, y, w, h]}
                | {"category_id": 3 * kind + 1, "area": w * h, "iscrowd": 0}
                | {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
            )
        truth["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        cv2.imwrite(str(folder / "images" / name), picture)
    (folder / "truth.json").write_text(json.dumps(truth))
    return truth


def make_run(folder, data, truth, seed=0, lr=1e-3, steps=200, encoder=None):
    """A run's folder as detection.run leaves it, its detections jittered ground truth."""
    random = np.random.default_rng(seed)
    (folder / "inference").mkdir(parents=True)
    results = []
    for number, annotation in enumerate(truth["annotations"]):
        if number % 7 == 3:
            continue  # missed
        x, y, w, h = annotation["bbox"]
        x, y = x + int(random.integers(-4, 5)), y + int(random.integers(-4, 5))
        results.append(
            {"image_id": annotation["image_id"], "category_id": annotation["category_id"]}
            | {"bbox": [x, y, w, h], "score": float(random.random())}
            | {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        )
        if number % 4 == 0:  # nothing there, and hardly believed
            false = {"bbox": [0, 80, 9, 9], "segmentation": [[0, 80, 9, 80, 9, 89, 0, 89]]}
            results.append(results[-1] | false | {"score": 0.01})
    results_path = folder / "inference" / "coco_instances_results.json"
    results_path.write_text(json.dumps(results))
    files = data / "truth.json", results_path
    write_json(folder / "inference" / "metrics_summary.json", coco_metrics(*files))
    write_json(folder / "inference" / "diagnosis.json", diagnose(*files))
    with open(folder / "metrics.json", "w") as file:
        for step in range(20, steps + 1, 20):
            losses = {"loss_cls": 3 / step, "loss_mask": math.exp(-step / 100)}
            entry = {"iteration": step, "total_loss": sum(losses.values()), "lr": lr, "time": 0.5}
            entry |= {"images_per_second": 4.0 + step, "max_mem": 900.0 + step}
            file.write(json.dumps(entry | losses) + "\n")
    config = {"SOLVER": {"BASE_LR": lr, "STEPS": [10, 20]}, "SEED": 5, "OUTPUT_DIR": str(folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "log.txt").write_text("".join(f"line {i}\n" for i in range(50)))
    facts = {
        "engine": "torchvision",
        "versions": {"torch": "2.4.0", "numpy": "1.26"},
        "git_commit": "0c62607",
        "command": "tools/train_net.py --config-file x.yaml",
        "config_file": "x.yaml",
        "device": "cpu",
        "seed": 5,
        "started": "2026-01-02T03:04:05+00:00",
        "train_seconds": 452.4,
        "predict_seconds": 3.25,
        "peak_memory_mb": 1234.0,
        "parameters": 10123456,
        "encoder": encoder,
        "datasets": {
            "train": {"name": "train set", "images": 40, "instances": 99, "fingerprint": "ab12"},
            "test": {"name": "test set", "images": 15, "instances": 24, "fingerprint": "cd34"}
            | {"annotations": str(data / "truth.json"), "image_root": str(data / "images")},
        },
    }
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


ENCODER = {
    "source": "runs/fcmae/encoder.safetensors",
    "format": "ours",
    "loaded": 174,
    "total": 174,
    "new": 66,
    "new_parts": ["fpn", "rpn", "roi_heads"],
    "fingerprint": "9f" * 32,
    "licence": "CC BY-NC 4.0",
}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Data and two runs, to be read only."""
    root = tmp_path_factory.mktemp("material")
    truth = make_data(root / "data")
    make_run(root / "scratch", root / "data", truth)
    make_run(root / "fcmae", root / "data", truth, seed=1, lr=5e-4, encoder=ENCODER)
    return root


@pytest.fixture
def one_run(tmp_path, material):
    return Path(shutil.copytree(material / "scratch", tmp_path / "one"))


def metrics_of(run):
    return json.loads((run / "inference" / "metrics_summary.json").read_text())


def write(runs, tmp_path, **options):
    write_report(runs, tmp_path / "report.html", **options)
    return Page(tmp_path / "report.html")


def assert_same_number(cell, value):
    """The cell keeps the json's number in full and shows it rounded, or shows a dash."""
    if value is None:
        assert cell == {"text": "–", "value": None}
    else:
        assert cell["value"] == value
        assert cell["text"] == f"{value:.1f}"


# --- numbers ------------------------------------------------------------------------------------


def test_every_metric_in_the_page_is_the_one_in_the_json(tmp_path, material):
    runs = [material / "scratch", material / "fcmae"]
    page = write(runs, tmp_path)
    both = [metrics_of(run) for run in runs]
    rows = {name.split()[0]: row for name, row in page.rows("metrics").items() if name}
    table = {name: row for name, row in rows.items() if name != "Metric"}
    assert list(table) == list(METRICS)
    for name, row in table.items():
        expected = [metrics[task][name] for metrics in both for task in ("bbox", "segm")]
        for cell, value in zip(row, expected, strict=True):
            assert_same_number(cell, value)
    assert both[0]["bbox"]["APl"] is None  # so that the dash is tested
    classes = page.rows("classes")
    for name, counted in both[0]["per_class"].items():
        objects, images, *measured = classes[name]
        assert (objects["value"], images["value"]) == (counted["instances"], counted["images"])
        expected = [m["per_class"][name][task]["AP"] for m in both for task in ("bbox", "segm")]
        for cell, value in zip(measured, expected, strict=True):
            assert_same_number(cell, value)


def numbers_in(tree):
    """Every number in a tree of lists and dictionaries."""
    if isinstance(tree, (dict, list)):
        members = tree.values() if isinstance(tree, dict) else tree
        return [number for member in members for number in numbers_in(member)]
    return [] if isinstance(tree, bool) or not isinstance(tree, int | float) else [tree]


def numbers_of(run):
    """Every number that a run's files hold."""
    files = ["run.json", "inference/metrics_summary.json", "inference/diagnosis.json"]
    trees = [json.loads((run / file).read_text()) for file in files]
    trees += [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    return numbers_in(trees)


def test_every_number_and_every_point_of_the_page_is_in_a_json(tmp_path, material):
    """Whatever a section that comes later shows: nothing is computed on the way to the page."""
    runs = [material / "scratch", material / "fcmae"]
    text = write(runs, tmp_path).text
    known = {run.name: numbers_of(run) for run in runs}
    held = {float(number) for numbers in known.values() for number in numbers}
    shown = re.findall(r'<data value="([^"]+)"(?: class="\w+")?>([+−]?)', text)
    assert len(shown) > 150
    first, second = map(metrics_of, runs)
    differences = {second[task]["AP"] - first[task]["AP"] for task in ("bbox", "segm")}
    strangers = {float(value) for value, _ in shown} - held
    assert strangers == differences - held
    drawn = re.findall(r"<title>(scratch|fcmae), [\w ]+ ([\d.e+]+): ([^<]+)</title>", text)
    assert len(drawn) > 800
    for run, _, value in drawn:
        assert value in {f"{number:.5g}" for number in known[run]}
    summary = text[text.index("Expected calibration error") :].partition("</p>")[0]
    errors = [
        json.loads((run / "inference/diagnosis.json").read_text())[task]["calibration"]["error"]
        for run in runs
        for task in ("bbox", "segm")
    ]
    assert re.findall(r" (\d+\.\d)[;.]", summary) == [f"{error:.1f}" for error in errors]
    for title in re.findall(r"F1 (\d+): (\d+) of (\d+) found", text):
        assert title in {
            (f"{row['F1']:.0f}", str(row["found"]), str(row["objects"]))
            for row in json.loads((runs[1] / "inference/diagnosis.json").read_text())["bbox"][
                "images"
            ]
            if row["F1"] is not None
        }


def test_the_comparison_gives_differences_to_the_first_run(tmp_path, material):
    runs = [material / "scratch", material / "fcmae"]
    rows = write(runs, tmp_path, names=["from scratch", "FCMAE"]).rows("headline")
    first, second = map(metrics_of, runs)
    for column, task in ((0, "bbox"), (2, "segm")):
        assert_same_number(rows["from scratch"][column], first[task]["AP"])
        assert rows["from scratch"][column + 1]["text"] == "baseline"
        assert_same_number(rows["FCMAE"][column], second[task]["AP"])
        cell, difference = rows["FCMAE"][column + 1], second[task]["AP"] - first[task]["AP"]
        assert cell["value"] == pytest.approx(difference)
        assert cell["text"] == f"{difference:+.1f}".replace("-", "−")
    assert rows["FCMAE"][4]["text"] == "7 min 32 s"


def test_the_headline_of_one_run_shows_its_four_aps(tmp_path, material):
    text = write([material / "fcmae"], tmp_path).text
    metrics = metrics_of(material / "fcmae")
    cards = re.search(r'<dl class="cards">.*?</dl>', text)[0]
    shown = [float(value) for value in re.findall(r'<data value="([^"]+)"', cards)]
    assert shown == [metrics[task][name] for task in ("bbox", "segm") for name in ("AP", "AP50")]


def test_the_curves_are_the_values_of_metrics_json(tmp_path, material):
    runs = [material / "scratch", material / "fcmae"]
    text = write(runs, tmp_path).text
    figures = re.findall(
        r"<figcaption>([^<]+)<small>by iteration</small></figcaption>(<svg.*?</svg>)", text
    )
    titles = ["Total loss", "loss_cls", "loss_mask", "Learning rate", "Images per second"]
    titles += ["Seconds per iteration", "Peak memory (MB)"]
    assert [title for title, _ in figures] == titles
    keys = ["total_loss", "loss_cls", "loss_mask", "lr", "images_per_second", "time", "max_mem"]
    for key, (_, svg) in zip(keys, figures, strict=True):
        for run in runs:
            drawn = re.findall(rf"<title>{run.name}, iteration (\d+): ([^<]+)</title>", svg)
            lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
            assert drawn == [(str(line["iteration"]), f"{line[key]:.5g}") for line in lines]


def test_the_facts_are_those_of_run_json(tmp_path, material):
    page = write([material / "scratch", material / "fcmae"], tmp_path)
    facts = {name: [cell["text"] for cell in row] for name, row in page.rows("facts").items()}
    assert facts["Encoder's weights"] == [
        "from scratch: no weights were loaded",
        "174 of 174 encoder tensors from runs/fcmae/encoder.safetensors (format: ours); "
        "66 new: fpn, rpn, roi_heads",
    ]
    assert facts["Weights' fingerprint"] == ["no weights", "9f" * 32]
    assert facts["Weights' licence"] == ["no weights", "CC BY-NC 4.0"]
    assert facts["Engine"] == ["torchvision"] * 2
    assert facts["Versions"] == ["torch 2.4.0, numpy 1.26"] * 2
    assert facts["Commit"] == ["0c62607"] * 2
    assert facts["Parameters"] == ["10,123,456"] * 2
    assert facts["Peak memory (MB)"] == ["1,234"] * 2
    assert facts["Training time"] == ["7 min 32 s"] * 2
    assert facts["Training data"] == ["train set: 40 images, 99 instances"] * 2
    assert facts["Iterations"] == ["200"] * 2
    assert facts["Started"] == ["2026-01-02 03:04:05 UTC"] * 2
    assert (material / "fcmae" / "config.yaml").read_text().strip() in page.text
    assert "last 40 of 50 lines" in page.text


def test_only_settings_that_differ_are_listed(tmp_path, material):
    rows = write([material / "scratch", material / "fcmae"], tmp_path).rows("differences")
    settings = {name: [cell["text"] for cell in row] for name, row in rows.items()}
    del settings["Setting"]
    assert settings == {"SOLVER.BASE_LR": ["0.001", "0.0005"]}


def test_the_markdown_has_the_same_numbers_and_figures_as_files(tmp_path, material):
    write([material / "scratch", material / "fcmae"], tmp_path)
    text = (tmp_path / "report.md").read_text()
    metrics = [metrics_of(material / name) for name in ("scratch", "fcmae")]
    page = Page(tmp_path / "report.html")
    for section in ("headline", "metrics", "classes", "errors", "scores", "confusion"):
        rows = [row[1:] for row in page.tables[section] if any(c["value"] for c in row)]
        lines = [f"| {' | '.join(cell['text'] for cell in row)} |" for row in rows]
        assert lines
        assert [line for line in lines if line not in text] == []
    values = [m[task]["AP75"] for m in metrics for task in ("bbox", "segm")]
    cells = " | ".join(f"{value:.1f}" for value in values)
    assert f"| AP75: IoU 0.75 | {cells} |" in text
    figures = re.findall(r"\(<(report_files/[^>]+)>\)", text)
    charts = 7 + 2 * 4  # precision at two IoUs, AP by IoU and calibration, of box and mask
    assert len(figures) == charts + (12 + 3) * 3  # three typical images in front
    assert all((tmp_path / figure).stat().st_size > 500 for figure in figures)
    write([material / "scratch"], tmp_path)
    assert len(list((tmp_path / "report_files").iterdir())) == charts + (12 + 3) * 2  # none left


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.25, "3.2 s"), (59.2, "59 s"), (452.4, "7 min 32 s"), (3600 * 5 + 120, "5 h 2 min")],
)
def test_durations_read_as_people_say_them(seconds, words):
    assert duration(seconds) == words


def test_numbers_are_shown_without_negative_zero_and_with_their_sign():
    assert str(Number(-0.04, signed=True)) == "0.0"
    assert [Number(value, signed=True).direction for value in (-0.04, -0.06, 0.06, None)] == [
        *("", "down", "up", "")
    ]
    assert str(Number(-1.26, signed=True)) == "−1.3"
    assert str(Number(2.0, signed=True)) == "+2.0"
    assert str(Number(None)) == "–"


# --- what is missing or broken ------------------------------------------------------------------


@pytest.mark.parametrize(
    "missing",
    [
        "config.yaml",
        "metrics.json",
        "run.json",
        "log.txt",
        "inference/metrics_summary.json",
        "inference/coco_instances_results.json",
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_missing_file_is_said_and_the_rest_is_shown(tmp_path, material, one_run, missing, alone):
    (one_run / missing).unlink()
    page = write([one_run] if alone else [material / "fcmae", one_run], tmp_path)
    assert set(SECTIONS) <= set(page.sections)
    assert missing == "log.txt" or "not recorded" in page.text
    assert "not recorded" in (tmp_path / "report.md").read_text() or missing == "log.txt"


def test_each_file_alone_makes_a_report(tmp_path, material):
    for file in ("config.yaml", "metrics.json", "run.json", "inference/metrics_summary.json"):
        folder = tmp_path / file.replace("/", "_")
        (folder / file).parent.mkdir(parents=True)
        shutil.copy(material / "fcmae" / file, folder / file)
        assert set(SECTIONS) <= set(write([folder], tmp_path).sections)


def test_a_folder_without_a_run_is_refused_with_what_was_looked_for(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"empty holds no run: none of config\.yaml, metrics\.json"
    ):
        write([tmp_path / "empty"], tmp_path)
    with pytest.raises(ValueError, match="absent is not a folder"):
        write([tmp_path / "absent"], tmp_path)
    with pytest.raises(ValueError, match="at least one run"):
        write([], tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_names_and_output_that_do_not_fit_are_refused(tmp_path, material):
    runs = [material / "scratch", material / "fcmae"]
    with pytest.raises(ValueError, match="1 name for 2 runs"):
        write(runs, tmp_path, names=["a"])
    with pytest.raises(ValueError, match="same name"):
        write(runs, tmp_path, names=["a", "a"])
    with pytest.raises(ValueError, match=r"must end in \.html"):
        write_report(runs, tmp_path / "report.txt")


def test_runs_whose_folders_share_a_name_are_told_apart(tmp_path, material):
    for parent in ("first", "second"):
        shutil.copytree(material / "fcmae", tmp_path / parent / "run")
    page = write([tmp_path / "first" / "run", tmp_path / "second" / "run"], tmp_path)
    assert {"first/run", "second/run"} <= set(page.rows("headline"))


def test_runs_tested_on_different_data_are_not_compared(tmp_path, material, one_run):
    facts = json.loads((one_run / "run.json").read_text())
    facts["datasets"]["test"] |= {"fingerprint": "other", "name": "other set"}
    (one_run / "run.json").write_text(json.dumps(facts))
    page = write([material / "fcmae", one_run], tmp_path)
    assert "not tested on the same data" in page.text
    assert page.rows("headline")["one"][1]["text"] == "not comparable"
    assert "Of fcmae only" in page.text


def test_a_comparison_whose_test_data_is_not_recorded_says_so(tmp_path, material, one_run):
    (one_run / "run.json").unlink()
    words = "tested on the same data: not recorded"
    assert words in write([material / "fcmae", one_run], tmp_path).text
    assert words not in write([material / "fcmae", material / "scratch"], tmp_path).text
    assert words not in write([one_run], tmp_path).text


def test_unreadable_files_are_said_and_not_fatal(tmp_path, one_run):
    with open(one_run / "metrics.json", "a") as file:
        file.write('{"iteration": 220, "total_l')  # a run that was killed while writing
    (one_run / "run.json").write_text("{]")
    (one_run / "config.yaml").write_text("a: !!python/tuple [1]")
    (one_run / "inference" / "coco_instances_results.json").write_text("[5]")
    (one_run / "inference" / "metrics_summary.json").write_text('{"bbox": 5}')
    (one_run / "inference" / "diagnosis.json").write_text("[")
    page = write([one_run], tmp_path)
    assert "metrics.json: 1 line without JSON" in page.text
    assert "run.json is not JSON" in page.text
    assert "config.yaml is not plain YAML" in page.text
    assert "metrics_summary.json has not the form" in page.text


def test_nan_in_a_metrics_file_is_shown_as_a_dash(tmp_path, one_run):
    path = one_run / "inference" / "metrics_summary.json"
    path.write_text('{"bbox": {"AP": NaN, "AP50": 12.5}}')
    page = write([one_run], tmp_path)
    rows = {name: row for name, row in page.rows("metrics").items() if name.startswith("AP50")}
    assert [cell["text"] for cell in rows["AP50 IoU 0.50"]] == ["12.5", "not recorded"]
    (ap,) = (row for name, row in page.rows("metrics").items() if name.startswith("AP mean"))
    assert ap[0]["text"] == "–"


def test_a_resumed_runs_later_lines_replace_the_earlier_ones(tmp_path):
    lines = [(1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5), (3, 3.5), (4, float("nan"))]
    (tmp_path / "metrics.json").write_text(
        "\n".join(json.dumps({"iteration": i, "total_loss": loss}) for i, loss in lines)
    )
    assert read_run(tmp_path).history["total_loss"] == [(1, 5.0), (2, 4.5), (3, 3.5)]


def test_missing_and_resized_images_are_counted(tmp_path, material):
    data = Path(shutil.copytree(material / "data", tmp_path / "data"))
    truth = json.loads((data / "truth.json").read_text())
    run = make_run(tmp_path / "run", data, truth)
    (data / "images" / "001.png").unlink()
    cv2.imwrite(str(data / "images" / "002.png"), np.zeros((10, 10, 3), np.uint8))
    (data / "images" / "003.png").write_text("no image")
    page = write([run], tmp_path)
    assert "3 of the 12 chosen images" in page.text
    assert "001.png, 002.png, 003.png" in page.text
    assert len(page.images_in("predictions")) == 2 * 9


def test_every_text_from_a_file_is_escaped(tmp_path):
    truth = make_data(tmp_path / "data", class_names=(HOSTILE, 'a"b|c', "[x](y)`"))
    run = make_run(tmp_path / "run", tmp_path / "data", truth)
    for file in ("run.json", "config.yaml", "metrics.json"):
        text = (run / file).read_text()
        for word in ("torchvision", "SEED", "loss_mask", "test set", "cpu", "x.yaml"):
            text = text.replace(word, f"{word}{HOSTILE}")
        (run / file).write_text(text)
    (run / "log.txt").write_text(HOSTILE)
    page = write([run], tmp_path, names=[HOSTILE], notes=[HOSTILE])
    assert page.text.count("&lt;script&gt;") > 10
    assert re.findall("<script", page.text) == ["<script"]  # our own
    assert HOSTILE in page.rows("classes")
    assert 'a"b|c' in page.rows("classes")
    markdown = (tmp_path / "report.md").read_text()
    fenced = re.sub(r"^(```+)\n.*?\n\1$|`[^`\n]+`", "", markdown, flags=re.MULTILINE | re.DOTALL)
    assert HOSTILE not in fenced
    assert re.search(r'^\| a"b\\\|c \|', fenced, re.MULTILINE)


# --- figures ------------------------------------------------------------------------------------


def test_predictions_stand_beside_their_ground_truth(tmp_path, material):
    page = write([material / "scratch", material / "fcmae"], tmp_path)
    alternatives = [image["alt"] for image in page.images_in("predictions")]
    assert len(alternatives) == 12 * 3
    for start in range(0, 36, 3):
        wanted, *found = alternatives[start : start + 3]
        file_name = re.match(r"Ground truth, (\S+): ", wanted)[1]
        assert found[0].startswith(f"scratch, {file_name}: ")
        assert found[1].startswith(f"fcmae, {file_name}: ")
    for image in page.images:
        data = base64.b64decode(image["src"].removeprefix("data:image/jpeg;base64,"))
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[1] == 480


def test_predictions_below_their_classs_best_threshold_are_not_drawn(tmp_path, material):
    run = material / "fcmae"
    page = write([run], tmp_path)
    results = json.loads((run / "inference" / "coco_instances_results.json").read_text())
    diagnosis = json.loads((run / "inference" / "diagnosis.json").read_text())
    least = {row["category_id"]: row["threshold"] for row in diagnosis["bbox"]["thresholds"]}
    assert any(r["score"] < least[r["category_id"]] for r in results)
    truth = json.loads((material / "data" / "truth.json").read_text())
    shown = [image["alt"] for image in page.images if image["alt"].startswith("fcmae")]
    for alternative in shown:
        name = re.match(r"fcmae, (\S+): ", alternative)[1]
        (image_id,) = (image["id"] for image in truth["images"] if image["file_name"] == name)
        kept = [r for r in results if r["image_id"] == image_id]
        kept = [r for r in kept if r["score"] >= least[r["category_id"]]]
        assert f": {len(kept)} object" in alternative


def test_the_worst_the_best_and_the_most_changed_images_are_chosen(tmp_path):
    def run(name, scores):
        rows = [
            {"id": i, "objects": 5, "found": 3, "false": 1, "F1": f1, "IoU": 80.0, "errors": {}}
            for i, f1 in enumerate(scores)
        ]
        return RunName(0, name), Run(name, tmp_path, diagnosis={"bbox": {"images": rows}})

    f1s = [float(i) for i in range(100)] + [None]
    chosen = choose_images([run("a", f1s)])
    groups = {
        group: [c.image_id for c in chosen if group in c.groups] for group in ("worst", "best")
    }
    assert groups == {"worst": list(range(20)), "best": list(range(99, 79, -1))}
    before = [*f1s]
    before[50], before[60], before[0] = 90.0, 10.0, 5.0
    chosen = choose_images([run("a", before), run("b", f1s)])
    changed = {
        c.image_id: [group for group in c.groups if group != "typical"]
        for c in chosen
        if c.image_id in (0, 50, 60)
    }
    assert changed == {0: ["worst", "lost most"], 50: ["lost most"], 60: ["gained most"]}
    why = {c.image_id: c.why for c in chosen}
    assert why[50] == "F1 50: 3 of 5 found, −40 since the first run"
    assert [c.image_id for c in changed_most([run("a", before), run("b", f1s)])] == [60, 50, 0]
    assert [c.groups for c in choose_images([run("a", [50.0])])] == [["typical", "worst"]]


def test_a_study_shows_only_what_changed_between_two_runs(tmp_path, material):
    runs = [
        (RunName(0, "scratch"), material / "scratch"),
        (RunName(1, "fcmae"), material / "fcmae"),
    ]
    (gallery,) = changed_detections(runs)
    groups = [group for panel in gallery.members for group in panel.tags["Images"]]
    assert set(groups) <= {"lost most", "gained most"}
    assert groups
    for panel in gallery.members:
        assert [picture.label.partition(" ·")[0] for picture in panel.pictures] == [
            "Ground truth",
            "scratch",
            "fcmae",
        ]
        assert not any(picture.full for picture in panel.pictures)
    shutil.copytree(material / "fcmae", tmp_path / "without")
    (tmp_path / "without/inference/coco_instances_results.json").unlink()
    assert changed_detections([runs[0], (RunName(1, "x"), tmp_path / "without")]) == []


def test_bands_are_shaded_behind_their_lines_and_inside_the_drawing():
    line = Series(RunName(1, "run"), [(8, 5.0), (32, 9.0)], [(8, 3.0, 7.0), (32, 8.0, 10.0)])
    svg = str(chart_svg(Chart("AP", [line], x="labelled images")))
    found = re.findall(r'polygon class="band s1" points="([^"]+)"', svg)
    corners = [tuple(map(float, corner.split(","))) for corner in found[0].split()]
    ends = re.search(r'polyline class="line s1" points="([^"]+)"', svg)[1].split()
    line_ys = [float(end.split(",")[1]) for end in ends]
    assert [x for x, _ in corners] == sorted({x for x, _ in corners}) + sorted(
        {x for x, _ in corners}, reverse=True
    )
    for (_, high), (_, low), middle in zip(corners[:2], corners[:1:-1], line_ys, strict=True):
        assert 0 < high < middle < low  # downwards
    assert svg.index("polygon") < svg.index("polyline")
    assert "polygon" not in str(chart_svg(Chart("AP", [Series(line.run, line.points)])))


def test_the_head_of_the_report_shows_images_that_are_neither_good_nor_bad(tmp_path, material):
    page = write([material / "fcmae"], tmp_path)
    diagnosis = json.loads((material / "fcmae" / "inference" / "diagnosis.json").read_text())
    f1s = {row["id"]: row["F1"] for row in diagnosis["bbox"]["images"] if row["F1"] is not None}
    alternatives = [image["alt"] for image in page.images_in("headline")]
    shown = [f1s[int(re.search(r", (\d+)\.png", text)[1])] for text in alternatives[::2]]
    assert shown == list(np.quantile(list(f1s.values()), (0.25, 0.5, 0.75), method="nearest"))
    assert all(text.startswith("Ground truth") for text in alternatives[::2])
    assert all(text.startswith("fcmae") for text in alternatives[1::2])


def test_errors_thresholds_calibration_and_confusion_are_those_of_the_json(tmp_path, material):
    page = write([material / "scratch"], tmp_path)
    found = json.loads((material / "scratch/inference/diagnosis.json").read_text())
    metrics = metrics_of(material / "scratch")
    for kind, expected in found["bbox"]["errors"]["kinds"].items():
        row = page.rows("errors")[f"{kind} {KINDS[kind]}"]
        of_mask = found["segm"]["errors"]["kinds"][kind]
        wanted = [expected["count"], expected["cost"], of_mask["count"], of_mask["cost"]]
        assert [cell["value"] for cell in row] == wanted
    names = list(metrics["per_class"])
    for name, row in zip(names, found["bbox"]["thresholds"], strict=True):
        cells = page.rows("scores")[name]
        if row["threshold"] > 1:
            assert cells[0]["text"] == "none found"
        else:
            wanted = [row[key] for key in ("threshold", "precision", "recall", "F1")]
            assert [cell["value"] for cell in cells] == wanted
    for name, row in zip([*names, "nothing there"], found["bbox"]["confusion"], strict=True):
        cells = page.rows("confusion")[name]
        wanted = row if name != "nothing there" else [*row[:-1], None]
        assert [cell["value"] for cell in cells] == wanted
    drawn = re.findall(r"<title>scratch, recall (\d+): ([^<]+)</title>", page.text)
    curve = metrics["curves"]["bbox"]["precision"]["0.50"]
    assert drawn[:101] == [(str(i), f"{value:.5g}") for i, value in enumerate(curve)]
    bins = [b for b in found["bbox"]["calibration"]["bins"] if b["count"]]
    drawn = re.findall(r"<title>scratch, score ([\d.]+): ([^<]+)</title>", page.text)
    assert drawn[: len(bins)] == [(f"{b['score']:g}", f"{b['precision']:.5g}") for b in bins]


def test_a_run_of_another_tool_is_diagnosed_by_the_report(tmp_path, material, one_run):
    expected = write([one_run], tmp_path).rows("errors")
    (one_run / "inference" / "diagnosis.json").unlink()
    assert write([one_run], tmp_path).rows("errors") == expected


def test_large_images_are_linked_at_full_size_and_small_ones_are_not(tmp_path, material):
    truth = make_data(tmp_path / "data", size=(900, 1200), images=4)
    run = make_run(tmp_path / "run", tmp_path / "data", truth)
    page = write([run], tmp_path)
    links = [url for url in page.urls if url.startswith("report_files/full")]
    assert len(set(links)) == len(page.images_in("predictions")) == 3 * 2
    assert len(links) == len(page.images)
    for link in links:
        assert cv2.imread(str(tmp_path / link)).shape == (900, 1200, 3)
    page = write([material / "scratch"], tmp_path)
    assert not [url for url in page.urls if "full" in url]
    assert not list((tmp_path / "report_files").glob("full*"))  # none left behind


def test_a_picture_fits_its_budget_whatever_it_shows():
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    for budget in (200_000, 30_000, 5_000):
        assert len(encode_jpeg(noise, budget)) <= budget


def test_the_page_stays_small_with_pictures_of_noise(tmp_path, monkeypatch):
    truth = make_data(tmp_path / "data", size=(480, 640))
    for path in (tmp_path / "data" / "images").iterdir():
        noise = np.random.default_rng(1).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        cv2.imwrite(str(path), noise)
    runs = [make_run(tmp_path / f"r{i}", tmp_path / "data", truth, seed=i) for i in range(2)]
    write(runs, tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 5e6
    assert report_figures.PICTURE_BYTES * 4 / 3 < 4.5e6


@given(
    st.floats(-1e6, 1e6, allow_nan=False),
    st.floats(1e-6, 1e6, allow_nan=False),
)
def test_ticks_hold_the_data_and_are_few(low, extent):
    high = low + extent
    if high - low < 1e-3 * abs(low):
        return
    marks = ticks(low, high, 4)
    slack = 1e-6 * extent
    assert marks[0] <= low + slack
    assert marks[-1] >= high - slack
    assert 2 <= len(marks) <= 9


@pytest.mark.parametrize("count", [1, 2, MAX_POINTS, MAX_POINTS + 1, 13_500])
def test_thinning_keeps_the_mean_and_the_last_iteration(count):
    points = [(float(i), float(i % 7)) for i in range(1, count + 1)]
    thinned, group = downsample(points)
    assert len(thinned) <= MAX_POINTS
    assert thinned[-1][0] == count
    assert group == math.ceil(count / MAX_POINTS)
    whole = thinned[: count // group]
    mean = sum(y for _, y in points[: len(whole) * group]) / (len(whole) * group)
    assert sum(y for _, y in whole) / len(whole) == pytest.approx(mean)


def test_lines_are_drawn_where_their_values_belong():
    points = [(0.0, 0.0), (50.0, 2.0), (100.0, 4.0)]
    svg = chart_svg(Chart("loss", [Series(RunName(0, "a"), points)]))
    path = re.search(r'<polyline[^>]* points="([^"]+)"', svg)[1]
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in path.split())
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert x0 < x2
    assert y0 > y2  # up is more


def texts_of(svg):
    """(x, y, text) of each text of a chart; the lowest are the numbers of the x axis."""
    found = re.findall(r'<text (?:class="\w+" )?x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)<', svg)
    return [(float(x), float(y), text) for x, y, text in found]


def test_ends_at_zero_are_told_above_the_axis_and_apart():
    lines = [Series(RunName(i, str(i)), [(0.0, 5.0 - i), (100.0, 0.0)]) for i in range(3)]
    texts = texts_of(chart_svg(Chart("precision", lines, "recall")))
    axis = max(y for _, y, _ in texts)
    ends = sorted(y for x, y, text in texts if text == "0" and x > 300)
    assert len(ends) == 3
    apart = [below - above for above, below in itertools.pairwise([*ends, axis])]
    assert min(apart) >= 13


@pytest.mark.parametrize(
    ("points", "marks"),
    [([(6.0, 1.0)], ["6"]), ([(1.0, 2.0), (2.0, 1.0)], ["1", "2"])],
)
def test_an_axis_of_iterations_has_whole_numbers_that_were_reached(points, marks):
    texts = texts_of(chart_svg(Chart("loss", [Series(RunName(0, "a"), points)])))
    axis = max(y for _, y, _ in texts)
    assert [text for _, y, text in texts if y == axis] == marks


@pytest.mark.parametrize(
    "points", [[(5.0, 1.0)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, -3.0), (2.0, 1.0)]]
)
def test_charts_of_one_point_of_zeros_and_of_negative_values_are_drawn(points):
    svg = chart_svg(Chart("x", [Series(RunName(7, "<a>"), points)]), standalone=True)
    assert "nan" not in svg
    assert "<a>" not in svg


# --- pretraining --------------------------------------------------------------------------------


@pytest.fixture
def pretraining(tmp_path):
    folder = tmp_path / "pretraining"
    (folder / "reconstructions").mkdir(parents=True)
    for step in (100, 200, 300):
        panel = np.full((60, 90, 3), step // 2, np.uint8)
        cv2.imwrite(str(folder / "reconstructions" / f"step_{step:08d}.png"), panel)
    lines = [
        json.dumps({"iteration": i, "total_loss": 1 / i, "lr": 1e-4, "feature_distance/mean": 0.5})
        for i in (1, 2, 3)
    ]
    (folder / "metrics.json").write_text("\n".join(lines))
    command = "tools/pretrain_fcmae.py --model convnextv2_atto"
    (folder / "config.yaml").write_text(f"mask_ratio: 0.6\nderived:\n  command: {command}\n")
    return folder


def test_the_pretraining_section_has_its_loss_pictures_and_settings(
    tmp_path, material, pretraining
):
    page = write([material / "fcmae"], tmp_path, pretraining=pretraining)
    assert "pretraining" in page.sections
    section = page.text.split('id="pretraining"')[1].split("</section>")[0]
    assert "iteration 3: 0.33333" in section
    assert "step_00000100" in section
    assert "step_00000200" not in section
    assert "step_00000300" in section
    assert "first and the last of 3" in section
    assert "mask_ratio: 0.6" in section
    assert "Feature diversity: distance of channels, mean" in section
    assert "Command of the pretraining: tools/pretrain_fcmae.py --model convnextv2_atto<" in section
    chosen = pretraining / "reconstructions" / "step_00000100.png"
    page = write([material / "fcmae"], tmp_path, pretraining=pretraining, reconstructions=[chosen])
    assert sum("step_" in image["alt"] for image in page.images) == 1
    assert "pretraining" not in write([material / "fcmae"], tmp_path).sections


def test_a_reconstruction_that_is_no_picture_is_refused(tmp_path, material):
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    with pytest.raises(ValueError, match=r"bad\.png is not a picture"):
        write([material / "fcmae"], tmp_path, reconstructions=[bad])


# --- the page in a browser ----------------------------------------------------------------------


def test_the_page_asks_for_nothing_from_outside(tmp_path, material):
    page = write([material / "scratch", material / "fcmae"], tmp_path, notes=["A note."])
    assert all(url.startswith(("data:", "#")) for url in page.urls)
    outside = set(re.findall(r"https?://[^\"'\s<]+", page.text))
    assert outside <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in page.text
    assert "url(" not in page.text
    assert page.tags.isdisjoint({"iframe", "object", "embed"})
    assert all(image["alt"] for image in page.images)
    told = re.findall(r'<svg[^>]* role="img"><title>[^<]+: [^<]+ from [^<]+</title>', page.text)
    assert len(told) == page.text.count("<svg ") > 10


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: no browser to open the page in"
    )
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed: no browser to open the page in")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield started
        started.close()


def wait_until(page, condition):
    """The page's policy forbids the polling inside it that playwright would do."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {condition}")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_a_browser_shows_every_section_without_errors_or_requests(
    tmp_path, material, pretraining, browser, width, scheme
):
    runs = [material / "scratch", material / "fcmae"]
    write(runs, tmp_path, notes=["One seed proves nothing."], pretraining=pretraining)
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, requested = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    for key in [*SECTIONS, "pretraining", "differences"]:
        section = page.locator(f"section#{key}")
        assert section.count() == 1, key
        assert section.is_visible(), key
    wait_until(page, "[...document.images].every(i => !i.src || i.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []
    assert [url for url in requested if not url.startswith(("file:", "data:"))] == []
    background, ink = page.evaluate(
        "(() => { const s = getComputedStyle(document.body); "
        "return [s.backgroundColor, s.color] })()"
    )
    brightness = [sum(map(int, re.findall(r"\d+", c)[:3])) for c in (background, ink)]
    assert (brightness[0] > brightness[1]) is (scheme == "light")
    gallery = page.locator("#predictions")
    assert gallery.locator("article:visible").count() == 12
    gallery.get_by_label("Images").select_option("best")
    assert gallery.locator("article:visible").count() == 6
    assert gallery.locator("output").inner_text() == "6 of 12"
    gallery.get_by_label("Images").select_option("")
    gallery.get_by_label("Error").select_option("missed")
    titles = gallery.locator("article:visible h3").all_inner_texts()
    assert 0 < len(titles) < 12
    assert all("missed" in title for title in titles)
    gallery.get_by_label("Error").select_option("")
    gallery.get_by_label("Images").focus()
    page.keyboard.press("ArrowDown")  # the filters by keyboard, as the enlarged picture below
    assert gallery.locator("output").inner_text() == "6 of 12"
    page.keyboard.press("ArrowUp")
    first = gallery.locator(".zoom").nth(1)
    first.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("dialog.viewer")
    assert viewer.is_visible()
    wait_until(page, "document.querySelector('.viewer img').style.width !== ''")
    before = viewer.locator("img").bounding_box()["width"]
    page.keyboard.press("+")
    assert viewer.locator("img").bounding_box()["width"] == pytest.approx(before * 1.5, rel=0.01)
    page.keyboard.press("ArrowRight")
    second = gallery.locator(".zoom img").nth(2).get_attribute("alt")
    assert viewer.locator("p").inner_text() == second
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    details = page.locator("#facts details").first
    assert not details.locator("pre").is_visible()
    details.locator("summary").focus()
    page.keyboard.press("Enter")
    assert details.locator("pre").is_visible()
    page.emulate_media(media="print", color_scheme=scheme)
    paper = page.evaluate(
        "[getComputedStyle(document.body)].map(s => [s.backgroundColor, s.color])"
    )
    brightness = [sum(map(int, re.findall(r"\d+", c)[:3])) for c in paper[0]]
    assert brightness[0] == 3 * 255 > brightness[1] * 4  # dark ink on white, whatever the screen
    dot = page.locator(".legend .dot").first
    assert dot.evaluate("e => getComputedStyle(e).printColorAdjust") == "exact"
    assert not page.locator("nav").is_visible()
    page.close()
