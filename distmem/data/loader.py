"""Batches of a split: each rank's slice of each global batch, cut into micro-batches, gathered whole.

A global batch is positions [s*G, (s+1)*G) of the epoch's order; the last one of an epoch may be shorter. Ranks
take contiguous, possibly uneven slices, and a slice is cut into the micro-batches of the window. What a rank
gets depends on the world size; what the world gets does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distmem.data.order import Order
from distmem.data.split import Columns, Split, Subset, Windows
from distmem.distributed import World
from distmem.seeding import seed_all


@dataclass(frozen=True)
class Window:
    """One global batch as this rank sees it: (x, y) per micro-batch, on the CPU, in raw dtypes.

    samples: of the global batch. An empty micro-batch has one sample of x and none of y: a rank without
    samples still takes part in the collectives of its neighbours, with a loss over nothing.
    """

    epoch: int
    batch: int
    samples: int
    micro_batches: list[tuple[Tensor, Tensor]]


def cut(total: int, parts: int, index: int) -> tuple[int, int]:
    """Start and end of part `index` when `total` things are cut into `parts` runs; the first ones are larger by one."""
    return -(-total * index // parts), -(-total * (index + 1) // parts)


class Loader:
    """Windows of a split for training. batch_size is global; workers threads gather ahead."""

    def __init__(self, split: Split, batch_size: int, seed: int, world: World, workers: int | str = "auto"):
        self.split, self.batch_size, self.seed, self.world = split, batch_size, seed, world
        self.workers = auto_workers(split, world) if workers == "auto" else int(workers)
        self.batches = -(-len(split) // batch_size)

    def windows(self, epoch: int, first: int, accumulate: int) -> Iterator[Window]:
        """The windows of an epoch from batch `first` on, each in `accumulate` micro-batches."""
        order = Order(len(self.split), self.seed, epoch)
        plans = ((batch, self._ids(order, batch)) for batch in range(first, self.batches))

        def work(plan: tuple[int, np.ndarray]) -> list[tuple[Tensor, Tensor]]:
            batch, ids = plan
            if not in_memory(self.split):  # an item may draw random numbers: they too are those of the step
                seed_all(torch.device("cpu"), self.seed, epoch, batch, self.world.rank)
            return self._gather(ids, accumulate)

        for (batch, ids), gathered in _ahead(plans, work, self.workers):
            yield Window(epoch, batch, len(ids), gathered)

    def _ids(self, order: Order, batch: int) -> np.ndarray:
        start = batch * self.batch_size
        return order.take(start, min(len(self.split), start + self.batch_size))

    def _gather(self, ids: np.ndarray, accumulate: int) -> list[tuple[Tensor, Tensor]]:
        first, last = cut(len(ids), self.world.size, self.world.rank)
        pairs = []
        for index in range(accumulate):
            start, end = cut(last - first, accumulate, index)
            if start < end:
                pairs.append(gather(self.split, ids[first + start : first + end], self.world))
            elif self.world.size > 1:
                x, y = gather(self.split, ids[:1], self.world)
                pairs.append((x, y[:0]))
        return pairs


def evaluation_batches(
    split: Split, batch_size: int, world: World, workers: int | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's part of a split, in order, each sample once over all ranks; batch_size is per rank."""
    first, last = cut(len(split), world.size, world.rank)
    plans = (np.arange(start, min(last, start + batch_size)) for start in range(first, last, batch_size))
    threads = auto_workers(split, world) if workers == "auto" else int(workers)
    for _, pair in _ahead(plans, lambda ids: gather(split, ids, world), threads):
        yield pair


def gather(split: Split, ids: np.ndarray, world: World) -> tuple[Tensor, Tensor]:
    """x and y of some samples, pinned when a GPU waits for them."""
    x, y = split.gather(torch.from_numpy(np.ascontiguousarray(ids)))
    return (x.pin_memory(), y.pin_memory()) if world.device.type == "cuda" else (x, y)


def in_memory(split: Split) -> bool:
    """Whether batches are gathered from tensors, and not from items that run code of the user's."""
    return in_memory(split.split) if isinstance(split, Subset) else isinstance(split, (Columns, Windows))


def auto_workers(split: Split, world: World) -> int:
    """A thread beside a GPU; none on a CPU, where a gather takes microseconds, and none for items: they may draw
    random numbers, which threads would take from each other."""
    return 1 if world.device.type == "cuda" and in_memory(split) else 0


def _ahead(plans: Iterable, work, workers: int) -> Iterator[tuple]:
    """(plan, work(plan)) in the order of the plans, with `workers` threads two results ahead of the consumer each."""
    if workers == 0:
        for plan in plans:
            yield plan, work(plan)
        return
    pending: deque[tuple[object, Future]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="distmem-gather") as pool:
        for plan in plans:
            pending.append((plan, pool.submit(work, plan)))
            if len(pending) > 2 * workers:
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()
