"""Experiment trackers: TensorBoard always, Weights & Biases if asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

PROJECT = "convnextv2"  # the project's name in the trackers
Pictures = Mapping[str, np.ndarray]  # name -> uint8 [H, W, 3], RGB
LoggedValues = Mapping[str, float | np.ndarray]  # numbers and pictures


def tracker_problems(names: Iterable[str]) -> list[str]:
    """A message for each tracker that is not installed; accelerate would silently skip it."""
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        return ["wandb is not installed: pip install wandb, or log to TensorBoard alone"]
    return []


def log_pictures(trackers: Iterable[Any], pictures: Pictures, step: int) -> None:
    """Send pictures to those of accelerate's trackers that can show them."""
    batches = {name: picture[None] for name, picture in pictures.items()}
    for tracker in trackers:
        if hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(batches, step, **layout)
