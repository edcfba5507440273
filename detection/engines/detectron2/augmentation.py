"""detectron2's test-time augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.data.transforms import ResizeTransform
from detectron2.modeling import DatasetMapperTTA
from PIL import Image
from torch import nn

from detection.dataset import CocoDataset
from detection.engines.detectron2.results import AugmentedInBoxes, write_predictions
from images.resizing import resized


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

    Its own resizing takes four channels for colours with alpha, refuses other numbers and does not
    antialias floats. Images keep their original size before.
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
