"""Experiment trackers: TensorBoard always, Weights & Biases where a run asks for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

PROJECT = "convnextv2"  # this project's name in them
Pictures = Mapping[str, np.ndarray]  # name -> uint8 [H, W, 3], RGB
LoggedValues = Mapping[str, float | np.ndarray]  # numbers and pictures


def tracker_problems(names: Iterable[str]) -> list[str]:
    """What is wrong with accelerate's names of trackers, which itself passes over missing ones."""
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        return ["wandb is not installed: pip install wandb, or log to TensorBoard alone"]
    return []


def log_pictures(trackers: Iterable[Any], pictures: Pictures, step: int) -> None:
    """Send pictures to accelerate's trackers of this process, of which those that can show them."""
    batches = {name: picture[None] for name, picture in pictures.items()}
    for tracker in trackers:
        if hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(batches, step, **layout)
