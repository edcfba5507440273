"""The options of a pretraining run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from backbones.errors import InputError
from backbones.kernels import Kernels, why_no_triton
from backbones.normalization import GRNOptions
from fcmae.decoders import check_decoder
from fcmae.masking import PATCH, grid_size, visible_count
from images.statistics import problems_of
from training.options import loop_problems


@dataclass(frozen=True)
class PretrainOptions:
    """Everything that a pretraining run depends on; written to ``config.yaml``.

    Args:
        model: a key of ``backbones.convnext.SIZES``.
        data: a source of images, see :func:`images.readers.open_images`.
        output_dir: the run's folder.
        split: of sources that have several.
        in_chans: channels of the images; how a file's become these: ``images.files``.
        mean, std: of each channel, of values scaled to 0..1; chosen by ``statistics`` when None.
        statistics: "imagenet", "measure", or "auto": ImageNet's for 3 channels of 8 bits, measured
            for all others.
        statistics_images: at most so many images, drawn with the seed, are measured.
        skip_bad_images: replace images that cannot be used by the next good one and list them;
            otherwise they are errors.
        image_size: height and width in pixels, multiples of 32.
        batch_size: images of one optimizer step, over all processes.
        epochs: passes over the data.
        max_steps: ends the run (and its schedule) after that many steps, whatever ``epochs`` says.
        encoder: "packed", "masked-dense" for the reference computation, or "mask-token".
        grn: the form of GRN in the encoder, or what stands in its place (V2 only).
        allow_other_grn: ``init`` may have been trained with another.
        kernels: Triton's on a GPU ("auto" takes them where they run) or PyTorch's own.
        mask_ratio: share of patches removed.
        patch_size: their side, a multiple of 32 pixels.
        base_lr: learning rate for a batch of 256; it scales linearly with the batch.
        warmup_epochs: linear warm-up; at most a tenth of the run where that is shorter.
        weight_decay: on everything but norms, biases and GRN.
        decoder, decoder_dim, decoder_depth, norm_pix_loss: see :class:`fcmae.model.FCMAE`.
        init: an encoder checkpoint (path or ``timm:NAME``) to start from.
        clip_norm: largest global gradient norm; none by default, as in the paper.
        panel_every: steps between two reconstruction panels; 0 for about ten over the run.
        measure_features_every: epochs between two measures of the features' diversity, see
            ``fcmae.features.collapse``; None for about fifty over the run, 0 for none.
    """

    model: str
    data: str
    output_dir: str
    split: str = "train"
    in_chans: int = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    statistics: Literal["auto", "imagenet", "measure"] = "auto"
    statistics_images: int = 2000
    skip_bad_images: bool = False
    image_size: tuple[int, int] = (224, 224)
    batch_size: int = 64
    epochs: int = 800
    max_steps: int | None = None
    encoder: Literal["packed", "masked-dense", "mask-token"] = "packed"
    grn: GRNOptions = field(default_factory=GRNOptions)
    allow_other_grn: bool = False
    kernels: Kernels = "auto"
    mask_ratio: float = 0.6
    patch_size: int = PATCH
    base_lr: float = 1.5e-4
    warmup_epochs: float = 40
    weight_decay: float = 0.05
    decoder: Literal["convnext", "unet", "unet-skips", "transformer"] = "convnext"
    decoder_dim: int = 512
    decoder_depth: int = 1
    norm_pix_loss: bool = True
    init: str | None = None
    clip_norm: float | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    workers: int = 2
    accumulate: int = 1
    seed: int = 0
    device: str | None = None
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    panel_every: int = 0
    measure_features_every: float | None = None
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        counts = ("epochs", "decoder_dim", "decoder_depth", "in_chans", "statistics_images")
        problems = loop_problems(self, counts)
        checks: tuple[tuple[Callable[..., object], tuple], ...] = (
            (grid_size, (*self.image_size, self.patch_size)),
            (visible_count, (1, self.mask_ratio)),
            (check_decoder, (self.decoder, self.decoder_dim)),
        )
        for check, values in checks:
            try:
                check(*values)
            except ValueError as error:
                problems.append(str(error))
        problems += problems_of(self.mean, self.std, self.statistics, self.in_chans)
        if self.base_lr <= 0:
            problems.append(f"base_lr is {self.base_lr}; it must be positive")
        if self.measure_features_every is not None and self.measure_features_every < 0:
            problems.append(
                f"measure_features_every is {self.measure_features_every}; 0 is for never"
            )
        if self.kernels == "triton":
            on_gpu = self.device != "cpu" and torch.cuda.is_available()
            problem = why_no_triton(torch.device("cuda" if on_gpu else "cpu"))
            problems += [f"kernels is 'triton', but {problem}"] if problem else []
        if problems:
            raise InputError("; ".join(problems))


def total_steps(options: PretrainOptions, images: int) -> int:
    """Optimizer steps of the whole run."""
    if options.max_steps is not None:
        return options.max_steps
    return max(1, math.ceil(options.epochs * images / options.batch_size))


def parse_image_size(text: str | Sequence[int]) -> tuple[int, int]:
    """``"224"`` or ``"160x96"`` (height x width) -> (height, width) in pixels.

    Raises:
        InputError: if it is neither.
    """
    parts = text.lower().split("x") if isinstance(text, str) else [str(v) for v in text]
    if len(parts) not in (1, 2) or not all(part.isdigit() for part in parts):
        raise InputError(
            f"image size is {text!r}; give pixels as 224 or as 160x96 (height x width)"
        )
    return int(parts[0]), int(parts[-1])
