"""The files that transformers needs beside weights: model config and image preprocessor.

References:
    transformers (Apache-2.0), ``ConvNextV2Config``, ``ConvNextConfig``, ``ConvNextImageProcessor``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from backbones.errors import InputError
from backbones.normalization import NORM_EPS
from backbones.weights.sources import numbers
from backbones.weights.structure import OUT_NORMS, guess_size
from backbones.whole_files import write_json


def write_huggingface_files(
    folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> list[str]:
    """Write ``config.json``, and ``preprocessor_config.json`` if mean and deviation are known.

    Args:
        folder: the folder of the weights.
        tensors: the tensors written there, in our names.
        metadata: the metadata of their source, see :mod:`backbones.weights.sources`.

    Returns:
        The names of the files.
    """
    contents = {"config.json": configuration(tensors, metadata)}
    if (seen := preprocessor(metadata)) is not None:
        contents["preprocessor_config.json"] = seen
    for name, content in contents.items():
        write_json(folder / name, content, indent=2)
    return list(contents)


def configuration(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    """``config.json`` of the model whose weights these are.

    Raises:
        InputError: if whole stages are missing.
    """
    size = guess_size(tensors)
    if size is None:
        raise InputError("its encoder is incomplete: whole stages are missing")
    family = "ConvNextV2" if size.version == 2 else "ConvNext"
    config: dict[str, Any] = {
        "model_type": family.lower(),
        "num_channels": tensors["downsample_layers.0.0.weight"].shape[1],
        "patch_size": 4,
        "num_stages": len(size.dims),
        "hidden_sizes": list(size.dims),
        "depths": list(size.depths),
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPS,
        "initializer_range": 0.02,
        "drop_path_rate": 0.0,
        "image_size": 224,
    }
    norms = sorted({name.split(".")[1] for name in tensors if name.startswith(OUT_NORMS)})
    if "head.weight" in tensors:
        kind = "ForImageClassification"
        classes = json.loads(metadata["classes"]) if "classes" in metadata else None
        rows = len(tensors["head.weight"])
        names = classes if classes and len(classes) == rows else [f"LABEL_{i}" for i in range(rows)]
        config["id2label"] = {str(row): name for row, name in enumerate(names)}
        config["label2id"] = {name: row for row, name in enumerate(names)}
    elif norms:
        kind = "Backbone"
        config["out_features"] = norms
    else:
        kind = "Model"
    return {"architectures": [family + kind], **config}


def preprocessor(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """``preprocessor_config.json``; None if mean and deviation are unknown."""
    mean, std = numbers(metadata, "mean"), numbers(metadata, "std")
    if not mean or not std:
        return None
    size = numbers(metadata, "image_size") or (224, 224)
    crop = json.loads(metadata.get("crop_pct", "0.875")) or 224 / 256
    return {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": int(size[0])},
        "crop_pct": crop,
        "resample": 2 if json.loads(metadata.get("interpolation", '""')) == "bilinear" else 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
