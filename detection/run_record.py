"""What a run writes down about itself: ``run.json`` and the first lines of its log."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from backbones.checkpoint import fingerprint, open_encoder, unlike_grn
from backbones.convnext import STAGES, build_convnext
from backbones.normalization import GRNOptions
from backbones.pyramid import all_levels_read, plan_pyramid
from backbones.structure import ENCODER, OUT_NORMS, of_stages
from backbones.whole_files import write_json
from detection.config import get, resolve_device
from detection.dataset import CocoDataset
from detection.engines.torchvision.model import build_mask_rcnn
from detection.engines.weights import background_rows
from detection.schema import TORCHVISION_ONLY
from training.commands import own_command
from training.environment import device_name, git_commit, versions

logger = logging.getLogger(__name__)


def collect_facts(
    config: CfgNode,
    train_set: CocoDataset | None,
    test_set: CocoDataset | None,
    eval_only: bool,
    config_file: str,
) -> dict[str, Any]:
    """What ``run.json`` records; an earlier part of the same run keeps its facts."""
    file = Path(config.OUTPUT_DIR) / "run.json"
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    facts |= {
        "engine": config.ENGINE,
        "versions": versions(),
        "git_commit": git_commit(),
        "command": own_command(),
        "config_file": config_file,
        "device": device_name(resolve_device(config)),
        "seed": config.SEED,
        "started": facts.get("started", started),
    }
    if dataset := train_set or test_set:
        ids_and_names = zip(dataset.category_ids, dataset.class_names, strict=True)
        facts["categories"] = [{"id": key, "name": name} for key, name in ids_and_names]
    tensors = detector_tensors(config)
    if tensors is not None:
        facts["parameters"] = sum(
            value[background_rows(name) :].numel() for name, value in tensors.items()
        )
    if not eval_only and "encoder" not in facts:
        facts["encoder"] = encoder_facts(config, len(tensors) if tensors is not None else None)
    for name, dataset in (("train", train_set), ("test", test_set)):
        if dataset:
            facts.setdefault("datasets", {})[name] = {
                "name": dataset.name,
                "images": len(dataset.records),
                "instances": dataset.num_instances,
                "fingerprint": dataset.fingerprint,
                "annotations": str(dataset.annotations),
                "image_root": str(dataset.image_folder),
            }
    return facts


def detector_tensors(config: CfgNode) -> dict[str, Tensor] | None:
    """The detector's tensors, without memory; None if it has parts that only detectron2 has.

    Both engines' detectors have these, those of detectron2 without the background's rows.
    """
    beyond = [
        name
        for name, allowed in TORCHVISION_ONLY.items()
        if name.startswith("MODEL.") and get(config, name) not in allowed
    ]
    if config.ENGINE == "detectron2" and (beyond or set(config.MODEL.RPN.CONV_DIMS) != {-1}):
        return None
    with torch.device("meta"):
        return build_mask_rcnn(config).state_dict()


def encoder_facts(config: CfgNode, total_tensors: int | None) -> dict[str, Any] | None:
    """Where the encoder's weights come from; None from scratch.

    Engines load all of an encoder or fail, so what the file holds is what gets loaded; but not
    of another form of GRN, where that is allowed.

    Raises:
        FileNotFoundError, ValueError: if the weights cannot be read.
    """
    source = config.MODEL.WEIGHTS or config.MODEL.CONVNEXT.WEIGHTS
    if not source:
        return None
    file = open_encoder(source, config.MODEL.CONVNEXT.IN_CHANS)
    plan = plan_pyramid(config.MODEL.FPN.IN_FEATURES, all_levels_read(config.MODEL))
    tensors = of_stages(file.tensors, 1 + STAGES.index(plan.stages[-1]))
    is_detector = bool(config.MODEL.WEIGHTS)
    left_out: list[str] = []
    new_grn: list[str] = []
    if not is_detector:
        convnext = config.MODEL.CONVNEXT
        with torch.device("meta"):
            encoder = build_convnext(convnext.SIZE, grn=GRNOptions.of_config(convnext.GRN))
        left_out, new_grn = unlike_grn(
            source, tensors, file.metadata, encoder, convnext.ALLOW_OTHER_GRN
        )
    loaded = sum(n.startswith(ENCODER) for n in tensors) - len(left_out)
    norms = sum(n.startswith(OUT_NORMS) and n.split(".")[1] in plan.stages for n in tensors)
    new_parts = ["fpn", "rpn", "roi_heads"]
    if config.MODEL.CONVNEXT.OUT_NORMS and not norms:
        new_parts.insert(0, "out_norms")
    if new_grn:
        new_parts.insert(0, "grn")
    new = total_tensors - loaded - norms if total_tensors is not None else None
    return {
        "source": source,
        "format": file.recognised.format,
        "loaded": loaded,
        "total": loaded + len(new_grn),
        "new": 0 if is_detector else new,
        "new_parts": [] if is_detector else new_parts,
        "fingerprint": fingerprint(file.tensors),
        "licence": file.metadata.get("licence"),
    }


def log_header(config: CfgNode, facts: dict[str, Any]) -> None:
    """The first lines of a run: what ran it, on what, with which settings."""
    logger.info("command: %s", facts["command"])
    logger.info("versions: %s", ", ".join(f"{k} {v}" for k, v in facts["versions"].items()))
    logger.info("engine %s on %s, seed %d", facts["engine"], facts["device"], facts["seed"])
    logger.info("full config:\n%s", config.dump())


def write_facts(output_dir: Path, facts: dict[str, Any]) -> None:
    write_json(output_dir / "run.json", facts, indent=2)
