"""Pretraining by FCMAE: a training step, and a whole run with its files.

The recipe is the paper's (Table 8): AdamW with betas (0.9, 0.95), learning rate
``base_lr * batch / 256``, weight decay 0.05, linear warm-up and cosine.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from backbones.checkpoint import OWN_WEIGHTS, load_encoder, save_encoder
from backbones.convnext import ConvNeXt, build_convnext
from backbones.kernels import use_kernels
from backbones.param_groups import parameter_groups
from backbones.whole_files import write_atomically
from fcmae.classification.data import labelled_data
from fcmae.data import Batch, PretrainingSamples, collate, pretraining_samples
from fcmae.features.collapse import WATCHED_IMAGES, CollapseWatch, steps_between_measures
from fcmae.features.probes import probe_images
from fcmae.hard_patches import HardPatches
from fcmae.model import FCMAE
from fcmae.pretrain_options import FREE, PretrainOptions, total_steps
from fcmae.run_files import CONFIG, as_yaml, check_resumed, statistics_of, write_config
from fcmae.visualize import reconstruction_panel
from images.bad_images import BadImages
from images.files import Reading, as_range
from images.readers import fingerprint
from images.statistics import IMAGENET, Statistics, choose_statistics
from images.unlike_imagenet import warn_if_unlike
from training.cli import is_main_process
from training.command_line.commands import own_command
from training.data import evenly_spread, seed_generators
from training.guards.run_folder import held, refuse_existing_run, refuse_fewer_steps
from training.loop import train
from training.options import loop_options
from training.records.environment import git_commit, versions
from training.schedule import cosine_with_warmup, warn_of_schedule

logger = logging.getLogger(__name__)

PANEL_IMAGES = 6
PROBE_HELD_OUT = 0.3  # fraction of each class, if the data have no val or test
LOW_LEARNING_RATE = 1e-4


class PretrainingStep:
    """A training step: (images, masks, bad images met) -> losses by name.

    Args:
        statistics: mean and deviation to normalise images by.
        bad_images: records the bad images that the loader's workers met.
        hard: turns random masks into hard ones; None for random ones.
    """

    def __init__(
        self, statistics: Statistics, bad_images: BadImages, hard: HardPatches | None = None
    ) -> None:
        self.statistics, self.bad_images, self.hard = statistics, bad_images, hard

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        images, masks, met = batch
        self.bad_images.add(met)
        images = self.statistics.normalise(images)
        if self.hard is None:
            return {"loss_reconstruction": model(images, masks).loss}
        return {"loss_reconstruction": model(images, self.hard(model, images, masks.mask)).loss}


def pretrain(options: PretrainOptions, resume: bool = False) -> Path:
    """Pretrain an encoder.

    Returns:
        The path of ``encoder.safetensors``. Beside it: ``config.yaml``, ``metrics.json``,
        ``checkpoints/``, ``tensorboard/`` and ``reconstructions/*.png``.

    Raises:
        ValueError, FileNotFoundError: for bad options, images or checkpoints, before training
            starts if possible; ``training.loop.NonFiniteLossError`` during it.
    """
    with held(Path(options.output_dir)):
        if not resume:
            refuse_existing_run(Path(options.output_dir))
        return _pretrain(options, resume)


def _pretrain(options: PretrainOptions, resume: bool) -> Path:
    output_dir = Path(options.output_dir)
    probed = None
    if options.probe:
        reading = Reading(options.in_chans, value_range=as_range(options.value_range))
        probed = labelled_data(options.probe, val_fraction=PROBE_HELD_OUT, reading=reading)
    samples = pretraining_samples(
        options.data,
        options.image_size,
        options.mask_ratio,
        options.in_chans,
        options.split,
        as_range(options.value_range),
        Path(options.cache) if options.cache else None,
        options.cache_gb,
        skip_bad_images=options.skip_bad_images,
        patch_size=options.patch_size,
        crop_scale=(options.crop_scale[0], options.crop_scale[1]),
        grey_share=options.grey_share,
        whole_jpegs=options.whole_jpegs,
    )
    steps = total_steps(options, len(samples))
    refuse_fewer_steps(output_dir, steps)
    content = fingerprint(samples.reader)
    fingerprinted = {"images": len(samples), "dataset_fingerprint": content}
    statistics = _statistics(options, samples, resume)
    check_resumed(options, fingerprinted, FREE, resume)
    seed_generators(options.seed)
    encoder = build_convnext(options.model, in_chans=options.in_chans, grn=options.grn)
    licence: str | None = OWN_WEIGHTS
    if options.init is not None:
        licence = load_encoder(
            options.init,
            encoder,
            allow_other_grn=options.allow_other_grn,
            adapt_channels=options.adapt_channels,
        ).licence
    model = build_fcmae(encoder, options)
    warmup = min(
        math.ceil(options.warmup_epochs * len(samples) / options.batch_size), max(1, steps // 10)
    )
    loop = loop_options(options, steps, resume)
    lr = _learning_rate(options)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, lr, options.weight_decay, decay_grn=options.decay_grn),
        lr=lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    origin = {"dataset_fingerprint": content, "git_commit": git_commit()}
    derived = {
        **fingerprinted,
        "steps": steps,
        "warmup_steps": warmup,
        "learning_rate": lr,
        "statistics": as_yaml(statistics),
        "command": own_command(),
    }
    warn_of_schedule(steps, warmup)
    write_config(options, {**derived, **origin, "versions": versions()})
    hard = HardPatches(model, options.hard_patches) if options.hard_patches else None
    bad_images = BadImages(output_dir, samples.reader)
    bad_images.add(samples.bad)
    every = options.panel_every or max(1, steps // 10)
    shown, shown_masks = _fixed_batch(samples, bad_images, PANEL_IMAGES)

    def after_step(step: int, model: nn.Module) -> dict[str, Any]:
        """At some steps: pictures of fixed images and masks, and the accuracy of probes."""
        if step % every and step != steps:
            return {}
        assert isinstance(model, FCMAE)
        bands = options.show_bands or ()
        picture, _ = reconstruction_panel(model, shown, shown_masks, statistics, bands)
        if is_main_process():
            write_atomically(output_dir / f"reconstructions/step_{step:08d}.png", picture.save)
        found: dict[str, Any] = {"reconstructions": np.asarray(picture)}
        if probed:
            scores = probe_images(model.encoder, probed, statistics, options.image_size)
            logger.info("step %d  probe: kNN %.1f%%  linear %.1f%%", step, *scores.values())
            found |= {f"probe/{name}": value for name, value in scores.items()}
        return found

    images, masks = _fixed_batch(samples, bad_images, WATCHED_IMAGES)
    watch = CollapseWatch(
        (statistics.normalise(images), torch.zeros_like(masks)),
        steps_between_measures(
            options.measure_features_every,
            len(samples) / options.batch_size,
            steps,
            options.log_every,
        ),
        steps,
    )
    with use_kernels(options.kernels):
        trained = train(
            model,
            optimizer,
            cosine_with_warmup(steps, warmup),
            samples,
            collate,
            PretrainingStep(statistics, bad_images, hard),
            loop,
            after_step,
            measure=watch,
        )
    bad_images.summary()
    assert isinstance(trained, FCMAE)
    path = output_dir / "encoder.safetensors"
    if not is_main_process():
        return path
    save_encoder(
        trained.encoder,
        path,
        {
            "size": options.model,
            "pretraining": "fcmae",
            "steps": str(steps),
            "mean": json.dumps(statistics.mean),
            "std": json.dumps(statistics.std),
            **({"value_range": json.dumps(options.value_range)} if options.value_range else {}),
            **({"show_bands": json.dumps(options.show_bands)} if options.show_bands else {}),
            "config": yaml.safe_dump(as_yaml(options), sort_keys=False),
            **({"licence": licence} if licence else {}),
            **origin,
        },
    )
    logger.info("wrote %s", path)
    return path


def build_fcmae(encoder: ConvNeXt, options: PretrainOptions) -> FCMAE:
    """The model that a run trains, around its encoder."""
    return FCMAE(
        encoder,
        options.decoder_dim,
        options.decoder_depth,
        options.mask_ratio,
        options.norm_pix_loss,
        options.encoder,
        options.decoder,
        options.patch_size,
    )


def _fixed_batch(
    samples: PretrainingSamples, bad_images: BadImages, number: int
) -> tuple[Tensor, Tensor]:
    """Evenly spread images with masks, the same in every run on these samples.

    Images are uint8, or float32 in 0..1, ``[B, C, H, W]``; masks bool ``[B, H/32, W/32]``.
    """
    seed_generators(0)
    images, masks, met = collate([samples[i] for i in evenly_spread(samples, number)])
    bad_images.add(met)
    return images, masks.mask


def _learning_rate(options: PretrainOptions) -> float:
    """The learning rate for the whole batch, with a warning if it is too low to learn much."""
    lr = options.base_lr * options.batch_size / 256
    if lr < LOW_LEARNING_RATE:
        logger.warning(
            "the learning rate is %.1e: base_lr %.1e x batch %d / 256. The paper's is for a "
            "batch of 4096; a small batch learns faster with --base-lr %.1e or so",
            lr,
            options.base_lr,
            options.batch_size,
            0.2 / options.batch_size,
        )
    return lr


def _statistics(options: PretrainOptions, samples: PretrainingSamples, resume: bool) -> Statistics:
    """The statistics of the run that is resumed, else those that the options choose.

    Raises:
        ValueError: if the options contradict the run that is resumed, see also
            :func:`images.statistics.choose_statistics`.
    """
    config = Path(options.output_dir) / CONFIG
    if resume and config.is_file():
        run = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        if (stored := run.get("derived", {}).get("statistics")) is not None:
            statistics = statistics_of(stored)
            statistics.check_resumed(options.mean, options.std, options.in_chans, str(config))
            return statistics
    chosen = choose_statistics(
        samples,
        options.mean,
        options.std,
        options.statistics,
        options.statistics_images,
        options.seed,
        options.workers,
    )
    if chosen is IMAGENET and options.statistics == "auto" and options.init is None:
        warn_if_unlike(samples, lambda _: "--statistics measure")
    return chosen
