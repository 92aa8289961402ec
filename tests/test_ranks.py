"""The harness that the tests of several ranks stand on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
import torch
from ranks import RankFailed, run_ranks


def _sum_of_ranks(world, factor):
    return world.rank, world.sum([float(world.rank * factor)]), torch.get_num_threads(), os.getpid()


def _one_fails(world):
    if world.rank == 1:
        raise ValueError("a word from rank 1")
    world.barrier()


def _one_dies(world):
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return world.rank


def _sleeps(world):
    time.sleep(60)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_rank_has_its_place_and_they_reach_each_other(size):
    results = run_ranks(_sum_of_ranks, size, 10)
    assert [rank for rank, *_ in results] == list(range(size))
    assert all(total == [10.0 * sum(range(size))] for _, total, *_ in results)
    assert all(threads == 1 for *_, threads, _ in results)
    assert len({pid for *_, pid in results} | {os.getpid()}) == size + 1


def test_an_error_comes_back_with_its_traceback():
    with pytest.raises(RankFailed, match=r"(?s)rank 1: Traceback.*_one_fails.*ValueError: a word from rank 1"):
        run_ranks(_one_fails, 2)


def test_a_rank_that_is_killed_is_an_error():
    with pytest.raises(RankFailed, match="rank 1: ended with exit code -9"):
        run_ranks(_one_dies, 2)


def test_nothing_is_left_when_the_time_is_up():
    with pytest.raises(RankFailed, match=r"ranks \[0, 1\] had not finished"):
        run_ranks(_sleeps, 2, timeout_s=1.0)
    assert multiprocessing.active_children() == []
