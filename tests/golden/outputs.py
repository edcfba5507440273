"""What detectron2 computes on the golden inputs: the only source of the golden files."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from golden import inputs
from pycocotools import mask as rle

import backbones.d2_adapter  # noqa: F401 - registers the backbone
from detection.config import default_config, to_detectron2


def compute_golden() -> dict:
    """The golden detector's names and shapes, detections and losses."""
    model = build_model(to_detectron2(inputs.apply_overrides(default_config())))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    state = {name: torch.from_numpy(array) for name, array in inputs.weights(shapes).items()}
    model.load_state_dict(state)
    return {"shapes": shapes, "detections": detections(model), "losses": losses(model)}


def detections(model: torch.nn.Module) -> list[dict]:
    """What the model finds on each golden image, all in one padded batch."""
    batch = [
        {"image": torch.from_numpy(inputs.image(i)), "height": size[0], "width": size[1]}
        for i, (_, size) in enumerate(inputs.SIZES)
    ]
    model.eval()
    with torch.no_grad():
        outputs = [output["instances"] for output in model(batch)]
    return [
        {
            "boxes": found.pred_boxes.tensor.tolist(),
            "scores": found.scores.tolist(),
            "classes": found.pred_classes.tolist(),
            "masks": [
                rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))["counts"].decode()
                for mask in found.pred_masks
            ],
        }
        for found in outputs
    ]


def losses(model: torch.nn.Module) -> dict[str, float]:
    """The training losses of the golden images with their objects."""
    batch = []
    for i, (size, _) in enumerate(inputs.SIZES):
        objects = Instances(size)
        objects.gt_boxes = Boxes(torch.from_numpy(inputs.boxes(i)).float())
        objects.gt_classes = torch.from_numpy(inputs.labels(i))
        objects.gt_masks = BitMasks(torch.from_numpy(inputs.masks(i)))
        batch.append({"image": torch.from_numpy(inputs.image(i)), "instances": objects})
    model.train()
    with EventStorage(), torch.no_grad():
        return {name: float(value) for name, value in model(batch).items()}
