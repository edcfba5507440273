"""Quantises ONNX models to int8, by onnxruntime.

:func:`quantize_linear` needs no data: it quantises the weights of Linear layers, and their inputs
are quantised while the model runs. :func:`quantize_calibrated` also quantises convolutions. It
fixes the ranges of activations beforehand, by images ("static" quantisation), so that runtimes can
stay in int8 from one layer to the next. Its file holds ``QuantizeLinear`` and ``DequantizeLinear``
around ordinary operators, which onnxruntime and OpenVINO read alike.

Weights have 7 bits, because without VNNI instructions 16-bit sums of products of 8 bits saturate.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backbones.errors import InputError

Inputs = dict[str, np.ndarray]


def quantize_linear(model: Any) -> Any:
    """Quantise the Linear layers of an ``onnx.ModelProto``, with a scale per output channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    return _quantized(
        model,
        lambda source, target: quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        ),
    )


def quantize_calibrated(model: Any, samples: Iterable[Inputs], in_float: Sequence[str] = ()) -> Any:
    """Quantise convolutions and Linear layers of an ``onnx.ModelProto``, calibrated by samples.

    Depthwise convolutions stay in float32, because they are a small part of the arithmetic and int8
    makes them no faster. So do transposed ones, for which onnxruntime has no int8.

    Args:
        samples: the model's inputs; the smallest and largest activations that they give are the
            ranges. A sample for which an output is empty (an image without detections) is left out,
            because parts of the model do not run for it.
        in_float: parts of the names of weights whose layers stay in float32, too.

    Raises:
        InputError: if no sample is left.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    reader = _reader(_with_all_outputs(model, samples))
    return _quantized(
        model,
        lambda source, target: quantize_static(
            source,
            target,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            nodes_to_quantize=_layers(model, in_float),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # layers that add to the residual stream, and the last ones, keep float32
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        ),
    )


def _layers(model: Any, in_float: Sequence[str]) -> list[str]:
    """Names of the nodes to quantise."""
    constants = {initializer.name for initializer in model.graph.initializer}

    def is_taken(node: Any) -> bool:
        if node.op_type not in ("Conv", "MatMul", "Gemm") or node.input[1] not in constants:
            return False
        groups = [attribute.i for attribute in node.attribute if attribute.name == "group"]
        return groups in ([], [1]) and not any(part in node.input[1] for part in in_float)

    return [node.name for node in model.graph.node if is_taken(node)]


def _with_all_outputs(model: Any, samples: Iterable[Inputs]) -> Iterator[Inputs]:
    """Yield the samples for which no output is empty; their number is logged at the end."""
    from onnxruntime import InferenceSession

    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    seen = taken = 0
    for sample in samples:
        seen += 1
        if all(value.size for value in session.run(None, sample)):
            taken += 1
            yield sample
    if not taken:
        raise InputError(
            f"int8 cannot be calibrated: the model finds nothing in the {seen} calibration images. "
            "Give images in which it finds objects, or train it longer"
        )
    logging.getLogger(__name__).info("int8: calibrated by %d of %d images", taken, seen)


def _reader(samples: Iterator[Inputs]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def get_next(self) -> Inputs | None:
            return next(samples, None)

    return Reader()


def _quantized(model: Any, write: Callable[[Path, Path], None]) -> Any:
    """What ``write`` makes of the model's file, with the model's metadata."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        marked = onnx.ModelProto()
        marked.CopyFrom(model)
        # torch's exporter has simplified it: no advice to do so
        onnx.helper.set_model_props(marked, {"onnx.quant.pre_process": "onnxruntime.quant"})
        onnx.save(marked, source)
        write(source, target)
        quantized = onnx.load(target)
    onnx.helper.set_model_props(quantized, {p.key: p.value for p in model.metadata_props})
    return quantized
