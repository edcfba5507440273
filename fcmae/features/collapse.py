"""Watch the features of a training: measure the distance of channels, and warn of collapse.

Without GRN, masked pretraining lets the channels of a block become copies of each other (arXiv
2301.00808, section 3.2). So the mean pairwise cosine distance of every block's expanded channels
(:func:`fcmae.features.analysis.cosine_distance`) is measured now and then, on the same images with
nothing removed, and joins the line of ``metrics.json``, in pretraining and (where asked for) in
supervised training:

  * ``feature_distance/mean``, ``feature_distance/lowest``: over the blocks;
  * ``feature_dead/highest``: the largest fraction of dead channels of a block;
  * ``block_distance/stages.S.B``: of each block.

A measure belongs to a line of ``metrics.json``, so a resumed run keeps or repeats it with its line.
The model runs in evaluation mode without gradients and draws no random number: a run's weights are
the same bit by bit with and without the watch.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from backbones.errors import InputError
from fcmae.features.analysis import cosine_distance, dead_and_saturated
from fcmae.features.taps import tap_points, tapped
from fcmae.model import FCMAE
from training.devices import to_float64

logger = logging.getLogger(__name__)

WATCHED_IMAGES = 16
MEASURES = 50  # of a run, by default
LOW_DISTANCE = 0.2  # 0.5: unrelated channels; 0: copies of each other
MANY_DEAD = 0.5
BLOCK_KEY = "block_distance/"


def steps_between_measures(
    every_epochs: float | None, epoch_steps: float, steps: int, log_every: int
) -> int:
    """Steps from one measure to the next, a multiple of ``log_every``; 0 for never.

    Args:
        every_epochs: as asked for; None for about fifty times over the run, but no more than once
            per epoch; 0 for never.
        epoch_steps: steps of a pass over the images.
        log_every: steps between two lines of ``metrics.json``.
    """
    if every_epochs == 0:
        return 0
    wanted = max(epoch_steps, steps / MEASURES)
    if every_epochs is not None:
        wanted = every_epochs * epoch_steps
    return max(1, round(wanted / log_every)) * log_every


class CollapseWatch:
    """Measures the features of the same images, and warns where they collapse.

    Args:
        inputs: what the model is called with: normalised images ``[B, C, H, W]``; for an FCMAE also
            masks ``[B, rows, columns]`` that remove nothing.
        every: steps between two measures, see :func:`steps_between_measures`.
        last: the run's last step, which is measured too.
    """

    def __init__(self, inputs: Sequence[Tensor], every: int, last: int) -> None:
        self.inputs, self.every, self.last = inputs, every, last
        self._warned: set[str] = set()

    def __call__(self, step: int, model: nn.Module) -> dict[str, float]:
        """The measures by their keys; none where the step is not one of those measured."""
        if not self.every or (step % self.every and step != self.last):
            return {}
        distances, dead = self.measure(model)
        self._warn(step, distances, dead)
        known = [d for d in distances.values() if not math.isnan(d)] or [0.0]
        return {
            "feature_distance/mean": sum(known) / len(known),
            "feature_distance/lowest": min(known),
            "feature_dead/highest": max(dead.values()),
            **{BLOCK_KEY + b: d for b, d in distances.items() if not math.isnan(d)},
        }

    @torch.no_grad()
    def measure(self, model: nn.Module) -> tuple[dict[str, float], dict[str, float]]:
        """Cosine distance and fraction of dead channels by block, means over the images.

        The whole model runs: so FSDP gathers its weights.
        """
        points = tap_points(model.encoder if isinstance(model, FCMAE) else model)
        distances: dict[str, float] = {}
        dead: dict[str, float] = {}

        def receive(number: int, x_bnc: Tensor) -> None:
            block, images = points[number].block, x_bnc.split(1)  # one at a time in float64
            distances[block] = float(torch.cat([cosine_distance(x) for x in images]).nanmean())
            dead_bc = torch.cat([dead_and_saturated(x)[0] for x in images])
            dead[block] = float(to_float64(dead_bc).mean())

        device = next(model.parameters()).device
        was_training = model.training
        model.eval()
        with tapped(points, receive):
            model(*(each.to(device) for each in self.inputs))
        model.train(was_training)
        return distances, dead

    def _warn(self, step: int, distances: dict[str, float], dead: dict[str, float]) -> None:
        """Warn of each block once, when it first collapses."""
        low = {b: d for b, d in distances.items() if not d >= LOW_DISTANCE}
        many = {b: d for b, d in dead.items() if d > MANY_DEAD}
        new = (low.keys() | many.keys()) - self._warned
        if not new:
            return
        self._warned |= new
        found = [f"{b} has a cosine distance of {low[b]:.2f}" for b in low if b in new]
        found += [f"{b} has {many[b]:.0%} dead channels" for b in many if b in new]
        logger.warning(
            "step %d: features are collapsing: %s (warned of: a distance below %.1f, more than "
            "%.0f%% dead). Channels repeat each other or are silent: check that the model has GRN, "
            "and lower the learning rate; docs/feature_analysis.md tells how to look closer",
            step,
            "; ".join(found),
            LOW_DISTANCE,
            100 * MANY_DEAD,
        )


@dataclass(frozen=True)
class Measured:
    """A line of a run's curve: the cosine distance of every block after some epochs."""

    epoch: float
    step: int
    distances: dict[str, float]


def measured_history(run: Path) -> list[Measured]:
    """The measures in a run's ``metrics.json``, in the order of its steps.

    Raises:
        FileNotFoundError: if the folder lacks ``metrics.json`` or ``config.yaml``.
        InputError: if nothing was measured.
    """
    for file in ("config.yaml", "metrics.json"):
        if not (run / file).is_file():
            raise FileNotFoundError(f"{run} is no run of a training: it has no {file}")
    config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    epoch_steps = config["derived"]["images"] / config["batch_size"]
    history = []
    for line in (run / "metrics.json").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        blocks = {k.removeprefix(BLOCK_KEY): v for k, v in entry.items() if k.startswith(BLOCK_KEY)}
        if blocks:
            history.append(Measured(entry["iteration"] / epoch_steps, entry["iteration"], blocks))
    if not history:
        raise InputError(
            f"{run}/metrics.json holds no {BLOCK_KEY}*: the run was made with "
            "--measure-features-every 0 (finetune_classifier's default), or ended before its first "
            "measure"
        )
    return history
