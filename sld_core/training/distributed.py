"""Several processes as one: torchrun starts them, each does its share, and what they need of each
other passes through here.

Under `torchrun --nproc-per-node N -m sld_core.cli ...` every process (rank) calls `join` once;
without torchrun the same code is one process alone. Tensors in main memory travel over gloo, those
of GPUs over NCCL, one GPU per process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from sld_core.types import SldError

Result = TypeVar("Result")
PATIENCE = timedelta(
    hours=12
)  # the others wait while rank 0 maps; where a process dies, torchrun ends the rest at once
GRACE_S = 3.0


@dataclass(frozen=True)
class World:
    """Which of how many processes this is."""

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0


ALONE = World(0, 1)


def join(device: str = "cpu") -> World:
    """Meet the other processes of this torchrun, be it only this one; `ALONE` without torchrun.
    From then on "cuda" is this process's own GPU."""
    if "WORLD_SIZE" not in os.environ:
        return ALONE
    cuda = torch.device(device).type == "cuda"
    if cuda and torch.device(device).index is not None:
        raise SldError(
            f"--device {device} with torchrun: expected cuda, each process takes a GPU of its own"
        )
    if cuda:
        torch.cuda.set_device(_own_gpu())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    return World(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Part from the others; does nothing in a process alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def joined(device: str = "cpu"):
    """`join`, and `leave` at the end."""
    world = join(device)
    try:
        yield world
    finally:
        leave()


def shard(n: int, world: World) -> range:
    """This rank's share of n things: consecutive, so that shares joined in order of rank are the
    whole in order."""
    return range(n * world.rank // world.size, n * (world.rank + 1) // world.size)


def parallel(module: nn.Module, world: World) -> nn.Module:
    """The module, its gradients averaged over all ranks at every backward. Every rank must use all
    its parameters."""
    return nn.parallel.DistributedDataParallel(module) if dist.is_initialized() else module


def barrier(world: World) -> None:
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def mean(value: torch.Tensor, world: World) -> torch.Tensor:
    """The average over ranks of a tensor, the same bits on each."""
    if not dist.is_initialized():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world.size


def all_of(value: Result, world: World) -> list[Result]:
    """The values of all ranks, in order of rank, on every rank; anything that can be pickled."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def gather(part_N: torch.Tensor, world: World) -> torch.Tensor:
    """The tensors of all ranks, joined along the first axis in order of rank, on every rank; their
    lengths may differ."""
    if not dist.is_initialized():
        return part_N
    lengths = all_of(len(part_N), world)
    whole = part_N.new_empty((sum(lengths), *part_N.shape[1:]))
    for rank, slot in enumerate(whole.split(lengths)):  # in place: no second copy of a large buffer
        if rank == world.rank:
            slot.copy_(part_N)
        dist.broadcast(slot.view(torch.uint8) if slot.dtype == torch.bool else slot, rank)
    return whole


def from_main(compute: Callable[[], Result], world: World) -> Result:
    """What `compute` returns on rank 0, on every rank; only rank 0 runs it. Where it fails, rank 0
    raises and the others exit."""
    if not dist.is_initialized():
        return compute()
    answer = [False, None]
    try:
        if world.is_main:
            answer = [True, compute()]
    finally:
        dist.broadcast_object_list(answer, 0)
    if not answer[0]:
        with suppress(
            KeyboardInterrupt
        ):  # as soon as one process ends, torchrun ends the others: let rank 0 first say why
            time.sleep(GRACE_S)
        raise SystemExit(1)
    return answer[1]


def _own_gpu() -> int:
    local, here = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= here:
        raise SldError(
            f"process {local} of this machine has no GPU: it has {here}; expected one for "
            "each, start torchrun with "
            f"--nproc-per-node {max(here, 1)}"
        )
    return local
