"""Detectors to measure: those of the COCO configs, not trained, and their inputs.

Images are square: noise with OBJECTS ellipses each. Weights are scaled so that the class logits
spread as a trained detector's do; otherwise no box would pass the threshold and no mask would be
computed. A training step is forward, backward and AdamW; inference goes from the image to boxes
and masks in its pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d

import det_configs
from backbones.convnext import STAGES
from backbones.errors import InputError
from backbones.pyramid import all_levels_read, plan_pyramid
from detection.config import load_config, to_detectron2
from detection.engines.renaming import torchvision_to_detectron2
from detection.engines.torchvision.layers import ConvNeXtFPN
from detection.engines.torchvision.model import build_mask_rcnn
from training.configured import build_adamw
from training.records.measure import Row, held_bytes, peak_bytes

CONFIGS = Path(det_configs.__file__).parent / "coco"
CLASSES, OBJECTS = 80, 10
LOGIT_SPREAD = 2.0  # standard deviation: a few of 80 classes above the threshold of 0.05
RESNET = "R50-FPN"


@dataclass(frozen=True)
class DetectorCase:
    """A detector and its input.

    Args:
        size: a key of ``SIZES``, or RESNET for a ResNet-50 in the encoder's place.
        precision: "fp32" or "bf16" (autocast).
        batch: images of a training step; inference runs one at a time.
    """

    size: str
    precision: str = "fp32"
    batch: int = 1
    image_size: int = 512
    overrides: tuple[str, ...] = ()

    def config(self) -> CfgNode:
        size = "convnextv2_tiny" if self.size == RESNET else self.size
        found = sorted(CONFIGS.glob(f"mask_rcnn_{size}_scratch_*.yaml"))
        if not found:
            raise InputError(f"no config of {size!r} from scratch is in {CONFIGS}")
        classes = ("MODEL.ROI_HEADS.NUM_CLASSES", str(CLASSES))
        return load_config(found[0], [*classes, *self.overrides])

    def autocast(self, device: torch.device) -> AbstractContextManager:
        if self.precision == "bf16":
            return torch.autocast(device.type, torch.bfloat16)
        return nullcontext()

    def described(self) -> Row:
        return {
            "detector": self.size,
            "precision": self.precision,
            "batch": self.batch,
            "pixels": self.image_size,
        }


class ResNet50(nn.Module):
    """torchvision's ResNet-50 as detectron2's R50-FPN has it: stem and first stage do not learn,
    batch norms are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.body = resnet50(norm_layer=FrozenBatchNorm2d)
        del self.body.fc
        self.out_channels = dict(zip(STAGES, (256, 512, 1024, 2048), strict=True))
        for part in (self.body.conv1, self.body.layer1):
            part.requires_grad_(False)

    def forward_features(self, x_nchw: Tensor) -> dict[str, Tensor]:
        body = self.body
        x_nchw = body.maxpool(body.relu(body.bn1(body.conv1(x_nchw))))
        features = {}
        for name, layer in zip(
            STAGES, (body.layer1, body.layer2, body.layer3, body.layer4), strict=True
        ):
            features[name] = x_nchw = layer(x_nchw)
        return features


@dataclass
class Detector:
    """An engine's model with inputs in the engine's own format."""

    case: DetectorCase
    device: torch.device
    model: nn.Module
    inputs: list[dict[str, Any]]
    optimizer: torch.optim.Optimizer
    training_context: Callable[[], AbstractContextManager] = field(default=nullcontext)

    def train(self) -> None:
        """One training step."""
        self.model.train()
        with self.training_context(), self.case.autocast(self.device):
            losses = self.model(self.inputs)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def infer(self) -> Any:
        """The detections of the first image."""
        self.model.eval()
        with self.case.autocast(self.device):
            return self.model(self.inputs[:1])

    def mebibytes(self, run: Callable[[], Any]) -> float:
        """Peak memory during ``run`` in MiB, the model's own included."""
        state = [v for s in self.optimizer.state.values() for v in s.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *state]
        held = held_bytes(t for t in tensors if isinstance(t, Tensor))
        return (held + peak_bytes(run, self.device)) / 2**20


def make_samples(case: DetectorCase) -> list[dict[str, Any]]:
    """Noise with ellipses, in the torchvision engine's format."""
    generator = torch.Generator().manual_seed(0)
    side = case.image_size
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    samples = []
    for _ in range(case.batch):
        lengths = side * (0.05 + 0.35 * torch.rand(OBJECTS, 2, generator=generator))
        corners = (side - lengths) * torch.rand(OBJECTS, 2, generator=generator)
        centres, radii = (corners + lengths / 2)[..., None, None], lengths[..., None, None] / 2
        samples.append(
            {
                "image": torch.randint(0, 256, (3, side, side), generator=generator).byte(),
                "height": side,
                "width": side,
                "boxes": torch.cat((corners, corners + lengths), 1),
                "labels": torch.randint(0, CLASSES, (OBJECTS,), generator=generator),
                "masks": ((x - centres[:, 0]) / radii[:, 0]) ** 2
                + ((y - centres[:, 1]) / radii[:, 1]) ** 2
                < 1,
            }
        )
    return samples


def torchvision_detector(case: DetectorCase, device: torch.device) -> Detector:
    """The torchvision engine's detector, with weights that find objects."""
    torch.manual_seed(0)
    config = case.config()
    model = build_mask_rcnn(config)
    if case.size == RESNET:
        model.backbone = ConvNeXtFPN(
            ResNet50(),  # type: ignore[arg-type]
            plan_pyramid(config.MODEL.FPN.IN_FEATURES, all_levels_read(config.MODEL)),
            config.MODEL.FPN.OUT_CHANNELS,
            config.MODEL.FPN.NORM,
        )
    model.to(device)
    optimizer = _build_optimizer(case, model, "backbone.body.")
    detector = Detector(case, device, model, make_samples(case), optimizer)
    _spread_logits(detector)
    return detector


def _build_optimizer(
    case: DetectorCase, model: nn.Module, encoder_prefix: str
) -> torch.optim.Optimizer:
    config = case.config()
    if case.size == RESNET:  # its layers have no ids of ConvNeXt
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(learning, lr=config.SOLVER.BASE_LR)
    return build_adamw(config, model, encoder_prefix)


def _spread_logits(detector: Detector) -> None:
    """Scale the classifier so that its logits have the standard deviation LOGIT_SPREAD."""
    seen: list[Tensor] = []
    heads: Any = detector.model.roi_heads
    predictor = heads.box_predictor  # has one name and one output in both engines
    hook = predictor.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs[0]))
    detector.infer()
    hook.remove()
    with torch.no_grad():
        predictor.cls_score.weight *= LOGIT_SPREAD / seen[0].float().std()


def detectron2_detector(
    case: DetectorCase, device: torch.device, weights: dict[str, Tensor] | None = None
) -> Detector:
    """detectron2's detector, with the same images.

    Args:
        weights: the torchvision engine's; None for fresh ones that find objects.
    """
    from detectron2.modeling import build_model
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    import backbones.d2_adapter  # noqa: F401 - registers the backbone

    cfg = to_detectron2(case.config())
    cfg.MODEL.DEVICE = str(device)
    if case.size == RESNET:  # detectron2's own; strides as torchvision's
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_resnet_fpn_backbone", 2
        stages = [f"res{number}" for number in (2, 3, 4, 5)]
        cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = stages
        cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    torch.manual_seed(0)
    model = build_model(cfg)
    if weights is not None:
        model.load_state_dict(torchvision_to_detectron2(weights))
    inputs = []
    for sample in make_samples(case):
        instances = Instances((sample["height"], sample["width"]))
        instances.gt_boxes = Boxes(sample["boxes"])
        instances.gt_classes = sample["labels"]
        instances.gt_masks = BitMasks(sample["masks"])
        kept = {key: sample[key] for key in ("image", "height", "width")}
        inputs.append(kept | {"instances": instances})
    optimizer = _build_optimizer(case, model, "backbone.bottom_up.")
    detector = Detector(case, device, model, inputs, optimizer, EventStorage)
    if weights is None:
        _spread_logits(detector)
    return detector


ENGINES: dict[str, Callable[[DetectorCase, torch.device], Detector]] = {
    "torchvision": torchvision_detector,
    "detectron2": detectron2_detector,
}
