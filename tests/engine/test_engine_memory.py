"""What the loop must not keep: graphs, tensors that grow step after step."""

from __future__ import annotations

import gc
import weakref

import torch
from small_runs import fit, prepared

import distmem.engine
from distmem.distributed import World
from distmem.engine import train


def live_bytes() -> int:
    gc.collect()
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


def test_no_graph_is_kept(tmp_path, monkeypatch):
    """Each loss is freed with its graph before the next step, though its value is logged later."""
    losses, alive = [], []
    plain = distmem.engine.forward

    def forward(run, x, y):
        alive.append(sum(loss() is not None for loss in losses))
        loss = plain(run, x, y)
        assert loss.grad_fn is not None
        losses.append(weakref.ref(loss))
        return loss

    monkeypatch.setattr(distmem.engine, "forward", forward)
    run, phase = prepared(World(), tmp_path, "train.accumulate=2")
    buffered = []
    note = run.log.step
    monkeypatch.setattr(run.log, "step", lambda line, *tensors: (buffered.append(tensors), note(line, *tensors)))
    train(run, phase)
    assert len(losses) == 52
    assert max(alive) <= 1  # the loss of the micro-batch before, until its name is given to this one
    logged = [value for values in buffered for value in values if isinstance(value, torch.Tensor)]
    assert len(logged) == 26
    assert not any(value.requires_grad for value in logged)


def test_memory_stays_as_it_is(tmp_path, monkeypatch):
    """Bytes of all live tensors at the same place of steps 2 and 11: no more of them than the numbers to be logged."""
    seen = {}
    plain = distmem.engine.train_window

    def train_window(run, phase, *args):
        plain(run, phase, *args)
        if phase.step in (2, 11):
            seen[phase.step] = live_bytes()

    monkeypatch.setattr(distmem.engine, "train_window", train_window)
    more = ("train.clip={norm: 1.0}", "train.steps=12", "train.batch_size=119")  # 13 batches: all of one size
    fit(World(), tmp_path, "optim.name=adam", "optim.args={}", *more)
    assert seen[2] > 100_000  # the data alone has 115,008 bytes
    assert 0 <= seen[11] - seen[2] <= 9 * 3 * 8  # a loss and two norms per step
