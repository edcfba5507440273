"""The engines that train and run a detector: one interface, files as the only results.

An engine reads a config and COCO-format data and writes files in standard formats. The rest of
:mod:`detection` reads these files and does not depend on the engine.
"""

from __future__ import annotations

from backbones.errors import InputError
from detection.config import require_detectron2
from detection.engines.interface import Detect, Engine

__all__ = ["Detect", "Engine", "load_engine"]


def load_engine(name: str) -> Engine:
    """The engine of this name; the other one's packages are not imported.

    Raises:
        InputError: for an unknown name, or where detectron2 is not installed.
    """
    if name == "torchvision":
        from detection.engines.torchvision.engine import TorchvisionEngine

        return TorchvisionEngine()
    if name == "detectron2":
        require_detectron2()
        from detection.engines.detectron2.engine import Detectron2Engine

        return Detectron2Engine()
    raise InputError(f"ENGINE is {name!r}; the engines are torchvision, detectron2")
