"""Detections of the torchvision engine as COCO results, over all processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from detection.data.transforms import DetectionSamples, collate
from detection.data.windows import encode_strips
from detection.dataset import CocoDataset
from detection.engines.interface import Detect
from detection.engines.masks import encode_masks
from detection.engines.results import detect_on_share, results_path, write_results
from training.data import guarded_loader


def write_predictions(
    config: CfgNode,
    model: nn.Module,
    dataset: CocoDataset,
    state: PartialState,
    folder: str = "inference",
) -> Path:
    """Detect on every image, in float32, over all processes of ``state``; the results file."""
    share = range(state.process_index, len(dataset.records), state.num_processes)
    samples = DetectionSamples(dataset, config, training=False)
    workers = config.DATALOADER.NUM_WORKERS
    loader = guarded_loader(samples, workers, batch_size=1, sampler=share, collate_fn=collate)
    detect = detector_of(model.eval(), dataset)
    gathered = gather_object([detect_on_share(config, dataset, detect, share, loader)])
    if state.is_main_process:
        write_results(config, folder, gathered)
    state.wait_for_everyone()
    return results_path(config, folder)


def detector_of(model: nn.Module, dataset: CocoDataset) -> Detect:
    """A model in evaluation mode as the function of :meth:`detection.engines.Engine.detector`."""

    @torch.no_grad()
    def detect(sample: dict[str, Any]) -> list[dict[str, Any]]:
        (found,) = model([sample], paste=False)
        size = (sample["height"], sample["width"])
        return coco_results(found, dataset, sample["image_id"], size)

    return detect


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
