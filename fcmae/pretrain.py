"""Pretraining: options, what a step computes, what a run leaves behind.

The recipe is the paper's (Table 8): AdamW with betas (0.9, 0.95), learning rate
``base_lr * batch / 256``, weight decay 0.05, linear warm-up and cosine.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from backbones.checkpoint import load_encoder, save_encoder
from backbones.convnext import build_convnext
from backbones.param_groups import parameter_groups
from fcmae.data import PretrainingSamples, collate, fingerprint, pretraining_samples
from fcmae.model import FCMAE
from fcmae.visualize import reconstruction_panel, save_panel
from training.checkpoints import refuse_existing_run
from training.data import seed_generators
from training.environment import git_commit, versions
from training.loop import LoopOptions, train
from training.schedule import cosine_with_warmup

logger = logging.getLogger(__name__)

PANEL_IMAGES = 6
LOW_LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class PretrainOptions:
    """Everything that a pretraining run depends on; written to ``config.yaml``.

    Args:
        model: a key of ``backbones.convnext.SIZES``.
        data: a folder of images or a timm.data name.
        output_dir: the run's folder.
        image_size: height and width in pixels, multiples of 32.
        batch_size: images of one optimizer step, over all processes.
        epochs: passes over the data.
        max_steps: ends the run (and its schedule) after that many steps, whatever ``epochs`` says.
        encoder: "packed", or "masked-dense" for the reference computation.
        mask_ratio: share of 32x32 patches removed.
        base_lr: learning rate for a batch of 256; it scales linearly with the batch.
        warmup_epochs: linear warm-up; at most a tenth of the run where that is shorter.
        weight_decay: on everything but norms, biases and GRN.
        decoder_dim, decoder_depth, norm_pix_loss: see :class:`fcmae.model.FCMAE`.
        init: an encoder checkpoint (path or ``timm:NAME``) to start from.
        clip_norm: largest global gradient norm; none by default, as in the paper.
        panel_every: steps between two reconstruction panels; 0 for about ten over the run.
    """

    model: str
    data: str
    output_dir: str
    image_size: tuple[int, int] = (224, 224)
    batch_size: int = 64
    epochs: int = 800
    max_steps: int | None = None
    encoder: Literal["packed", "masked-dense"] = "packed"
    mask_ratio: float = 0.6
    base_lr: float = 1.5e-4
    warmup_epochs: float = 40
    weight_decay: float = 0.05
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
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        counts = ("batch_size", "epochs", "decoder_dim", "decoder_depth")
        problems = [
            f"{name} is {getattr(self, name)}; it must be at least 1"
            for name in counts
            if getattr(self, name) < 1
        ]
        if self.base_lr <= 0:
            problems.append(f"base_lr is {self.base_lr}; it must be positive")
        if problems:
            raise ValueError("; ".join(problems))


def total_steps(options: PretrainOptions, images: int) -> int:
    """Optimizer steps of the whole run."""
    if options.max_steps is not None:
        return options.max_steps
    return max(1, math.ceil(options.epochs * images / options.batch_size))


def compute_losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """One step of FCMAE on (images, masks)."""
    images, masks = batch
    return {"loss_reconstruction": model(images, masks).loss}


def pretrain(options: PretrainOptions, resume: bool = False) -> Path:
    """Pretrain an encoder.

    Args:
        options: what to do.
        resume: continue the run in ``options.output_dir``.

    Returns:
        The path of ``encoder.safetensors``. Beside it: ``config.yaml``, ``metrics.json``,
        ``checkpoints/``, ``tensorboard/`` and ``reconstructions/*.png``.

    Raises:
        ValueError, FileNotFoundError: for bad options, images or checkpoints, before training
            starts where that can be known; ``training.loop.NonFiniteLossError`` during it.
    """
    output_dir = Path(options.output_dir)
    if not resume:
        refuse_existing_run(output_dir)
    samples = pretraining_samples(options.data, options.image_size, options.mask_ratio)
    seed_generators(options.seed)
    encoder = build_convnext(options.model)
    if options.init is not None:
        load_encoder(options.init, encoder)
    model = FCMAE(
        encoder,
        options.decoder_dim,
        options.decoder_depth,
        options.mask_ratio,
        options.norm_pix_loss,
        options.encoder,
    )
    steps = total_steps(options, len(samples))
    warmup = min(
        math.ceil(options.warmup_epochs * len(samples) / options.batch_size),
        max(1, steps // 10),
    )
    loop = LoopOptions(
        output_dir,
        max_steps=steps,
        batch_size=options.batch_size,
        workers=options.workers,
        precision=options.precision,
        log_every=options.log_every,
        checkpoint_every=options.checkpoint_every,
        keep_checkpoints=options.keep_checkpoints,
        clip_norm=options.clip_norm,
        accumulate=options.accumulate,
        seed=options.seed,
        resume=resume,
        device=options.device,
        trackers=options.trackers,
        tracked_config={
            k: v for k, v in asdict(options).items() if isinstance(v, (int, float, str))
        },
    )
    lr = options.base_lr * options.batch_size / 256
    origin = {"dataset_fingerprint": fingerprint(samples.reader), "git_commit": git_commit()}
    optimizer = torch.optim.AdamW(
        parameter_groups(model, lr, options.weight_decay), lr=lr, betas=(0.9, 0.95)
    )
    if lr < LOW_LEARNING_RATE:
        logger.warning(
            "the learning rate is %.1e: base_lr %.1e x batch %d / 256. The paper's is for a "
            "batch of 4096; a small batch learns faster with --base-lr %.1e or so",
            lr,
            options.base_lr,
            options.batch_size,
            0.2 / options.batch_size,
        )
    derived = {"images": len(samples), "steps": steps, "warmup_steps": warmup, "learning_rate": lr}
    _write_config(options, output_dir, {**derived, **origin, "versions": versions()})
    panels = _Panels(samples, output_dir, options.panel_every or max(1, steps // 10), steps)
    trained = train(
        model,
        optimizer,
        cosine_with_warmup(steps, warmup),
        samples,
        collate,
        compute_losses,
        loop,
        panels,
    )
    assert isinstance(trained, FCMAE)
    path = output_dir / "encoder.safetensors"
    save_encoder(
        trained.encoder,
        path,
        {
            "size": options.model,
            "pretraining": "fcmae",
            "steps": str(steps),
            "config": yaml.safe_dump(_plain(options), sort_keys=False),
            **origin,
        },
    )
    logger.info("wrote %s", path)
    return path


class _Panels:
    """Draws the same images with the same masks now and then, so that progress can be seen."""

    def __init__(
        self, samples: PretrainingSamples, output_dir: Path, every: int, last: int
    ) -> None:
        self.folder = output_dir / "reconstructions"
        self.every, self.last = every, last
        indices = torch.linspace(0, len(samples) - 1, min(PANEL_IMAGES, len(samples))).long()
        seed_generators(0)
        self.images, self.masks = collate([samples[i] for i in indices.tolist()])

    def __call__(self, step: int, model: nn.Module) -> None:
        if step % self.every and step != self.last:
            return
        assert isinstance(model, FCMAE)
        device = model.mask_token.device
        panel = reconstruction_panel(model, self.images.to(device), self.masks.to(device))
        save_panel(panel, self.folder / f"step_{step:08d}.png")


def _plain(options: PretrainOptions) -> dict[str, Any]:
    values = asdict(options)
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _write_config(options: PretrainOptions, output_dir: Path, derived: dict[str, Any]) -> None:
    """The run's options and what follows from them, to ``config.yaml`` and to the log."""
    output_dir.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({**_plain(options), "derived": derived}, sort_keys=False)
    logger.info("configuration:\n%s", text)
    (output_dir / "config.yaml").write_text(text)


def parse_image_size(text: str | Sequence[int]) -> tuple[int, int]:
    """``"224"`` or ``"160x96"`` (height x width) -> (height, width) in pixels.

    Raises:
        ValueError: if it is neither.
    """
    parts = text.lower().split("x") if isinstance(text, str) else [str(v) for v in text]
    if len(parts) not in (1, 2) or not all(part.isdigit() for part in parts):
        raise ValueError(
            f"image size is {text!r}; give pixels as 224 or as 160x96 (height x width)"
        )
    return int(parts[0]), int(parts[-1])
