"""ConvNeXt as a detectron2 backbone: the only file of this package that imports detectron2.

``import backbones.d2_adapter`` registers ``build_convnext_backbone`` and
``build_convnext_fpn_backbone``; a trainer of one's own then needs only
``detection.config.add_convnext_config(cfg)`` before it merges its YAML::

    cfg = get_cfg()
    add_convnext_config(cfg)
    cfg.merge_from_file("my.yaml")  # MODEL.BACKBONE: {NAME: build_convnext_fpn_backbone, ...}

Set ``MODEL.BACKBONE.FREEZE_AT: 0`` there: detectron2's default is 2, which freezes the stem and
stage 1 (a warning says so). ``MODEL.FPN.IN_FEATURES`` are ``stage1`` to ``stage4``.

From a LazyConfig, :class:`D2ConvNeXt` is made from plain arguments: ``L(D2ConvNeXt)(size=...)``.

The backbone *is* the encoder (a subclass, not a wrapper), so that a detector's keys are
``backbone.bottom_up.`` + the encoder's own names and no checkpoint needs renaming.

References:
    detectron2 (Apache-2.0), ``modeling/backbone``: the contract that this file meets.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from torch import Tensor

from backbones.checkpoint import LoadResult, load_encoder
from backbones.convnext import SIZES, STAGES, ConvNeXt
from backbones.errors import InputError
from backbones.normalization import GRNOptions

logger = logging.getLogger(__name__)


class D2ConvNeXt(ConvNeXt, Backbone):
    """A ConvNeXt encoder that meets detectron2's ``Backbone`` contract.

    Args:
        size: the name of a row of ``backbones.convnext.SIZES``.
        out_features: the stages to return, of ``stage1`` to ``stage4`` (strides 4 to 32).
        out_norms: whether each of them gets a LayerNorm; detection needs it.
        freeze_at: how many of the stem and the four stages, from the input on, do not learn:
            0 none, 1 the stem, 2 the stem and stage 1, ... 5 all (detectron2's
            ``MODEL.BACKBONE.FREEZE_AT``). Output norms always learn.
        weights: an encoder checkpoint, or ``timm:NAME``, to load completely; "" for none.
        allow_other_grn: they may have another form of GRN, see
            :func:`backbones.checkpoint.load_encoder`.
        **options: ``in_chans``, ``drop_path_rate``, ``checkpoint_stages`` and ``grn`` of
            :class:`backbones.convnext.ConvNeXt`.

    Attributes:
        loaded: what ``weights`` held, or None.

    Raises:
        InputError: for an unknown size or stage, a ``freeze_at`` that is not 0 to 5, or weights
            that are not all of this encoder.
        FileNotFoundError: if the weights' file does not exist.
    """

    loaded: LoadResult | None

    def __init__(
        self,
        size: str,
        out_features: Sequence[str] = STAGES,
        out_norms: bool = True,
        freeze_at: int = 0,
        weights: str = "",
        allow_other_grn: bool = False,
        **options: Any,
    ) -> None:
        if size not in SIZES:
            raise InputError(f"unknown encoder {size!r}; the sizes are {', '.join(SIZES)}")
        if not out_features or (unknown := [name for name in out_features if name not in STAGES]):
            raise InputError(
                f"OUT_FEATURES names {unknown if out_features else 'nothing'}; "
                f"the stages are {', '.join(STAGES)}"
            )
        super().__init__(SIZES[size], out_norms=out_features if out_norms else (), **options)
        self.out_features = tuple(out_features)
        self.loaded = None
        if weights:
            self.loaded = load_encoder(weights, self, allow_other_grn=allow_other_grn)
        self.freeze(freeze_at)

    def forward(self, x_nchw: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Images ``[B, in_chans, H, W]`` -> stage name -> ``[B, C, H/stride, W/stride]``."""
        features = self.forward_features(x_nchw)
        return {name: features[name] for name in self.out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each returned stage."""
        return {
            name: ShapeSpec(channels=self.out_channels[name], stride=self.out_strides[name])
            for name in self.out_features
        }

    @property
    def size_divisibility(self) -> int:
        """Height and width are padded to a multiple of the last stage's stride."""
        return self.out_strides[STAGES[-1]]


@BACKBONE_REGISTRY.register()
def build_convnext_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> D2ConvNeXt:
    """The encoder that ``MODEL.CONVNEXT`` describes, with its weights.

    Raises:
        InputError: if ``cfg`` has no ``MODEL.CONVNEXT``, its values do not fit, or it asks for
            soft-NMS of heads that have none.
    """
    if "CONVNEXT" not in cfg.MODEL:
        raise InputError(
            "the config has no MODEL.CONVNEXT: call detection.config.add_convnext_config(cfg) "
            "before merging your file"
        )
    convnext, heads = cfg.MODEL.CONVNEXT, cfg.MODEL.ROI_HEADS
    if heads.SOFT_NMS.ENABLED and not heads.NAME.startswith("SoftNMS"):
        raise InputError(
            f"MODEL.ROI_HEADS.SOFT_NMS.ENABLED is True, which {heads.NAME} would ignore: import "
            "detection.engines.detectron2.heads and set MODEL.ROI_HEADS.NAME to "
            f"SoftNMS{heads.NAME}, or take the config from "
            "detection.config.to_detectron2(load_config(FILE)), which does both"
        )
    if cfg.MODEL.BACKBONE.FREEZE_AT == 2:
        logger.warning(
            "MODEL.BACKBONE.FREEZE_AT is 2, detectron2's default for ResNets: stem and stage1 do "
            "not learn. Set it to 0 to train all of the encoder, as ConvNeXt's recipes do"
        )
    if input_shape.channels != convnext.IN_CHANS:
        raise InputError(
            f"MODEL.CONVNEXT.IN_CHANS is {convnext.IN_CHANS}, but MODEL.PIXEL_MEAN has "
            f"{input_shape.channels} values: give one value for each channel"
        )
    return D2ConvNeXt(
        convnext.SIZE,
        out_features=convnext.OUT_FEATURES,
        out_norms=convnext.OUT_NORMS,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        weights=convnext.WEIGHTS,
        in_chans=convnext.IN_CHANS,
        drop_path_rate=convnext.DROP_PATH_RATE,
        checkpoint_stages=convnext.CHECKPOINT_STAGES,
        grn=GRNOptions.of_config(convnext.GRN),
        allow_other_grn=convnext.ALLOW_OTHER_GRN,
    )


@BACKBONE_REGISTRY.register()
def build_convnext_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The encoder under a feature pyramid: p2 to p5 and p6, which is p5 subsampled."""
    return FPN(
        bottom_up=build_convnext_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
