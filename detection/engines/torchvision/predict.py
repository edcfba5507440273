"""Detections of the torchvision engine as COCO results, over all processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.utils.data import DataLoader

from backbones.whole_files import write_json
from detection.data.transforms import DetectionSamples, collate
from detection.dataset import CocoDataset
from detection.engines.interface import Detect
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
    found = list(detect(config, model, dataset, share))
    if processes > 1:
        found = gather_object(found)
    path = Path(config.OUTPUT_DIR) / folder / RESULTS_FILE
    if rank == 0:
        results = [
            result for _, of_image in sorted(found, key=lambda pair: pair[0]) for result in of_image
        ]
        write_json(path, results)
        logger.info("%d detections on %d images: %s", len(results), len(found), path)
    state.wait_for_everyone()
    return path


@torch.no_grad()
def detect(
    config: CfgNode, model: nn.Module, dataset: CocoDataset, share: range
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield (index of the record, its COCO results) for the records of ``share``, in float32."""
    loader = DataLoader(
        DetectionSamples(dataset, config, training=False),
        batch_size=1,
        sampler=share,
        num_workers=config.DATALOADER.NUM_WORKERS,
        collate_fn=collate,
    )
    model.eval()
    for index, batch in zip(share, progress(loader, "predicting", unit="image"), strict=True):
        (detections,) = model(batch)
        yield index, coco_results(detections, dataset, dataset.records[index]["image_id"])


def detector_of(model: nn.Module, dataset: CocoDataset) -> Detect:
    """A model in evaluation mode as the function of :meth:`detection.engines.Engine.detector`."""

    @torch.no_grad()
    def detect_one(sample: dict[str, Any]) -> list[dict[str, Any]]:
        (found,) = model([sample])
        return coco_results(found, dataset, sample["image_id"])

    return detect_one


def coco_results(
    detections: dict[str, Tensor], dataset: CocoDataset, image_id: int
) -> list[dict[str, Any]]:
    """One image's detections in COCO's results format, as detectron2 writes them.

    Boxes are x, y, width, height in float32 precision; masks compressed run lengths.
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
        # pycocotools wants [H, W, D] in column order: the transpose of [D, W, H]'s memory.
        columns = detections["masks"].transpose(1, 2).to(torch.uint8).cpu().contiguous().numpy()
        for result, rle in zip(results, mask_util.encode(columns.T), strict=True):
            result["segmentation"] = rle | {"counts": rle["counts"].decode()}
    return results
