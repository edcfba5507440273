"""The options of a supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from backbones.errors import InputError
from backbones.kernels import Kernels
from backbones.normalization import GRNOptions
from fcmae.classification.recipes import RECIPES, Recipe
from images.statistics import problems_of
from training.options import loop_problems


@dataclass(frozen=True)
class FinetuneOptions:
    """Everything that a fine-tuning depends on; written to ``config.yaml``.

    Args:
        model: a key of ``backbones.convnext.SIZES``.
        data: a source of labelled images, see :mod:`fcmae.classification.data`.
        output_dir: the run's folder.
        val_data, split, val_split, val_fraction, split_seed: where validation images come from,
            see :func:`fcmae.classification.data.labelled_data`.
        init: a checkpoint (path or ``timm:NAME``) to start from: an encoder or a classifier.
        class_list: a file that selects rows of that classifier's head, see
            :func:`fcmae.classification.head.choose_rows`.
        recipe: a key of ``RECIPES``, or "auto" for the chain's step that classes and head imply.
        overrides: fields of :class:`Recipe` that replace the recipe's.
        grn: the form of GRN, or what stands in its place (V2 only); None for that of ``init``.
        allow_other_grn: ``init`` may have been trained with another.
        image_size: height and width in pixels; None for the classifier's own, or 224.
        crop_pct: share of a resized image that evaluation sees; None for the authors' way.
        mean, std: of values scaled to 0..1; None for the checkpoint's own, or ImageNet's.
        kernels: Triton's on a GPU ("auto" takes them where they run) or PyTorch's own.
        batch_size: images of one optimizer step, over all processes; even for mixup and cutmix.
        max_steps: ends the run (and its schedule) after that many steps, whatever the epochs.
        eval_every: steps between two evaluations; 0 for about ten over the run, but at most one an
            epoch. The last step is always followed by one.
        measure_features_every: epochs between two measures of the features' diversity, see
            :mod:`fcmae.features.collapse`; 0 for never.
        clip_norm: largest global gradient norm; none by default, as in the paper.

    Raises:
        InputError: with everything that is wrong.
    """

    model: str
    data: str
    output_dir: str
    val_data: str | None = None
    split: str = "train"
    val_split: str = "validation"
    val_fraction: float = 0.1
    split_seed: int = 0
    init: str | None = None
    class_list: str | None = None
    recipe: str = "auto"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    grn: GRNOptions | None = None
    allow_other_grn: bool = False
    image_size: tuple[int, int] | None = None
    crop_pct: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    kernels: Kernels = "auto"
    batch_size: int = 64
    max_steps: int | None = None
    eval_every: int = 0
    measure_features_every: float = 0
    clip_norm: float | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    workers: int = 2
    accumulate: int = 1
    seed: int = 0
    device: str | None = None
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        problems = loop_problems(self)
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
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            problems.append(f"crop_pct is {self.crop_pct}; it must be in (0, 1]")
        if not 0 < self.val_fraction < 1:
            problems.append(f"val_fraction is {self.val_fraction}; it must be between 0 and 1")
        for name in ("eval_every", "measure_features_every"):
            if (value := getattr(self, name)) < 0:
                problems.append(f"{name} is {value}; it must be at least 0")
        problems += problems_of(self.mean, self.std, "auto", 3)
        if problems:
            raise InputError("; ".join(problems))
