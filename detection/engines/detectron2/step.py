"""A training step of the detectron2 engine: micro-batches, mixed precision, averaged weights.

References:
    detectron2 (Apache-2.0), ``engine/train_loop.py``.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.utils import comm
from timm.utils import ModelEmaV3
from torch import nn

from backbones.errors import InputError
from backbones.weight_files import save_pickle
from detection.engines.detectron2.data import TrainingBatches
from training.configured import resolve_precision
from training.guards.endings import Endings
from training.guards.workers import StallWatch


class Step(SimpleTrainer):
    """One optimizer step, of ``SOLVER.ACCUMULATE`` micro-batches, in the config's precision.

    detectron2's ``AMPTrainer`` runs only on GPUs, and none of its trainers accumulates gradients.

    Attributes:
        endings, stalls: of the training, which may end while a step waits for its data.
    """

    endings = Endings(lambda: "nothing")
    stalls = StallWatch(list)

    def __init__(
        self, cfg: Any, model: nn.Module, batches: TrainingBatches, optimizer: torch.optim.Optimizer
    ) -> None:
        super().__init__(model, batches, optimizer)
        self.accumulate, precision = cfg.SOLVER.ACCUMULATE, resolve_precision(cfg)
        self.autocast_options: dict[str, Any] = {
            "device_type": torch.device(cfg.MODEL.DEVICE).type,
            "dtype": torch.float16 if precision == "fp16" else torch.bfloat16,
            "enabled": precision != "no",
        }
        # bf16 has float32's range and needs no scaling of the loss.
        self.scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")

    def run_step(self) -> None:
        means: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
        data_time = 0.0
        self.optimizer.zero_grad()
        for micro in range(self.accumulate):
            began = time.perf_counter()
            with self.endings.interruptible(), self.stalls.waiting():
                batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - began
            is_last = micro == self.accumulate - 1
            with nullcontext() if is_last else getattr(self.model, "no_sync", nullcontext)():
                with torch.autocast(**self.autocast_options):
                    losses = self.model(batch)
                total = torch.stack(list(losses.values())).sum()
                self.scaler.scale(total / self.accumulate).backward()
            for name, loss in losses.items():
                means[name] = means[name] + loss.detach().cpu() / self.accumulate
        self.after_backward()
        self._write_metrics(means, data_time)  # which refuses what is not finite
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"grad_scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if scale := state_dict.get("grad_scaler"):  # empty but for fp16
            self.scaler.load_state_dict(scale)


class Average(HookBase):
    """Averages the weights after each step; its state is part of each checkpoint."""

    def __init__(self, average: ModelEmaV3) -> None:
        self.average, self.is_restored = average, False

    def before_train(self) -> None:
        if self.trainer.start_iter and not self.is_restored:
            raise InputError(
                "the checkpoint to resume from has no averaged weights: the run was started with "
                "SOLVER.EMA.ENABLED False; continue it with that, or start another"
            )

    def after_step(self) -> None:
        done, model = self.trainer.iter + 1, self.trainer.model
        self.average.update(getattr(model, "module", model), done)
        if done == self.trainer.max_iter and comm.is_main_process():
            save_average(self.trainer)

    def state_dict(self) -> dict[str, Any]:
        return self.average.module.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average.module.load_state_dict(state_dict)
        self.is_restored = True


def save_average(trainer: Any) -> None:
    """Write the averaged weights beside the final ones."""
    path = Path(trainer.cfg.OUTPUT_DIR) / "model_final_ema.pth"
    save_pickle(trainer.average.module.state_dict(), path, "model")
