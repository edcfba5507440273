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
    "channels of the images; grey files become 3 channels (repeated), RGB files become 1 (luma), "
    "and an alpha channel is dropped; a file with another number of channels is a bad file"
)
ENCODER = (
    "packed computes visible patches only; masked-dense computes the same on whole images, slowly; "
    "mask-token puts a learnt token in place of removed patches"
)
STATISTICS = (
    "where --mean and --std come from if not given; auto: ImageNet's for 3 channels of 8 bits, "
    "else measured on the images"
)
MEASURE = (
    "epochs between two measurements of how different the channels of each block are, with a "
    "warning if they collapse; 0: never; default: about fifty measurements over the run"
)
HARD = (
    "fraction of the removed patches that are chosen because the model predicts them worst; the "
    "others are random; costs two more forward passes per step"
)
SKIP = (
    "replace each image that cannot be used by the next good one and list it in bad_images.txt; "
    "without this flag such an image is an error"
)
CACHE = (
    "a folder for shrunk copies of large PNG, TIFF and JPEG files; each is made once, and crops "
    "are cut from the copies, which is faster"
)
DATA = (
    "a folder of images (flat or nested), .tar shards (a file, a folder, or a pattern such as "
    "'shards/{000..010}.tar'; put wds/ before it for webdataset shards), or a Hugging Face data "
    "set (hfds/owner/name)"
)


PROBE = (
    "folders of labelled images, one for each class: measure ten times during the run how well kNN "
    "and a linear classifier on the frozen encoder tell the classes apart"
)

# Further options that a resumed run may change; mean and std are checked separately.
FREE = (
    "epochs", "probe", "cache", "cache_gb", "mean", "std", "statistics_images", "skip_bad_images",
    "panel_every", "show_bands",
    "measure_features_every",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(TrainingOptions):
    """Everything that a pretraining run depends on; written to ``config.yaml``.

    The help of each field says what it is. More on some of them:

    Args:
        data: see :func:`images.readers.open_images`.
        in_chans: :mod:`images.files` says how a file's channels become these.
        grn: the form of GRN in the encoder, or the layer in its place (V2 only).
        allow_other_grn: accept an ``init`` that was trained with another form of GRN.
        adapt_channels: convert the stem of an ``init`` with another number of channels.
        decoder, decoder_dim, decoder_depth, norm_pix_loss: see :class:`fcmae.model.FCMAE`.
        hard_patches: see :mod:`fcmae.hard_patches`.
        crop_scale, grey_share: see :class:`fcmae.data.PretrainingSamples`.
        measure_features_every: see :mod:`fcmae.features.collapse`.
        probe: see :mod:`fcmae.features.probes`.
        clip_norm: none by default, as in the paper.
    """

    model: str = option(", ".join(SIZES), choices=list(SIZES), metavar="NAME")
    data: str = option(DATA)
    split: str = option(
        "split to read, of hfds/ or of shards in a folder with webdataset's _info.json", "train"
    )
    in_chans: int = option(CHANNELS, 3)
    value_range: tuple[float, ...] | None = option(
        "LOW HIGH: the pixel values that become 0 and 1; default: the range of the files' bits",
        None,
    )
    show_bands: tuple[int, ...] | None = option(
        "one or three channels, counted from 1, that pictures show; default: the first three", None
    )
    mean: tuple[float, ...] | None = option(
        "mean of each channel, of values scaled to 0..1; default: see --statistics", None
    )
    std: tuple[float, ...] | None = option(
        "standard deviation of each channel, of values scaled to 0..1 (8 bits: / 255)", None
    )
    statistics: Literal["auto", "imagenet", "measure"] = option(STATISTICS, "auto")
    statistics_images: int = option("measure --mean and --std on at most this many images", 2000)
    skip_bad_images: bool = option(SKIP, False)
    cache: str | None = option(CACHE, None, metavar="DIR")
    cache_gb: float = option("gigabytes that the folder of --cache may take", 50.0)
    whole_jpegs: bool = option(
        "decode every JPEG at its full size, as the released code does; by default JPEGs much "
        "larger than the sample are decoded at a smaller scale, which is faster",
        False,
    )
    image_size: tuple[int, int] = option(
        "size of the samples in pixels: 224, or 160x96 (height x width); multiples of 32",
        (224, 224),
        type=str,
        nargs=None,
        default="224",
    )
    epochs: int = option("passes over all images, unless --max-steps is given", 800)
    encoder: Literal["packed", "masked-dense", "mask-token"] = option(ENCODER, "packed")
    grn: GRNOptions = field(default_factory=GRNOptions)
    allow_other_grn: bool = False
    adapt_channels: bool = False
    kernels: Kernels = option("kernels of the encoder; auto: Triton on a GPU, else torch", "auto")
    mask_ratio: float = option("fraction of the patches to remove", 0.6)
    patch_size: int = option("side of the removed patches in pixels, a multiple of 32", PATCH)
    hard_patches: float = option(HARD, 0.0)
    crop_scale: tuple[float, ...] = option(
        "smallest and largest fraction of an image's area that a sample is cut from",
        CROP_SCALE,
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=list(CROP_SCALE),
    )
    grey_share: float = option("fraction of the samples that are made grey (RGB only)", 0.0)
    base_lr: float = option(
        "learning rate for a batch of 256 images; it is multiplied by batch / 256", 1.5e-4
    )
    warmup_epochs: float = option(
        "epochs over which the rate rises at the start, at most a tenth of the run", 40
    )
    weight_decay: float = option("weight decay; norms, biases and GRN have none", 0.05)
    decay_grn: bool = option(
        "apply weight decay to GRN's gamma and beta, too, as the released code does", False
    )
    decoder: Literal["convnext", "unet", "unet-skips", "transformer"] = option(
        "the network that predicts pixels", "convnext"
    )
    decoder_dim: int = option("channels of the decoder", 512)
    decoder_depth: int = option("blocks of the decoder (unet: at each scale)", 1)
    norm_pix_loss: bool = True
    init: str | None = option(
        "encoder weights to start from: a file or timm:NAME", None, metavar="ENCODER"
    )
    panel_every: int = option(
        "steps between two pictures of reconstructions (and probes); 0: ten over the run", 0
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
                f"crop_scale is {self.crop_scale}; give two fractions of an image's area, in (0, "
                "1], the smaller first"
            )
        if self.measure_features_every is not None and self.measure_features_every < 0:
            problems.append(
                f"measure_features_every is {self.measure_features_every}; give a number of "
                "epochs, or 0 for never"
            )
        if self.kernels in ("triton", "fused"):
            problem = why_no_triton(find_device(self.device))
            problems += [f"kernels is {self.kernels!r}, but {problem}"] if problem else []
        if problems:
            raise InputError("; ".join(problems))


def total_steps(options: PretrainOptions, images: int) -> int:
    """Number of optimizer steps of the whole run."""
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
