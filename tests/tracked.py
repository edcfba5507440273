"""What experiment trackers were given: TensorBoard's files read back, and a stand-in for wandb."""

from __future__ import annotations

import importlib.util
import io
import types
from pathlib import Path

import numpy as np
from PIL import Image


def _events(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


def logged_numbers(folder: Path) -> dict[tuple[str, int], float]:
    """(name, step) -> the scalar, of TensorBoard's event files in a folder."""
    events = _events(folder)
    return {
        (name, event.step): event.value
        for name in events.Tags()["scalars"]
        for event in events.Scalars(name)
    }


def logged_pictures(folder: Path) -> dict[tuple[str, int], np.ndarray]:
    """(name, step) -> the picture, of TensorBoard's event files in a folder."""
    events = _events(folder)
    return {
        (name, event.step): np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        for name in events.Tags()["images"]
        for event in events.Images(name)
    }


class StubWandb(types.ModuleType):
    """Weights & Biases as this project and accelerate use it: keeps what is logged."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.util.spec_from_loader("wandb", None)
        self.logged: list[tuple[int, dict]] = []
        self.settings: dict = {}
        self.is_finished = False

    def init(self, **settings):
        self.settings = settings
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.is_finished = True

    @staticmethod
    def Image(pixels):
        return Image.fromarray(pixels)
