"""Chooses the kernels of a ConvNeXt: Triton's on a GPU, or PyTorch's own.

The setting holds for the whole process, like those of ``torch.backends``. "auto" uses Triton's
kernels for CUDA tensors if Triton can compile; "triton" is an error if it cannot; "torch" never
uses them; "fused" is "triton" with a block's matrix products inside the kernels, too, which has not
been measured on a GPU yet. Triton's interpreter (``TRITON_INTERPRET=1``, set before Triton is
imported) also runs "triton" on a CPU, thousands of times slower, for tests.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from backbones.errors import InputError

logger = logging.getLogger(__name__)

Kernels = Literal["auto", "triton", "torch", "fused"]
KERNELS: tuple[Kernels, ...] = get_args(Kernels)
OLDEST_TRITON = (3, 3)  # tuples of tensors inside kernels

_chosen: Kernels = "auto"
_stock_alone = False


@contextmanager
def use_kernels(choice: Kernels) -> Iterator[None]:
    """Inside this context, use these kernels.

    Raises:
        InputError: if the choice is none of ``KERNELS``.
    """
    global _chosen
    if choice not in KERNELS:
        raise InputError(f"kernels is {choice!r}; allowed: {', '.join(KERNELS)}")
    before, _chosen = _chosen, choice
    try:
        yield
    finally:
        _chosen = before


def hand_written_gradients_run() -> bool:
    """Whether to use hand-written gradients: autograd is on, and nothing traces the operators."""
    return torch.is_grad_enabled() and nobody_reads_the_graph()


def nobody_reads_the_graph() -> bool:
    """Whether hand-written functions may replace PyTorch's operators.

    They may not under tracing (``torch.jit.trace``, fvcore's counters), ``torch.export``,
    ``torch.compile``, ``torch.func`` and forward-mode differentiation, which only understand
    PyTorch's own operators.
    """
    return (
        not torch.compiler.is_compiling()  # also True during torch.export
        and not torch.jit.is_tracing()
        and not functions_are_transformed()
        and forward_ad._current_level < 0
        and not _stock_alone
    )


@contextmanager
def stock_operators() -> Iterator[None]:
    """Inside this context only PyTorch's operators run, to measure and test against them."""
    global _stock_alone
    before, _stock_alone = _stock_alone, True
    try:
        yield
    finally:
        _stock_alone = before


def functions_are_transformed() -> bool:
    """Whether this runs inside a transform of ``torch.func`` (``vmap``, ``grad``, ``jvp``, ...)."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def triton_runs(x: Tensor) -> bool:
    """Whether to process this tensor by Triton's kernels.

    Raises:
        InputError: if "triton" or "fused" was chosen and Triton cannot run.
    """
    if _chosen == "torch" or (_chosen == "auto" and x.device.type != "cuda"):
        return False
    problem = why_no_triton(x.device)
    if problem is None:
        return True
    if _chosen in ("triton", "fused"):
        raise InputError(f"kernels is {_chosen!r}, but {problem}; use 'auto' or 'torch'")
    _say_once(problem)
    return False


def products_are_fused(x: Tensor) -> bool:
    """Whether a block's two products run with GELU and GRN in Triton's kernels.

    Raises:
        InputError: as :func:`triton_runs`.
    """
    return _chosen == "fused" and nobody_reads_the_graph() and triton_runs(x)


def why_no_triton(device: torch.device) -> str | None:
    """A message why Triton's kernels cannot run on a device; None if they can."""
    version = _triton_version()
    if version is None:
        return "Triton is not installed (PyTorch's CUDA builds for Linux bring it)"
    if version < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"Triton is {'.'.join(map(str, version))}, older than {oldest}: update PyTorch"
    if interpreted():
        return None
    if device.type != "cuda":
        return f"Triton needs a CUDA GPU and this runs on {device.type}"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler: install gcc, or name one in CC"
    return None


def interpreted() -> bool:
    """Whether Triton interprets its kernels, on any device, instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def launching_on(x: Tensor) -> AbstractContextManager:
    """Make a tensor's GPU the current one, because Triton launches kernels on the current GPU."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@functools.cache
def _triton_version() -> tuple[int, int] | None:
    try:
        import triton
    except ImportError:
        return None
    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)


@functools.cache
def _say_once(problem: str) -> None:
    logger.warning("PyTorch's own kernels are used on the GPU, which is slower: %s", problem)
