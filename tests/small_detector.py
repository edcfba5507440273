"""A detector small enough for tests, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from fvcore.common.config import CfgNode

from detection.config import default_config
from detection.data.transforms import sample_of_values
from images.configured import reading_of
from images.picture import picture_of

SMALL: dict[str, Any] = {
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 100,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 40,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 40,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MAX_SIZE_TRAIN": 96,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 96,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.STEPS": (3,),
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.BASE_LR": 1e-3,
    "SOLVER.CHECKPOINT_PERIOD": 2,
}


def small_config(changes: dict[str, Any] | None = None) -> CfgNode:
    """The small detector's config with dotted keys changed."""
    config = default_config()
    pairs = SMALL | (changes or {})
    config.merge_from_list([item for pair in pairs.items() for item in pair])
    config.freeze()
    return config


def sample(height: int, width: int, objects: int, seed: int = 0) -> dict[str, Any]:
    """A training sample of noise with elliptic objects of three classes."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(objects, 2, generator=generator) * torch.tensor([width - 41, height - 41])
    boxes = torch.cat((corner, corner + 12 + torch.rand(objects, 2, generator=generator) * 28), 1)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    centre, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    masks = [
        ((x - c[0]) / r[0]) ** 2 + ((y - c[1]) / r[1]) ** 2 < 1
        for c, r in zip(centre, radius, strict=True)
    ]
    return {
        "image": torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8),
        "height": height,
        "width": width,
        "boxes": boxes,
        "labels": torch.randint(0, 3, (objects,), generator=generator),
        "masks": torch.stack(masks) if objects else torch.zeros(0, height, width, dtype=torch.bool),
    }


@torch.no_grad()
def spread_scores(model: torch.nn.Module) -> None:
    """Scale up a fresh detector's heads until scores, boxes and masks differ from each other."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.startswith(("rpn.", "roi_heads.")):
            is_last = "predictor" in name or "cls_logits" in name
            parameter *= 10 if is_last else 1.5
            if parameter.ndim == 1 and "bbox_pred" not in name and "mask_fcn_logits" not in name:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.1


def prediction_sample(pixels, config, image_id):
    """The sample of an array ``[H, W]`` or ``[H, W, C]``, as of a file of these values."""
    return sample_of_values(reading_of(config).read(picture_of(pixels)), config, image_id)
