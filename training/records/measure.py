"""Measure time and memory of a step. Several variants are measured in turn.

Every round runs each variant once, so a machine that slows down slows all of them.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from training.progress import progress

Row = dict[str, Any]


def interleaved(
    variants: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each variant over ``rounds`` rounds, after one that is not counted.

    Args:
        variants: what to run, by name.
        clock: ``time.process_time`` counts the processor time of all threads, which other work on
            the machine disturbs less.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in progress(range(rounds + 1), "measuring", unit="round"):
        for name, run in variants.items():
            synchronise(device)
            began = clock()
            run()
            synchronise(device)
            if number:
                times[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The autocast context for "bf16"; one that does nothing for "fp32"."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def device_clock(device: torch.device) -> Callable[[], float]:
    """A clock: processor time on a CPU, wall-clock time on a GPU."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that PyTorch's allocator held during ``run``, beyond those held before.

    On a CPU they are counted by the profiler: all tensors, also temporary ones of operators, but
    not NumPy's arrays or oneDNN's scratch memory.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    recorded = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in recorded if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return peak


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' memory; memory that several share counts once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def in_fresh_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run ``work`` in a new process, which logs errors only, and return its result."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context, logging.disable, (logging.WARNING,)) as process:
        return process.submit(work, *arguments).result()
