"""Compiles encoders by ``torch.compile`` for use without gradients: ``--compile`` of the tools.

The setting holds for the whole process, like the choice of kernels. One program serves all image
sizes (``dynamic``). If nothing can be compiled (no C++ compiler for a CPU, no Triton for a GPU, an
operator that the compiler does not know), a warning says so once, and the encoder runs uncompiled.
So does an encoder with hooks, because compiled code would not call them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes

from backbones.kernels import nobody_reads_the_graph

logger = logging.getLogger(__name__)

Features = dict[str, Tensor]
BACKEND = "inductor"
COMPILE_HELP = "compile the encoder by torch.compile; meant for a GPU and many images"

_wanted = False
_compiled: WeakKeyDictionary[nn.Module, Callable[[Tensor], Features]] = WeakKeyDictionary()


@contextmanager
def compiled_encoders(wanted: bool = True) -> Iterator[None]:
    """Inside this context encoders run compiled, if ``wanted``."""
    global _wanted
    before, _wanted = _wanted, wanted
    try:
        yield
    finally:
        _wanted = before
        if not before:
            _compiled.clear()


def compiled_runs() -> bool:
    """Whether encoders run compiled now."""
    return _wanted and not torch.is_grad_enabled() and nobody_reads_the_graph()


def run_compiled(
    encoder: nn.Module, features: Callable[[Tensor], Features], images: Tensor
) -> Features:
    """``features(images)``, a method of the encoder, compiled at its first call."""
    global _wanted
    if any(part._forward_hooks or part._forward_pre_hooks for part in encoder.modules()):
        return features(images)
    if encoder not in _compiled:
        logger.info("--compile: compiling the encoder; its first images take minutes on a CPU")
        torch._dynamo.reset()  # forget an earlier encoder
        _compiled[encoder] = torch.compile(features, dynamic=True, backend=BACKEND)
    began = time.perf_counter()
    try:
        # otherwise a square first image would be compiled for squares only
        with symbolic_shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            found: Any = _compiled[encoder](images)
    except torch._dynamo.exc.TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        logger.warning(
            "--compile: nothing can be compiled here, so the encoder runs as without it: %s",
            next(iter(str(cause).strip().splitlines()), type(cause).__name__),
        )
        _wanted = False
        return features(images)
    if (seconds := time.perf_counter() - began) > 10:
        logger.info("--compile: %.0f s", seconds)
    return found
