"""Reads segmentation configs, and builds the model and its settings from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from backbones.convnext import STAGES, ConvNeXt, build_convnext
from backbones.errors import InputError
from backbones.normalization import GRNOptions
from backbones.pyramid import Contradiction
from images.configured import known_statistics, shared_contradictions
from images.statistics import IMAGENET, to_pixel_scale
from segmentation.dataset import SegmentationDataset
from segmentation.inference import InferenceOptions
from segmentation.model import UPerNet
from segmentation.schema import SCHEMA
from segmentation.transforms import BRIGHTNESS, Augmentation
from segmentation.upernet import UPerNetOptions
from training.config_files import read_config

IMAGENET_STD = to_pixel_scale(IMAGENET.std, "RGB")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """A config file with its bases and ``KEY VALUE`` overrides, checked as a whole, frozen.

    Raises:
        InputError: listing all problems, each with its file.
        FileNotFoundError: if the file or one of its bases is missing.
    """
    return read_config(path, overrides, SCHEMA, _contradictions)


def _contradictions(config: CfgNode) -> Iterator[Contradiction]:
    yield from shared_contradictions(config)
    head = config.MODEL.SEM_SEG_HEAD
    for name, least in (("CONVS_DIM", 64), ("AUX_CHANNELS", 0)):
        if head.NORM == "GN" and (head[name] % 32 or head[name] < least):
            yield (
                (f"MODEL.SEM_SEG_HEAD.{name}", "MODEL.SEM_SEG_HEAD.NORM"),
                f"MODEL.SEM_SEG_HEAD.{name} is {head[name]}; group norm (NORM 'GN') needs a "
                f"multiple of 32{', at least 64' * (least > 0)}",
            )
    if config.INPUT.RATIO[0] > config.INPUT.RATIO[1]:
        yield (("INPUT.RATIO",), f"INPUT.RATIO is {config.INPUT.RATIO}; give (low, high)")
    slide = config.TEST.SLIDE
    if any(step > side for step, side in zip(slide.STRIDE, slide.SIZE, strict=True)):
        yield (
            ("TEST.SLIDE.SIZE", "TEST.SLIDE.STRIDE"),
            f"TEST.SLIDE.STRIDE {slide.STRIDE} is larger than SIZE {slide.SIZE}: pixels between "
            "two windows would be left out; make STRIDE at most SIZE",
        )


def resolve_num_classes(config: CfgNode, dataset: SegmentationDataset) -> int:
    """The data set's number of classes; ``NUM_CLASSES`` must be equal to it, or 0.

    Raises:
        InputError: if it does not.
    """
    given, counted = config.MODEL.SEM_SEG_HEAD.NUM_CLASSES, len(dataset.classes.names)
    if given not in (0, counted):
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {given}, but {dataset.name} has {counted} classes; "
            f"set it to {counted}, or to 0 to take the data set's number"
        )
    return counted


def build_encoder(config: CfgNode) -> ConvNeXt:
    """The encoder of ``MODEL.CONVNEXT``, with random weights and a norm on each stage."""
    convnext = config.MODEL.CONVNEXT
    encoder = build_convnext(
        convnext.SIZE,
        in_chans=convnext.IN_CHANS,
        drop_path_rate=convnext.DROP_PATH_RATE,
        out_norms=STAGES,
        checkpoint_stages=convnext.CHECKPOINT_STAGES,
        grn=GRNOptions.of_config(convnext.GRN),
    )
    encoder.freeze(config.MODEL.BACKBONE.FREEZE_AT)
    return encoder


def head_options(config: CfgNode) -> UPerNetOptions:
    """Options of the heads, from ``MODEL.SEM_SEG_HEAD``; also of detectron2's config."""
    head = config.MODEL.SEM_SEG_HEAD
    return UPerNetOptions(
        num_classes=head.NUM_CLASSES,
        channels=head.CONVS_DIM,
        pool_scales=tuple(head.POOL_SCALES),
        dropout=head.DROPOUT,
        norm=head.NORM,
        aux_channels=head.AUX_CHANNELS,
        aux_weight=head.AUX_WEIGHT,
    )


def build_segmenter(config: CfgNode) -> UPerNet:
    """The model that a config describes, with random weights.

    Args:
        config: with ``NUM_CLASSES`` above 0.

    Raises:
        InputError: if mean and deviation are empty and there are not three channels.
    """
    return UPerNet(build_encoder(config), head_options(config), *known_statistics(config))


def augmentation(config: CfgNode) -> Augmentation:
    """The augmentation of training samples, by ``INPUT``.

    Brightness of deep images varies by as many standard deviations as that of photographs.
    """
    options, deviations = config.INPUT, config.MODEL.PIXEL_STD or IMAGENET_STD
    contrast = (sum(deviations) / len(deviations)) / (sum(IMAGENET_STD) / len(IMAGENET_STD))
    return Augmentation(
        scale=tuple(options.SCALE),
        ratio=tuple(options.RATIO),
        crop=tuple(options.CROP.SIZE),
        cat_max_ratio=options.CROP.SINGLE_CATEGORY_MAX_AREA,
        flip=0.5 if options.RANDOM_FLIP == "horizontal" else 0,
        distort=options.DISTORT,
        brightness=BRIGHTNESS * contrast,
    )


def inference_options(config: CfgNode) -> InferenceOptions:
    """How images are predicted, by ``TEST``."""
    test = config.TEST
    return InferenceOptions(
        scale=tuple(test.SCALE) if any(test.SCALE) else None,
        window=tuple(test.SLIDE.SIZE) if test.SLIDE.ENABLED else None,
        stride=tuple(test.SLIDE.STRIDE),
        scales=tuple(test.AUG.SCALES),
        flip=test.AUG.FLIP,
    )
