"""The two engines behind one small interface, so that tests compare them as equals.

Weights and gradients go by detectron2's names; samples are those of ``detection.data.transforms``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detection.config import to_detectron2
from detection.engines.renaming import detectron2_to_torchvision, torchvision_to_detectron2
from detection.engines.torchvision.model import build_mask_rcnn

Sample = dict[str, Any]


@dataclass
class Detections:
    """What an engine finds on one image, best first; masks are bool ``[D, H, W]``."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor


class TorchvisionDetector:
    """The torchvision engine's model."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.model = build_mask_rcnn(config)

    def state(self) -> dict[str, Tensor]:
        return torchvision_to_detectron2(self.model.state_dict())

    def load(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict(detectron2_to_torchvision(state))

    @torch.no_grad()
    def detect(
        self, samples: list[Sample], proposals: list[Tensor] | None = None
    ) -> list[Detections]:
        """Detections, of the given proposals (``[R, 4]`` an image) or of the model's own."""
        self.model.eval()
        rpn = self.model.rpn if proposals is None else _GivenProposals(proposals)
        with replaced(self.model, "rpn", rpn):
            detections = self.model(samples)
        return [
            Detections(found["boxes"], found["scores"], found["labels"], found["masks"])
            for found in detections
        ]

    def learn(self, samples: list[Sample]) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The losses, and their sum's gradients.

        Raises:
            ValueError: if a gradient reaches the rows of the background.
        """
        losses, gradients = backward(self.model, lambda: self.model(samples))
        return losses, torchvision_to_detectron2(gradients)


class _GivenProposals(nn.Module):
    """In the place of a region proposal network."""

    def __init__(self, proposals: list[Tensor]) -> None:
        super().__init__()
        self.proposals = proposals

    def forward(self, *_: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
        return self.proposals, {}


class Detectron2Detector:
    """The detectron2 engine's model."""

    def __init__(self, config: Any) -> None:
        from detectron2.modeling import build_model

        import backbones.d2_adapter  # noqa: F401 - registers the backbone
        import detection.suppression.detectron2_heads  # noqa: F401 - registers the heads

        self.model = build_model(to_detectron2(config))

    def state(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def load(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict(state)

    @torch.no_grad()
    def detect(
        self, samples: list[Sample], proposals: list[Tensor] | None = None
    ) -> list[Detections]:
        """Detections, of the given proposals (``[R, 4]`` an image) or of the model's own."""
        from detectron2.structures import Boxes, Instances

        self.model.eval()
        if proposals is None:
            found = self.model(samples)
        else:
            batch = []
            for sample, boxes in zip(samples, proposals, strict=True):
                given = Instances(tuple(sample["image"].shape[1:]))
                given.proposal_boxes = Boxes(boxes)
                batch.append(sample | {"proposals": given})
            with replaced(self.model, "proposal_generator", None):
                found = self.model(batch)
        return [
            Detections(i.pred_boxes.tensor, i.scores, i.pred_classes, i.pred_masks)
            for i in (output["instances"] for output in found)
        ]

    def learn(self, samples: list[Sample]) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The losses, and their sum's gradients; detectron2's own samples are taken as well."""
        from detectron2.structures import BitMasks, Boxes, Instances
        from detectron2.utils.events import EventStorage

        batch = []
        for sample in samples:
            if "instances" not in sample:
                objects = Instances(tuple(sample["image"].shape[1:]))
                objects.gt_boxes = Boxes(sample["boxes"])
                objects.gt_classes = sample["labels"]
                objects.gt_masks = BitMasks(sample["masks"])
                sample = sample | {"instances": objects}
            batch.append(sample)
        with EventStorage():
            return backward(self.model, lambda: self.model(batch))


@contextmanager
def replaced(model: nn.Module, name: str, part: nn.Module | None) -> Iterator[None]:
    """``model`` with another part of this name."""
    original = getattr(model, name)
    setattr(model, name, part)
    yield
    setattr(model, name, original)


def backward(
    model: nn.Module, forward: Callable[[], dict[str, Tensor]]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses by name and every parameter's gradient (0 where the losses do not reach it)."""
    model.train()
    model.zero_grad()
    losses = forward()
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
    return {name: value.item() for name, value in losses.items()}, gradients


def assert_same_detections(
    found: list[Detections],
    expected: list[Detections],
    boxes: float = 1e-4,
    scores: float = 1e-5,
    pixels: int = 0,
) -> None:
    """Classes are equal; boxes (pixels), scores and pixels of masks within these differences."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.classes.tolist() == theirs.classes.tolist()
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=scores, rtol=0)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=boxes, rtol=0)
        assert ours.masks.shape == theirs.masks.shape
        assert int((ours.masks != theirs.masks).sum()) <= pixels


def assert_same_gradients(
    found: dict[str, Tensor], expected: dict[str, Tensor], relative: float = 1e-4
) -> None:
    """Every parameter's gradient within ``relative`` of the length of that gradient."""
    assert found.keys() == expected.keys()
    wrong = {
        name: float((found[name] - gradient).norm() / gradient.norm())
        for name, gradient in expected.items()
        if (found[name] - gradient).norm() > relative * gradient.norm() + 1e-12
    }
    assert not wrong
