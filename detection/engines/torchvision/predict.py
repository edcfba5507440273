"""Detections of the torchvision engine as COCO results, over all processes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from backbones.whole_files import write_json
from detection.data.transforms import DetectionSamples, collate
from detection.data.windows import encode_strips
from detection.dataset import CocoDataset
from detection.engines.interface import Detect
from detection.engines.masks import encode_masks
from detection.engines.tiles import detect_on_records, write_counts
from training.data import guarded_loader
from training.progress import progress

logger = logging.getLogger(__name__)

RESULTS_FILE = "coco_instances_results.json"


def write_predictions(
    config: CfgNode,
    model: nn.Module,
    dataset: CocoDataset,
    state: PartialState,
    folder: str = "inference",
) -> Path:
    """Detect on every image, over all processes of ``state``, and write COCO results."""
    rank, processes = state.process_index, state.num_processes
    share = range(rank, len(dataset.records), processes)
    counts: list[Counter[str]] = []
    if config.INPUT.TILES.ENABLED:
        counts = [Counter()]
        one = detector_of(model.eval(), dataset)
        found = list(detect_on_records(one, dataset.records, share, config, counts[0]))
    else:
        found = list(detect(config, model, dataset, share))
    if processes > 1:
        found, counts = gather_object(found), gather_object(counts)
    path = Path(config.OUTPUT_DIR) / folder / RESULTS_FILE
    if rank == 0:
        results = [
            result for _, of_image in sorted(found, key=lambda pair: pair[0]) for result in of_image
        ]
        write_json(path, results)
        if counts:
            write_counts(path, counts, config)
        logger.info("%d detections on %d images: %s", len(results), len(found), path)
    state.wait_for_everyone()
    return path


@torch.no_grad()
def detect(
    config: CfgNode, model: nn.Module, dataset: CocoDataset, share: range
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield (index of the record, its COCO results) for the records of ``share``, in float32."""
    samples = DetectionSamples(dataset, config, training=False)
    workers = config.DATALOADER.NUM_WORKERS
    loader = guarded_loader(samples, workers, batch_size=1, sampler=share, collate_fn=collate)
    model.eval()
    for index, batch in zip(share, progress(loader, "predicting", unit="image"), strict=True):
        yield index, _detect_one(model, batch[0], dataset)


def detector_of(model: nn.Module, dataset: CocoDataset) -> Detect:
    """A model in evaluation mode as the function of :meth:`detection.engines.Engine.detector`."""

    @torch.no_grad()
    def detect_one(sample: dict[str, Any]) -> list[dict[str, Any]]:
        return _detect_one(model, sample, dataset)

    return detect_one


def _detect_one(
    model: nn.Module, sample: dict[str, Any], dataset: CocoDataset
) -> list[dict[str, Any]]:
    (found,) = model([sample], paste=False)
    size = (sample["height"], sample["width"])
    return coco_results(found, dataset, sample["image_id"], size)


def coco_results(
    detections: dict[str, Tensor],
    dataset: CocoDataset,
    image_id: int,
    size: tuple[int, int] | None = None,
) -> list[dict[str, Any]]:
    """One image's detections in COCO's results format, as detectron2 writes them.

    Boxes are x, y, width, height in float32 precision; masks compressed run lengths. Classes that
    the annotations do not have have no id there: their detections are left out.

    Args:
        size: height and width of the image, if the masks are still those of their boxes.
    """
    boxes = detections["boxes"].clone()
    boxes[:, 2:] -= boxes[:, :2]
    category_ids = dataset.category_ids
    results = [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": box,
            "score": score,
        }
        for label, box, score in zip(
            detections["labels"].tolist(),
            boxes.tolist(),
            detections["scores"].tolist(),
            strict=True,
        )
    ]
    if "masks" in detections:
        masks = detections["masks"]
        if size is not None:
            encoded = encode_masks(masks, detections["boxes"], size)
        else:
            encoded = [encode_strips([(m.cpu().numpy(), 0)], 0, *m.shape) for m in masks]
        for result, rle in zip(results, encoded, strict=True):
            result["segmentation"] = rle
    return [result for result in results if result["category_id"] is not None]
