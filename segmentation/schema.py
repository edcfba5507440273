"""Every key of a segmentation config: its default, and the values that it may take.

``docs/configuration.md`` says what each key does, in the words of ``dev/config_descriptions.yaml``.
A key that detectron2 has keeps its name, type and meaning, so that the same file merges into
``get_cfg()``; so do the keys that detection's configs have (:mod:`detection.schema`). Keys of
segmentation alone: ``MODEL.SEM_SEG_HEAD.POOL_SCALES``, ``DROPOUT``, ``AUX_CHANNELS``,
``AUX_WEIGHT``, ``INPUT.SCALE``, ``INPUT.RATIO``, ``INPUT.DISTORT``, ``INPUT.IGNORE_LABEL``,
``INPUT.REDUCE_ZERO_LABEL``, ``SOLVER.LAYER_DECAY_LAYERS``, ``TEST.SLIDE.*``, ``TEST.SCALE``. The
defaults are UPerNet with the ConvNeXt papers' recipe for ADE20K on an atto.
"""

from __future__ import annotations

from typing import get_args

from backbones.convnext import SIZES, STAGES
from backbones.normalization import Aggregate, Kind, Normalize
from segmentation.upernet import Norm
from training.config_keys import (
    Key,
    bands,
    flag,
    names_of,
    number,
    numbers,
    one_of,
    statistics,
    text,
    value_range,
)


def _pair(height: int, width: int, low: int = 1) -> Key:
    return numbers((height, width), low, count=2)


# fmt: off
SCHEMA: dict[str, Key] = {
    "VERSION": one_of(2),
    "ENGINE": one_of("torchvision"),
    "WANDB": flag(False),
    "SEED": number(0, -1),
    "OUTPUT_DIR": text("./output"),

    "DATASETS.TRAIN": Key((), "a list of at most one data set, such as 'masks:IMAGES:LABELS'",
                          lambda value: len(value) <= 1 and all(map(bool, value))),
    "DATASETS.TEST": Key((), "a list of at most one data set, such as 'masks:IMAGES:LABELS'",
                         lambda value: len(value) <= 1 and all(map(bool, value))),
    "DATALOADER.NUM_WORKERS": number(4, 0),

    "INPUT.FORMAT": one_of("RGB", "BGR", "L", "raw"),
    "INPUT.VALUE_RANGE": value_range(),
    "INPUT.SHOW_BANDS": bands(),
    "INPUT.SCALE": _pair(2048, 512),
    "INPUT.RATIO": numbers((0.5, 2.0), 0.01, count=2),
    "INPUT.CROP.SIZE": _pair(512, 512, 32),
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": number(0.75, 0, 1),
    "INPUT.RANDOM_FLIP": one_of("horizontal", "none"),
    "INPUT.DISTORT": flag(True),
    "INPUT.IGNORE_LABEL": number(255, -1, 65535),
    "INPUT.REDUCE_ZERO_LABEL": flag(False),

    "MODEL.META_ARCHITECTURE": one_of("SemanticSegmentor"),
    "MODEL.DEVICE": Key("auto", "'auto', 'cpu', 'mps', 'cuda' or 'cuda:N'",
                        lambda value: value in ("auto", "cpu", "mps", "cuda")
                        or (value.startswith("cuda:") and value[5:].isdecimal())),
    "MODEL.WEIGHTS": text(),
    "MODEL.PIXEL_MEAN": statistics(),
    "MODEL.PIXEL_STD": statistics(above=0.0),
    "MODEL.BACKBONE.NAME": one_of("build_convnext_backbone"),
    "MODEL.BACKBONE.FREEZE_AT": number(0, 0, 5),
    "MODEL.CONVNEXT.SIZE": one_of("convnextv2_atto", *(s for s in SIZES if s != "convnextv2_atto")),
    "MODEL.CONVNEXT.WEIGHTS": text(),
    "MODEL.CONVNEXT.IN_CHANS": number(3, 1),
    "MODEL.CONVNEXT.DROP_PATH_RATE": number(0.0, 0, 0.99),
    "MODEL.CONVNEXT.OUT_FEATURES": one_of(list(STAGES)),
    "MODEL.CONVNEXT.OUT_NORMS": one_of(True),
    "MODEL.CONVNEXT.CHECKPOINT_STAGES": names_of([], STAGES, empty=True),
    "MODEL.CONVNEXT.GRN.KIND": one_of(*get_args(Kind)),
    "MODEL.CONVNEXT.GRN.AGGREGATE": one_of(*get_args(Aggregate)),
    "MODEL.CONVNEXT.GRN.NORMALIZE": one_of(*get_args(Normalize)),
    "MODEL.CONVNEXT.GRN.RESIDUAL": flag(True),
    "MODEL.CONVNEXT.ALLOW_OTHER_GRN": flag(False),
    "MODEL.CONVNEXT.ADAPT_CHANNELS": flag(False),
    "MODEL.SEM_SEG_HEAD.NAME": one_of("UPerNetHead"),
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": one_of(list(STAGES)),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": number(0, 0, 255),
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": one_of(255),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": number(512, 1),
    "MODEL.SEM_SEG_HEAD.NORM": one_of(*get_args(Norm)),
    "MODEL.SEM_SEG_HEAD.POOL_SCALES": numbers([1, 2, 3, 6], 1),
    "MODEL.SEM_SEG_HEAD.DROPOUT": number(0.1, 0, 0.99),
    "MODEL.SEM_SEG_HEAD.AUX_CHANNELS": number(256, 0),
    "MODEL.SEM_SEG_HEAD.AUX_WEIGHT": number(0.4, 0),

    "SOLVER.IMS_PER_BATCH": number(16, 1),
    "SOLVER.ACCUMULATE": number(1, 1),
    "SOLVER.MAX_ITER": number(160000, 1),
    "SOLVER.BASE_LR": number(1e-4, 0, above=True),
    "SOLVER.LR_SCHEDULER_NAME": one_of("WarmupPolyLR"),
    "SOLVER.POLY_LR_POWER": number(1.0, 0, above=True),
    "SOLVER.WARMUP_ITERS": number(1500, 0),
    "SOLVER.WARMUP_FACTOR": number(1e-6, 0, 1),
    "SOLVER.OPTIMIZER": one_of("AdamW"),
    "SOLVER.WEIGHT_DECAY": number(0.05, 0),
    "SOLVER.LAYER_DECAY": number(1.0, 0, 1, above=True),
    "SOLVER.LAYER_DECAY_TYPE": one_of("stage", "group", "single"),
    "SOLVER.LAYER_DECAY_LAYERS": number(12, 4),
    "SOLVER.CLIP_GRADIENTS.ENABLED": flag(False),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("full_model"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": number(1.0, 0, above=True),
    "SOLVER.EMA.ENABLED": flag(False),
    "SOLVER.EMA.DECAY": number(0.9999, 0, 1),
    "SOLVER.AMP.ENABLED": flag(False),
    "SOLVER.AMP.PRECISION": one_of("bf16", "fp16"),
    "SOLVER.CHECKPOINT_PERIOD": number(5000, 1),

    "TEST.EVAL_PERIOD": number(0, 0),
    "TEST.SCALE": _pair(2048, 512, 0),
    "TEST.SLIDE.ENABLED": flag(True),
    "TEST.SLIDE.SIZE": _pair(512, 512, 32),
    "TEST.SLIDE.STRIDE": _pair(341, 341),
    "TEST.AUG.SCALES": numbers([1.0], 0.01),
    "TEST.AUG.FLIP": flag(False),
    "TEST.BOUNDARY_IOU": flag(True),
}
# fmt: on
