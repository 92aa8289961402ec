"""Run a function on N ranks, in processes that start in milliseconds.

    def losses(world, steps): ...                 # at the top of a module, world is a distmem.distributed.World
    results = run_ranks(losses, 2, 20)            # [what rank 0 returned, what rank 1 returned]

A server process imports torch, distmem and scikit-learn once; each rank is a fork of it. The process group is gloo
over loopback with a store that lives here, so no port has to be guessed.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch.distributed as dist

PRELOADED = (
    *("torch", "torch.distributed", "torch._dynamo", "torch.nn.parallel", "torch.utils.checkpoint", "numpy"),
    *("sklearn.datasets", "sklearn.model_selection", "hypothesis", "pytest", "distmem.rank", "distmem.backends.ddp"),
)
GRACE = 5.0  # seconds that the other ranks get after one has failed: their errors are rarely the cause


class RankFailed(Exception):
    """What a rank raised, with its traceback."""


def run_ranks(function: Callable[..., Any], size: int, *args: Any, timeout_s: float = 60.0) -> list[Any]:
    """function(world, *args) on `size` ranks; gives what each returned (anything that pickles), by rank.

    Raises RankFailed with the traceback of the first rank that failed, or when the time is up. No process outlives
    the call.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
    ranks: dict[Connection, tuple[int, Any]] = {}
    try:
        for rank in range(size):
            receiver, sender = context.Pipe(duplex=False)
            environment = {
                **{name: os.environ[name] for name in ("DISTMEM_CACHE", "OMP_NUM_THREADS")},
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)},
                # as under torchrun: the store is there, each rank only connects
                **{"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"},
            }
            process = context.Process(target=_rank, args=(sender, environment, function, args), daemon=True)
            process.start()
            sender.close()
            ranks[receiver] = (rank, process)
        return _collect(ranks, time.monotonic() + timeout_s)
    finally:
        for receiver, (_, process) in ranks.items():
            if process.is_alive():
                process.kill()
            process.join()
            receiver.close()
        del store


def _collect(ranks: dict[Connection, tuple[int, Any]], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    failures: list[str] = []
    pending = dict(ranks)
    while pending:
        ready = wait(list(pending), max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = sorted(rank for rank, _ in pending.values())
            failures.append(f"ranks {missing} had not finished when the time was up")
            break
        for receiver in ready:
            assert isinstance(receiver, Connection)
            rank, process = pending.pop(receiver)
            try:
                good, value = pickle.loads(receiver.recv_bytes())
            except EOFError:
                process.join()
                good, value = False, f"ended with exit code {process.exitcode} and without a word"
            if good:
                results[rank] = value
            else:
                failures.append(f"rank {rank}: {value}")
                deadline = min(deadline, time.monotonic() + GRACE)
    if failures:
        raise RankFailed("\n".join(failures))
    return [results[rank] for rank in range(len(ranks))]


def _rank(sender: Connection, environment: dict[str, str], function: Callable[..., Any], args: tuple) -> None:
    import torch

    from distmem.distributed import join_world, leave_world

    gc.freeze()  # or the collection in leave_world walks, and so copies, all that the server has imported
    os.environ.update(environment)
    torch.set_num_threads(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        world = join_world("cpu", timeout_s=30.0)
        outcome = (True, function(world, *args))
        leave_world(world)
        message = pickle.dumps(outcome)  # whole tensors, not handles to memory that ends with this process
    except BaseException:
        message = pickle.dumps((False, traceback.format_exc()))
    sender.send_bytes(message)
    sender.close()
    os._exit(0)
