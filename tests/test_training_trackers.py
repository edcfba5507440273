"""Pictures in the experiment trackers, and trackers that are missing."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from accelerate import PartialState
from accelerate.tracking import WandBTracker

from training.options import LoopOptions
from training.records.trackers import PROJECT, log_pictures


def test_pictures_reach_wandb_as_they_are(wandb):
    PartialState(cpu=True)
    tracker = WandBTracker(PROJECT)
    if getattr(tracker, "run", None) is None:
        tracker.start()  # what Accelerator.init_trackers does in newer versions
    picture = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    log_pictures([tracker], {"a": picture}, 7)
    assert wandb.settings == {"project": PROJECT}
    ((step, values),) = wandb.logged
    assert step == 7
    assert np.array_equal(np.asarray(values["a"][0]), picture)


def test_a_tracker_without_pictures_is_left_out():
    log_pictures([object()], {"a": np.zeros((2, 2, 3), np.uint8)}, 1)


def test_missing_wandb_is_said_and_not_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="wandb is not installed: pip install wandb"):
        LoopOptions(
            output_dir=tmp_path, max_steps=1, batch_size=1, trackers=("tensorboard", "wandb")
        )
    LoopOptions(output_dir=tmp_path, max_steps=1, batch_size=1)
