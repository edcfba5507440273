"""What follows a step of a detectron2 training: schedule, records, evaluation, early stopping."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.engine import hooks as d2_hooks
from detectron2.utils.events import EventWriter, get_event_storage

from detection.engines.detectron2.results import detector_of
from detection.engines.overlays import overlays, overlays_due
from training.configured import flat_values
from training.progress import progress
from training.records.environment import peak_memory_mb
from training.records.metrics import train_seconds
from training.records.trackers import PROJECT


class Over(Exception):
    """Ends the training before its last step: see :class:`Validation`."""


class Evaluation(d2_hooks.EvalHook):
    """detectron2's hook; a resumed run begins with an evaluation that the earlier session missed.

    Of validation sets alone: their values decide what is best."""

    def before_train(self) -> None:
        trainer, step = self.trainer, self.trainer.start_iter
        is_due = step and self._period and step % self._period == 0 and step < trainer.max_iter
        if is_due and trainer.validation is not None and not trainer.validation.knows(step):
            trainer.storage.iter = step - 1  # its own counts steps from 0
            self._do_eval()
            trainer.storage.iter = step


class EarlyStopping(HookBase):
    """Runs last, when the step and all other hooks are done."""

    def after_step(self) -> None:
        if self.trainer.validation is not None and self.trainer.validation.is_over:
            raise Over


class Schedule(d2_hooks.LRScheduler):
    """Records the learning rate of the heads; on resume the rates are those of the config."""

    def after_step(self) -> None:
        lr = self.trainer.optimizer.param_groups[-1]["lr"]
        self.trainer.storage.put_scalar("lr", lr, smoothing_hint=False)
        self.scheduler.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scheduler.last_epoch = state_dict["last_epoch"]


class Speed(HookBase):
    """Adds to metrics.json: memory (MB), images per second, seconds of all sessions so far."""

    def before_train(self) -> None:
        self.earlier = train_seconds(Path(self.trainer.cfg.OUTPUT_DIR) / "metrics.json")
        self.began = time.perf_counter()

    def after_step(self) -> None:
        storage = self.trainer.storage
        if "time" in storage.histories():
            seconds = storage.history("time").latest()
            storage.put_scalar("images_per_second", self.trainer.cfg.SOLVER.IMS_PER_BATCH / seconds)
        storage.put_scalar("max_mem", peak_memory_mb(), smoothing_hint=False)
        seconds = self.earlier + time.perf_counter() - self.began
        storage.put_scalar("train_seconds", seconds, smoothing_hint=False)


class Bar(HookBase):
    """The progress bar of the training."""

    def before_train(self) -> None:
        total, start = self.trainer.max_iter, self.trainer.start_iter
        self.bar = progress(text="training", total=total, unit="step", initial=start, leave=True)

    def after_step(self) -> None:
        self.bar.update()

    def after_train(self) -> None:
        self.bar.close()


class OverlayHook(HookBase):
    """Stores the pictures of :mod:`detection.engines.overlays` for the writers.

    The main process alone does."""

    def after_step(self) -> None:
        cfg, model = self.trainer.cfg, self.trainer.model
        if not (self.trainer.test_sets and overlays_due(cfg, self.trainer.iter + 1)):
            return
        dataset = self.trainer.test_sets[0]
        model.eval()
        with self.trainer.endings.interruptible():
            pictures = overlays(cfg, dataset, detector_of(getattr(model, "module", model), dataset))
        model.train()
        for name, picture in pictures.items():
            self.trainer.storage.put_image(name, picture.transpose(2, 0, 1))


class WandbWriter(EventWriter):
    """Sends what was stored since the last call to Weights & Biases.

    It comes before the TensorBoard writer, which removes the pictures from the storage.
    """

    def __init__(self, cfg: Any) -> None:
        import wandb

        self.picture = wandb.Image
        self.run = wandb.init(project=PROJECT, config=flat_values(cfg))
        self.newest = -1

    def write(self) -> None:
        storage = get_event_storage()
        values: dict[str, Any] = {
            name: value for name, (value, step) in storage.latest().items() if step > self.newest
        }
        for name, picture, _ in storage._vis_data:  # as the TensorBoard writer takes them
            values[name] = self.picture(picture.transpose(1, 2, 0))
        self.newest = storage.iter
        self.run.log(values, step=storage.iter)

    def close(self) -> None:
        self.run.finish()
