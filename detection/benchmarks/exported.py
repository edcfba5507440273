"""Inference of an exported detector against PyTorch's: float and int8, by each runtime."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from backbones.export import write_export
from backbones.quantization import quantize_calibrated
from detection.benchmarks.detectors import DetectorCase, torchvision_detector
from detection.export import IN_FLOAT, detector_export
from detection.exporting.evaluate import torch_detector
from detection.exporting.runtimes import RUNTIMES, detector_inputs, onnx_detector
from training.records.measure import Row, interleaved

NO_SOFT_NMS = ("MODEL.ROI_HEADS.SOFT_NMS.ENABLED", "False")  # which has no operator


def exported_cases(case: DetectorCase, rounds: int) -> list[Row]:
    """A row for eager PyTorch and for each file and runtime; seconds of an image, from pixels to
    detections with masks in their boxes.

    The weights are random and spread, and int8 is calibrated by the image itself: times, not
    accuracy, are measured here.
    """
    import onnx

    case = replace(case, overrides=(*case.overrides, *NO_SOFT_NMS))
    detector = torchvision_detector(case, torch.device("cpu"))
    model = detector.model.eval()
    sample = detector.inputs[0]
    variants = {"eager": torch_detector(model)}  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export = detector_export(case.config(), model, ".onnx")  # type: ignore[arg-type]
        write_export(export, folder / "fp32.onnx")
        quantized = quantize_calibrated(
            onnx.load(folder / "fp32.onnx"), [detector_inputs(sample["image"])], IN_FLOAT
        )
        onnx.save(quantized, folder / "int8.onnx")
        for runtime in (r for r in RUNTIMES if importlib.util.find_spec(r)):
            for precision in ("fp32", "int8"):
                path = folder / f"{precision}.onnx"
                variants[f"{runtime}, {precision}"] = onnx_detector(path, runtime=runtime)
        runs = {what: (lambda detect=detect: detect(sample)) for what, detect in variants.items()}
        seconds = interleaved(runs, rounds, torch.device("cpu"), time.process_time)
    return [
        {
            **case.described(),
            "what": what,
            "detections": len(variants[what](sample)["scores"]),
            "s": value,
            "/ eager": value / seconds["eager"],
        }
        for what, value in seconds.items()
    ]
