"""The options of a supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from backbones.convnext import SIZES
from backbones.errors import InputError
from backbones.kernels import Kernels
from backbones.normalization import GRNOptions
from fcmae.classification.recipes import RECIPES, Recipe
from images.statistics import problems_of
from training.options import TrainingOptions, option, out_of_limits, training_problems

DATA = (
    "a folder with a folder of images for each class (or train/ and val/ of these), .tar shards of "
    "such folders, wds/ shards with .cls fields, or hfds/owner/name"
)
IMAGE_SIZE = "pixels, 224 or 160x96 (height x width); default: --init's own, or 224"
MEASURE = "epochs between two measurements of how different the channels are; 0: never"


# Further options that a resumed run may change.
FREE = (
    "recipe.epochs",
    "eval_every",
    "eval_classes",
    "measure_features_every",
    "skip_bad_images",
    "show_bands",
)


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions):
    """Everything that a fine-tuning depends on; written to ``config.yaml``.

    The help of each field says what it is. More on some of them:

    Args:
        data: see :mod:`fcmae.classification.data`.
        val_data, split, val_split, val_fraction, split_seed: where validation images come from,
            see :func:`fcmae.classification.data.labelled_data`.
        class_list: see :func:`fcmae.classification.head.choose_rows`.
        overrides: fields of :class:`Recipe` that replace the recipe's.
        grn: the form of GRN, or the layer in its place (V2 only); None for that of ``init``.
        allow_other_grn: accept an ``init`` that was trained with another form of GRN.
        min_lr: the rate of the head at the schedule's end.
        adapt_channels: convert the stem of an ``init`` with another number of channels.
        batch_size: must be even for mixup and cutmix.
        max_steps: ends the run and its schedule; replaces the recipe's epochs.
        eval_every: besides, the last step is always followed by an evaluation.
        clip_norm: none by default, as in the paper.

    Raises:
        InputError: with everything that is wrong.
    """

    model: str = option(", ".join(SIZES), choices=list(SIZES), metavar="NAME")
    data: str = option(DATA)
    val_data: str | None = option(
        "validation images; default: val/ or test/ in --data, or a fraction of --data", None
    )
    split: str = option("split of the training images, of sources that have several", "train")
    val_split: str = option(
        "split of the validation images, of sources that have several", "validation"
    )
    val_fraction: float = option(
        "fraction of each class of --data that is set apart for validation", 0.1
    )
    split_seed: int = option("seed that chooses the images of --val-fraction", 0)
    init: str | None = option(
        "weights to start from: an encoder or classifier, a file or timm:NAME", None
    )
    class_list: str | None = option(
        "a file that names the row of --init's head (number or name) for each class of --data", None
    )
    eval_classes: Literal["all", "data"] = option(
        "with --eval-only: predict among all classes, or among those of --data", "all"
    )
    in_chans: int | None = option("channels of the images; default: --init's own, or 3", None)
    value_range: tuple[float, float] | None = option(
        "the pixel values that become 0 and 1; default: --init's, or the range of the files' bits",
        None,
        nargs=2,
        metavar=("LOW", "HIGH"),
    )
    show_bands: tuple[int, ...] | None = option(
        "one or three channels, counted from 1, to show in pictures; default: --init's, or the "
        "first three",
        None,
    )
    skip_bad_images: bool = option(
        "replace images that cannot be used (in an evaluation leave them out) and list them in "
        "bad_images.txt; without this flag they are an error",
        False,
    )
    class_weights: Literal["none", "balanced"] = option(
        "balanced: multiply a class's loss by images / (classes x its images)", "none"
    )
    recipe: str = option(
        "the paper's recipe; auto: chosen by the number of classes and by --init's head",
        "auto",
        choices=["auto", *RECIPES],
    )
    overrides: Mapping[str, Any] = field(default_factory=dict)
    grn: GRNOptions | None = None
    allow_other_grn: bool = False
    adapt_channels: bool = False
    min_lr: float = option("learning rate at the end (released code: 1e-6)", 0.0)
    image_size: tuple[int, int] | None = option(IMAGE_SIZE, None, type=str, nargs=None)
    crop_pct: float | None = option(
        "evaluation: fraction of the resized image's side that is used; default: the authors'", None
    )
    mean: tuple[float, ...] | None = option("mean of each channel, of values scaled to 0..1", None)
    std: tuple[float, ...] | None = option(
        "standard deviation; default of both: --init's, ImageNet's for 8-bit RGB, else measured",
        None,
    )
    kernels: Kernels = option("kernels of the encoder; auto: Triton on a GPU, else torch", "auto")
    eval_every: int = option(
        "steps between two evaluations; 0: ten over the run, at most one per epoch", 0
    )
    measure_features_every: float = option(MEASURE, 0, metavar="EPOCHS")

    def __post_init__(self) -> None:
        problems = training_problems(self)
        if self.recipe not in ("auto", *RECIPES):
            problems.append(f"recipe is {self.recipe!r}; allowed: auto, {', '.join(RECIPES)}")
        known = [f.name for f in fields(Recipe)]
        if unknown := [name for name in self.overrides if name not in known]:
            problems.append(f"recipes have no {', '.join(unknown)}; they have {', '.join(known)}")
        if self.image_size is not None and min(self.image_size) < 32:
            problems.append(
                f"image size is {self.image_size[0]}x{self.image_size[1]}; at least 32x32, the "
                "encoder's stride"
            )
        at_least_0 = ("min_lr", "eval_every", "measure_features_every")
        limits = {"in (0, 1]": ("crop_pct",), "at least 0": at_least_0, "at least 1": ("in_chans",)}
        problems += out_of_limits(self, limits)
        if not 0 < self.val_fraction < 1:
            problems.append(f"val_fraction is {self.val_fraction}; it must be between 0 and 1")
        if self.value_range is not None and self.value_range[0] >= self.value_range[1]:
            low, high = self.value_range
            problems.append(f"value_range is {low:g} {high:g}; the first must be the lower")
        in_chans = self.in_chans or len(self.mean or self.std or (0, 0, 0))
        problems += problems_of(self.mean, self.std, "auto", in_chans)
        if problems:
            raise InputError("; ".join(problems))
