"""The world a process belongs to: the one place that reads a launcher's variables and owns the process group."""

from __future__ import annotations

import datetime
import gc
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from distmem.errors import LaunchError
from distmem.launched import launched


@dataclass(frozen=True)
class World:
    """rank and size over all nodes, the rank within the node, and the device of this process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (a device is immutable)

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Sums over all ranks, in float64 on the CPU (gloo), so that no GPU has to wait for them."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def broadcast(self, tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
        """The tensor of rank `source`, in place."""
        if self.size > 1:
            whole = tensor.contiguous()  # gloo would send the memory between the elements of a view too
            dist.broadcast(whole, source)
            if whole is not tensor:
                tensor.copy_(whole)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """A small plain object of each rank, on every rank, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            self.sum([0.0])


def join_world(device: str, timeout_s: float = 600.0) -> World:
    """Join the ranks that the launcher started (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_*), or be alone.

    device: cpu, cuda or mps; with cuda each rank takes the card of its local rank.
    Raises LaunchError when the device is not there.
    """
    process = launched()
    chosen = _device(device, process.local_rank)
    if process.size > 1:
        if not process.has_master:
            raise LaunchError(
                f"WORLD_SIZE is {process.size}, and MASTER_ADDR and MASTER_PORT are not set",
                remedy="start the worker with torchrun or distmem run --launcher torchrun",
            )
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
            timeout=datetime.timedelta(seconds=timeout_s),
            device_id=chosen if chosen.type == "cuda" else None,
        )
    return World(process.rank, process.size, process.local_rank, process.local_size, chosen)


def _device(name: str, local_rank: int) -> torch.device:
    if name == "cuda":
        if not torch.cuda.is_available():
            raise LaunchError("the recipe asks for cuda, and torch finds no CUDA device", remedy="launch.device=cpu")
        if torch.cuda.device_count() == 1:
            local_rank = 0  # the launcher has given each process a card of its own
        if local_rank >= torch.cuda.device_count():
            raise LaunchError(
                f"local rank {local_rank} has no card: this node has {torch.cuda.device_count()}",
                remedy=f"start at most {torch.cuda.device_count()} processes per node",
            )
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if name == "mps" and not torch.backends.mps.is_available():
        raise LaunchError("the recipe asks for mps, and torch finds no Metal device", remedy="launch.device=cpu")
    return torch.device(name)


def leave_world(world: World) -> None:
    """Leave the process group so that no rank aborts at its exit.

    Gloo's thread may still hold the last collective when Python ends, and then kills the process with SIGABRT
    (https://github.com/pytorch/pytorch/pull/179291): all meet, references go, and a moment passes.
    """
    if world.size > 1 and dist.is_initialized():
        world.barrier()
        gc.collect()
        time.sleep(0.1)
        dist.destroy_process_group()
