"""UPerNet as a registered head of detectron2's ``SemanticSegmentor``.

``import segmentation.d2_head`` registers ``UPerNetHead`` and, by ``backbones.d2_adapter``, the
encoder. Your own detectron2 script then needs only::

    cfg = get_cfg()
    add_segmentation_config(cfg)
    cfg.merge_from_file("det_configs/quick/upernet_convnextv2_atto_scratch_quick.yaml")
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19
    cfg.MODEL.CONVNEXT.ALLOW_IGNORED_KEYS = True  # such as layer decay

With the same weights, which have the same names, logits, losses and gradients equal those of
:class:`segmentation.model.UPerNet`. Only this file of the package imports detectron2.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor

from backbones.d2_adapter import add_convnext_config  # registers the encoder, too
from segmentation.config import head_options
from segmentation.schema import SCHEMA
from segmentation.upernet import IGNORED, SegmentationHeads, resize
from training.config_files import add_defaults

STRIDE = 4  # of the main head's logits


def add_segmentation_config(cfg: CfgNode) -> None:
    """Add the keys of the adapter and of :mod:`segmentation.schema` that ``cfg`` lacks.

    Layer decay, clipping by the global norm and the schedule only exist in this project's trainer.
    With ``MODEL.CONVNEXT.ALLOW_IGNORED_KEYS True`` detectron2's own trainer ignores them.
    """
    add_convnext_config(cfg)
    add_defaults(cfg, SCHEMA)


@SEM_SEG_HEADS_REGISTRY.register()
class UPerNetHead(SegmentationHeads):
    """Both heads with detectron2's interface: (features, targets) -> (logits, losses)."""

    ignore_value = IGNORED

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        channels = {name: shape.channels for name, shape in input_shape.items()}
        super().__init__(channels, head_options(cfg))  # type: ignore[arg-type]

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Losses in training, else logits ``[B, K, H, W]`` at the size of the padded batch."""
        if self.training:
            assert targets is not None
            return None, self.losses(features, targets.long())
        logits = self.logits(features)
        size = [STRIDE * side for side in features["stage1"].shape[-2:]]
        return resize(logits, size=size), {}
