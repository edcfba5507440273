"""The recipes of supervised fine-tuning: one table, with a row for each step and size.

The paper goes from FCMAE to ImageNet-1K, directly or over ImageNet-22K. The steps are "in1k" (an
FCMAE encoder on ImageNet-1K), "in22k" (an FCMAE encoder on ImageNet-22K) and "in22k_in1k" (that
classifier on ImageNet-1K). The names only say where the values come from; any data set will do.

References:
    arXiv 2301.00808, appendix A.1 to A.2, Tables 9 to 13; facebookresearch/ConvNeXt-V2,
    TRAINING.md. Where they differ the released commands are followed (base rate of base: 6.25e-4).

Some values are not published and are this project's choice: grouped layer decay of huge, and of
base to huge in the steps with ImageNet-22K; weight decay, mixup, cutmix and label smoothing of
"in22k" and EMA and smoothing of "in22k_in1k" (those of ConvNeXt V1's ImageNet-22K recipe); V1's
sizes, which take the row of the V2 size with the nearest number of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from backbones.errors import InputError
from backbones.param_groups import LayerDecayType
from training.options import not_finite, out_of_limits

MANY_CLASSES = 10_000  # ImageNet-22K rather than -1K


VALUES = {
    "base_lr": "learning rate for a batch of 256 images; it is multiplied by batch / 256",
    "weight_decay": "weight decay; norms, biases and GRN have none",
    "layer_decay": "each layer learns at this factor times the rate of the layer above it",
    "layer_decay_type": "a layer is one block (single), or three of stage 3 (group)",
    "epochs": "passes over the training images, unless --max-steps is given",
    "warmup_epochs": "epochs over which the rate rises at the start; fewer in a run of --max-steps",
    "label_smoothing": "fraction of the target that is spread over all classes",
    "mixup": "alpha of mixup; 0: none",
    "cutmix": "alpha of cutmix; 0: none; with mixup, each batch gets one of them",
    "drop_path": "probability of skipping the last block; linear from 0 at the first",
    "ema_decay": "decay of the averaged weights; 0: no averaging",
    "rand_augment": "timm's name of a RandAugment policy; '': none",
    "random_erasing": "fraction of the images in which a rectangle is replaced by noise",
    "head_init_scale": "factor of a new head's initial weights",
}


@dataclass(frozen=True)
class Recipe:
    """The values of a recipe; ``VALUES`` says what each is."""

    base_lr: float
    weight_decay: float
    layer_decay: float
    layer_decay_type: LayerDecayType
    epochs: int
    warmup_epochs: float
    label_smoothing: float
    mixup: float
    cutmix: float
    drop_path: float
    ema_decay: float = 0.9999
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    random_erasing: float = 0.25
    head_init_scale: float = 0.001


# The batch for which a recipe was published.
BATCHES = {"in1k": 1024, "in22k": 4096, "in22k_in1k": 512}
STEPS = tuple(BATCHES)

#                 base_lr  decay  layer decay  epochs, warm-up  smooth  mixup cutmix  drop path
_IN1K = {
    "atto": Recipe(2e-4, 0.3, 0.9, "single", 600, 0, 0.2, 0.0, 0.0, 0.1),
    "femto": Recipe(2e-4, 0.05, 0.9, "single", 600, 0, 0.2, 0.3, 0.3, 0.0),
    "pico": Recipe(2e-4, 0.3, 0.9, "single", 600, 0, 0.2, 0.3, 0.3, 0.0),
    "nano": Recipe(2e-4, 0.3, 0.9, "single", 600, 0, 0.2, 0.5, 0.5, 0.1),
    "tiny": Recipe(8e-4, 0.05, 0.9, "single", 300, 40, 0.1, 0.8, 1.0, 0.2),
    "base": Recipe(6.25e-4, 0.05, 0.6, "group", 100, 20, 0.1, 0.8, 1.0, 0.1),
    "large": Recipe(6.25e-4, 0.05, 0.6, "group", 100, 20, 0.1, 0.8, 1.0, 0.2),
    "huge": Recipe(1.25e-3, 0.05, 0.75, "group", 50, 10, 0.1, 0.8, 1.0, 0.3),
}
_IN22K = {
    "nano": Recipe(2.5e-4, 0.05, 0.9, "single", 90, 5, 0.1, 0.8, 1.0, 0.0, ema_decay=0.0),
    "tiny": Recipe(2.5e-4, 0.05, 0.9, "single", 90, 5, 0.1, 0.8, 1.0, 0.0, ema_decay=0.0),
    "base": Recipe(2.5e-4, 0.05, 0.8, "group", 90, 5, 0.1, 0.8, 1.0, 0.1, ema_decay=0.0),
    "large": Recipe(2.5e-4, 0.05, 0.8, "group", 90, 5, 0.1, 0.8, 1.0, 0.1, ema_decay=0.0),
    "huge": Recipe(2.5e-4, 0.05, 0.8, "group", 90, 5, 0.1, 0.8, 1.0, 0.3, ema_decay=0.0),
}
_IN22K_IN1K = {
    "nano": Recipe(2.5e-5, 1e-8, 0.9, "single", 90, 0, 0.1, 0.0, 0.0, 0.1),
    "tiny": Recipe(2.5e-5, 1e-8, 0.9, "single", 90, 0, 0.1, 0.0, 0.0, 0.1),
    "base": Recipe(2.5e-5, 1e-8, 0.8, "group", 30, 0, 0.1, 0.0, 0.0, 0.2),
    "large": Recipe(2.5e-5, 1e-8, 0.8, "group", 30, 0, 0.1, 0.0, 0.0, 0.3),
    "huge": Recipe(2.5e-5, 1e-8, 0.85, "group", 30, 0, 0.1, 0.0, 0.0, 0.5),
}
RECIPES = {"in1k": _IN1K, "in22k": _IN22K, "in22k_in1k": _IN22K_IN1K}
V1_ROWS = {"small": "tiny", "xlarge": "large"}


def step_of_chain(classes: int, source_classes: int) -> str:
    """What ``--recipe auto`` means: the step's name, by the classes of data and source.

    Args:
        classes: of the data.
        source_classes: of the head that the weights come with; 0 for an encoder without.
    """
    if classes > MANY_CLASSES:
        return "in22k"
    return "in22k_in1k" if source_classes > MANY_CLASSES else "in1k"


def choose_recipe(step: str, model: str, overrides: Mapping[str, Any]) -> Recipe:
    """The table's row with values replaced.

    Args:
        step: a key of ``RECIPES``.
        model: a key of ``backbones.convnext.SIZES``.
        overrides: fields of :class:`Recipe`.

    Raises:
        InputError: for an unknown step, a size without a row, or values that cannot be; all of
            these that are wrong are named.
    """
    if step not in RECIPES:
        raise InputError(f"recipe is {step!r}; the recipes are auto, {', '.join(RECIPES)}")
    word = model.rpartition("_")[2]
    if not model.startswith("convnextv2"):
        word = V1_ROWS.get(word, word)
    if word not in RECIPES[step]:
        raise InputError(
            f"no recipe {step} was published for {model}; it has {', '.join(RECIPES[step])}; "
            "give --recipe in1k, and values of your own by flags"
        )
    recipe = replace(RECIPES[step][word], **overrides)
    if problems := _problems(recipe):
        raise InputError("; ".join(problems))
    return recipe


def schedule(recipe: Recipe, images: int, batch: int, max_steps: int | None) -> tuple[int, int]:
    """Optimizer steps of the whole run, and of its warm-up.

    A run that ``max_steps`` shortens warms up for the recipe's share of it.
    """
    steps = max_steps or max(1, math.ceil(recipe.epochs * images / batch))
    return steps, math.ceil(steps * recipe.warmup_epochs / recipe.epochs)


def _problems(recipe: Recipe) -> list[str]:
    problems = not_finite({each.name: getattr(recipe, each.name) for each in fields(Recipe)})
    problems += out_of_limits(
        recipe,
        {
            "in [0, 1)": ("label_smoothing", "drop_path", "ema_decay"),
            "at least 0": ("weight_decay", "warmup_epochs", "mixup", "cutmix", "head_init_scale"),
            "positive": ("base_lr", "epochs"),
            "in [0, 1]": ("random_erasing",),
            "in (0, 1]": ("layer_decay",),
        },
    )
    if recipe.layer_decay_type not in ("single", "group"):
        problems.append(f"layer_decay_type is {recipe.layer_decay_type!r}; allowed: single, group")
    if recipe.warmup_epochs > recipe.epochs:
        problems.append(
            f"warmup_epochs is {recipe.warmup_epochs}; the whole run has {recipe.epochs} epochs"
        )
    if recipe.rand_augment and not recipe.rand_augment.startswith("rand"):
        problems.append(
            f"rand_augment is {recipe.rand_augment!r}; give timm's name, such as "
            "rand-m9-mstd0.5-inc1, or '' for none"
        )
    return problems
