"""Reads weights and their metadata from a source: a file of any format, or ``timm:NAME``.

The metadata are a dictionary of strings, as in our own files: ``licence``; ``grn``; ``mean`` and
``std`` of values scaled to 0..1, ``image_size`` (height, width), ``crop_pct`` and ``interpolation``
as JSON. They come from the file's metadata, from the ``config.yaml`` of the run that it lies in,
from Hugging Face's ``preprocessor_config.json`` beside it, or from timm's ``pretrained_cfg``.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import yaml
from torch import Tensor

from backbones.errors import InputError
from backbones.normalization import GRNOptions
from backbones.weight_files import read_weights, split_key

logger = logging.getLogger(__name__)

LICENCE_NAMES = {"cc-by-nc-4.0": "CC BY-NC 4.0 (no commercial use)", "apache-2.0": "Apache-2.0"}
# The authors' downloads carry no licence inside; their file names are known.
OFFICIAL_FILES = (
    (r"convnextv2_\w+_(fcmae|ema)\.pt", "CC BY-NC 4.0 (no commercial use), Meta's by its name"),
    (r"convnext_\w+_(1k|22k)_\w+\.pth", "MIT, Meta's by its name"),
)


def read_source(
    source: str | Path, in_chans: int = 3, key: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file or of ``timm:NAME``, and their metadata.

    Args:
        in_chans: the number of channels that timm adapts the weights of ``timm:NAME`` to.
        key: which of a file's sets of tensors to read, see
            :func:`backbones.weight_files.read_weights`.

    Raises:
        FileNotFoundError, InputError: if it is not there, unreadable or unsafe.
    """
    if str(source).startswith("timm:"):
        return _read_timm(str(source).removeprefix("timm:"), in_chans)
    path, of_path = split_key(source)
    tensors, metadata = read_weights(path, key or of_path)
    for pattern, licence in OFFICIAL_FILES:
        if "licence" not in metadata and re.fullmatch(pattern, path.name):
            metadata["licence"] = licence
    for found in (_of_run(path), _of_preprocessor(path)):
        metadata = {**found, **metadata}
    return tensors, metadata


def numbers(metadata: Mapping[str, str], key: str) -> tuple[float, ...] | None:
    """A list in the metadata, such as ``mean``; None if it is not there."""
    found = json.loads(metadata.get(key) or "null")
    return None if found is None else tuple(found)


def run_of(weights: Path) -> Path:
    """The run folder of a file of weights: RUN/checkpoints/STEP/FILE or RUN/FILE."""
    folder = weights.absolute().parent
    is_step = folder.parent.name == "checkpoints" and not (folder / "config.yaml").is_file()
    return folder.parent.parent if is_step else folder


def _of_run(path: Path) -> dict[str, str]:
    """Metadata from the ``config.yaml`` of the run that a checkpoint lies in."""
    folder = run_of(path)
    config = folder / "config.yaml"
    if not config.is_file():
        return {}
    try:
        run = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}  # another program's
    if not isinstance(run, dict):
        return {}
    found: dict[str, str] = {}
    detector, derived = run.get("MODEL"), run.get("derived")
    if isinstance(detector, dict) and "CONVNEXT" in detector:
        found["grn"] = str(GRNOptions.of_config(detector["CONVNEXT"].get("GRN", {})))
        try:
            facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            names = [category["name"] for category in facts["categories"]]
        except (OSError, ValueError, LookupError, TypeError):
            pass  # not there, damaged, or of another program
        else:
            found["class_names"] = json.dumps(names)
    elif isinstance(derived, dict) and path.parent != folder:
        # a fine-tuning without flags for GRN has that of the weights that it started from
        if options := derived.get("grn") or run.get("grn"):
            found["grn"] = str(GRNOptions(**options))
        seen = {**derived, **derived.get("statistics", {})}
        for name in ("mean", "std", "image_size", "crop_pct", "interpolation"):
            if seen.get(name) is not None:
                found[name] = json.dumps(seen[name])
    return found


def _of_preprocessor(path: Path) -> dict[str, str]:
    """Metadata from Hugging Face's ``preprocessor_config.json`` beside a file.

    A ``shortest_edge`` below 384 is the side after the crop; before, images are resized to that /
    ``crop_pct``.
    """
    file = path.parent / "preprocessor_config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}, beside the weights, is no JSON: {error}") from None
    found: dict[str, Any] = {"mean": config.get("image_mean"), "std": config.get("image_std")}
    size = config.get("size")
    side = size.get("shortest_edge", size.get("height")) if isinstance(size, dict) else size
    if isinstance(side, int):
        width = size.get("width", side) if isinstance(size, dict) else side
        found["image_size"] = [side, width]
        found["crop_pct"] = config.get("crop_pct", 224 / 256) if side < 384 else 1.0
    found["interpolation"] = {2: "bilinear", 3: "bicubic"}.get(config.get("resample", -1))
    return {name: json.dumps(value) for name, value in found.items() if value is not None}


def _read_timm(name: str, in_chans: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not name.startswith("convnext") or not timm.is_model(name.partition(".")[0]):
        raise InputError(
            f"timm:{name}: timm has no ConvNeXt of this name; it has "
            f"{', '.join(timm.list_models('convnext*'))}, with a tag such as .fcmae behind it"
        )
    if in_chans != 3:
        logger.warning("timm:%s: timm adapts the stem's 3 channels to %d", name, in_chans)
    try:
        model = timm.create_model(name, pretrained=True, in_chans=in_chans)
    except Exception as error:  # of the hub, the network or timm: many types, one meaning
        raise InputError(
            f"timm:{name}: timm could not load these weights ({type(error).__name__}: {error}); "
            "without network, fetch the file elsewhere and give its path"
        ) from error
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    metadata = {}
    if licence := cfg.get("license"):
        metadata["licence"] = LICENCE_NAMES.get(licence, licence)
    if in_chans == 3:  # the statistics of other channels are not known
        metadata |= {key: json.dumps(cfg[key]) for key in ("mean", "std") if cfg.get(key)}
    return model.state_dict(), metadata | timm_evaluation(cfg)


def timm_evaluation(cfg: Mapping[str, Any]) -> dict[str, str]:
    """The size, crop and interpolation by which timm evaluates a model, from its configuration."""
    size = cfg.get("test_input_size") or cfg.get("input_size")
    found = {
        "image_size": list(size[1:]) if size else None,
        "crop_pct": cfg.get("test_crop_pct") or cfg.get("crop_pct"),
        "interpolation": cfg.get("interpolation"),
    }
    return {name: json.dumps(value) for name, value in found.items() if value is not None}
