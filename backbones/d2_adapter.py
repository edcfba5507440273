"""ConvNeXt as a detectron2 backbone: the only file of this package that imports detectron2.

Three lines add it to a detectron2 project; ``docs/detectron2.md`` says what its config needs::

    from backbones.d2_adapter import add_convnext_config  # registers the builders, too

    cfg = get_cfg()
    add_convnext_config(cfg)
    cfg.merge_from_file("my.yaml")  # MODEL.BACKBONE: {NAME: build_convnext_fpn_backbone, ...}

The registered builders are ``build_convnext_backbone`` (C4, dilated C5, DeepLab),
``build_convnext_fpn_backbone`` and ``build_retinanet_convnext_fpn_backbone``. They build only what
the config's heads read. In a LazyConfig, :class:`D2ConvNeXt` takes plain arguments:
``L(D2ConvNeXt)(size=...)``.

The backbone *is* the encoder (a subclass, not a wrapper), so that a detector's keys are
``backbone.bottom_up.`` + the encoder's own names and no checkpoint needs renaming.

References:
    detectron2 (Apache-2.0), ``modeling/backbone``: the interface that this file implements.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from backbones.checkpoint import LoadResult, load_encoder
from backbones.convnext import SIZES, STAGES, ConvNeXt
from backbones.d2_config import (
    add_convnext_config,
    config_problems,
    foreign_pixels,
    freezing,
)
from backbones.d2_pixels import pixel_mean, pixel_std
from backbones.errors import InputError, listed
from backbones.key_adapters import ENCODER
from backbones.normalization import GRNOptions
from backbones.param_groups import LayerDecayType, last_layer_id, layer_id
from backbones.pyramid import all_levels_read, plan_pyramid
from backbones.weight_files import read_state_dict

__all__ = [
    "ConvNeXtFPN", "D2ConvNeXt", "add_convnext_config", "lr_decay_rate", "pixel_mean", "pixel_std",
]  # fmt: skip

THE_CONFIG = "the config of a ConvNeXt"
logger = logging.getLogger("detectron2.convnext")  # detectron2 shows only its own loggers


class _Shapes(dict[str, ShapeSpec]):
    """The shapes of a backbone's maps; asking for another map raises an error with all problems.

    detectron2 itself would raise a ``KeyError``.
    """

    def __init__(self, shapes: Mapping[str, ShapeSpec], problems: Sequence[str] = ()) -> None:
        super().__init__(shapes)
        self.problems = problems

    def __missing__(self, name: str) -> ShapeSpec:
        given = f"a head reads {name!r}, but the backbone gives {list(self)}"
        raise InputError(listed(self.problems or [given], THE_CONFIG))


class D2ConvNeXt(ConvNeXt, Backbone):
    """A ConvNeXt encoder as a detectron2 ``Backbone``.

    Args:
        size: the name of a row of ``backbones.convnext.SIZES``.
        out_features: the stages to return, of ``stage1`` to ``stage4`` (strides 4 to 32); later
            stages are not built.
        out_norms: whether each of them gets a LayerNorm; detection needs it.
        freeze_at: how many of the stem and the four stages, from the input on, do not learn:
            0 none, 1 the stem, 2 the stem and stage 1, ... 5 all (detectron2's
            ``MODEL.BACKBONE.FREEZE_AT``). Output norms always learn.
        weights: an encoder checkpoint, or ``timm:NAME``, to load completely; "" for none. If it
            does not exist, that is an error at the first forward pass, unless another checkpoint
            has filled the whole encoder by then: a finished detector does not need it.
        allow_other_grn, adapt_channels: accept weights with another form of GRN, or another number
            of channels, see :func:`backbones.checkpoint.load_encoder`.
        **options: ``in_chans``, ``drop_path_rate``, ``checkpoint_stages``, ``output_stride`` and
            ``grn`` of :class:`backbones.convnext.ConvNeXt`.

    Attributes:
        loaded: the result of loading ``weights``, or None.
        missing: the error that ``weights`` do not exist, as long as nothing was loaded; or None.
        problems: messages for a head that asks for a map that the backbone does not have.

    Raises:
        InputError: for an unknown size or stage, a ``freeze_at`` that is not 0 to 5, or weights
            that are not all of this encoder.
    """

    loaded: LoadResult | None
    missing: Exception | None

    def __init__(
        self,
        size: str,
        out_features: Sequence[str] = STAGES,
        out_norms: bool = True,
        freeze_at: int = 0,
        weights: str = "",
        allow_other_grn: bool = False,
        adapt_channels: bool = False,
        **options: Any,
    ) -> None:
        if size not in SIZES:
            raise InputError(f"unknown encoder {size!r}; the sizes are {', '.join(SIZES)}")
        if not out_features or (unknown := [name for name in out_features if name not in STAGES]):
            raise InputError(
                f"OUT_FEATURES names {unknown if out_features else 'nothing'}; "
                f"the stages are {', '.join(STAGES)}"
            )
        ascending = sorted(out_features, key=STAGES.index)
        super().__init__(
            SIZES[size],
            out_norms=ascending if out_norms else (),
            last_stage=ascending[-1],
            **options,
        )
        self.out_features = tuple(ascending)
        self.loaded = self.missing = None
        self.problems: Sequence[str] = ()
        self.freeze(freeze_at)
        if weights:
            self.load(weights, allow_other_grn, adapt_channels)

    def load(
        self, weights: str, allow_other_grn: bool = False, adapt_channels: bool = False
    ) -> None:
        """Load an encoder's weights, as the class describes."""
        try:
            allowed = {"allow_other_grn": allow_other_grn, "adapt_channels": adapt_channels}
            self.loaded = load_encoder(weights, self, **allowed, log=logger)
        except (FileNotFoundError, InputError) as error:
            if not (isinstance(error, FileNotFoundError) or weights.startswith("timm:")):
                raise
            self.missing = error
            logger.warning("%s; so a checkpoint must have the whole encoder", error)
            return
        if self.loaded.statistics is not None:
            mean, std = ([round(255 * v, 3) for v in row] for row in self.loaded.statistics)
            logger.info("these weights learnt from images of mean %s, deviation %s", mean, std)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *arguments: Any) -> None:
        if all(prefix + name in state_dict for name in self.state_dict()):
            self.missing = None
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(self, x_nchw: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Images ``[B, in_chans, H, W]`` -> stage name -> ``[B, C, H/stride, W/stride]``.

        Raises:
            FileNotFoundError, InputError: if ``weights`` were not there and nothing was loaded.
        """
        if self.missing is not None:
            raise self.missing
        features = self.forward_features(x_nchw)
        return {name: features[name] for name in self.out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each returned stage."""
        shapes = {
            name: ShapeSpec(channels=self.out_channels[name], stride=self.out_strides[name])
            for name in self.out_features
        }
        return _Shapes(shapes, self.problems)

    @property
    def size_divisibility(self) -> int:
        """Height and width are padded to a multiple of the last stage's stride."""
        return self.out_strides[self.out_features[-1]]


class ConvNeXtFPN(FPN):
    """detectron2's pyramid with only the requested levels.

    Args:
        levels: the levels to return, such as ``["p3", "p4"]``; None for all.
        **options: of detectron2's ``FPN``. A top block that subsamples the last level takes the
        last
            one of this pyramid, whichever it is.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        levels: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(bottom_up, in_features, out_channels, **options)
        last = self._out_features[len(self.in_features) - 1]
        if isinstance(self.top_block, LastLevelMaxPool):
            self.top_block.in_feature = last
        self.levels = tuple(self._out_features if levels is None else levels)
        needed = set(self.levels)
        if self.top_block is not None:
            needed.add(self.top_block.in_feature)
        for place, level in enumerate(reversed(self._out_features[: len(self.in_features)])):
            if level not in needed:
                self.output_convs[place] = nn.Identity()
                setattr(self, f"fpn_output{level[1:]}", self.output_convs[place])

    def forward(self, x_nchw: Tensor) -> dict[str, Tensor]:
        """Images ``[B, C, H, W]`` -> level -> ``[B, out_channels, H/stride, W/stride]``."""
        maps = super().forward(x_nchw)
        return {level: maps[level] for level in self.levels}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each returned level."""
        shapes = super().output_shape()
        problems = getattr(self.bottom_up, "problems", ())
        return _Shapes({level: shapes[level] for level in self.levels}, problems)


@BACKBONE_REGISTRY.register()
def build_convnext_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> D2ConvNeXt:
    """The encoder that ``MODEL.CONVNEXT`` describes, with the stages that the heads read.

    Raises:
        InputError: naming every key of ``cfg`` that does not fit.
        FileNotFoundError: if the encoder's weights do not exist.
    """
    problems = _check(cfg, None)
    read, given = all_levels_read(cfg.MODEL), list(cfg.MODEL.CONVNEXT.OUT_FEATURES)
    wanted = [name for name in given if read is None or name in read]
    return _build_encoder(cfg, wanted, "backbone", problems)


@BACKBONE_REGISTRY.register()
def build_convnext_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ConvNeXtFPN:
    """The encoder under a feature pyramid: p2 to p5, and p6, which is p5 subsampled.

    Raises:
        InputError, FileNotFoundError: as :func:`build_convnext_backbone`.
    """
    return _build_pyramid(cfg, extra=1)


@BACKBONE_REGISTRY.register()
def build_retinanet_convnext_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ConvNeXtFPN:
    """The encoder under RetinaNet's pyramid: p3 to p5, and p6 and p7 by convolutions of stage 4.

    Raises:
        InputError, FileNotFoundError: as :func:`build_convnext_backbone`.
    """
    return _build_pyramid(cfg, extra=2)


def _build_pyramid(cfg: CfgNode, extra: int) -> ConvNeXtFPN:
    """A pyramid whose top block makes ``extra`` levels: 1 by subsampling, 2 by convolutions."""
    problems = _check(cfg, extra)
    options = cfg.MODEL.FPN
    plan = plan_pyramid(options.IN_FEATURES, all_levels_read(cfg.MODEL), extra)
    encoder = _build_encoder(cfg, plan.stages, "backbone.bottom_up", problems)
    top_block: nn.Module | None = None
    if plan.above and extra == 1:
        top_block = LastLevelMaxPool()
    elif plan.above:
        top, channels = plan.stages[-1], options.OUT_CHANNELS
        top_block = LastLevelP6P7(encoder.out_channels[top], channels, in_feature=top)
    return ConvNeXtFPN(
        encoder,
        plan.stages,
        options.OUT_CHANNELS,
        plan.levels,
        norm=options.NORM,
        top_block=top_block,
        fuse_type=options.FUSE_TYPE,
    )


def _check(cfg: CfgNode, extra: int | None) -> list[str]:
    """Raise for errors in the config; returns errors of heads whose levels are only defaults."""
    problems = config_problems(cfg, extra, unchosen=True)
    if config_problems(cfg, extra):
        raise InputError(listed(problems, THE_CONFIG))
    return problems


def _build_encoder(
    cfg: CfgNode, out_features: Sequence[str], prefix: str, problems: Sequence[str]
) -> D2ConvNeXt:
    """The encoder with its weights, unless ``MODEL.WEIGHTS`` has them under ``prefix``."""
    convnext, weights = cfg.MODEL.CONVNEXT, cfg.MODEL.CONVNEXT.WEIGHTS

    encoder = D2ConvNeXt(
        convnext.SIZE,
        out_features=out_features,
        out_norms=convnext.OUT_NORMS,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_chans=convnext.IN_CHANS,
        drop_path_rate=convnext.DROP_PATH_RATE,
        output_stride=convnext.OUTPUT_STRIDE,
        checkpoint_stages=convnext.CHECKPOINT_STAGES,
        grn=GRNOptions.of_config(convnext.GRN),
    )
    encoder.problems = problems
    if weights and _holds(cfg.MODEL.WEIGHTS, prefix, encoder):
        logger.info("%s is not read: %s has the whole encoder", weights, cfg.MODEL.WEIGHTS)
    elif weights:
        encoder.load(weights, convnext.ALLOW_OTHER_GRN, convnext.ADAPT_CHANNELS)
        resumable = (Path(cfg.OUTPUT_DIR) / "last_checkpoint").is_file()
        if encoder.missing is not None and not (cfg.MODEL.WEIGHTS or resumable):
            raise encoder.missing
    if not cfg.MODEL.PIXEL_MEAN:
        _take_statistics(cfg)
    unlike = list(freezing(cfg.MODEL))
    if encoder.loaded is not None and encoder.loaded.statistics is not None:
        mean, std = ([255 * v for v in row] for row in encoder.loaded.statistics)
        unlike += foreign_pixels(cfg, mean, std, f"the encoder of {weights}")
    if unlike:
        logger.warning("\n  ".join(["this config is not as the encoder's weights are:", *unlike]))
    return encoder


def _take_statistics(cfg: CfgNode) -> None:
    """Fill an empty ``PIXEL_MEAN`` and ``PIXEL_STD``, which detectron2 reads after the backbone.

    Raises:
        InputError: if they are unknown for this number of channels.
    """
    convnext = cfg.MODEL.CONVNEXT
    source = convnext.WEIGHTS, convnext.IN_CHANS, cfg.INPUT.FORMAT
    is_frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = pixel_mean(*source), pixel_std(*source)
    if is_frozen:
        cfg.freeze()


def _holds(detector: str, prefix: str, encoder: D2ConvNeXt) -> bool:
    """Whether a checkpoint is a file that has every tensor of the encoder."""
    if not Path(detector).is_file():
        return False
    try:
        names = read_state_dict(detector)
    except InputError:  # detectron2's own checkpointer reads it later
        return False
    return all(f"{prefix}.{name}" in names for name in encoder.state_dict())


def lr_decay_rate(name: str, size: str, rate: float, kind: LayerDecayType = "group") -> float:
    """The factor of a parameter's learning rate under layer-wise decay.

    For ``lr_factor_func`` of detectron2's ``get_default_optimizer_params``, as its
    ``get_vit_lr_decay_rate`` is for ViTs.

    Args:
        name: the parameter's name in the detector; only the encoder's get a lower rate.
        size: the encoder's size, such as "convnextv2_tiny".
        rate: the factor from one group of layers to the next.
        kind: how layers are grouped, see :func:`backbones.param_groups.layer_id`.
    """
    depths = SIZES[size].depths
    for prefix in ("backbone.bottom_up.", "backbone."):
        inner = name.removeprefix("module.").removeprefix(prefix)
        if inner.startswith(ENCODER):
            return rate ** (last_layer_id(depths, kind) - layer_id(inner, depths, kind))
    return 1.0
