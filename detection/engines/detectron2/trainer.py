"""Training of the detectron2 engine: DefaultTrainer with the parts of the recipe that it lacks.

It adds AdamW with layer-wise decay and this project's no-decay rule, clipping of the gradients'
global norm, accumulated gradients, bf16 and averaged weights, several processes on a CPU, weights
loaded completely or not at all, and a resume that continues the order of the data.

References:
    detectron2 (Apache-2.0), ``engine/defaults.py``.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model
from detectron2.engine import hooks as d2_hooks
from detectron2.modeling import build_model
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import TensorboardXWriter
from torch import nn

import backbones.d2_adapter  # noqa: F401 - registers the backbone
import detection.engines.detectron2.cascade  # noqa: F401 - registers these heads
from backbones.weight_files import save_pickle
from backbones.whole_files import system_error
from detection.dataset import CocoDataset
from detection.engines.detectron2.checkpoints import (
    EndingHook,
    StrictCheckpointer,
    ended_with_checkpoint,
    point_to_sound_checkpoint,
)
from detection.engines.detectron2.data import TrainingBatches
from detection.engines.detectron2.hooks import (
    Bar,
    EarlyStopping,
    Evaluation,
    Over,
    OverlayHook,
    Schedule,
    Speed,
    WandbWriter,
)
from detection.engines.detectron2.results import write_predictions
from detection.engines.detectron2.step import Average, Step, save_average
from detection.engines.results import evaluate_in_training
from detection.engines.weights import freeze_parts, log_origin, read_detector, wanted_classes
from training.configured import build_adamw, build_average, resolve_precision
from training.data import seed_generators
from training.guards.endings import Endings
from training.guards.run_folder import checkpoint_bytes, refuse_existing_run, refuse_full_disk
from training.guards.validation import BEST_WEIGHTS, Kind, Validation
from training.guards.workers import loader_problem
from training.loop import NonFiniteLossError
from training.records.environment import device_name, warn_of_slow_bf16
from training.records.metrics import MetricsFile

logger = logging.getLogger(__name__)


def _says_more_than_its_message(entry: logging.LogRecord) -> bool:
    """detectron2 logs every exception with its traceback: not those that a message explains."""
    error = entry.exc_info[1] if entry.exc_info else None
    return error is None or not (
        isinstance(error, (ValueError, OSError, EOFError, Over))
        or loader_problem(error)
        or system_error(error)
    )


logging.getLogger("detectron2.engine.train_loop").addFilter(_says_more_than_its_message)

ENCODER_PREFIX = "backbone.bottom_up."
KEEP_CHECKPOINTS = 2


class Trainer(DefaultTrainer):
    """DefaultTrainer with what this file's header lists.

    Args:
        cfg: what :func:`detection.engines.detectron2.engine.prepare` returns.
        test_sets: what to evaluate on each ``TEST.EVAL_PERIOD``: the validation sets, if any.

    Raises:
        InputError: if ``OUTPUT_DIR`` holds a run and ``resume`` is False, or for weights and
            data that do not fit.
    """

    iter: int

    def __init__(
        self,
        cfg: Any,
        dataset: CocoDataset,
        resume: bool,
        test_sets: Sequence[CocoDataset] = (),
    ) -> None:
        # DefaultTrainer's own __init__ fixes fp16, DDP's devices and lenient loading.
        super(DefaultTrainer, self).__init__()
        self.cfg, self.max_iter, self.start_iter = cfg, cfg.SOLVER.MAX_ITER, 0
        self.done = 0  # steps behind the weights
        self.endings = Endings(lambda: "nothing")  # until it trains
        self.test_sets = test_sets
        if not resume:
            refuse_existing_run(Path(cfg.OUTPUT_DIR), ["last_checkpoint", "metrics.json"])
        has_run = resume and point_to_sound_checkpoint(Path(cfg.OUTPUT_DIR))
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        seed_generators(seed)
        batches = TrainingBatches(cfg, dataset, seed)
        model = build_detector(
            cfg, "" if has_run else cfg.MODEL.WEIGHTS, not has_run, dataset.class_names
        )
        freeze_parts(model, cfg.MODEL.FREEZE)
        if not (has_run or cfg.MODEL.WEIGHTS):
            encoder: Any = model.get_submodule(ENCODER_PREFIX[:-1])
            logger.info("training %s on %s", cfg.MODEL.CONVNEXT.SIZE, device_name(cfg.MODEL.DEVICE))
            log_origin(model, encoder.loaded, ENCODER_PREFIX)
        optimizer = build_optimizer(cfg, model)
        self.average = build_average(cfg, model)
        on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
        devices = [comm.get_local_rank()] if on_gpu else None
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=devices)
        self._trainer = Step(cfg, model, batches, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.validation = Validation.of(cfg, has_run)
        self.checkpointer = StrictCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.register_hooks(self.build_hooks())
        if has_run:
            self.checkpointer.resume_or_load("", resume=True)
            self.start_iter = batches.first_step = self.done = self.iter + 1
            logger.info("resumed from %s", self.checkpointer.get_checkpoint_file())
        if comm.is_main_process():
            warn_of_slow_bf16(resolve_precision(cfg), cfg.MODEL.DEVICE)
            average = self.average.module if self.average is not None else None
            size = checkpoint_bytes(model, average)
            refuse_full_disk(Path(cfg.OUTPUT_DIR), size, KEEP_CHECKPOINTS)
            Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
            MetricsFile(Path(cfg.OUTPUT_DIR) / "metrics.json", self.start_iter)
            # Only now, since the writers open the file that was just put in place.
            wandb = [WandbWriter(cfg)] if cfg.WANDB else []
            writers = [*wandb, *self.build_writers()]
            if resume:  # steps beyond the checkpoint, which an earlier session logged, go
                writers[-1] = TensorboardXWriter(cfg.OUTPUT_DIR, purge_step=self.start_iter)
            self.register_hooks([OverlayHook(), d2_hooks.PeriodicWriter(writers, period=20)])

    def train(self) -> None:
        """Train; signals end it with a checkpoint.

        Raises:
            EndedError: after SIGINT, SIGTERM or SIGHUP.
        """
        with ended_with_checkpoint(self) as (self.endings, self._trainer.stalls):
            self._trainer.endings = self.endings
            self.register_hooks([EndingHook(self.endings), EarlyStopping()])
            if self.validation is not None:
                self.validation.reach(self.start_iter)
            if self.validation is None or not self.validation.is_over:
                try:
                    super().train()
                except Over:
                    self.checkpointer.save("model_final", iteration=self.iter)
                    if self.average is not None and comm.is_main_process():
                        save_average(self)
        newest = Path(self.checkpointer.get_checkpoint_file())
        if self.start_iter >= self.max_iter and newest.stem != "model_final":
            # Every step was done, but the final weights are missing or were damaged.
            self.iter = self.max_iter - 1
            self.checkpointer.save("model_final", iteration=self.iter)
            if self.average is not None and comm.is_main_process():
                save_average(self)

    def build_hooks(self) -> list[HookBase]:
        """Timing, schedule, checkpoints and evaluation; the writers follow in ``__init__``."""
        found: list[HookBase] = [d2_hooks.IterationTimer(), Schedule(), Speed(), Bar()]
        if self.average is not None:
            found.append(Average(self.average))
        if comm.is_main_process():
            saver = d2_hooks.PeriodicCheckpointer(
                self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD, max_to_keep=KEEP_CHECKPOINTS
            )
            # Those of the run before a resume count, too.
            earlier = Path(self.cfg.OUTPUT_DIR).glob("model_[0-9]*.pth")
            saver.recent_checkpoints = [str(path) for path in sorted(earlier)]
            found.append(saver)
        if self.cfg.TEST.EVAL_PERIOD and self.test_sets:
            # On test sets not at the end: whoever called train() evaluates the final weights.
            at_end = self.validation is not None
            found.append(Evaluation(self.cfg.TEST.EVAL_PERIOD, self._evaluate, at_end))
        return found

    def run_step(self) -> None:
        """One step; a loss that is not finite ends the run before it reaches the weights."""
        try:
            super().run_step()
            self.done = self.iter + 1
        except FloatingPointError as error:
            raise NonFiniteLossError(
                f"the loss is not finite at step {self.iter}: {error}; "
                f"batch: {', '.join(self.data_loader.files)}; last good checkpoint: "
                f"{self.checkpointer.get_checkpoint_file() or 'none'}. "
                "Lower the learning rate, or clip gradients"
            ) from error

    def _evaluate(self) -> dict[str, Any]:
        validation = self.validation
        is_known = validation is not None and validation.knows(self.done)
        if is_known and self.done == self.start_iter:  # in the session before
            return {}
        average = self.average.module if self.average is not None else None
        predict = partial(write_predictions, self.cfg)
        with self.endings.interruptible():
            found = evaluate_in_training(
                self.cfg, self.test_sets, self.model, average, self.done, predict
            )
        if validation is not None and not is_known:
            validation.record(self.done, found, self._save_best)
        return found

    def _save_best(self, kind: Kind) -> None:
        best = self.average.module if kind == "average" and self.average else self.model
        path = Path(self.cfg.OUTPUT_DIR) / f"{BEST_WEIGHTS}.pth"
        save_pickle(getattr(best, "module", best).state_dict(), path, "model")


def build_detector(
    cfg: Any, detector: str = "", encoder: bool = True, class_names: Sequence[str] | None = None
) -> nn.Module:
    """Build the model with its weights, on its device.

    Args:
        detector: a checkpoint of the whole detector, in either engine's format.
        encoder: load ``MODEL.CONVNEXT.WEIGHTS`` where no detector is given.
        class_names: of the training data, by which the detector's rows are chosen; None where
            they must be its own.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if detector or not encoder:
        cfg.MODEL.CONVNEXT.WEIGHTS = ""
    model = build_model(cfg)
    if detector:
        adapt = class_names is not None and cfg.MODEL.CONVNEXT.ADAPT_CHANNELS
        read_detector(detector, model, wanted_classes(cfg, class_names), adapt)
    return model


def build_optimizer(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with layer-wise decay; gradients are clipped at the start of each step.

    Clipping happens inside ``step``, because mixed precision has unscaled the gradients by then.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    optimizer = build_adamw(cfg, model, ENCODER_PREFIX)
    if not clip.ENABLED or clip.CLIP_TYPE != "full_model":
        return maybe_add_gradient_clipping(cfg, optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def clip_global_norm(*_: Any) -> None:
        nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)

    optimizer.register_step_pre_hook(clip_global_norm)
    return optimizer
