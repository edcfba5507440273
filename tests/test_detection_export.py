"""The exportable graph is the detector, whatever runs it: PyTorch, torch.export or onnxruntime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from small_coco import small_coco, write_small_coco
from small_detector import sample, small_config, spread_scores
from torch import Tensor
from torchvision.ops import box_iou

from backbones.convnext import SIZES, Size
from backbones.errors import InputError
from backbones.export import FIRST_TORCH, METADATA_FILE, write_export
from backbones.quantization import quantize_calibrated
from backbones.weight_files import save_pickle
from detection.dataset import load_dataset
from detection.engines.renaming import torchvision_to_detectron2
from detection.engines.torchvision.layers import ChannelNorm
from detection.engines.torchvision.model import MaskRCNN, build_mask_rcnn
from detection.engines.torchvision.roi import rescale_detections
from detection.export import (
    IN_FLOAT,
    calibration_inputs,
    class_facts,
    detector_export,
    load_run,
    run_export,
)
from detection.exporting.evaluate import TORCH, compare, markdown_table
from detection.exporting.graph import DetectorGraph, suppress, suppress_by_torchvision
from detection.exporting.runtimes import RUNTIMES, detector_inputs, onnx_detector

pytestmark = pytest.mark.skipif(torch.__version__ < FIRST_TORCH, reason="torch is too old")

ROOT = Path(__file__).resolve().parent.parent
RANDOM = np.random.default_rng(0)
# Few levels and blocks: capturing costs by the number of operators.
FEW_LEVELS = {
    "MODEL.FPN.IN_FEATURES": ["stage3", "stage4"],
    "MODEL.RPN.IN_FEATURES": ["p4", "p6"],
    "MODEL.ROI_HEADS.IN_FEATURES": ["p4", "p5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [64]],
}
ONE_LEVEL = {
    "MODEL.FPN.IN_FEATURES": ["stage4"],
    "MODEL.RPN.IN_FEATURES": ["p5"],
    "MODEL.ROI_HEADS.IN_FEATURES": ["p5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32]],
}
# (height, width) of 1 to 3 images; no multiples of 32, smaller and larger than the traced.
BATCHES = [[(64, 96)], [(70, 50), (64, 90), (33, 100)], [(20, 31)] * 2, [(128, 160)]]


@pytest.fixture(scope="module", autouse=True)
def small_encoder():
    """An atto of one narrow block a stage."""
    atto = SIZES["convnextv2_atto"]
    SIZES["convnextv2_atto"] = Size((8, 16, 24, 32), (1, 1, 1, 1), 2)
    yield
    SIZES["convnextv2_atto"] = atto


def small_model(changes=None) -> MaskRCNN:
    torch.manual_seed(0)
    model = build_mask_rcnn(small_config(changes)).eval()
    spread_scores(model)
    return model


def batch_of(sizes) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Images, and the graph's inputs with noise where no image is."""
    images = [sample(h, w, 0, seed)["image"] for seed, (h, w) in enumerate(sizes)]
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    canvas = torch.randint(0, 256, (len(images), 3, height, width), dtype=torch.uint8)
    for place, image in zip(canvas, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return images, {"images": canvas, "sizes": torch.tensor(sizes)}


@torch.no_grad()
def by_the_engine(model: MaskRCNN, images: list[Tensor]) -> list[dict[str, Tensor]]:
    """Detections of each image in its own pixels, 28 x 28 masks, labels from 0."""
    batch = model.normalize_and_pad(images)
    features = model.backbone(batch.tensors)
    proposals, _ = model.rpn(batch, features, None)
    detections, _ = model.roi_heads(features, proposals, batch.image_sizes, None)
    return [found | {"labels": found["labels"] - 1} for found in detections]


def assert_same_detections(found: dict[str, Tensor], expected: list[dict[str, Tensor]]) -> None:
    """Box for box IoU > 0.999, scores and mask probabilities to 1e-3."""
    assert len(found["image"]) == sum(len(of_image["boxes"]) for of_image in expected)
    for number, of_image in enumerate(expected):
        here = found["image"] == number
        boxes, wanted = found["boxes"][here], of_image["boxes"]
        assert len(boxes) == len(wanted) > 5
        low, high = boxes[:, :2].maximum(wanted[:, :2]), boxes[:, 2:].minimum(wanted[:, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        areas = sum((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, wanted))
        assert (shared / (areas - shared)).min() > 0.999
        assert torch.equal(found["labels"][here], of_image["labels"])
        for name in ("scores", *(["masks"] if "masks" in of_image else [])):
            torch.testing.assert_close(found[name][here], of_image[name], rtol=0, atol=1e-3)
        assert found["scores"][here].std() > 1e-3  # a constant would be no comparison


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"MODEL.MASK_ON": False, "TEST.DETECTIONS_PER_IMAGE": 7},
        {"MODEL.FPN.NORM": "LN", "MODEL.RPN.CONV_DIMS": [-1, -1], "MODEL.ROI_BOX_HEAD.NORM": "GN"},
        FEW_LEVELS,
    ],
    ids=["plain", "boxes", "norms", "few levels"],
)
@pytest.mark.parametrize("operator", [suppress, suppress_by_torchvision])
def test_the_graph_computes_what_the_engine_does(changes, operator) -> None:
    model = small_model(changes)
    graph = DetectorGraph(model, operator)
    for sizes in BATCHES:
        images, inputs = batch_of(sizes)
        with torch.no_grad():
            assert_same_detections(graph(**inputs), by_the_engine(model, images))


def greedy(boxes: Tensor, scores: Tensor, threshold: float) -> list[bool]:
    """Suppression by its definition."""
    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        x0, y0, x1, y1 = boxes[index].tolist()
        overlaps = []
        for other in kept:
            u0, v0, u1, v1 = boxes[other].tolist()
            shared = max(min(x1, u1) - max(x0, u0), 0) * max(min(y1, v1) - max(y0, v0), 0)
            overlaps.append(shared / ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - shared))
        if scores[index] > float("-inf") and all(iou <= threshold for iou in overlaps):
            kept.append(index)
    return [index in kept for index in range(len(scores))]


@pytest.mark.parametrize("empty", [0.0, 0.4, 1.0])
def test_suppression_stays_inside_groups_and_leaves_empty_places_empty(empty: float) -> None:
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(4, 30, 2, generator=generator) * 40
    boxes = torch.cat((corner, corner + 5 + 30 * torch.rand(4, 30, 2, generator=generator)), -1)
    scores = torch.randn(4, 30, generator=generator)
    scores[torch.rand(4, 30, generator=generator) < empty] = float("-inf")
    expected = [greedy(b, s, 0.5) for b, s in zip(boxes, scores, strict=True)]
    assert suppress_by_torchvision(boxes, scores, 0.5).tolist() == expected
    assert suppress(boxes, scores, 0.5).tolist() == expected


def test_soft_nms_is_refused_with_what_replaces_it() -> None:
    changes = {"MODEL.ROI_HEADS.SOFT_NMS.ENABLED": True}
    with pytest.raises(ValueError, match=r"soft-NMS cannot be exported.*SOFT_NMS\.ENABLED False"):
        detector_export(small_config(changes), small_model(changes), ".onnx")


def test_the_pyramids_norm_does_not_overflow_in_fp16() -> None:
    x = 600 * torch.randn(1, 16, 4, 4)
    norm = ChannelNorm(16)
    with torch.no_grad():
        expected, halved = norm(x), norm.half()(x.half())
    assert halved.dtype == torch.float16
    torch.testing.assert_close(halved.float(), expected, rtol=1e-2, atol=1e-2)


def test_an_image_without_detections_gives_none() -> None:
    model = small_model({"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.999})
    with torch.no_grad():
        found = DetectorGraph(model, suppress_by_torchvision)(**batch_of([(64, 90)])[1])
    assert found["boxes"].shape == (0, 4)
    assert found["masks"].shape == (0, 28, 28)


@pytest.mark.parametrize("written_by", ["detectron2", "torchvision"])
def test_a_run_of_either_engine_is_read(written_by: str, tmp_path: Path) -> None:
    annotations, images = write_small_coco(tmp_path / "data")
    changes = {"MODEL.ROI_HEADS.NUM_CLASSES": 2, "ENGINE": written_by}
    changes["DATASETS.TRAIN"] = (f"json:{annotations}:{images}",)
    config, model = small_config(changes), small_model({"MODEL.ROI_HEADS.NUM_CLASSES": 2})
    (tmp_path / "config.yaml").write_text(config.dump())
    tensors = model.state_dict()
    if written_by == "detectron2":
        tensors = torchvision_to_detectron2(tensors)
    save_pickle(tensors, tmp_path / "model_final.pth", "model")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    loaded_config, loaded = load_run(tmp_path)
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert class_facts(loaded_config, {}) == (["box", "disc"], [2, 9])
    for eight_bit, dtype in ((True, torch.uint8), (False, torch.float32)):
        (tmp_path / "run.json").write_text(json.dumps({"eight_bit_images": eight_bit}))
        assert run_export(tmp_path, ".onnx").inputs["images"].dtype == dtype
    assert class_facts(loaded_config, {"class_names": '["a"]', "category_ids": "[5]"})[0] == ["a"]


@pytest.fixture(scope="module")
def onnx_file(small_encoder, tmp_path_factory) -> Path:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    path = tmp_path_factory.mktemp("onnx") / "detector.onnx"
    config = small_config(FEW_LEVELS)
    classes = (["disc", "box", "ring"], [9, 2, 4])
    export = detector_export(config, small_model(FEW_LEVELS), ".onnx", "fp32", classes, "CC0")
    write_export(export, path)
    return path


def run_onnx(path: Path, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, values), strict=True))


@pytest.mark.parametrize("sizes", BATCHES, ids=str)
def test_onnxruntime_finds_the_same_at_every_batch_and_size(onnx_file: Path, sizes) -> None:
    images, inputs = batch_of(sizes)
    expected = by_the_engine(small_model(FEW_LEVELS), images)
    assert_same_detections(run_onnx(onnx_file, inputs), expected)


def test_the_onnx_file_names_its_free_dimensions_and_what_it_is(onnx_file: Path) -> None:
    import onnx

    model = onnx.load(onnx_file)
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": ["batch", 3, "height", "width"],
        "sizes": ["batch", 2],
        "image": ["detections"],
        "boxes": ["detections", 4],
        "scores": ["detections"],
        "labels": ["detections"],
        "masks": ["detections", 28, 28],
    }
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["class_names"]) == ["disc", "box", "ring"]
    assert json.loads(facts["category_ids"]) == [9, 2, 4]
    assert json.loads(facts["pixel_mean"]) == [123.675, 116.28, 103.53]
    assert (facts["min_size"], facts["max_size"], facts["channels"]) == ("64", "96", "RGB")
    assert (facts["licence"], facts["precision"], facts["torch"]) == (
        "CC0", "fp32", torch.__version__
    )  # fmt: skip
    assert json.loads(facts["versions"])["torchvision"]


def test_the_example_needs_no_pytorch_and_finds_what_the_model_does(
    onnx_file: Path, tmp_path: Path
) -> None:
    # of the size that the config asks for: opencv and Pillow then both leave the image alone
    item = sample(64, 96, 5)
    pixels = item["image"].numpy().transpose(1, 2, 0)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    example = ROOT / "examples" / "onnx_inference.py"
    program = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(example.parent)!r})\n"
        f"runpy.run_path({str(example)!r})\n"
        "assert not {'torch', 'torchvision', 'PIL', 'detection', 'backbones'} & set(sys.modules)"
    )
    arguments = [onnx_file, tmp_path / "image.png", tmp_path / "overlay.png"]
    result = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (found,) = by_the_engine(small_model(FEW_LEVELS), [item["image"]])
    expected = rescale_detections(found, (64, 96), (64, 96))
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == [
        ["disc", "box", "ring"][label] for label in expected["labels"]
    ]
    numbers = np.array([line[1:] for line in lines], dtype=float)
    np.testing.assert_allclose(numbers[:, 0], expected["scores"], atol=1e-3)
    np.testing.assert_allclose(numbers[:, 1:5], expected["boxes"], atol=0.02)
    counted = expected["masks"].flatten(1).sum(1)
    assert abs(numbers[:, 5] - counted.numpy()).max() <= 2
    assert counted.max() > 50
    overlay = np.asarray(Image.open(tmp_path / "overlay.png"))
    assert overlay.shape == pixels.shape
    assert (overlay != pixels).any()


# channels as the config names them, the file's values, the value that means 255
DEEP: dict[str, tuple[str, np.ndarray, float]] = {
    "13 bands of 12 bits": ("raw", RANDOM.integers(0, 4096, (64, 96, 13)).astype(np.uint16), 4095),
    "4 bands of real numbers": ("raw", RANDOM.random((64, 96, 4)).astype(np.float32), 1),
    "grey of 16 bits": ("L", RANDOM.integers(0, 65536, (64, 96, 1)).astype(np.uint16), 65535),
}


@pytest.mark.parametrize("kind", DEEP)
def test_detectors_of_deep_images_are_exported_and_the_example_finds_what_the_model_does(
    kind: str, tmp_path: Path
) -> None:
    """Bands as channels and as planes; a range is stated of 12 bits alone."""
    order, values, white = DEEP[kind]
    bands = values.shape[2]
    changes = ONE_LEVEL | {
        "MODEL.MASK_ON": False,
        "INPUT.FORMAT": order,
        "MODEL.CONVNEXT.IN_CHANS": bands,
        "INPUT.VALUE_RANGE": [0, 4095] if white == 4095 else [],
        "MODEL.PIXEL_MEAN": [127.0] * bands,
        "MODEL.PIXEL_STD": [70.0] * bands,
    }
    model, config = small_model(changes), small_config(changes)
    classes = (["disc", "box", "ring"], [9, 2, 4])
    export = detector_export(config, model, ".onnx", "fp32", classes, "CC0", eight_bit=False)
    write_export(export, tmp_path / "detector.onnx")
    scaled = torch.from_numpy((values / white * 255).astype(np.float32)).permute(2, 0, 1)
    (found,) = by_the_engine(model, [scaled])
    expected = rescale_detections(found, (64, 96), (64, 96))
    # twice as large, it is shrunk to the same values
    planes = {"contig": values, "separate": np.moveaxis(values, 2, 0)}
    planes["twice"] = values.repeat(2, 0).repeat(2, 1)
    for name, stored in planes.items():
        if bands == 1 and name == "separate":
            continue
        file = tmp_path / f"{name}.{'png' if bands == 1 else 'tif'}"
        if bands == 1:
            cv2.imwrite(str(file), stored)
        else:
            how = "separate" if name == "separate" else "contig"
            tifffile.imwrite(file, stored, photometric="minisblack", planarconfig=how)
        result = subprocess.run(
            [sys.executable, ROOT / "examples/onnx_inference.py", "detector.onnx", file, "o.png"],
            capture_output=True, text=True, timeout=120, cwd=tmp_path,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        numbers = np.array([line.split()[1:] for line in result.stdout.splitlines()], dtype=float)
        assert len(numbers) > 5
        np.testing.assert_allclose(numbers[:, 0], expected["scores"], atol=1e-3)
        factor = 2 if name == "twice" else 1
        np.testing.assert_allclose(numbers[:, 1:5], factor * expected["boxes"], atol=0.04)


def test_the_example_says_in_a_line_what_it_cannot_read_or_write(
    onnx_file: Path, tmp_path: Path
) -> None:
    image, text = tmp_path / "image.png", tmp_path / "text.png"
    Image.new("RGB", (96, 64)).save(image)
    text.write_text("no picture")
    example = ROOT / "examples" / "onnx_inference.py"
    cases = {
        (onnx_file, tmp_path / "gone.jpg", tmp_path / "o.png"): "gone.jpg is not there",
        (onnx_file, text, tmp_path / "o.png"): "text.png cannot be read: it is damaged",
        (tmp_path / "gone.onnx", image, tmp_path / "o.png"): "gone.onnx is not there",
        (text, image, tmp_path / "o.png"): "text.png cannot be read: ",
        (onnx_file, image, tmp_path / "new" / "o.png"): "new is not there: make the folder",
        (onnx_file, image, tmp_path / "o.xyz"): "o.xyz: an overlay's name ends in .png or .jpg",
    }
    for arguments, message in cases.items():
        result = subprocess.run(
            [sys.executable, str(example), *map(str, arguments)],
            capture_output=True, text=True, timeout=120, cwd=tmp_path,
        )  # fmt: skip
        assert result.returncode == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "o.png").exists()


@pytest.fixture(scope="module")
def int8_file(onnx_file: Path) -> Path:
    """The same detector in int8, calibrated by other images than the tests'."""
    import onnx

    inputs = (detector_inputs(sample(64, 96, 0, seed)["image"]) for seed in range(20, 24))
    quantized = quantize_calibrated(onnx.load(onnx_file), inputs, IN_FLOAT)
    onnx.save(quantized, path := onnx_file.with_name("int8.onnx"))
    return path


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_each_runtime_finds_the_same_and_in_int8_nearly(
    runtime: str, onnx_file: Path, int8_file: Path
) -> None:
    """In int8 the surest ten, of one class, with IoU above 0.7 and scores to 0.1."""
    pytest.importorskip(runtime)
    item = sample(70, 93, 3, 5)
    with torch.no_grad():
        (expected,) = small_model(FEW_LEVELS)([item], paste=False)
    exact = onnx_detector(onnx_file, runtime=runtime)(item)
    for name in ("boxes", "scores", "labels", "masks"):
        torch.testing.assert_close(exact[name], expected[name], rtol=0, atol=2e-3)
    rounded = onnx_detector(int8_file, runtime=runtime)(item)
    overlaps = box_iou(expected["boxes"], rounded["boxes"])
    close = (expected["scores"][:, None] - rounded["scores"]).abs() < 0.1
    same = (overlaps > 0.7) & close & (expected["labels"][:, None] == rounded["labels"])
    assert same.any(1)[:10].all()
    assert not torch.equal(expected["scores"][:10], rounded["scores"][:10])


def test_int8_leaves_depthwise_convolutions_and_the_last_layers_in_float(
    onnx_file: Path, int8_file: Path
) -> None:
    import onnx

    assert int8_file.stat().st_size < onnx_file.stat().st_size
    model = onnx.load(int8_file)
    names = {tensor.name for tensor in model.graph.initializer}
    is_float = {
        name: f"{name}.weight_quantized" not in names
        for name in (
            "model.backbone.body.stages.0.0.dwconv",
            "model.rpn.head.cls_logits",
            "model.rpn.head.bbox_pred",
            "model.roi_heads.box_predictor.cls_score",
            "model.roi_heads.box_predictor.bbox_pred",
            "model.rpn.head.conv.0.0",
            "model.roi_heads.box_head.fc6",
            "mask_upsampling",
        )
    }
    assert list(is_float.values()) == [True] * 5 + [False] * 3
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["class_names"]) == ["disc", "box", "ring"]


def test_int8_without_calibration_images_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"TRAIN names none: name a data .*--calibrate json:"):
        calibration_inputs(small_config({"DATASETS.TRAIN": ()}))
    gone = f"json:{tmp_path / 'gone.json'}:{tmp_path}"
    with pytest.raises(InputError, match=r"gone\.json[\s\S]*calibrated by images: .*--calibrate"):
        calibration_inputs(small_config({"DATASETS.TRAIN": (gone,)}))
    annotations, images = write_small_coco(tmp_path)
    inputs = list(calibration_inputs(small_config(), f"json:{annotations}:{images}")())
    assert len(inputs) == len(json.loads(annotations.read_text())["images"])
    assert inputs[0]["images"].dtype == np.uint8
    assert inputs[0]["images"].shape[2:] == tuple(inputs[0]["sizes"][0])


def test_a_missing_runtime_is_refused_with_its_extra(onnx_file: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"not installed: pip install openvino \("):
        onnx_detector(onnx_file, runtime="openvino")


def test_padding_gives_rows_of_their_own(onnx_file: Path, tmp_path: Path) -> None:
    """And changes results, since GRN's norm is over the padded map."""
    item = sample(64, 96, 5)
    alone, again, padded = (onnx_detector(onnx_file, times)(item) for times in (1, 1, 2))
    assert torch.equal(alone["scores"], again["scores"])
    assert alone["scores"].shape != padded["scores"].shape or not torch.allclose(
        alone["scores"], padded["scores"], atol=1e-4
    )


def test_the_comparison_measures_every_file_on_the_data_set(
    onnx_file: Path, tmp_path: Path
) -> None:
    tree = small_coco()
    tree["categories"].append({"id": 11, "name": "ring"})
    annotations, images = write_small_coco(tmp_path, tree)
    dataset = load_dataset(f"json:{annotations}:{images}")
    config, model = small_config(FEW_LEVELS), small_model(FEW_LEVELS)
    rows = compare(config, model, {"a.onnx": onnx_file}, dataset, timed_images=1)
    assert [row["file"] for row in rows] == [TORCH, "a.onnx"]
    for task in ("bbox", "segm"):
        assert rows[1][task] == pytest.approx(rows[0][task], abs=0.5)
    assert rows[0]["ratio"] == 1
    assert rows[1]["mb"] == onnx_file.stat().st_size / 1e6
    model.roi_heads.score_thresh = 2.0  # none is above: the two rows measure two detectors
    rows = compare(config, model, {"a.onnx": onnx_file}, dataset, timed_images=1)
    assert rows[0]["bbox"] == 0
    table = markdown_table([rows[0] | {"mb": 1.24, "seconds": 0.0213, "segm": None}]).splitlines()
    assert table[0] == "|  | MB | box AP | mask AP | ms an image | of PyTorch's time |"
    assert table[2] == "| PyTorch | 1.2 | 0.00 | – | 21 | 1.00 |"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_that_is_no_onnx_is_refused_in_words(runtime: str, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"bad\.onnx is no ONNX file that (onnxruntime|OpenVINO)"):
        onnx_detector(tmp_path / "bad.onnx", runtime=runtime)


def test_the_pt2_file_finds_the_same_and_needs_no_operator_of_ours(
    small_encoder, tmp_path: Path
) -> None:
    model, path = small_model(FEW_LEVELS), tmp_path / "detector.pt2"
    export = detector_export(small_config(FEW_LEVELS), model, ".pt2", "fp32", (["a"], [1]), "CC0")
    write_export(export, path)
    extra = {METADATA_FILE: ""}
    program = torch.export.load(path, extra_files=extra)
    assert json.loads(extra[METADATA_FILE])["licence"] == "CC0"
    assert "convnext_detection" not in str(program.graph)
    guarded = torch.__version__ < "2.9"  # later, some guards are of sizes that may be others
    module = program.module() if guarded else program.module(check_guards=False)
    for sizes in BATCHES:
        images, inputs = batch_of(sizes)
        assert_same_detections(module(**inputs), by_the_engine(model, images))
