"""The options of a pretraining run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from backbones.convnext import SIZES
from backbones.errors import InputError
from backbones.kernels import Kernels, why_no_triton
from backbones.normalization import GRNOptions
from fcmae.data import CROP_SCALE
from fcmae.decoders import check_decoder
from fcmae.masking import PATCH, grid_size, visible_count
from images.display import bands_problems
from images.files import range_problems
from images.statistics import problems_of
from training.devices import find_device
from training.options import TrainingOptions, option, out_of_limits, training_problems

CHANNELS = (
    "channels; converted are grey to 3 (repeated), RGB to 1 (luma) and a dropped alpha; a file of "
    "any other number of channels is bad"
)
ENCODER = (
    "packed computes visible patches alone; masked-dense is its slow reference; mask-token sees "
    "whole images with a learnt token at removed patches"
)
STATISTICS = (
    "where mean and std come from if not given; auto: ImageNet's for 3 channels of 8 bits, "
    "measured for all others"
)
MEASURE = (
    "how far apart the channels of each block are, with a warning where they collapse; 0: never; "
    "else about fifty times over the run"
)
HARD = (
    "of the removed patches, the share that is chosen for the largest error of the model as it is, "
    "by two forward passes more; the others stay random"
)
SKIP = (
    "replace an image that cannot be used by the next good one, count it and list it in "
    "bad_images.txt; without this flag it ends the run with an error that names it"
)
CACHE = (
    "a folder for shrunk copies of large images, each made once: crops are cut from these, and "
    "headers are not read again; for large PNG, TIFF and JPEG files in a folder"
)
DATA = (
    "a folder of images (flat or nested), .tar shards (a file, a folder, or a pattern such as "
    "'shards/{000..010}.tar'; with wds/ before it for webdataset's naming of files), or a Hugging "
    "Face data set (hfds/owner/name)"
)


PROBE = (
    "labelled images, a folder for each class: now and then kNN and a linear probe of the frozen "
    "encoder tell them apart"
)

# What a resumed run may change, beside what every training may; its statistics are checked apart.
FREE = (
    "epochs", "probe", "cache", "cache_gb", "mean", "std", "statistics_images", "skip_bad_images",
    "panel_every", "show_bands",
    "measure_features_every",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(TrainingOptions):
    """Everything that a pretraining run depends on; written to ``config.yaml``.

    The fields' help says what they are; further:

    Args:
        data: see :func:`images.readers.open_images`.
        in_chans: how a file's channels become these: :mod:`images.files`.
        grn: the form of GRN in the encoder, or what stands in its place (V2 only).
        allow_other_grn: ``init`` may have been trained with another.
        adapt_channels: ``init`` may be of other channels; its stem is turned into the model's.
        decoder, decoder_dim, decoder_depth, norm_pix_loss: see :class:`fcmae.model.FCMAE`.
        hard_patches: see :mod:`fcmae.hard_patches`.
        crop_scale, grey_share: see :class:`fcmae.data.PretrainingSamples`.
        measure_features_every: see :mod:`fcmae.features.collapse`.
        probe: see :mod:`fcmae.features.probes`.
        clip_norm: none by default, as in the paper.
    """

    model: str = option(", ".join(SIZES), choices=list(SIZES), metavar="NAME")
    data: str = option(DATA)
    split: str = option("of hfds/, or of shards whose folder has webdataset's _info.json", "train")
    in_chans: int = option(CHANNELS, 3)
    value_range: tuple[float, ...] | None = option(
        "LOW HIGH: the values that become 0 and 1; default: by the files' bits", None
    )
    show_bands: tuple[int, ...] | None = option(
        "one or three channels, from 1, that pictures show", None
    )
    mean: tuple[float, ...] | None = option("mean of each channel, of values scaled to 0..1", None)
    std: tuple[float, ...] | None = option("deviation, of 8-bit values / 255, 16-bit / 65535", None)
    statistics: Literal["auto", "imagenet", "measure"] = option(STATISTICS, "auto")
    statistics_images: int = option("images to measure at most, drawn by the seed", 2000)
    skip_bad_images: bool = option(SKIP, False)
    cache: str | None = option(CACHE, None, metavar="DIR")
    cache_gb: float = option("gigabytes that --cache may take", 50.0)
    whole_jpegs: bool = option(
        "decode JPEGs whole, as the released code does; by default one of which a pixel of the "
        "sample covers several is decoded at a smaller scale, which is faster (so is --cache's)",
        False,
    )
    image_size: tuple[int, int] = option(
        "pixels, 224 or 160x96 (height x width), multiples of 32",
        (224, 224),
        type=str,
        nargs=None,
        default="224",
    )
    epochs: int = option("passes over the images", 800)
    encoder: Literal["packed", "masked-dense", "mask-token"] = option(ENCODER, "packed")
    grn: GRNOptions = field(default_factory=GRNOptions)
    allow_other_grn: bool = False
    adapt_channels: bool = False
    kernels: Kernels = option("auto: Triton on a GPU", "auto")
    mask_ratio: float = option("fraction of the patches to remove", 0.6)
    patch_size: int = option("pixels of a patch's side, a multiple of 32", PATCH)
    hard_patches: float = option(HARD, 0.0)
    crop_scale: tuple[float, ...] = option(
        "smallest and largest fraction of an image in a crop; 0.5 1 keeps small objects",
        CROP_SCALE,
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=list(CROP_SCALE),
    )
    grey_share: float = option("fraction of RGB samples made grey", 0.0)
    base_lr: float = option("learning rate for a batch of 256; it scales with the batch", 1.5e-4)
    warmup_epochs: float = option("epochs of linear warm-up, at most a tenth of the run", 40)
    weight_decay: float = option("for all weights but norms, biases and GRN", 0.05)
    decay_grn: bool = option("decay GRN's gamma and beta, too, as the released code does", False)
    decoder: Literal["convnext", "unet", "unet-skips", "transformer"] = option(
        "the network that predicts pixels", "convnext"
    )
    decoder_dim: int = option("channels of the decoder", 512)
    decoder_depth: int = option("blocks of the decoder (a UNet's, at each scale)", 1)
    norm_pix_loss: bool = True
    init: str | None = option(
        "encoder weights to start from: a file or timm:NAME", None, metavar="ENCODER"
    )
    panel_every: int = option(
        "steps between two pictures of progress (and probes); 0: ten over the run", 0
    )
    probe: str | None = option(PROBE, None)
    measure_features_every: float | None = option(MEASURE, None, metavar="EPOCHS")

    def __post_init__(self) -> None:
        counts = ("epochs", "decoder_dim", "decoder_depth", "in_chans", "statistics_images")
        problems = training_problems(self, counts)
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
        problems += range_problems(self.value_range) + bands_problems(
            self.show_bands, self.in_chans
        )
        at_least_0 = ("weight_decay", "warmup_epochs", "panel_every", "cache_gb")
        shares = ("hard_patches", "grey_share")
        limits = {"at least 0": at_least_0, "in [0, 1]": shares, "positive": ("base_lr",)}
        problems += out_of_limits(self, limits)
        if self.grey_share and self.in_chans != 3:
            problems.append(f"grey_share is for 3 channels; in_chans is {self.in_chans}")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[-1] <= 1:
            problems.append(
                f"crop_scale is {self.crop_scale}; give two shares of an image's area in (0, 1], "
                "the smaller first"
            )
        if self.measure_features_every is not None and self.measure_features_every < 0:
            problems.append(
                f"measure_features_every is {self.measure_features_every}; 0 is for never"
            )
        if self.kernels in ("triton", "fused"):
            problem = why_no_triton(find_device(self.device))
            problems += [f"kernels is {self.kernels!r}, but {problem}"] if problem else []
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
