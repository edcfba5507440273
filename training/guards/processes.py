"""One training in several processes: they start, agree, share the weights and stop.

DDP (each process has a copy of the weights) is the default. With FSDP each process holds a part of
weights, gradients and optimizer state, and the weights are gathered for a forward pass; start it by
``accelerate launch --config_file training/fsdp.yaml``.
"""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from backbones.errors import InputError


def prepare_sharding(accelerator: Accelerator) -> bool:
    """Whether accelerate's configuration asks for FSDP; on CPUs this turns FSDP on.

    Raises:
        InputError: for FSDP's first version, whose flat parameters have no names of their own, and
            on CPUs where PyTorch averages the gradients wrongly.
    """
    if (
        accelerator.distributed_type == DistributedType.MULTI_CPU
        and os.environ.get("ACCELERATE_USE_FSDP") == "true"
    ):
        if not _gloo_averages():
            raise InputError(
                f"FSDP on CPUs adds up the gradients of torch {torch.__version__} instead of "
                "averaging them; take a newer torch (2.14 is right), or train without FSDP"
            )
        # accelerate (1.15) silently runs DDP on CPUs, although FSDP works there.
        PartialState().distributed_type = DistributedType.FSDP
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if accelerator.distributed_type != DistributedType.FSDP:
        return False
    if not accelerator.is_fsdp2:
        raise InputError("FSDP's version is 1; set fsdp_version: 2 as in training/fsdp.yaml")
    return True


def _gloo_averages() -> bool:
    """Whether reduce-scatter of a mean gives a mean: with gloo in torch 2.8 it gives a sum.

    https://github.com/pytorch/pytorch/issues/162338
    """
    mean = torch.empty(1)
    try:
        ones = torch.ones(distributed.get_world_size())
        distributed.reduce_scatter_tensor(mean, ones, op=distributed.ReduceOp.AVG)
    except RuntimeError:  # older still: gloo has no mean
        return False
    return mean.item() == 1


def check_joined(joined: int) -> None:
    """Refuse to train if fewer processes joined than were started: each would write the same files.

    Raises:
        InputError: if ``WORLD_SIZE``, which torchrun and accelerate set, is another number.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != joined:
        raise InputError(
            f"WORLD_SIZE is {started}, but {joined} process(es) train together: start them by "
            "torchrun, accelerate launch or --num-gpus, or unset WORLD_SIZE"
        )


def process_state(device: torch.device) -> PartialState:
    """accelerate's state of this process, for work on that kind of device.

    accelerate keeps the device of the first training or prediction for the whole process. Here a
    later one (tests, notebooks) may use another device.
    """
    if PartialState._shared_state and PartialState().device.type != device.type:
        PartialState._reset_state()
    return PartialState(cpu=device.type == "cpu")


@torch.no_grad()
def gather_weights(sharded: nn.Module, whole: nn.Module) -> None:
    """Copy sharded weights into a complete module, in every process (all must call this)."""
    parts = sharded.state_dict()
    for name, value in whole.state_dict().items():
        part = parts[name]
        value.copy_(part.full_tensor() if isinstance(part, DTensor) else part)


def largest_of_processes(accelerator: Accelerator, values: list[int]) -> list[int]:
    """The largest of each value over all processes."""
    if accelerator.num_processes == 1:
        return values
    own = torch.tensor(values, dtype=torch.float32, device=accelerator.device)
    return [int(value) for value in accelerator.gather(own[None]).amax(0).tolist()]


def mean_over_processes(accelerator: Accelerator, values: dict[str, float]) -> dict[str, float]:
    """The mean of each value; every process has the same names in the same order."""
    if accelerator.num_processes == 1:
        return values
    own = torch.tensor(list(values.values()), device=accelerator.device)
    means = accelerator.reduce(own, reduction="mean").tolist()
    return dict(zip(values, means, strict=True))


def all_finite(model: nn.Module) -> bool:
    """Whether all parameters (or their parts in this process) are finite."""
    parts = (p.to_local() if isinstance(p, DTensor) else p for p in model.parameters())
    return all(bool(part.isfinite().all()) for part in parts)
