"""``--num-gpus``: start several processes of the same command, as torchrun does.

The flags have the names of detectron2's tools. Every command that trains has them; without GPUs the
processes run on the CPU.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch

from backbones.errors import InputError


def add_launch_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--num-gpus``, ``--num-machines``, ``--machine-rank`` and ``--dist-url``."""
    group = parser.add_argument_group("several processes, as under torchrun")
    add = group.add_argument
    add(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="number of processes on this machine, one per GPU",
    )
    add(
        "--num-machines",
        type=int,
        default=1,
        metavar="N",
        help="number of machines; start the command on each",
    )
    add("--machine-rank", type=int, default=0, metavar="N", help="number of this machine, from 0")
    add(
        "--dist-url",
        default="auto",
        help="tcp://HOST:PORT of the first machine, if there are several",
    )


def launch_values(arguments: dict[str, Any]) -> tuple[int, int, int, str]:
    """Take these flags out of parsed arguments: the arguments of :func:`start_processes`."""
    names = ("num_gpus", "num_machines", "machine_rank", "dist_url")
    return tuple(arguments.pop(name) for name in names)  # type: ignore[return-value]


def start_processes(num_gpus: int, num_machines: int, machine_rank: int, dist_url: str) -> int:
    """Run this command again, in each of the processes.

    Returns:
        The exit code of the first process that failed, or 0. -1 if nothing was started, because
        this is one of the processes already, or the only one.

    Raises:
        InputError: for numbers that contradict each other, this machine or torchrun's.
    """
    asked, started = num_gpus * num_machines, os.environ.get("WORLD_SIZE")
    if asked < 1:
        raise InputError(f"--num-gpus is {num_gpus} on {num_machines} machine(s): at least 1 each")
    if started is not None:
        if asked not in (1, int(started)):
            raise InputError(
                f"--num-gpus {num_gpus} x --num-machines {num_machines} asks for {asked} "
                f"processes, but torchrun has started {started}: leave these flags out"
            )
        return -1
    if asked == 1:
        return -1
    if not 0 <= machine_rank < num_machines:
        raise InputError(f"--machine-rank is {machine_rank} of {num_machines} machine(s), from 0")
    gpus = torch.cuda.device_count()
    if gpus and num_gpus > gpus:
        raise InputError(f"--num-gpus is {num_gpus}, but this machine has {gpus} GPU(s)")
    where = ["--standalone"]
    if num_machines > 1:
        match = re.fullmatch(r"tcp://(.+):(\d+)", dist_url)
        if match is None:
            raise InputError(
                f"--dist-url is {dist_url!r}; {num_machines} machines meet at tcp://HOST:PORT of "
                "the first of them"
            )
        where = [
            *("--nnodes", str(num_machines), "--node-rank", str(machine_rank)),
            *("--master-addr", match[1], "--master-port", match[2]),
        ]
    return _torchrun([*where, "--nproc-per-node", str(num_gpus), *_this_command()])


def _this_command() -> list[str]:
    """``sys.argv`` for torchrun: a script's path, or ``fcmae COMMAND`` by its module."""
    if Path(sys.argv[0]).is_file():
        return sys.argv
    return ["--module", *sys.argv[0].split(" "), *sys.argv[1:]]


def _torchrun(arguments: list[str]) -> int:
    # only here: torch brings them, but slowly
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(arguments))
    except ChildFailedError as error:  # the process itself has printed why
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    return 0
