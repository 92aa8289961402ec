"""The windows of a loader: what the ranks get together is the global batch, in the order of the epoch."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from distmem.data.loader import Loader, auto_workers
from distmem.data.order import Order
from distmem.data.split import Columns, Items, Subset, Windows
from distmem.distributed import World

SAMPLES = 103
COLUMNS = Columns(torch.arange(SAMPLES * 2).view(SAMPLES, 2), torch.arange(SAMPLES))


def ids_of(pairs):
    return [int(i) for _, y in pairs for i in y]


@settings(max_examples=60)
@given(
    batch=st.integers(1, 120),
    size=st.integers(1, 6),
    accumulate=st.integers(1, 7),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_ranks_and_micro_batches_hold_the_global_batch(batch, size, accumulate, epoch, seed):
    order = Order(SAMPLES, seed, epoch).take(0, SAMPLES)
    loaders = [Loader(COLUMNS, batch, seed, World(rank=rank, size=size)) for rank in range(size)]
    assert {loader.batches for loader in loaders} == {-(-SAMPLES // batch)}
    windows = [list(loader.windows(epoch, 0, accumulate)) for loader in loaders]
    seen = []
    for number, ranks in enumerate(zip(*windows, strict=True)):
        together = [i for window in ranks for i in ids_of(window.micro_batches)]
        assert together == list(order[number * batch : (number + 1) * batch])
        assert {(window.epoch, window.batch, window.samples) for window in ranks} == {(epoch, number, len(together))}
        # every rank makes as many backward passes, or the collectives of its neighbours would wait
        counts = {len(window.micro_batches) for window in ranks}
        assert counts == {accumulate} if size > 1 else max(counts) <= accumulate
        for window in ranks:
            for x, y in window.micro_batches:
                assert torch.equal(x[: len(y), 1], 2 * y + 1)
                assert len(x) == max(1, len(y))
        seen += together
    assert sorted(seen) == list(range(SAMPLES))


@pytest.mark.parametrize("first", [0, 3, 10])
def test_an_epoch_may_begin_at_any_batch(first):
    loader = Loader(COLUMNS, 10, 5, World())
    whole = [ids_of(window.micro_batches) for window in loader.windows(2, 0, 1)]
    assert [ids_of(window.micro_batches) for window in loader.windows(2, first, 1)] == whole[first:]
    assert len(whole[-1]) == 3


SPLITS = {
    "columns": COLUMNS,
    "windows": Windows(torch.arange(900) % 200, 8),
    "items": Items(TensorDataset(COLUMNS.x, COLUMNS.y)),
    "subset": Subset(COLUMNS, torch.arange(0, 103, 2)),
}


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_give_what_no_thread_gives(name, workers):
    split = SPLITS[name]
    alone, threaded = (Loader(split, 12, 9, World(size=2), count) for count in (0, workers))
    for one, other in zip(alone.windows(1, 0, 3), threaded.windows(1, 0, 3), strict=True):
        assert (one.batch, one.samples) == (other.batch, other.samples)
        for pair, same in zip(one.micro_batches, other.micro_batches, strict=True):
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(pair, same, strict=True))


class Counting:
    """Counts what has been gathered; each takes a while."""

    def __init__(self):
        self.gathered = 0

    def __len__(self):
        return 1000

    def gather(self, ids):
        time.sleep(0.001)
        self.gathered += 1
        return ids[:, None], ids


def test_threads_do_not_run_far_ahead():
    split = Counting()
    windows = Loader(split, 10, 0, World(), workers=2).windows(0, 0, 1)
    next(windows)
    time.sleep(0.1)
    assert 1 <= split.gathered <= 6  # of 100
    windows.close()
    before = split.gathered
    time.sleep(0.05)
    assert split.gathered == before  # nothing goes on behind a loader that was left


class Broken(Counting):
    def gather(self, ids):
        if self.gathered == 3:
            raise OSError("the disk is gone")
        return super().gather(ids)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_thread_reaches_the_loop(workers):
    windows = Loader(Broken(), 10, 0, World(), workers).windows(0, 0, 1)
    with pytest.raises(OSError, match="the disk is gone"):
        list(windows)


def test_workers_by_themselves():
    assert auto_workers(COLUMNS, World()) == 0
    assert auto_workers(COLUMNS, World(device=torch.device("cuda"))) == 1
    assert auto_workers(SPLITS["items"], World()) == 0  # threads would take random numbers from each other
    assert Loader(COLUMNS, 4, 0, World(), 7).workers == 7
