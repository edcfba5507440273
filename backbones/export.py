"""Writes trained modules as ONNX files and as programs of ``torch.export``.

:func:`encoder_export` describes an encoder, :mod:`detection.export` a detector, and
:func:`write_export` writes either. Both are captured by ``torch.export``; batch, height and width
may vary.

Precisions:
  * ``fp32``: float32, as the module is.
  * ``fp16``: weights and activations are float16. GRN's statistic, a sum of squares over a whole
    image, overflows float16 and stays in float32.
  * ``int8``: only for ONNX; see :mod:`backbones.quantization`. With calibration images (a
  detector's
    run), convolutions and Linear layers have fixed ranges. Otherwise only Linear layers, which are
    nearly all of an encoder's arithmetic, are quantised, and the ranges of their inputs are found
    while the model runs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.checkpoint import build_encoder, open_encoder
from backbones.convnext import ConvNeXt
from backbones.errors import InputError
from backbones.quantization import Inputs, quantize_calibrated, quantize_linear
from backbones.weights.structure import size_name
from backbones.whole_files import try_writing, write_atomically, write_files

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "fp16", "int8")
OPSET = 18
FIRST_TORCH = "2.8"
FORMAT_VERSION = "1"
METADATA_FILE = "metadata.json"  # inside a .pt2


@dataclass
class Export:
    """A module to write, with everything that the file needs.

    Args:
        graph: the module, in evaluation mode; takes tensors, returns a dictionary of tensors.
        inputs: an example of each input; no free dimension may be 1, and no two may be equal.
        free: for each input, axis -> the name of its free dimension.
        outputs: names of the outputs, in the order of the dictionary.
        metadata: strings to store in the file.
        operators: torch operator -> a function of onnxscript, for this project's own operators.
        calibration: gives inputs, as arrays, whose activations set the ranges of int8; None without
            images: int8 then only concerns Linear layers.
        in_float: parts of the names of weights whose layers a calibrated int8 leaves in float32.
    """

    graph: nn.Module
    inputs: dict[str, Tensor]
    free: dict[str, dict[int, str]]
    outputs: list[str]
    metadata: dict[str, str]
    operators: Mapping[Callable, Callable] = field(default_factory=dict)
    calibration: Callable[[], Iterable[Inputs]] | None = None
    in_float: Sequence[str] = ()


class EncoderGraph(nn.Module):
    """Normalised images ``[B, C, H, W]``, float32 -> ``stage1`` to ``stage4``, float32."""

    def __init__(self, encoder: ConvNeXt) -> None:
        super().__init__()
        self.encoder = encoder.eval()
        self.dtype = next(encoder.parameters()).dtype

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.encoder.forward_features(images.to(self.dtype))
        return {name: stage.float() for name, stage in features.items()}


def encoder_export(
    source: str | Path, precision: str = "fp32", in_chans: int | None = None
) -> Export:
    """An encoder's export.

    Args:
        source: a checkpoint of any format that :mod:`backbones.checkpoint` reads.
        precision: one of ``PRECISIONS``.
        in_chans: convert its stem to this number of channels; None keeps it.

    Raises:
        FileNotFoundError, InputError: if it is not there or not a whole encoder.
    """
    file = open_encoder(source)
    if in_chans not in (None, file.in_chans):
        file = file.with_channels(in_chans)
    encoder, result = build_encoder(file)
    if precision == "fp16":
        encoder.half()
    return Export(
        EncoderGraph(encoder),
        {"images": torch.zeros(2, encoder.in_chans, 96, 128)},
        {"images": {0: "batch", 2: "height", 3: "width"}},
        list(encoder.out_channels),
        {
            "kind": "encoder",
            "size": size_name(encoder.size),
            "grn": str(encoder.grn),
            "fingerprint": result.fingerprint,
            "licence": result.licence or "unknown",
            "pixel_mean": file.metadata.get("mean", "unknown"),
            "pixel_std": file.metadata.get("std", "unknown"),
            "pixel_range": "0 to 1",
            "strides": json.dumps(encoder.out_strides),
        },
    )


def write_export(export: Export, path: str | Path, precision: str = "fp32") -> None:
    """Write ``.onnx`` or ``.pt2`` with the metadata, completely or not at all.

    Args:
        precision: the precision that ``export`` was made for; ``int8`` is made here.

    Raises:
        InputError: for another extension, for ``int8`` of a ``.pt2``, or where onnx, onnxscript or
            onnxruntime is missing.
        OSError: where the file cannot be written.
    """
    path = Path(path)
    check_target(path, precision)
    metadata = export.metadata | {"format_version": FORMAT_VERSION, "precision": precision}
    metadata["torch"] = torch.__version__
    logger.info("tracing for %s: of a detector this takes a minute or more", path)
    program = capture(export)
    if path.suffix == ".pt2":
        extra = {METADATA_FILE: json.dumps(metadata)}
        write_atomically(path, lambda partial: _save_program(program, partial, extra))
    else:
        model = to_onnx(program, export, metadata | {"onnx": import_module("onnx").__version__})
        if precision == "int8" and export.calibration is not None:
            model = quantize_calibrated(model, export.calibration(), export.in_float)
        elif precision == "int8":
            model = quantize_linear(model)
        write_files({path: model.SerializeToString()})
    logger.info("wrote %s: %s, %.1f MB", path, precision, path.stat().st_size / 1e6)


def check_target(path: Path, precision: str) -> None:
    """Refuse what :func:`write_export` cannot write, before any work is done."""
    if torch.__version__ < FIRST_TORCH:
        raise InputError(
            f"torch {torch.__version__} is too old for exports: 2.6 writes none that can be read, "
            f"2.7 none of detectors. Take {FIRST_TORCH} or newer"
        )
    if path.suffix not in (".onnx", ".pt2"):
        raise InputError(f"{path}: give a file name that ends in .onnx or .pt2")
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; it is one of {', '.join(PRECISIONS)}")
    if path.suffix == ".pt2" and precision == "int8":
        raise InputError("int8 needs a file that ends in .onnx; for .pt2 choose fp32 or fp16")
    for package in ("onnx", "onnxscript", "onnxruntime") if path.suffix == ".onnx" else ():
        try:
            import_module(package)
        except ImportError as error:
            raise InputError(
                f"ONNX export needs {package}: pip install onnx onnxruntime onnxscript ({error})"
            ) from None
    try_writing(path)


@torch.no_grad()
def capture(export: Export) -> torch.export.ExportedProgram:
    """Trace the graph with its free dimensions."""
    shapes = {
        name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, axes in export.free.items()
    }
    # dimensions of two inputs with the same name are the same
    batch = torch.export.Dim("batch", min=1, max=1024)
    shapes = {name: {**axes, 0: batch} for name, axes in shapes.items()}
    # not strict, the default of newer versions of torch: strict mode reads the Python code by
    # dynamo, which does not understand all of it
    return torch.export.export(export.graph, (), export.inputs, dynamic_shapes=shapes, strict=False)


def _save_program(program: torch.export.ExportedProgram, path: Path, extra: dict[str, str]) -> None:
    with open(path, "wb") as stream:  # torch wants a path to end in .pt2
        torch.export.save(program, stream, extra_files=extra)


def to_onnx(
    program: torch.export.ExportedProgram, export: Export, metadata: Mapping[str, str]
) -> Any:
    """The program as an ``onnx.ModelProto`` with named dimensions and metadata."""
    import onnx

    converted = torch.onnx.export(
        program,
        opset_version=OPSET,
        input_names=list(export.inputs),
        output_names=export.outputs,
        custom_translation_table=dict(export.operators),
        verbose=False,
    )
    assert converted is not None
    model = converted.model_proto
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    symbols = {
        str(values[name].shape[axis]): word
        for name, axes in export.free.items()
        for axis, word in axes.items()
    }
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.HasField("dim_param"):
                axis.dim_param = symbols.get(axis.dim_param, _output_dimension(axis.dim_param))
    del model.graph.value_info[:]  # inner shapes under the old symbols
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model


def _output_dimension(symbol: str) -> str:
    """The name of an output dimension: one that depends on the data is "detections"."""
    return "detections" if symbol[:1] == "u" and symbol[1:].isdecimal() else symbol
