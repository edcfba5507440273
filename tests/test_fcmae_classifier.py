"""A finished classifier: predictions, its export and its page, against the run's own evaluation."""

from __future__ import annotations

import csv
import json
import os
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix
from videos import write

from backbones.checkpoint import read_source, save_encoder, save_ours
from backbones.convnext import SIZES, Size, build_convnext
from backbones.errors import InputError
from fcmae.classification.classifier import Classifier, load_classifier
from fcmae.classification.finetune import finetune
from fcmae.classification.options import FinetuneOptions
from fcmae.classification.predict import _write_picture, predict_classes
from fcmae.classification.setup import set_up

COLOURS = {"blue": (40, 40, 220), "gr|een<b>": (40, 200, 60), "red": (220, 50, 40)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three colours, of which it knows some: ``folder / data`` and ``folder / run``."""
    folder = tmp_path_factory.mktemp("classifier")
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / "data" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.array(colour) + generator.integers(-120, 120, (40, 48, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / "data" / name / f"{number}.png")
    finetune(options(folder))
    return folder


def options(folder):
    values = {"base_lr": 1e-5, "head_init_scale": 1.0, "rand_augment": "", "random_erasing": 0.0}
    return FinetuneOptions(
        model="convnextv2_atto",
        data=str(folder / "data"),
        output_dir=str(folder / "run"),
        val_fraction=0.5,
        image_size=(32, 32),
        batch_size=6,
        max_steps=1,
        workers=0,
        device="cpu",
        trackers=(),
        overrides=values,
    )


def everything(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def expected(folder):
    """Paths, classes and probabilities of the validation images, by plain PyTorch."""
    setup = set_up(options(folder))
    val = setup.data.val
    val.transform = setup.evaluation()
    model = build_convnext("convnextv2_atto", num_classes=3)
    model.load_state_dict(read_source(folder / "run/classifier.safetensors")[0])
    with torch.no_grad():
        logits = model.eval()(torch.stack([image for image, _, _ in val]))
    paths = [val.describe(place) for place in range(len(val))]
    return paths, list(val.labels), logits.softmax(-1).numpy()


def test_predictions_are_the_evaluations_in_csv_and_json(run_tool, run, tmp_path):
    paths, _, probabilities = expected(run)
    out = tmp_path / "out"
    arguments = ["--run", run / "run", "--input", *paths, "--output-dir", out, "--device", "cpu"]
    result = run_tool("predict", *arguments)
    assert result.code == 0, result.err
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    classes = sorted(COLOURS)
    assert [row["image"] for row in rows] == paths
    assert [row["class"] for row in rows] == [classes[k] for k in probabilities.argmax(1)]
    for k, name in enumerate(classes):
        said = [float(row[f"probability of {name}"]) for row in rows]
        np.testing.assert_allclose(said, probabilities[:, k], atol=2e-6)
    tree = json.loads((out / "predictions.json").read_text())
    assert tree["classes"] == classes
    assert [len(entry["top"]) for entry in tree["images"]] == [3] * len(paths)
    assert tree["images"][0]["probability"] == float(rows[0]["probability"])
    assert not (out / "pictures").exists()
    again = run_tool("predict", *arguments)
    assert again.code == 1
    assert "holds predictions already" in again.err
    arguments[-3:] = [tmp_path / "more", "--pictures", "--device", "cpu"]
    assert run_tool("predict", *arguments).code == 0
    pictures = list((tmp_path / "more/pictures").iterdir())
    assert len(pictures) == len(paths)
    assert Image.open(pictures[0]).size == (160, 133 + 16)


def test_the_class_on_a_large_picture_is_as_large_as_on_a_small_one(tmp_path):
    """Its letters have the same share of the picture's side, up to whole pixels."""
    shares = []
    for side in (400, 1600):
        path = tmp_path / f"{side}.jpg"
        _write_picture(path, np.full((side, side, 3), 255, np.uint8), "A 99%")
        dark = np.asarray(Image.open(path).convert("L")) < 128
        rows = np.flatnonzero(dark.any(1))
        shares.append((rows[-1] - rows[0]) / side)
    assert shares[1] == pytest.approx(shares[0], rel=0.3)
    assert shares[1] > 0.012


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_an_interrupted_prediction_goes_on_to_the_same_files(run, tmp_path, monkeypatch, stop_at):
    """Batches of two hold frames of a video together with images."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        image = run / f"data/red/{number}.png"
        (photos / f"{'az'[number > 0]}{number}.png").write_bytes(image.read_bytes())
    write(photos / "clip.mp4", [0, 0.5, 2.0])

    def predict(folder, **more):
        return predict_classes(
            run / "run", [str(photos)], tmp_path / folder,
            pictures=True, device="cpu", batch_size=2, **more,
        )  # fmt: skip

    assert predict("whole")["images"] == 6
    tree = json.loads((tmp_path / "whole/predictions.json").read_text())
    assert [image.get("seconds") for image in tree["images"]] == [None, 0.0, 0.5, 2.0, None, None]
    calls, real = [], Classifier.probabilities

    def fails(self, images):
        calls.append(len(images))
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return real(self, images)

    monkeypatch.setattr(Classifier, "probabilities", fails)
    with pytest.raises(KeyboardInterrupt):
        predict("out")
    with pytest.raises(InputError, match="unfinished prediction: continue it with --resume"):
        predict("out")
    counts = predict("out", resume=True)
    assert sum(calls) == {1: 8, 2: 9, 3: 8}[stop_at]  # those of the batch that failed, too
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")
    assert predict("out", resume=True) == counts
    with pytest.raises(InputError, match="every was 1 and is now 2"):
        predict("out", resume=True, every=2)


def test_pictures_of_an_earlier_prediction_are_not_predicted(run, tmp_path, caplog):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes((run / "data/red/0.png").read_bytes())
    predict_classes(run / "run", [str(photos)], photos / "one", pictures=True, device="cpu")
    counts = predict_classes(run / "run", [str(photos)], photos / "two", device="cpu")
    assert counts["images"] == 1
    assert "1 of earlier predictions" in caplog.text


def test_what_is_no_classifier_and_what_is_for_detectors_is_refused(run_tool, run, tmp_path):
    save_encoder(build_convnext("convnextv2_atto"), tmp_path / "e.safetensors", {})
    with pytest.raises(ValueError, match="holds an encoder without a head of classes"):
        load_classifier(tmp_path / "e.safetensors")
    arguments = ["--run", run / "run", "--input", run / "data", "--output-dir", tmp_path / "o"]
    result = run_tool("predict", *arguments, "INPUT.MIN_SIZE_TEST", 3)
    assert result.code == 1
    assert "is a classifier's run: KEY VALUE does not fit" in result.err


def test_the_exported_classifier_has_its_head_and_normalises(run_tool, tmp_path, monkeypatch):
    """onnxruntime on images in 0..1, at sizes that were not traced, against PyTorch."""
    monkeypatch.setitem(SIZES, "convnextv2_least", Size((8, 16, 24, 32), (1, 1, 1, 1), 2))
    model = build_convnext("convnextv2_least", num_classes=3)
    torch.nn.init.normal_(model.head.weight)
    mean, std = [0.1, 0.2, 0.3], [0.2, 0.3, 0.4]
    facts = {"classes": sorted(COLOURS), "mean": mean, "std": std, "image_size": [32, 32]}
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    save_ours(model.state_dict(), tmp_path / "classifier.safetensors", metadata)
    path = tmp_path / "classifier.onnx"
    result = run_tool("export", "--run", tmp_path, "--output", path)
    assert result.code == 0, result.err
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert told["kind"] == "classifier"
    assert json.loads(told["class_names"]) == sorted(COLOURS)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    model.eval()
    for shape in ((1, 3, 32, 32), (3, 3, 64, 45)):
        images = torch.rand(shape)
        logits, probabilities = session.run(None, {"images": images.numpy()})
        normalised = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        with torch.no_grad():
            wanted = model(normalised)
        np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-4)
        np.testing.assert_allclose(probabilities, wanted.softmax(-1).numpy(), atol=1e-5)


def test_the_page_shows_scikit_learns_confusion_matrix_and_the_worst_images(run):
    _, truth, probabilities = expected(run)
    predicted = probabilities.argmax(1)
    text = (run / "run/report.md").read_text()
    matrix = confusion_matrix(truth, predicted)
    assert (predicted != truth).any(), "the test wants mistakes to show"
    table = text[text.index("## Confusion") : text.index("## Training")]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    found = [[int(cell) for cell in re.findall(r"\| (\d+)", row)] for row in rows]
    assert found == matrix[matrix.sum(1) + matrix.sum(0) > 0].tolist()
    page = (run / "run/report.html").read_text()
    assert "gr|een<b>" not in page  # escaped
    assert "gr|een&lt;b&gt;" in page
    worst = int(np.argmax(-np.log(probabilities[range(len(truth)), truth])))
    names = sorted(COLOURS)
    shown = text[text.index("Worst") :]
    first = next(line for line in shown.splitlines() if "predicted" in line)
    share = f"{100 * probabilities[worst].max():.0f} %"
    assert share in first
    assert names[truth[worst]][:2] in first
    assert "10 images" not in page
    settings = text[text.index("## Settings") :]
    top1 = 100 * float((predicted == truth).mean())
    assert re.search(rf"top-1 of trained weights \| {top1:.4g} *\|", settings), settings
    assert "None" not in settings.partition("config.yaml")[0]


def test_names_that_are_not_utf_8_train_predict_and_are_reported_as_they_are(run_tool, tmp_path):
    """On Linux names are bytes; those of unpacked Windows zips are often Latin-1."""
    generator = np.random.default_rng(0)
    for folder in (b"gro\xdfe", b"klein"):
        path = os.fsencode(tmp_path) + b"/data/" + folder
        os.makedirs(path)
        for number in range(3):
            pixels = generator.integers(0, 255, (40, 40, 3), np.uint8)
            with open(path + b"/b\xdf%d.png" % number, "wb") as file:
                Image.fromarray(pixels).save(file, "png")
    finetune(options(tmp_path))
    assert (tmp_path / "run/report.html").is_file()
    out = tmp_path / "out"
    command = ["--run", tmp_path / "run", "--input", tmp_path / "data", "--output-dir", out]
    result = run_tool("predict", *command, "--device", "cpu")
    assert result.code == 0, result.err
    assert (
        os.fsencode(tmp_path) + b"/data/gro\xdfe/b\xdf0.png"
        in (out / "predictions.csv").read_bytes()
    )
