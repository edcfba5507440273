"""Detections of the detectron2 engine as COCO results, with its test-time augmentation or without.

detectron2 pastes each mask into a bitmap of the image. Here masks stay in their boxes until they
are encoded one by one, to the same run lengths. A detector that is called directly still pastes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.data.transforms import ResizeTransform
from detectron2.evaluation import inference_context
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import (
    DatasetMapperTTA,
    GeneralizedRCNN,
    GeneralizedRCNNWithTTA,
    detector_postprocess,
)
from detectron2.structures import Instances, ROIMasks
from detectron2.utils import comm
from PIL import Image
from torch import nn

from detection.dataset import CocoDataset
from detection.engines.detectron2.data import prediction_loader
from detection.engines.interface import Detect
from detection.engines.masks import encode_masks
from detection.engines.results import detect_on_share, results_path, write_results
from images.resizing import resized


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
    """Test-time augmentation whose masks stay in their boxes too."""

    def _reduce_pred_masks(self, outputs: Any, tfms: Any) -> _BoxMasks:
        return _BoxMasks(super()._reduce_pred_masks(outputs, tfms)[:, 0])


def in_boxes(model: nn.Module) -> nn.Module:
    """The model, which DDP may wrap, with masks in their boxes where that is possible."""
    inner = getattr(model, "module", model)
    return InBoxes(inner) if isinstance(inner, GeneralizedRCNN) else model


def coco_results(instances: Instances, dataset: CocoDataset, image_id: int) -> list[dict[str, Any]]:
    """One image's detections in COCO's results format.

    ``bbox`` is x, y, width, height in pixels of the original image, ``segmentation`` a compressed
    run-length encoding, ``category_id`` the annotations' own. Detections of a class
    that the annotations lack are left out, because it has no id there.
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
    share = range(comm.get_rank(), len(dataset.records), comm.get_world_size())
    loader = prediction_loader(cfg, dataset, share)
    with inference_context(model):
        found = detect_on_share(cfg, dataset, detector_of(model, dataset), share, loader)
    gathered = comm.gather(found)
    if comm.is_main_process():
        write_results(cfg, folder, gathered)
    comm.synchronize()
    return results_path(cfg, folder)


def write_augmented_predictions(
    cfg: Any, model: nn.Module, dataset: CocoDataset, folder: str = "inference_TTA"
) -> Path:
    """Detect with test-time augmentation (``TEST.AUG``) and write into ``folder``.

    Every image is resized once, from its original to each of ``TEST.AUG.MIN_SIZES``, flipped or
    not; the boxes of all are merged by ordinary suppression, the masks averaged.

    Returns:
        ``OUTPUT_DIR/{folder}/coco_instances_results.json``.
    """
    originals = cfg.clone()
    originals.defrost()
    originals.INPUT.MIN_SIZE_TEST = 0
    augmented = AugmentedInBoxes(cfg, model, AugmentAny(cfg))
    return write_predictions(originals, augmented, dataset, folder)


class AugmentAny(DatasetMapperTTA):
    """detectron2's augmentations of images of any number of channels and any depth.

    detectron2's resizing reads four channels as colours with alpha, refuses other numbers and does
    not antialias floats. Images come in at their original size.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
        image = dataset_dict["image"]
        if image.dtype == torch.uint8 and len(image) in (1, 3):
            return super().__call__(dataset_dict)
        # the transforms are those of a grey image of this size
        grey = torch.zeros((1, *image.shape[1:]), dtype=torch.uint8)
        samples = super().__call__({**dataset_dict, "image": grey})
        for sample in samples:
            pixels = image.permute(1, 2, 0).numpy()
            _, *steps = sample["transforms"].transforms  # the first leads to the input's size
            for step in steps:
                if isinstance(step, ResizeTransform):
                    method = Image.Resampling(step.interp)
                    pixels = resized(pixels, step.new_h, step.new_w, method)
                else:
                    pixels = step.apply_image(pixels)
            sample["image"] = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        return samples
