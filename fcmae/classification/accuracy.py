"""Top-1 and top-5 of a finished classifier: ``--eval-only``."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from backbones.errors import InputError, counted
from backbones.kernels import use_kernels
from backbones.whole_files import write_json
from fcmae.classification.evaluation import evaluate
from fcmae.classification.head import build_classifier
from fcmae.classification.options import FinetuneOptions
from fcmae.classification.report import write_report
from fcmae.classification.setup import set_up
from fcmae.run_files import CLASSIFIER, CONFIG
from training.cli import is_main_process
from training.devices import find_device
from training.guards.run_folder import held

logger = logging.getLogger(__name__)

EVALUATION, PAGE = "evaluation.json", "evaluation.html"
SPLIT_OPTIONS = ("val_split", "val_fraction", "split_seed")


def evaluate_classifier(options: FinetuneOptions) -> dict[str, Any]:
    """Evaluate a classifier: ``--eval-only``.

    Args:
        options: ``init`` is the classifier. It is evaluated on the validation images (``val_data``,
            or val or test in ``data``), else on all of ``data``. Without ``init`` it is the
            classifier of the run in ``output_dir``, on the images that the run set apart. Any of
            the classifier's classes may be predicted, unless ``eval_classes`` is "data".

    Returns:
        ``top1`` and ``top5`` in percent, ``loss``, ``images``, ``classes`` (that may be predicted),
        ``classes_of_data`` and ``weights``; also written to ``evaluation.json``.

    Raises:
        InputError, FileNotFoundError: for bad options or images, or a classifier without rows for
            all classes of the data.
    """
    with held(Path(options.output_dir)):
        return _evaluate(options)


def _evaluate(options: FinetuneOptions) -> dict[str, Any]:
    output_dir = Path(options.output_dir)
    of_run = options.init is None
    if of_run:
        options = _as_the_run_split(replace(options, init=str(output_dir / CLASSIFIER)))
    setup = set_up(options, only_val=not of_run)
    if setup.rows is None:
        unknown = [name for name in setup.data.classes if name not in (setup.source.classes or ())]
        raise InputError(
            f"the head of {options.init} has no row for {len(unknown)} of "
            f"{len(setup.data.classes)} classes "
            f"({', '.join(unknown[:10])}); give a classifier of these, or --class-list"
            + (f" (of its head: {problem})" if (problem := setup.source.head_problem) else "")
        )
    val, rows = setup.data.val, setup.rows
    if options.eval_classes == "all":
        val.labels = [rows[label] for label in val.labels]
        rows = list(range(setup.source.rows))
    if len(rows) < setup.source.rows:
        logger.warning(
            "only %d of the classifier's %d classes may be predicted, so figures are higher",
            *(len(rows), setup.source.rows),
        )
    model, _ = build_classifier(
        *(setup.source, options.model, len(rows), rows, 0.0),
        *(setup.in_chans, options.grn, options.allow_other_grn, options.adapt_channels),
    )
    val.transform = setup.evaluation()
    with use_kernels(options.kernels):
        evaluation = evaluate(
            model.to(find_device(options.device)), val, options.batch_size, options.workers
        )
    figures = evaluation.figures()
    result = {
        **figures,
        "images": len(val),
        "classes": len(rows),
        "classes_of_data": len(setup.data.classes),
        "weights": options.init,
        **setup.vision(),
    }
    names = setup.source.classes if options.eval_classes == "all" else setup.data.classes
    classes = names or [str(row) for row in rows]
    if is_main_process():
        write_json(output_dir / EVALUATION, result, indent=2)
        title = f"Evaluation of {options.init}"
        write_report(output_dir / PAGE, title, classes, val, evaluation, result)
    logger.info(
        "top-1 %.2f  top-5 %.2f  of %s",
        *(figures["top1"], figures["top5"], counted(result["images"], "image")),
    )
    return result


def _as_the_run_split(options: FinetuneOptions) -> FinetuneOptions:
    """The options with the run's own rule for its validation images.

    With other values it would be evaluated on images that it was trained on.
    """
    config = Path(options.output_dir) / CONFIG
    if not config.is_file():
        return options
    stored = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    own = {name: stored[name] for name in SPLIT_OPTIONS if name in stored}
    for name, value in own.items():
        if getattr(options, name) != value and getattr(options, name) != _default(name):
            logger.warning("%s is %s, as in the run's training", name, value)
    return replace(options, **own)


def _default(name: str) -> Any:
    return next(field.default for field in fields(FinetuneOptions) if field.name == name)
