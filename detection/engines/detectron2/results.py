"""Detections of the detectron2 engine as COCO results, over all processes.

detectron2 pastes each mask into a bitmap of the image. Here masks stay in their boxes until they
are encoded one by one, to the same run lengths; a detector that somebody calls directly pastes.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.evaluation import DatasetEvaluator, inference_context, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA, detector_postprocess
from detectron2.structures import Instances, ROIMasks
from detectron2.utils import comm
from torch import nn

from backbones.whole_files import write_json
from detection.dataset import CocoDataset
from detection.engines.detectron2.data import prediction_loader
from detection.engines.interface import Detect
from detection.engines.masks import encode_masks
from detection.engines.tiles import detect_on_records, write_counts
from training.progress import progress

logger = logging.getLogger(__name__)

RESULTS_FILE = "coco_instances_results.json"


class ResultsWriter(DatasetEvaluator):
    """Collects detections from all processes into ``folder/coco_instances_results.json``."""

    def __init__(self, dataset: CocoDataset, folder: Path) -> None:
        self.dataset = dataset
        self.path = folder / RESULTS_FILE
        self.results: list[dict[str, Any]] = []

    def reset(self) -> None:
        self.results = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            self.results += coco_results(output["instances"], self.dataset, image["image_id"])

    def evaluate(self) -> dict[str, Any]:
        gathered = comm.gather(self.results)
        if comm.is_main_process():
            results = list(itertools.chain.from_iterable(gathered))
            write_json(self.path, results)
            logger.info("%d detections: %s", len(results), self.path)
        comm.synchronize()
        return {}


class _BoxMasks(ROIMasks):
    """Masks in their boxes, which detectron2's postprocessing selects and does not paste."""

    def __getitem__(self, item: Any) -> _BoxMasks:
        return _BoxMasks(self.tensor[item])

    def to_bitmasks(self, boxes: Any, height: Any, width: Any, threshold: float = 0.5) -> Any:
        return _Unpasted(self)


class _Unpasted(NamedTuple):
    tensor: _BoxMasks


class InBoxes(nn.Module):
    """A detector whose detections have ``pred_masks [D, M, M]``, probabilities in their boxes.

    detectron2's own would have bitmaps of the image, ``D x height x width`` bytes.
    """

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, samples: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        found = []
        for sample, instances in zip(
            samples, self.model.inference(samples, do_postprocess=False), strict=True
        ):
            if instances.has("pred_masks"):
                instances.pred_masks = _BoxMasks(instances.pred_masks[:, 0])
            size = sample["height"], sample["width"]
            found.append({"instances": detector_postprocess(instances, *size)})
        return found


class AugmentedInBoxes(GeneralizedRCNNWithTTA):
    """Test-time augmentation, its masks likewise."""

    def _reduce_pred_masks(self, outputs: Any, tfms: Any) -> _BoxMasks:
        return _BoxMasks(super()._reduce_pred_masks(outputs, tfms)[:, 0])


def in_boxes(model: nn.Module) -> nn.Module:
    """The model, which DDP may wrap, with masks in their boxes where that is possible."""
    inner = getattr(model, "module", model)
    return InBoxes(inner) if isinstance(inner, GeneralizedRCNN) else model


def coco_results(instances: Instances, dataset: CocoDataset, image_id: int) -> list[dict[str, Any]]:
    """One image's detections in COCO's results format.

    ``bbox`` is x, y, width, height in pixels of the original image, ``segmentation`` a compressed
    run-length encoding, ``category_id`` the annotations' own. Classes that the annotations do not
    have have no id there: their detections are left out.
    """
    category_ids, masks = dataset.category_ids, None
    if instances.has("pred_masks") and isinstance(instances.pred_masks, _BoxMasks):
        boxes = instances.pred_boxes.tensor
        masks = encode_masks(instances.pred_masks.tensor, boxes, instances.image_size)
        instances.remove("pred_masks")
    results = instances_to_coco_json(instances.to("cpu"), image_id)
    for result, mask in zip(results, masks or [], strict=masks is not None):
        result["segmentation"] = mask
    named = [result | {"category_id": category_ids[result["category_id"]]} for result in results]
    return [result for result in named if result["category_id"] is not None]


def detector_of(model: nn.Module, dataset: CocoDataset) -> Detect:
    """A model in evaluation mode as the function of :meth:`detection.engines.Engine.detector`."""
    detector = in_boxes(model)

    @torch.no_grad()
    def detect(sample: dict[str, Any]) -> list[dict[str, Any]]:
        (found,) = detector([sample])
        return coco_results(found["instances"], dataset, sample["image_id"])

    return detect


def write_predictions(
    cfg: Any, model: nn.Module, dataset: CocoDataset, folder: str = "inference"
) -> Path:
    """Detect on every image of the data set, over all processes; the results file."""
    if cfg.INPUT.TILES.ENABLED:
        return _write_tiled(cfg, model, dataset, folder)
    writer = ResultsWriter(dataset, Path(cfg.OUTPUT_DIR) / folder)
    images = progress(prediction_loader(cfg, dataset), "predicting", unit="image")
    inference_on_dataset(in_boxes(model), images, writer)
    return writer.path


def _write_tiled(cfg: Any, model: nn.Module, dataset: CocoDataset, folder: str) -> Path:
    """The same by tiles, whose detections are joined."""
    share = range(comm.get_rank(), len(dataset.records), comm.get_world_size())
    counts: Counter[str] = Counter()
    with inference_context(model):
        one = detector_of(model, dataset)
        found = list(detect_on_records(one, dataset.records, share, cfg, counts))
    gathered = comm.gather((found, counts))
    path = Path(cfg.OUTPUT_DIR) / folder / RESULTS_FILE
    if comm.is_main_process():
        by_image = sorted(
            itertools.chain.from_iterable(of_process for of_process, _ in gathered),
            key=lambda pair: pair[0],
        )
        results = [result for _, of_image in by_image for result in of_image]
        write_json(path, results)
        write_counts(path, [of_process for _, of_process in gathered], cfg)
        logger.info("%d detections on %d images: %s", len(results), len(by_image), path)
    comm.synchronize()
    return path
