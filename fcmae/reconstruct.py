"""Reconstruct new images with a finished pretraining, and write pictures and losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from backbones.convnext import build_convnext
from backbones.errors import InputError
from backbones.normalization import GRNOptions
from backbones.whole_files import write_atomically, write_text
from fcmae.masking import draw_mask
from fcmae.model import FCMAE
from fcmae.pretrain import build_fcmae
from fcmae.pretrain_options import PretrainOptions
from fcmae.run_files import CONFIG, statistics_of
from fcmae.visualize import reconstruction_panel
from images.files import Reading, as_range
from images.inputs import find_files, output_names, read_frames
from images.statistics import Statistics
from reporting.tables import csv_text
from training.devices import find_device
from training.guards.checkpoints import newest_checkpoint
from training.progress import progress

WEIGHTS, TABLE = "model.safetensors", "losses.csv"


def reconstruct_images(
    run: Path,
    inputs: Sequence[str],
    output_dir: Path,
    mask_ratio: float | None = None,
    seed: int = 0,
    device: str | None = None,
) -> list[Path]:
    """Draw image, masked image and reconstruction of each image, and list their losses.

    An image is scaled until it covers the run's image size, and its middle is taken.

    Args:
        run: the output folder of a pretraining, with a checkpoint.
        output_dir: gets ``NAME.png`` for each image, and ``losses.csv``.
        mask_ratio: share of the patches to remove; None for the run's.

    Returns:
        The pictures.

    Raises:
        InputError: for a folder without such a run, and images that cannot be used.
    """
    options, statistics = read_run(run)
    model = load_fcmae(run, options).to(find_device(device)).eval()
    reading = Reading(options.in_chans, value_range=as_range(options.value_range))
    ratio = options.mask_ratio if mask_ratio is None else mask_ratio
    if not 0 < ratio < 1:
        raise InputError(f"mask ratio is {ratio}; it must be between 0 and 1")
    files = find_files(inputs, reading=reading)
    generator = torch.Generator().manual_seed(seed)
    written, rows = [], []
    for file, name in progress(
        zip(files, output_names(files), strict=True), "reconstructing", len(files), "image"
    ):
        pixels = covered(next(read_frames(file, reading=reading)).pixels, options.image_size)
        mask = draw_mask(1, options.image_size, ratio, options.patch_size, generator)
        bands = options.show_bands or ()
        panel = reconstruction_panel(model, pixels[None], mask, statistics, bands)
        written.append(output_dir / f"{name}.png")
        write_atomically(written[-1], panel.picture.save)
        rows.append([str(file), written[-1].name, panel.loss])
    write_text(output_dir / TABLE, csv_text(["image", "picture", "loss"], rows))
    return written


def covered(pixels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """``[h, w, C]`` -> scaled until it covers ``size``, cropped at its centre: ``[C, H, W]``."""
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    scale = max(wanted / given for wanted, given in zip(size, image.shape[1:], strict=True))
    sides = [
        max(wanted, math.floor(given * scale + 0.5))
        for wanted, given in zip(size, image.shape[1:], strict=True)
    ]
    image = F.resize(image, sides, InterpolationMode.BICUBIC, antialias=True)
    return F.center_crop(image, list(size))


def read_run(run: Path) -> tuple[PretrainOptions, Statistics]:
    """The options and image statistics of a pretraining.

    Raises:
        InputError: for a folder that holds none.
    """
    try:
        stored: dict[str, Any] = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        statistics = statistics_of(stored["derived"]["statistics"])
        known = {field.name for field in fields(PretrainOptions)}
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in stored.items()
            if key in known
        }
        values["grn"] = GRNOptions(**values["grn"])
        values |= {"device": None, "kernels": "auto"}  # those of this machine
        return PretrainOptions(**values), statistics
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(
            f"{run} holds no pretraining ({type(error).__name__}: {error}); give the --output-dir "
            "of tools/pretrain_fcmae.py"
        ) from error


def load_fcmae(run: Path, options: PretrainOptions) -> FCMAE:
    """A run's model at its newest checkpoint, decoder included.

    Raises:
        InputError: where there is none, or one of several processes' shards.
    """
    folder = newest_checkpoint(run)
    if folder is None or not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{run}/checkpoints has no {WEIGHTS}: the decoder, which encoder.safetensors lacks, is "
            "kept there alone, and not by a run that was sharded (FSDP)"
        )
    encoder = build_convnext(options.model, in_chans=options.in_chans, grn=options.grn)
    model = build_fcmae(encoder, options)
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model
