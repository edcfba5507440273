"""Supervised fine-tuning of an encoder as a classifier: a whole run with its files.

The recipe is the authors' (``fcmae.classification.recipes``); augmentation, mixing, losses,
averaged weights and their schedules are timm's. Deliberate deviations from the authors' code:

  * at step n the averaged weights have a decay of n / (n + 10), at most the recipe's, so that the
    average is useful in runs of fewer than 50,000 steps, too;
  * figures are those of the last step, not of the best evaluation during the training;
  * a sample's augmentation depends only on (seed, epoch, index), and the mixing of a batch on
    (seed, step) and the process, so that a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.utils import ModelEmaV3
from torch import nn

from backbones.checkpoint import save_ours
from backbones.convnext import SIZES, ConvNeXt, GRNOptions
from backbones.errors import counted
from backbones.kernels import use_kernels
from backbones.param_groups import parameter_groups
from backbones.whole_files import write_json
from fcmae.classification.data import collate
from fcmae.classification.evaluation import Evaluation, evaluate
from fcmae.classification.head import build_classifier
from fcmae.classification.options import FREE, FinetuneOptions
from fcmae.classification.recipes import BATCHES, choose_recipe, schedule, step_of_chain
from fcmae.classification.report import PER_IMAGE, per_image_rows, write_report
from fcmae.classification.setup import Setup, set_up
from fcmae.classification.step import FinetuningStep, balanced_weights, check_batch
from fcmae.classification.transforms import training_transform
from fcmae.features.collapse import WATCHED_IMAGES, CollapseWatch, steps_between_measures
from fcmae.run_files import CLASSIFIER, as_yaml, check_resumed, write_config
from images.bad_images import BadImages
from images.readers import fingerprint
from training.cli import is_main_process, process_count
from training.data import evenly_spread, seed_generators
from training.guards.run_folder import held, refuse_existing_run, refuse_fewer_steps
from training.loop import train
from training.options import loop_options
from training.records.environment import git_commit, versions
from training.schedule import cosine_with_warmup, warn_of_schedule

logger = logging.getLogger(__name__)

CLASSIFIER_EMA = "classifier_ema.safetensors"
SUMMARY, REPORT = "metrics_summary.json", "report.html"
EMA_WARMUP = 10


def finetune(options: FinetuneOptions, resume: bool = False) -> Path:
    """Fine-tune an encoder (or a classifier) on labelled images.

    Returns:
        The path of ``classifier.safetensors``. Beside it: ``classifier_ema.safetensors`` (the
        averaged weights, if the recipe has them), ``config.yaml``, ``metrics.json``,
        ``metrics_summary.json``, ``per_image.json``, ``checkpoints/`` and ``tensorboard/``.

    Raises:
        InputError, FileNotFoundError: for bad options, images or checkpoints, before training
            starts if possible; ``training.loop.NonFiniteLossError`` during it.
    """
    with held(Path(options.output_dir)):
        if not resume:
            refuse_existing_run(Path(options.output_dir))
        return _finetune(options, resume)


def _finetune(options: FinetuneOptions, resume: bool) -> Path:
    output_dir = Path(options.output_dir)
    setup = set_up(options)
    data, classes = setup.data, setup.data.classes
    step = options.recipe
    if step == "auto":
        step = step_of_chain(len(classes), setup.source.rows)
    recipe = choose_recipe(step, options.model, options.overrides)
    check_batch(options, recipe, process_count())
    logger.info(
        "recipe %s of %s, published for a batch of %d; this run's is %d",
        *(step, options.model, BATCHES[step], options.batch_size),
    )
    steps, warmup = schedule(recipe, len(data.train), options.batch_size, options.max_steps)
    refuse_fewer_steps(output_dir, steps)
    content = fingerprint(data.train.reader)
    fingerprinted = {"images": len(data.train), "dataset_fingerprint": content}
    resolved = {"recipe": {"step": step, **asdict(recipe)}, "overrides": {}}
    check_resumed(options, fingerprinted, FREE, resume, resolved)
    seed_generators(options.seed)
    model, grn = build_classifier(
        *(setup.source, options.model, len(classes), setup.rows, recipe.drop_path),
        *(setup.in_chans, options.grn, options.allow_other_grn, options.adapt_channels),
    )
    if setup.rows is None:
        with torch.no_grad():
            model.head.weight.mul_(recipe.head_init_scale)
    lr = recipe.base_lr * options.batch_size / 256
    mean, std = setup.statistics.mean, setup.statistics.std
    data.train.transform = training_transform(recipe, setup.image_size, mean, std)
    if recipe.rand_augment and not (setup.in_chans == 3 and data.train.eight_bit()):
        logger.info("RandAugment is for 8-bit RGB: these images are cropped, flipped and erased")
    data.val.transform = setup.evaluation()
    optimizer = torch.optim.AdamW(
        parameter_groups(
            model,
            lr,
            recipe.weight_decay,
            SIZES[options.model].depths,
            recipe.layer_decay,
            recipe.layer_decay_type,
        ),
        lr=lr,
        fused=True,
    )
    ema = None
    if recipe.ema_decay:
        ema = ModelEmaV3(
            model, recipe.ema_decay, use_warmup=True, warmup_gamma=EMA_WARMUP, warmup_power=1.0
        )
    origin = {"dataset_fingerprint": content, "git_commit": git_commit()}
    derived = {
        "recipe": resolved["recipe"],
        "classes": len(classes),
        **fingerprinted,
        "validation": {"images": len(data.val), "split": data.split},
        "steps": steps,
        "warmup_steps": warmup,
        "learning_rate": lr,
        "grn": asdict(grn) if grn else None,
        "head": "new" if setup.rows is None else "of the checkpoint",
        **setup.vision(),
    }
    warn_of_schedule(steps, warmup)
    write_config(options, {**derived, **origin, "versions": versions()})
    bad_images = BadImages(output_dir, data.train.reader)
    bad_images.add(data.train.bad)
    BadImages(output_dir, data.val.reader).add(data.val.bad)
    weights = None
    if options.class_weights == "balanced":
        weights = balanced_weights(data.train.labels, len(classes))
    evaluations = _Evaluations(options, setup, ema, steps)
    watch = None
    if every_epochs := options.measure_features_every:
        epoch = len(data.train) / options.batch_size
        every = steps_between_measures(every_epochs, epoch, steps, options.log_every)
        images, _, _ = collate(
            [data.val[place] for place in evenly_spread(data.val, WATCHED_IMAGES)]
        )
        watch = CollapseWatch([images], every, steps)
    with use_kernels(options.kernels):
        trained = train(
            model,
            optimizer,
            cosine_with_warmup(steps, warmup, options.min_lr / lr),
            data.train,
            collate,
            FinetuningStep(recipe, len(classes), bad_images, weights),
            loop_options(options, steps, resume),
            evaluations,
            ema,
            watch,
        )
    bad_images.summary()
    path = output_dir / CLASSIFIER
    if not is_main_process():
        return path
    assert isinstance(trained, ConvNeXt)
    metadata = {
        "training": f"classification ({step})",
        "steps": str(steps),
        "classes": json.dumps(classes),
        **{name: json.dumps(value) for name, value in setup.vision().items()},
        "config": yaml.safe_dump(as_yaml(options), sort_keys=False),
        **{k: v for k, v in setup.source.metadata.items() if k == "licence"},
        **origin,
    }
    _save(trained, path, {**metadata, "weights": "trained"}, grn)
    summary: dict[str, Any] = {"steps": steps, "images": len(data.val), "classes": len(classes)}
    summary |= evaluations.figures()
    if ema is not None:
        averaged = ema.module
        assert isinstance(averaged, ConvNeXt)
        _save(averaged, output_dir / CLASSIFIER_EMA, {**metadata, "weights": "averaged"}, grn)
    evaluated = evaluations.latest["trained"]
    write_json(output_dir / PER_IMAGE, per_image_rows(classes, data.val, evaluated), indent=2)
    write_json(output_dir / SUMMARY, summary, indent=2)
    facts = {"recipe": step, "steps": steps, "validation": data.split, **setup.vision()}
    for name, figures in evaluations.figures().items():
        facts[f"top-1 of {name} weights"] = figures["top1"]
    write_report(
        *(
            output_dir / REPORT,
            f"Classifier of {counted(len(classes), 'class')}",
            classes,
            data.val,
        ),
        *(evaluated, facts, data.train.labels),
    )
    logger.info("wrote %s", path)
    return path


class _Evaluations:
    """Evaluates trained and averaged weights at some steps; the loop records the figures."""

    def __init__(
        self, options: FinetuneOptions, setup: Setup, ema: ModelEmaV3 | None, last: int
    ) -> None:
        self.options, self.setup, self.ema, self.last = options, setup, ema, last
        epoch = math.ceil(len(setup.data.train) / options.batch_size)
        self.every = options.eval_every or max(epoch, last // 10)
        self.latest: dict[str, Evaluation] = {}

    def __call__(self, step: int, model: nn.Module) -> dict[str, float]:
        if step % self.every and step != self.last:
            return {}
        models = {"trained": model}
        if self.ema is not None:
            models["averaged"] = self.ema.module
        samples, options = self.setup.data.val, self.options
        self.latest = {
            name: evaluate(each, samples, options.batch_size, options.workers)
            for name, each in models.items()
        }
        entry: dict[str, float] = {}
        for name, figures in self.figures().items():
            logger.info(
                "step %d  %s weights: top-1 %.2f  top-5 %.2f  loss %.4f",
                *(step, name, figures["top1"], figures["top5"], figures["loss"]),
            )
            entry |= {f"{name}/{key}": value for key, value in figures.items()}
        return entry

    def figures(self) -> dict[str, dict[str, float]]:
        """The latest evaluation's figures, by the kind of weights."""
        return {name: evaluation.figures() for name, evaluation in self.latest.items()}


def _save(model: ConvNeXt, path: Path, metadata: Mapping[str, str], grn: GRNOptions | None) -> None:
    save_ours(model.state_dict(), path, {**metadata, **({"grn": str(grn)} if grn else {})})
