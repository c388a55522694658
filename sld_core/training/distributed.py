"""Training in several processes: what they exchange.

Under `torchrun --nproc-per-node N -m sld_core.cli ...` every process (rank) calls `join` once;
without torchrun the same code is one process alone. Tensors in main memory travel over gloo, those
of GPUs over NCCL, one GPU per process."""

from __future__ import annotations

import os
import signal
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
# the others wait while rank 0 makes tracks; where a process dies, torchrun ends the rest at once
TIMEOUT = timedelta(hours=12)
GRACE_S = 3.0


@dataclass(frozen=True)
class World:
    """This process among `size`."""

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0


ALONE = World(0, 1)


def join(device: str = "cpu") -> World:
    """Join the processes of this torchrun, even if this is the only one; `ALONE` without torchrun.
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
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT)
    return World(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Leave the group of processes, if there is one."""
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
    """This rank's share of n items: consecutive ones, so that the shares in order of rank are all
    items in order."""
    return range(n * world.rank // world.size, n * (world.rank + 1) // world.size)


def parallel(module: nn.Module, world: World) -> nn.Module:
    """The module with its gradients averaged over all ranks at every backward pass. Every rank must
    use all its parameters."""
    return nn.parallel.DistributedDataParallel(module) if dist.is_initialized() else module


def barrier(world: World) -> None:
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def mean(value: torch.Tensor, world: World) -> torch.Tensor:
    """The average of a tensor over ranks, bit-equal on each."""
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
    # in place, without a second copy of a large buffer
    for rank, slot in enumerate(whole.split(lengths)):
        if rank == world.rank:
            slot.copy_(part_N)
        dist.broadcast(slot.view(torch.uint8) if slot.dtype == torch.bool else slot, rank)
    return whole


def from_main(compute: Callable[[], Result], world: World) -> Result:
    """Run `compute` on rank 0 only, and return its result on every rank. Where it fails, rank 0
    raises and the others exit."""
    if not dist.is_initialized():
        return compute()
    succeeded_and_result = [False, None]
    try:
        if world.is_main:
            succeeded_and_result = [True, compute()]
    finally:
        dist.broadcast_object_list(succeeded_and_result, 0)
    succeeded, result = succeeded_and_result
    if not succeeded:
        # torchrun stops all processes as soon as one ends: rank 0 reports why, the others nothing
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with suppress(KeyboardInterrupt):
            time.sleep(GRACE_S)
        raise SystemExit(1)
    return result


def _own_gpu() -> int:
    local = int(os.environ.get("LOCAL_RANK", 0))
    gpus = torch.cuda.device_count()
    if local >= gpus:
        raise SldError(
            f"process {local} of this machine has no GPU: there are {gpus}; expected one for each, "
            f"start torchrun with --nproc-per-node {max(gpus, 1)}"
        )
    return local
