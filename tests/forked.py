"""Processes of tests' own, forked from one server that has imported everything once.

Imports take longer than the trainings of tests. The first that forks starts the server, with what
it names; so all of a test process name the same.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from typing import Any

IMPORTED = [
    "pytest",
    "torch.utils.data",
    "torch.utils.tensorboard",
    "matplotlib.pyplot",
    "fcmae.pretrain",
    "fcmae.classification.finetune",
    "detection.run",
    "detection.engines.torchvision.engine",
    "detection.engines.detectron2.engine",  # left out where detectron2 is missing
    "segmentation.run",
]


def start(function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=function, args=arguments)
    process.start()
    return process
