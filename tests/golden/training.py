"""The golden trained weights: a few hundred steps on scenes like the golden images."""

from __future__ import annotations

import torch
from golden import inputs
from torch import Tensor

from detection.engines.renaming import torchvision_to_detectron2
from detection.engines.torchvision.model import build_mask_rcnn

STEPS, BATCH, LEARNING_RATE = 800, 2, 3e-3
SIZE = (96, 128)


def train(variant: str) -> dict[str, Tensor]:
    """A variant's trained weights by detectron2's names, in halves, which keeps the file small."""
    torch.manual_seed(0)
    config = inputs.Case(variant, "trained", ()).config()
    config.defrost()
    config.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 64
    config.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    with inputs.tiny_encoder():
        model = build_mask_rcnn(config)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS, pct_start=0.1)
    for step in range(STEPS):
        losses = model([inputs.sample(f"train {step} {i}", SIZE) for i in range(BATCH)])
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    state = torchvision_to_detectron2(model.state_dict())
    return {name: value.half().contiguous() for name, value in state.items()}
