"""The README as a new user goes through it: its own commands, on drawn images, with few steps."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from segmentation_scenes import write_scenes as write_class_maps

from backbones.checkpoint import save_encoder
from backbones.convnext import build_convnext
from detection.data.scenes import write_scenes

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = {"--max-steps 5000": "--max-steps 2", "--image-size 224": "--image-size 64"}
SHORT |= {"--batch-size 64": "--batch-size 4 --workers 0 --device cpu"}
FEW = ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", "0"]
FEW += ["INPUT.MIN_SIZE_TRAIN", "[64]", "INPUT.MIN_SIZE_TEST", "64", "MODEL.DEVICE", "cpu"]


def commands(name):
    """The arguments of each of the README's calls of a command, from blocks and from the table."""
    section = README.partition("## Your own images")[2].partition("## What was measured")[0]
    text = section.replace("\\\n", " ")
    found = re.findall(rf"^(?:.*?`)?fcmae {name} ([^`\n]*)", text, re.MULTILINE)
    assert found, name
    return [shlex.split(arguments, comments=True) for arguments in found]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the user's data that the README's commands name."""
    write_scenes(tmp_path / "scenes", 4, 2, 4)
    for name, source in (("images", "images"), ("photos", "images"), ("my_images", "unlabelled")):
        (tmp_path / name).symlink_to(tmp_path / "scenes" / source)
    for split in ("train", "val"):
        annotations = (tmp_path / f"scenes/annotations/{split}.json").read_text()
        (tmp_path / f"{split}.json").write_text(annotations)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plant_mistakes(folder):
    """Three mistakes in the labels; returns what makes them good again."""
    text = (folder / "train.json").read_text()
    tree = json.loads(text)
    first, second = tree["annotations"][:2]
    first["segmentation"] = [[1, 1, 9, 9]]
    second["id"] = first["id"]
    name = tree["images"][1]["file_name"]
    (folder / "train.json").write_text(json.dumps(tree))
    (folder / "images" / name).rename(folder / "aside.png")

    def mend():
        (folder / "train.json").write_text(text)
        (folder / "aside.png").rename(folder / "images" / name)

    return name, first["id"], mend


def test_from_a_folder_of_images_to_a_comparison_of_two_runs(place, fcmae):
    (arguments,) = commands("pretrain")
    line = shlex.join(arguments)
    for given, shorter in SHORT.items():
        assert given in line
        line = line.replace(given, shorter)
    result = fcmae("pretrain", *shlex.split(line))
    assert result.code == 0, result.err

    missing, repeated, mend = plant_mistakes(place)
    (training,) = commands("train")
    refused = fcmae("train", *training, *FEW)
    assert refused.code == 1
    assert "Traceback" not in refused.err
    said = refused.err.partition("error: ")[2]
    assert said.startswith("3 problems in the data set json:train.json:images:\n")
    for words in (
        "segmentation has no polygon of at least 3 points; correct or remove it",
        f"id {repeated} is used twice; ",
        f"images/{missing}: image ",
        "is missing; add the image, or correct file_name or the image folder",
    ):
        assert words in said
    mend()
    result = fcmae("train", *training, *FEW)
    assert result.code == 0, result.err
    assert "136/136 encoder tensors loaded from runs/fcmae/encoder.safetensors" in result.err
    assert (place / "runs/detector/report.html").is_file()

    other = ["OUTPUT_DIR", "runs/scratch", "MODEL.CONVNEXT.WEIGHTS", ""]
    assert fcmae("train", *training, *FEW, *other).code == 0
    (comparing,) = commands("report")
    assert fcmae("report", *comparing).code == 0
    page = (place / "compare.html").read_text()
    assert "<h1>scratch compared with detector</h1>" in page
    assert 'id="pretraining"' in page

    (predicting,) = commands("predict")
    predicting.remove("clip.mp4")  # tests/test_tools_predict.py has videos
    assert fcmae("predict", *predicting).code == 0
    assert json.loads((place / "predictions/predictions.json").read_text()) is not None
    converting = commands("convert")[-1]
    assert fcmae("convert", *converting).code == 0
    assert (place / "d2.pth").is_file()


def test_from_images_and_class_maps_to_a_report(tmp_path, monkeypatch, fcmae):
    for split in ("train", "val"):
        write_class_maps(tmp_path / "maps", images=2)
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / "maps" / folder).rename(tmp_path / folder / split)
    monkeypatch.chdir(tmp_path)
    Path("runs/fcmae").mkdir(parents=True)
    save_encoder(build_convnext("convnextv2_atto"), Path("runs/fcmae/encoder.safetensors"), {})
    (training,) = commands("segment")
    few = ["INPUT.CROP.SIZE", "[64, 64]", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2"]
    few += ["DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu"]
    few += ["MODEL.SEM_SEG_HEAD.CONVS_DIM", "64"]
    result = fcmae("segment", *training, *few)
    assert result.code == 0, result.err
    assert Path("runs/segmentation/report.html").is_file()
    # its export: tests/test_segmentation_run.py
    assert ["--run", "runs/segmentation", "--output", "segmenter.onnx"] in commands("export")


def test_a_checkpoint_from_elsewhere_becomes_ours_in_one_command(place, fcmae):
    arguments = commands("convert")[0]
    save_encoder(build_convnext("convnextv2_atto"), place / "ours.safetensors", {})
    theirs = ("convert", "ours.safetensors", arguments[0], "--to", "official")
    assert fcmae(*theirs).code == 0
    result = fcmae("convert", *arguments)
    assert result.code == 0, result.err
    assert re.match(r"read +convnextv2_base_1k_224_fcmae.pt: convnextv2_atto, official", result.out)
    assert "licence of the weights: CC BY-NC 4.0" in result.out


def test_each_way_to_begin_fits_ten_lines():
    section = README.partition("## Your own images\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 4
    assert all(len(block.splitlines()) <= 10 for block in blocks)


def test_a_newcomer_sees_pictures_first_then_two_commands_within_120_lines():
    assert len(README.splitlines()) <= 120
    before, _, _ = README.partition("```")
    assert len(re.findall(r"!\[[^\]]+\]\(", before)) == 3
    block = README.partition("## Two commands")[2].partition("\n## ")[0]
    assert len(re.findall(r"```bash\n", block)) == 2


def test_pictures_of_the_readme_can_be_opened():
    for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README):
        with Image.open(ROOT / name) as picture:
            picture.load()
