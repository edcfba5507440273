"""Finds the device to compute on: CPU, NVIDIA or AMD GPU (cuda), Apple's GPU (mps)."""

from __future__ import annotations

import torch
from torch import Tensor

from backbones.errors import InputError
from training.cli import process_count

DEVICES = ("cpu", "cuda", "mps")


def automatic_device() -> str:
    """What ``MODEL.DEVICE: auto`` stands for: an NVIDIA (or AMD) GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def find_device(name: str | None, setting: str = "--device") -> torch.device:
    """The device of that name; for None a GPU if there is one. "cuda:N" becomes the current GPU.

    Args:
        name: "cpu", "cuda", "cuda:N", "mps" or None.
        setting: the flag or key of the name, for the error.

    Raises:
        InputError: if there is no such device, or several processes would share one GPU.
    """
    if name is None:
        here = torch.accelerator.is_available()
        return (torch.accelerator.current_accelerator() if here else None) or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"{setting} is {name!r}; it is one of {', '.join(DEVICES)}") from error
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"{setting} is {name}, but PyTorch finds no Apple GPU: set it to cpu")
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise InputError(f"{setting} is {name}, but PyTorch finds {count} GPU(s): set it to cpu")
    if device.index is not None:
        if process_count() > 1:
            raise InputError(f"{setting} is {name}, one GPU for several processes: set it to cuda")
        torch.cuda.set_device(device)
    return device


def to_float64(values: Tensor) -> Tensor:
    """The values in float64. Apple's GPU has no float64, so its values are moved to the CPU."""
    return (values.cpu() if values.device.type == "mps" else values).to(torch.float64)
