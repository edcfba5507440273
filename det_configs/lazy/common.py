"""What the LazyConfigs here share; detectron2's own files give data, schedule and heads."""

from functools import partial
from pathlib import Path

import detectron2
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool

from backbones.d2_adapter import D2ConvNeXt, lr_decay_rate, pixel_mean, pixel_std

ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs" / "common"
SIZE = "convnextv2_tiny"
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def zoo(name):
    """A file of detectron2's configs/common, which lies in its package."""
    return LazyConfig.load(str(ZOO / name))


def on_convnext(model, backbone):
    """A model on this backbone, with the pixels that the encoder's weights learnt from."""
    model.backbone = backbone
    of_encoder = "backbone.bottom_up" if "bottom_up" in backbone else "backbone"
    told = {name: f"${{..{of_encoder}.{name}}}" for name in ("weights", "in_chans")}
    model.pixel_mean, model.pixel_std = L(pixel_mean)(**told), L(pixel_std)(**told)
    if "input_format" in model:
        model.input_format = "RGB"
    return model


def data(name="coco.py"):
    """A dataloader of detectron2's, in RGB; the test's mapper follows the training's."""
    dataloader = zoo(f"data/{name}").dataloader
    dataloader.train.mapper.image_format = "RGB"
    return dataloader


def encoder(**options):
    """The encoder, from random weights."""
    return L(D2ConvNeXt)(size=SIZE, in_chans=3, weights="", drop_path_rate=0.2, **options)


def pyramid():
    """The encoder under p2 to p6."""
    return L(FPN)(
        bottom_up=encoder(out_features=STAGES),
        in_features="${.bottom_up.out_features}",
        out_channels=256,
        top_block=L(LastLevelMaxPool)(),
    )


def adamw(size=SIZE, decay=0.95):
    """AdamW at 1e-4, slower towards the stem; no decay of norms, biases and GRN."""
    optimizer = zoo("optim.py").AdamW
    optimizer.weight_decay = 0.05
    optimizer.params.lr_factor_func = partial(lr_decay_rate, size=size, rate=decay)
    undecayed = ("bias", "gamma", "beta")
    optimizer.params.overrides = {name: {"weight_decay": 0.0} for name in undecayed}
    return optimizer


train = zoo("train.py").train
optimizer = adamw()
lr_multiplier = zoo("coco_schedule.py").lr_multiplier_1x
