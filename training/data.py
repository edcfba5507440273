"""Data order and randomness as pure functions of (seed, epoch, index).

A sample's augmentation depends on nothing else: not on the number of workers, not on the process
that computes it, not on whether the run was resumed. So a resumed run needs no stored generator
states: it asks for the samples that come next.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from training.guards.workers import SigtermOnlyFromTrainer


class Samples(Protocol):
    """A map-style data set.

    Optional: ``describe(index) -> str``, which names a sample's file, and ``repeats``, how often
    each sample comes in an epoch (:class:`BatchOrder`).
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


class SampleKey(NamedTuple):
    """What seeds the random choices of a sample.

    Attributes:
        epoch: its epoch; if samples may come several times in one, its place in the whole order.
    """

    epoch: int
    sample: int


def evenly_spread(samples: Sized, number: int) -> list[int]:
    """At most ``number`` indices, evenly spread from the first to the last."""
    count = min(number, len(samples))
    return [place * (len(samples) - 1) // max(count - 1, 1) for place in range(count)]


def seed_cpu_generators(*entropy: int) -> None:
    """Seed the global generators of ``random``, ``numpy`` and ``torch`` on the CPU alone.

    A sample needs no more. ``torch.manual_seed`` is slower: it formats the stack for each kind of
    device that is not yet in use.
    """
    words = np.random.SeedSequence(entropy).generate_state(3, np.uint32)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 - libraries draw from the global generator
    torch.default_generator.manual_seed(int(words[2]))


def seed_generators(*entropy: int) -> None:
    """Seed the global generators of ``random``, ``numpy`` and, on every device, ``torch``."""
    seed_cpu_generators(*entropy)
    torch.manual_seed(torch.initial_seed())


@dataclass
class SeededSamples(Dataset):
    """A data set whose samples draw their random numbers from (seed, epoch, index)."""

    samples: Samples
    seed: int

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: SampleKey) -> tuple[SampleKey, Any]:
        seed_cpu_generators(self.seed, 0, *key)
        return key, self.samples[key.sample]


@dataclass
class BatchOrder:
    """An endless stream of this process's batches, from any position on.

    Each epoch is a permutation that depends on (seed, epoch). A batch may hold the end of one epoch
    and the start of the next, so that no sample is dropped and any batch size works with any number
    of samples.

    ``repeats`` says how often each sample comes in an epoch; a fraction is rounded at random, anew
    in each epoch. For the same seed the order is that of detectron2's
    ``RepeatFactorTrainingSampler`` (LVIS, arXiv 1908.03195, appendix B.2).

    Args:
        length: number of samples of the data set.
        global_batch: number of samples of a batch, of all processes together; a multiple of
            ``world_size``.
        first_batch: number of batches that a resumed run has used before.
        repeats: float32 ``[length]``, at least 1 each; None for one of each.
    """

    length: int
    global_batch: int
    seed: int
    first_batch: int = 0
    rank: int = 0
    world_size: int = 1
    repeats: torch.Tensor | None = None

    def __iter__(self) -> Iterator[list[SampleKey]]:
        first = self.first_batch * self.global_batch
        keys = self._permuted(first) if self.repeats is None else self._repeated(first)
        while True:
            batch = list(itertools.islice(keys, self.global_batch))
            yield batch[self.rank :: self.world_size]

    def _permuted(self, first: int) -> Iterator[SampleKey]:
        """Each sample once per epoch, from position ``first`` on."""
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for place in itertools.count(first):
            if place // self.length != epoch:
                epoch = place // self.length
                generator = np.random.default_rng([self.seed, 1, epoch])
                order = generator.permutation(self.length)
            yield SampleKey(epoch, int(order[place % self.length]))

    def _repeated(self, first: int) -> Iterator[SampleKey]:
        """Each sample as often as ``repeats`` says, from position ``first`` on."""
        assert self.repeats is not None
        generator = torch.Generator().manual_seed(self.seed)
        whole = self.repeats.trunc()
        place = 0
        while True:
            more = torch.rand(len(whole), generator=generator) < self.repeats - whole
            order = torch.arange(len(whole)).repeat_interleave((whole + more).long())
            order = order[torch.randperm(len(order), generator=generator)]
            for number, sample in enumerate(order[max(first - place, 0) :].tolist()):
                yield SampleKey(max(first, place) + number, sample)
            place += len(order)


@dataclass
class _CollateWithKeys:
    collate: Callable[[list[Any]], Any]

    def __call__(self, items: list[tuple[SampleKey, Any]]) -> tuple[list[SampleKey], Any]:
        keys, samples = zip(*items, strict=True)
        return list(keys), self.collate(list(samples))


def build_loader(
    samples: Samples,
    order: BatchOrder,
    collate: Callable[[list[Any]], Any],
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """An endless loader of ``(keys, collated batch)`` in the given order."""
    return guarded_loader(
        SeededSamples(samples, order.seed),
        workers,
        batch_sampler=order,
        collate_fn=_CollateWithKeys(collate),
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
    )


def guarded_loader(samples: Dataset, workers: int, **options: Any) -> DataLoader:
    """A loader whose workers end only when this process does; options are ``DataLoader``'s."""
    init = SigtermOnlyFromTrainer(os.getpid())
    return DataLoader(samples, num_workers=workers, worker_init_fn=init, **options)


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor in it (lists, tuples, named ones, dictionaries) on the device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        values = [to_device(value, device) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch
