"""A trained detector as an :class:`backbones.export.Export`, from a run of either engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from backbones.errors import InputError
from backbones.export import Export
from backbones.quantization import Inputs
from backbones.weight_files import read_metadata
from detection.config import load_config
from detection.data.transforms import DetectionSamples
from detection.dataset import joined_classes, load_dataset
from detection.engines.classes import trained_classes
from detection.engines.torchvision.model import MaskRCNN, build_mask_rcnn
from detection.engines.weights import encoder_licence, read_detector
from detection.exporting.graph import DetectorGraph, suppress, suppress_by_torchvision
from detection.exporting.runtimes import detector_inputs
from images.configured import known_statistics
from training.command_line.tasks import read_facts
from training.configured import newest_weights
from training.records.environment import git_commit, versions

CALIBRATION_IMAGES = 32
IN_FLOAT = ("cls_logits", "bbox_pred", "cls_score", "mask_fcn_logits")  # output layers: not int8
LOWEST = -3.0e38  # above the -inf of an empty place, below every score


def run_export(
    output_dir: str | Path,
    suffix: str,
    precision: str = "fp32",
    weights: str | Path | None = None,
    overrides: Sequence[str] = (),
    calibrate: str | None = None,
) -> Export:
    """The export of a finished run's detector; see :func:`load_run` and :func:`detector_export`.

    Args:
        calibrate: the data set that calibrates ``int8``; None for the first of
            ``DATASETS.TRAIN``.

    Raises:
        InputError: if ``int8`` has no images to calibrate by; and what the two functions raise.
    """
    config, model = load_run(output_dir, weights, overrides)
    metadata = read_metadata(weights or newest_weights(Path(output_dir)))
    export = detector_export(
        config,
        model,
        suffix,
        precision,
        class_facts(config, metadata, output_dir),
        metadata.get("licence") or encoder_licence(Path(output_dir)) or "unknown",
        read_facts(Path(output_dir)).get("eight_bit_images", True),
    )
    if precision == "int8":
        export.calibration = calibration_inputs(config, calibrate, export.inputs["images"].dtype)
    return export


def calibration_inputs(
    config: CfgNode, calibrate: str | None = None, dtype: torch.dtype = torch.uint8
) -> Callable[[], Iterator[Inputs]]:
    """Inputs of the graph to calibrate ``int8`` by: images evenly spread over a data set.

    Args:
        calibrate: the data set; None for the first of ``DATASETS.TRAIN``.
        dtype: of the graph's ``images``.

    Raises:
        InputError: if there is none, or it cannot be loaded.
    """
    name = calibrate or next(iter(config.DATASETS.TRAIN), None)
    remedy = "name a data set of images like those to come: --calibrate json:ANNOTATIONS:IMAGES"
    if name is None:
        raise InputError(f"int8 is calibrated by images, and DATASETS.TRAIN names none: {remedy}")
    # with tiles the graph runs on each tile, so calibrate on tiles that are cut as in training
    is_tiled = config.INPUT.TILES.ENABLED
    try:
        dataset = load_dataset(name, config.MODEL.MASK_ON and is_tiled, check_images=False)
        samples = DetectionSamples(dataset, config, training=is_tiled)
    except (InputError, OSError) as error:
        raise InputError(f"{error}\nint8 is calibrated by images: {remedy}") from None

    def inputs() -> Iterator[Inputs]:
        count = min(CALIBRATION_IMAGES, len(samples))
        for number in range(count):
            image = samples[number * len(samples) // count]["image"]
            yield detector_inputs(image.to(dtype))

    return inputs


def load_run(
    output_dir: str | Path, weights: str | Path | None = None, overrides: Sequence[str] = ()
) -> tuple[CfgNode, MaskRCNN]:
    """The config and the detector of a finished run, whichever engine trained it.

    Args:
        output_dir: the run's folder.
        weights: a checkpoint instead of the run's newest.
        overrides: ``KEY VALUE ...`` that change the run's config.

    Raises:
        FileNotFoundError, InputError: if something is missing, or is more than the torchvision
            engine has (Cascade heads, one box for all classes).
    """
    output_dir = Path(output_dir)
    if not (output_dir / "config.yaml").is_file():
        raise FileNotFoundError(f"{output_dir} holds no run: there is no config.yaml in it")
    config = load_config(
        output_dir / "config.yaml",
        ["ENGINE", "torchvision", "MODEL.DEVICE", "cpu", "TEST.AUG.ENABLED", "False", *overrides],
        training=False,
    )
    model = build_mask_rcnn(config)
    read_detector(weights or newest_weights(output_dir), model)
    return config, model.eval()


def class_facts(
    config: CfgNode, metadata: Mapping[str, str], output_dir: str | Path | None = None
) -> tuple[list[str], list[Any]]:
    """Names and category ids of the classes: from the weights' metadata, the run, or the data sets.

    Raises:
        InputError: if none of these names the classes.
    """
    if "class_names" in metadata:
        return json.loads(metadata["class_names"]), json.loads(metadata["category_ids"])
    classes = trained_classes(None, output_dir) if output_dir else None
    if classes is None and (names := config.DATASETS.TRAIN or config.DATASETS.TEST):
        classes = joined_classes(
            [load_dataset(name, masks=False, check_images=False) for name in names]
        )
    if classes is None:
        raise InputError(
            "the weights do not name their classes and the config names no data set: "
            "give DATASETS.TEST json:ANNOTATIONS:IMAGE_FOLDER"
        )
    return list(classes.values()), list(classes)


def detector_export(
    config: CfgNode,
    model: MaskRCNN,
    suffix: str,
    precision: str = "fp32",
    classes: tuple[list[str], list[Any]] = ([], []),
    licence: str = "unknown",
    eight_bit: bool = True,
) -> Export:
    """A detector's export.

    Args:
        config: of the detector.
        model: changed in place for ``fp16``.
        suffix: ``.onnx`` or ``.pt2``; they differ in the operator for non-maximum suppression.
        precision: one of ``backbones.export.PRECISIONS``.
        classes: their names and category ids.
        licence: of the weights.
        eight_bit: whether the training images had 8-bit values. If not, or with ``INPUT.FORMAT``
            raw or ``INPUT.VALUE_RANGE``, the graph takes float32 images instead of uint8.

    Raises:
        InputError: for a detector with soft-NMS.
    """
    is_onnx = suffix == ".onnx"
    if precision == "fp16":
        for part in (model.backbone, model.rpn.head, model.roi_heads):
            part.half()
    channels, height, width = config.MODEL.CONVNEXT.IN_CHANS, 150, 190
    is_deep = config.INPUT.FORMAT == "raw" or bool(config.INPUT.VALUE_RANGE) or not eight_bit
    dtype = torch.float32 if is_deep else torch.uint8
    inputs = {
        "images": torch.zeros(2, channels, height, width, dtype=dtype),
        "sizes": torch.tensor([[height, width - 20], [height - 30, width]]),
    }
    outputs = ["image", "boxes", "scores", "labels"] + ["masks"] * model.has_mask
    return Export(
        DetectorGraph(model, suppress if is_onnx else suppress_by_torchvision),
        inputs,
        {"images": {0: "batch", 2: "height", 3: "width"}, "sizes": {0: "batch"}},
        outputs,
        {
            "kind": "detector",
            "size": config.MODEL.CONVNEXT.SIZE,
            "class_names": json.dumps(classes[0]),
            "category_ids": json.dumps(classes[1]),
            "channels": config.INPUT.FORMAT,
            "pixel_mean": json.dumps(known_statistics(config)[0]),
            "pixel_std": json.dumps(known_statistics(config)[1]),
            "pixel_range": "0 to 255; the graph normalises",
            "value_range": json.dumps(list(config.INPUT.VALUE_RANGE)),
            "show_bands": json.dumps(list(config.INPUT.SHOW_BANDS)),
            # tiles, which whoever runs the graph cuts, are not resized
            "min_size": str(0 if config.INPUT.TILES.ENABLED else config.INPUT.MIN_SIZE_TEST),
            "max_size": str(config.INPUT.MAX_SIZE_TEST),
            "score_threshold": str(config.MODEL.ROI_HEADS.SCORE_THRESH_TEST),
            "licence": licence,
            "git_commit": git_commit(),
            "versions": json.dumps(versions()),
        },
        {torch.ops.convnext_detection.suppress.default: onnx_suppression()} if is_onnx else {},
        in_float=IN_FLOAT,
    )


def onnx_suppression() -> Any:
    """:func:`detection.exporting.graph.suppress` in ONNX's operators: a function of onnxscript."""
    from onnxscript import opset18

    op: Any = opset18

    def suppress_in_onnx(boxes_gn4, scores_gn, threshold: float):
        chosen = op.NonMaxSuppression(
            boxes_gn4, op.Unsqueeze(scores_gn, [1]), 2**62, threshold, LOWEST
        )
        at = op.Gather(chosen, [0, 2], axis=1)  # rows of (group, 0, member)
        none = op.Expand(op.Constant(value_float=0.0), op.Shape(scores_gn))
        ones = op.Expand(op.Constant(value_float=1.0), op.Slice(op.Shape(at), [0], [1]))
        return op.Cast(op.ScatterND(none, at, ones), to=9)  # 9: bool

    return suppress_in_onnx
