"""Exported detectors on a CPU: one ONNX file, run by onnxruntime or by OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.errors import InputError
from detection.engines.torchvision.roi import rescale_detections

ExportedForward = Callable[[dict[str, Any]], dict[str, Tensor]]
# the graph's function, and whether it takes images of real numbers instead of 8 bits
Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
Graph = tuple[Run, bool]


def onnx_detector(
    path: str | Path, padded: float = 1.0, runtime: str = "onnxruntime"
) -> ExportedForward:
    """A function like the model's, of one sample, that runs an exported detector on the CPU.

    Args:
        padded: zeros below and at the right make each side that many times as long, as in a batch
            with a larger image.
        runtime: a key of RUNTIMES.

    Raises:
        InputError: if the runtime is not installed or cannot read the file.
    """
    run, takes_real_numbers = RUNTIMES[runtime](str(path))

    def detect(sample: dict[str, Any]) -> dict[str, Tensor]:
        image = sample["image"].float() if takes_real_numbers else sample["image"]
        size = (image.shape[1], image.shape[2])
        values = run(detector_inputs(image, padded))
        found = {name: torch.from_numpy(value) for name, value in values.items()}
        del found["image"]
        return rescale_detections(found, size, (sample["height"], sample["width"]), paste=False)

    return detect


def detector_inputs(image: Tensor, padded: float = 1.0) -> dict[str, np.ndarray]:
    """The graph's inputs for one image ``[C, H, W]``; see :func:`onnx_detector`."""
    size = (image.shape[1], image.shape[2])
    more = [round((padded - 1) * side) for side in size]
    images = F.pad(image[None], (0, more[1], 0, more[0]))
    return {"images": images.numpy(), "sizes": np.array([size], np.int64)}


def _by_onnxruntime(path: str) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own types, one for each status
        raise InputError(f"{path} is no ONNX file that onnxruntime reads: {error}") from None
    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(None, inputs), strict=True))

    return run, session.get_inputs()[0].type == "tensor(float)"


def _by_openvino(path: str) -> Graph:
    try:
        import openvino
    except ImportError as error:
        raise InputError(
            f"the runtime openvino is not installed: pip install openvino ({error})"
        ) from None
    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # of float layers; else bf16 where the CPU has it
    }
    try:
        compiled = openvino.Core().compile_model(path, "CPU", options)
    except RuntimeError as error:
        raise InputError(f"{path} is no ONNX file that OpenVINO reads: {error}") from None
    names = [output.any_name for output in compiled.outputs]
    request = compiled.create_infer_request()

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        request.infer(inputs)
        # copies: the next image's outputs take the same memory
        return {name: request.get_tensor(name).data.copy() for name in names}

    return run, compiled.input("images").element_type == openvino.Type.f32


RUNTIMES: dict[str, Callable[[str], Graph]] = {
    "onnxruntime": _by_onnxruntime,
    "openvino": _by_openvino,
}
