"""Record of a run: ``run.json`` and the first lines of its log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from backbones.checkpoint import fingerprint, open_encoder, unlike_grn
from backbones.convnext import STAGES, build_convnext
from backbones.errors import InputError
from backbones.normalization import GRNOptions
from backbones.pyramid import all_levels_read, plan_pyramid
from backbones.weights.structure import ENCODER, OUT_NORMS, of_stages
from backbones.whole_files import write_json
from detection.config import get
from detection.data.augmentation.checks import augmentation_words
from detection.dataset import CocoDataset, joined_classes, result_parts, set_labels
from detection.engines.classes import trained_classes
from detection.engines.renaming import background_rows
from detection.engines.torchvision.model import build_mask_rcnn
from detection.schema import TORCHVISION_ONLY
from images.configured import reading_of
from images.statistics import ImageFiles
from training.configured import command_facts
from training.guards.validation import read_record

logger = logging.getLogger(__name__)


def collect_facts(
    config: CfgNode,
    train_set: CocoDataset | None,
    test_sets: Sequence[CocoDataset] | None,
    eval_only: bool,
    config_file: str,
    earlier: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What ``run.json`` records.

    Args:
        earlier: ``run.json`` of the training that this command continues or evaluates; its facts
            are kept. An evaluation adds its own under ``evaluation``.
    """
    facts = dict(earlier or {})
    of_training = not (eval_only and earlier)
    of_command = command_facts(config, config_file)
    if of_training:
        facts |= of_command | {"started": facts.get("started", of_command["started"])}
    else:
        facts["evaluation"] = of_command | {"weights": config.MODEL.WEIGHTS or None}
    if "categories" not in facts:
        if train_set:
            names = train_set.category_names
        else:
            trained = trained_classes(config.MODEL.WEIGHTS, config.OUTPUT_DIR)
            names = trained or joined_classes(test_sets or [])
        facts["categories"] = [{"id": key, "name": name} for key, name in names.items()]
    if train_set:
        facts["augmentation"] = augmentation_words(config)
        images = ImageFiles(train_set.image_paths(), reading_of(config))
        facts["eight_bit_images"] = images.eight_bit()
    if of_training:
        facts |= detector_facts(config, "encoder" in facts or eval_only)
    datasets = dict(facts.get("datasets", {}))
    if train_set:
        now = dataset_facts(train_set)
        before = datasets.setdefault("train", now)
        if before.get("fingerprint") != now["fingerprint"]:
            datasets["train_resumed"] = now
    if test_sets:
        datasets["test"] = dataset_facts(test_sets[0])
        datasets.pop("tests", None)
        if len(test_sets) > 1:
            rows = zip(test_sets, set_labels(test_sets), result_parts(test_sets), strict=True)
            datasets["tests"] = [
                dataset_facts(dataset) | {"label": label, "folder": f"inference/{part}".rstrip("/")}
                for dataset, label, part in rows
            ]
    return facts | {"datasets": datasets}


def detector_facts(config: CfgNode, without_encoder: bool) -> dict[str, Any]:
    """The detector's size, and where its encoder's weights come from."""
    facts: dict[str, Any] = {}
    tensors = detector_tensors(config)
    if tensors is not None:
        facts["parameters"] = sum(
            value[background_rows(name) :].numel() for name, value in tensors.items()
        )
    if not without_encoder:
        facts["encoder"] = encoder_facts(config, len(tensors) if tensors is not None else None)
    return facts


def dataset_facts(dataset: CocoDataset) -> dict[str, Any]:
    """Facts of a data set; for a joined one also those of its parts."""
    facts = {
        "name": dataset.name,
        "images": len(dataset.records),
        "instances": dataset.num_instances,
        "fingerprint": dataset.fingerprint,
        "annotations": str(dataset.annotations),
        "image_root": str(dataset.image_folder),
    }
    return facts | ({"parts": list(map(dataset_facts, dataset.parts))} if dataset.parts else {})


def validation_facts(val_sets: Sequence[CocoDataset]) -> dict[str, Any]:
    """Facts of the sets in ``DATASETS.VAL``, for ``datasets`` in ``run.json``."""
    return {"val": [dataset_facts(dataset) for dataset in val_sets]} if val_sets else {}


def check_resumed_data(earlier: dict[str, Any], train_set: CocoDataset) -> None:
    """Warn of changes in the training data since the run began that is now continued.

    Raises:
        InputError: if the classes changed: the detector's outputs would get other names.
    """
    before = {item["id"]: item["name"] for item in earlier.get("categories") or []}
    now = train_set.category_names
    if before and list(before.items()) != list(now.items()):
        raise InputError(
            f"--resume cannot continue a run with other classes: they were {before}, and are {now} "
            "by now (those of DATASETS.TRAIN and DATASETS.TEST together); put the annotations "
            "back, or train into another OUTPUT_DIR"
        )
    recorded = earlier.get("datasets", {}).get("train", {})
    if recorded and recorded.get("fingerprint") != train_set.fingerprint:
        logger.warning(
            "the training data changed since the run began: it was %s with %s images and %s "
            "objects, and is %s with %d images and %d objects",
            recorded.get("name"),
            recorded.get("images"),
            recorded.get("instances"),
            train_set.name,
            len(train_set.records),
            train_set.num_instances,
        )


def check_resumed_validation(
    config: CfgNode, earlier: dict[str, Any], val_sets: Sequence[CocoDataset]
) -> None:
    """Refuse to compare validation results that were not measured in the same way.

    Args:
        earlier: what ``run.json`` recorded of the run that is continued.

    Raises:
        InputError: if the best weights were chosen by another metric or on other data, or would no
            longer be chosen.
    """
    record = read_record(Path(config.OUTPUT_DIR))
    if not record["evaluations"]:
        return
    before = earlier.get("datasets", {}).get("val", [])
    names, now = [each["name"] for each in before], [dataset.name for dataset in val_sets]
    problems = []
    if val_sets and record["metric"] != config.TEST.BEST_METRIC:
        problems.append(f"TEST.BEST_METRIC was {record['metric']}, is {config.TEST.BEST_METRIC}")
    if [each["fingerprint"] for each in before] != [one.fingerprint for one in val_sets]:
        became = f"is {', '.join(now) or 'none'}"
        became = "has other images or annotations by now" if now == names else became
        problems.append(f"DATASETS.VAL was {', '.join(names)}, {became}")
    if problems:
        raise InputError(
            "--resume cannot continue a run whose best weights were chosen otherwise: "
            f"{'; '.join(problems)}. Give the run's own, or train into another OUTPUT_DIR"
        )


def detector_tensors(config: CfgNode) -> dict[str, Tensor] | None:
    """The detector's tensors on the meta device; None if it has parts that only detectron2 has.

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

    Engines load all of an encoder or fail, so every tensor of the file is loaded; except GRN's
    where the config allows another form of it.

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


def log_header(config: CfgNode, facts: dict[str, Any], only_evaluates: bool) -> None:
    """The first lines of a run: what ran it, on what, with which settings."""
    facts = facts.get("evaluation", facts) if only_evaluates else facts
    logger.info("command: %s", facts["command"])
    logger.info("versions: %s", ", ".join(f"{k} {v}" for k, v in facts["versions"].items()))
    logger.info("engine %s on %s, seed %d", facts["engine"], facts["device"], facts["seed"])
    if not only_evaluates:
        words = ", ".join(facts.get("augmentation", [])) or "none"
        logger.info("augmentation of the training images: %s", words)
    logger.info("full config:\n%s", config.dump())


def write_facts(output_dir: Path, facts: dict[str, Any]) -> None:
    write_json(output_dir / "run.json", facts, indent=2)
