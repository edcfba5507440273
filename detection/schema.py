"""Every key of a detection config: its default, and the values that it may take.

``docs/configuration.md`` says what each key does, in the words of ``dev/config_descriptions.yaml``.

A key that detectron2 has keeps detectron2's name, type and meaning (the source is its
``config/defaults.py``), so that the same file merges into ``get_cfg()``. Keys of this project:
``ENGINE``, ``WANDB``, ``DATASETS.VAL``, ``MODEL.CONVNEXT.*``, ``MODEL.ROI_HEADS.SOFT_NMS.*``,
``INPUT.LSJ.*``, ``INPUT.TILES.*``, ``INPUT.AUGMENTATION.*``, ``SOLVER.OPTIMIZER``,
``SOLVER.LAYER_DECAY*``, ``SOLVER.ACCUMULATE``, ``SOLVER.EMA.*``, ``SOLVER.AMP.PRECISION``,
``SOLVER.EARLY_STOPPING.*``, ``TEST.BEST_METRIC``. The defaults are a Mask R-CNN with a feature
pyramid, as in detectron2's ``Base-RCNN-FPN.yaml``. Where these are not the defaults of
``get_cfg()``, ``det_configs/_base_`` repeats them.

Five values exist here and not in detectron2: ``INPUT.RANDOM_FLIP: both`` flips in both directions,
``MODEL.DEVICE: auto`` takes a GPU where there is one, ``ROI_HEADS.NUM_CLASSES: 0`` counts the
categories of the annotations, empty ``PIXEL_MEAN`` and ``PIXEL_STD`` are found
(``images.configured``), and ``CLIP_GRADIENTS.CLIP_TYPE: full_model`` clips the norm of all
gradients together.
"""

from __future__ import annotations

from typing import Any, get_args

from backbones.convnext import SIZES, STAGES
from backbones.normalization import Aggregate, Kind, Normalize
from images.configured import CHANNELS
from training.config_keys import (
    Key,
    bands,
    flag,
    is_nested,
    names_of,
    nested,
    number,
    numbers,
    one_of,
    statistics,
    text,
    value_range,
)
from training.devices import DEVICES

LEVELS = ("p2", "p3", "p4", "p5", "p6")
PARTS = ("encoder", "pyramid", "heads")


def dataset_names() -> Key:
    return Key(
        (),
        "a list of different data sets, 'json:ANNOTATIONS:IMAGE_FOLDER' or a registered name",
        lambda value: (
            all(isinstance(name, str) and name for name in value) and len(set(value)) == len(value)
        ),
    )


def norm() -> Key:
    return one_of("", "LN", "GN", "BN", "SyncBN")


# fmt: off
SCHEMA: dict[str, Key] = {
    "VERSION": one_of(2),
    "ENGINE": one_of("torchvision", "detectron2"),
    "WANDB": flag(False),
    "SEED": number(0, -1),
    "OUTPUT_DIR": text("./output"),

    "DATASETS.TRAIN": dataset_names(),
    "DATASETS.VAL": dataset_names(),
    "DATASETS.TEST": dataset_names(),
    "DATALOADER.NUM_WORKERS": number(4, 0),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": flag(True),
    "DATALOADER.ASPECT_RATIO_GROUPING": flag(False),
    "DATALOADER.SAMPLER_TRAIN": one_of("TrainingSampler", "RepeatFactorTrainingSampler"),
    "DATALOADER.REPEAT_THRESHOLD": number(0.0, 0, 1),
    "DATALOADER.REPEAT_SQRT": flag(True),

    "INPUT.FORMAT": one_of(*CHANNELS),
    "INPUT.VALUE_RANGE": value_range(),
    "INPUT.SHOW_BANDS": bands(),
    "INPUT.MASK_FORMAT": one_of("bitmask", "polygon"),
    "INPUT.MIN_SIZE_TRAIN": numbers((800,), 1),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": number(1333, 1),
    "INPUT.MIN_SIZE_TEST": number(800, 0),
    "INPUT.MAX_SIZE_TEST": number(1333, 1),
    "INPUT.RANDOM_FLIP": one_of("horizontal", "vertical", "none", "both"),
    "INPUT.CROP.ENABLED": flag(False),
    "INPUT.CROP.TYPE": one_of("relative_range", "relative", "absolute", "absolute_range"),
    "INPUT.CROP.SIZE": numbers([0.9, 0.9], 0.0, count=2),
    "INPUT.LSJ.ENABLED": flag(False),
    "INPUT.LSJ.MIN_SCALE": number(0.1, 0, above=True),
    "INPUT.LSJ.MAX_SCALE": number(2.0, 0, above=True),
    "INPUT.LSJ.SIZE": number(1024, 32),
    "INPUT.TILES.ENABLED": flag(False),
    "INPUT.TILES.SIZE": number(0, 0),
    "INPUT.TILES.OVERLAP": number(-1, -1),
    "INPUT.TILES.BACKGROUND": number(0.2, 0, 1),
    "INPUT.TILES.MIN_VISIBLE": number(0.1, 0, 1),
    "INPUT.AUGMENTATION.ROTATE_90": flag(False),
    "INPUT.AUGMENTATION.BRIGHTNESS": number(0.0, 0, 1),
    "INPUT.AUGMENTATION.CONTRAST": number(0.0, 0, 1),
    "INPUT.AUGMENTATION.SATURATION": number(0.0, 0, 1),
    "INPUT.AUGMENTATION.HUE": number(0.0, 0, 0.5),
    "INPUT.AUGMENTATION.BLUR": number(0.0, 0),
    "INPUT.AUGMENTATION.NOISE": number(0.0, 0, 1),
    "INPUT.AUGMENTATION.COPY_PASTE.ENABLED": flag(False),
    "INPUT.AUGMENTATION.COPY_PASTE.PROBABILITY": number(1.0, 0, 1),
    "INPUT.AUGMENTATION.COPY_PASTE.MIN_SCALE": number(0.8, 0, above=True),
    "INPUT.AUGMENTATION.COPY_PASTE.MAX_SCALE": number(1.25, 0, above=True),

    "MODEL.META_ARCHITECTURE": one_of("GeneralizedRCNN"),
    "MODEL.DEVICE": Key("auto", "'auto', 'cpu', 'cuda', 'cuda:N' or 'mps' (Apple's GPU)",
                        lambda value: value in ("auto", *DEVICES)
                        or (value.startswith("cuda:") and value[5:].isdecimal())),
    "MODEL.WEIGHTS": text(),
    "MODEL.MASK_ON": flag(True),
    "MODEL.PIXEL_MEAN": statistics(),
    "MODEL.PIXEL_STD": statistics(above=0.0),
    "MODEL.BACKBONE.NAME": one_of("build_convnext_fpn_backbone"),
    "MODEL.BACKBONE.FREEZE_AT": number(0, 0, 5),
    "MODEL.CONVNEXT.SIZE": one_of("convnextv2_atto", *(s for s in SIZES if s != "convnextv2_atto")),
    "MODEL.CONVNEXT.WEIGHTS": text(),
    "MODEL.CONVNEXT.IN_CHANS": number(3, 1),
    "MODEL.CONVNEXT.DROP_PATH_RATE": number(0.0, 0, 0.99),
    "MODEL.CONVNEXT.OUT_FEATURES": names_of(list(STAGES), STAGES),
    "MODEL.CONVNEXT.OUT_NORMS": flag(True),
    "MODEL.CONVNEXT.CHECKPOINT_STAGES": names_of([], STAGES, empty=True),
    "MODEL.CONVNEXT.GRN.KIND": one_of(*get_args(Kind)),
    "MODEL.CONVNEXT.GRN.AGGREGATE": one_of(*get_args(Aggregate)),
    "MODEL.CONVNEXT.GRN.NORMALIZE": one_of(*get_args(Normalize)),
    "MODEL.CONVNEXT.GRN.RESIDUAL": flag(True),
    "MODEL.CONVNEXT.ALLOW_OTHER_GRN": flag(False),
    "MODEL.CONVNEXT.ADAPT_CHANNELS": flag(False),
    "MODEL.CLASS_ALIASES": Key((), "a list of HERE=THERE, class names of the data and of WEIGHTS",
                               lambda value: all("=" in str(item) for item in value)),
    "MODEL.FREEZE": names_of([], PARTS, empty=True),
    "MODEL.FPN.IN_FEATURES": names_of(list(STAGES), STAGES),
    "MODEL.FPN.OUT_CHANNELS": number(256, 1),
    "MODEL.FPN.NORM": norm(),
    "MODEL.FPN.FUSE_TYPE": one_of("sum", "avg"),
    "MODEL.ANCHOR_GENERATOR.NAME": one_of("DefaultAnchorGenerator"),
    "MODEL.ANCHOR_GENERATOR.SIZES": nested([[32], [64], [128], [256], [512]]),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": nested([[0.5, 1.0, 2.0]]),
    "MODEL.ANCHOR_GENERATOR.OFFSET": number(0.0, 0, 0.99),
    "MODEL.PROPOSAL_GENERATOR.NAME": one_of("RPN"),
    "MODEL.RPN.HEAD_NAME": one_of("StandardRPNHead"),
    "MODEL.RPN.IN_FEATURES": names_of(list(LEVELS), LEVELS),
    "MODEL.RPN.BOUNDARY_THRESH": number(-1, -1),
    "MODEL.RPN.IOU_THRESHOLDS": numbers([0.3, 0.7], 0.0, count=2),
    "MODEL.RPN.IOU_LABELS": one_of([0, -1, 1]),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": number(256, 1),
    "MODEL.RPN.POSITIVE_FRACTION": number(0.5, 0, 1),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": number(2000, 1),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": number(1000, 1),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": number(1000, 1),
    "MODEL.RPN.POST_NMS_TOPK_TEST": number(1000, 1),
    "MODEL.RPN.NMS_THRESH": number(0.7, 0, 1),
    "MODEL.RPN.CONV_DIMS": numbers([-1], -1),
    "MODEL.ROI_HEADS.NAME": one_of(
        "StandardROIHeads", "CascadeROIHeads", "PerClassCascadeROIHeads"),
    "MODEL.ROI_HEADS.NUM_CLASSES": number(0, 0),
    "MODEL.ROI_HEADS.IN_FEATURES": names_of(list(LEVELS[:4]), LEVELS[:4]),
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": numbers([0.5], 0.0, count=1),
    "MODEL.ROI_HEADS.IOU_LABELS": one_of([0, 1]),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": number(512, 1),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": number(0.25, 0, 1),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": number(0.05, 0, 1),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": number(0.5, 0, 1),
    "MODEL.ROI_HEADS.SOFT_NMS.ENABLED": flag(False),
    "MODEL.ROI_HEADS.SOFT_NMS.METHOD": one_of("linear", "gaussian"),
    "MODEL.ROI_HEADS.SOFT_NMS.SIGMA": number(0.5, 0, above=True),
    "MODEL.ROI_HEADS.SOFT_NMS.MIN_SCORE": number(0.001, 0, 1),
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": flag(True),
    "MODEL.ROI_BOX_HEAD.NAME": one_of("FastRCNNConvFCHead"),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": number(0, 0),
    "MODEL.ROI_BOX_HEAD.CONV_DIM": number(256, 1),
    "MODEL.ROI_BOX_HEAD.NUM_FC": number(2, 0),
    "MODEL.ROI_BOX_HEAD.FC_DIM": number(1024, 1),
    "MODEL.ROI_BOX_HEAD.NORM": norm(),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": number(7, 1),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": number(0, 0),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": one_of("ROIAlignV2", "ROIAlign"),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": flag(False),
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": numbers((0.5, 0.6, 0.7), 0.0),
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": Key(
        ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
        "a list of 4 positive numbers for each stage",
        lambda value: is_nested(value) and all(len(row) == 4 for row in value)),
    "MODEL.ROI_MASK_HEAD.NAME": one_of("MaskRCNNConvUpsampleHead"),
    "MODEL.ROI_MASK_HEAD.NUM_CONV": number(4, 0),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": number(256, 1),
    "MODEL.ROI_MASK_HEAD.NORM": norm(),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": number(14, 1),
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": number(0, 0),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": one_of("ROIAlignV2", "ROIAlign"),
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": flag(False),

    "SOLVER.IMS_PER_BATCH": number(16, 1),
    "SOLVER.ACCUMULATE": number(1, 1),
    "SOLVER.MAX_ITER": number(40000, 1),
    "SOLVER.BASE_LR": number(1e-4, 0, above=True),
    "SOLVER.LR_SCHEDULER_NAME": one_of("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.STEPS": Key((30000,), "a list of increasing positive integers",
                        lambda value: all(type(item) is int and item > 0 for item in value)
                        and list(value) == sorted(set(value))),
    "SOLVER.GAMMA": number(0.1, 0, 1, above=True),
    "SOLVER.WARMUP_ITERS": number(1000, 0),
    "SOLVER.WARMUP_FACTOR": number(0.001, 0, 1),
    "SOLVER.WARMUP_METHOD": one_of("linear", "constant"),
    "SOLVER.OPTIMIZER": one_of("AdamW"),
    "SOLVER.WEIGHT_DECAY": number(0.05, 0),
    "SOLVER.LAYER_DECAY": number(1.0, 0, 1, above=True),
    "SOLVER.LAYER_DECAY_TYPE": one_of("group", "single"),
    "SOLVER.CLIP_GRADIENTS.ENABLED": flag(False),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("full_model", "norm", "value"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": number(1.0, 0, above=True),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": number(2.0, 0, above=True),
    "SOLVER.EMA.ENABLED": flag(False),
    "SOLVER.EMA.DECAY": number(0.9999, 0, 1),
    "SOLVER.AMP.ENABLED": flag(False),
    "SOLVER.AMP.PRECISION": one_of("bf16", "fp16"),
    "SOLVER.CHECKPOINT_PERIOD": number(5000, 1),
    "SOLVER.EARLY_STOPPING.PATIENCE": number(0, 0),

    "TEST.DETECTIONS_PER_IMAGE": number(100, 1),
    "TEST.EVAL_PERIOD": number(0, 0),
    "TEST.BEST_METRIC": one_of("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50"),
    "TEST.AUG.ENABLED": flag(False),
    "TEST.AUG.MIN_SIZES": numbers((400, 500, 600, 700, 800, 900, 1000, 1100, 1200), 1),
    "TEST.AUG.MAX_SIZE": number(4000, 1),
    "TEST.AUG.FLIP": flag(True),
}
# fmt: on

# The values that the torchvision engine takes, for keys of which detectron2 takes more.
TORCHVISION_ONLY: dict[str, tuple[Any, ...]] = {
    "INPUT.MASK_FORMAT": ("bitmask",),
    "DATALOADER.ASPECT_RATIO_GROUPING": (False,),
    "MODEL.FPN.FUSE_TYPE": ("sum",),
    "MODEL.FPN.NORM": ("", "LN", "GN"),
    "MODEL.RPN.BOUNDARY_THRESH": (-1,),
    "MODEL.ROI_HEADS.NAME": ("StandardROIHeads",),
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": (True,),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (False,),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2",),
    "MODEL.ROI_MASK_HEAD.NORM": ("", "LN", "GN"),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("ROIAlignV2",),
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": (False,),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("full_model",),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": (2.0,),
    "TEST.AUG.ENABLED": (False,),
}
# Those of them that act only in training: a trained detector runs on either engine all the same.
IN_TRAINING_ALONE = (
    "INPUT.MASK_FORMAT",
    "DATALOADER.ASPECT_RATIO_GROUPING",
    "MODEL.RPN.BOUNDARY_THRESH",
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT",
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE",
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE",
)
