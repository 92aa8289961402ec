"""A rank without samples in a window takes part, and leaves no trace."""

from __future__ import annotations

import torch
from small_runs import copies, prepared

from distmem.distributed import World
from distmem.engine import forward


def test_a_stand_in_sample_changes_neither_gradients_nor_statistics(tmp_path):
    run, _ = prepared(World(), tmp_path, model={"name": "small_parts:NormNet"})
    model = run.backend.model.train()
    x, y = run.bundle.train.gather(torch.tensor([0]))
    buffers = copies(dict(model.named_buffers()))
    loss = forward(run, x, y[:0])
    loss.backward()
    assert loss.item() == 0
    assert all(not parameter.grad.any() for parameter in model.parameters())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert model.training
    assert run.activation_bytes is None  # not what a micro-batch keeps


def test_a_best_evaluation_is_kept_between_saves(tmp_path):
    from small_runs import finished

    from distmem.checkpoint.store import read_checkpoint

    run, phase = prepared(
        World(),
        tmp_path,
        "train.steps=8",
        "train.eval_every=1steps",
        checkpoint={"every": "8steps", "best": "val_loss"},
    )
    done = finished(run, phase)
    values = {line["step"]: line["val_loss"] for line in done.lines if line["kind"] == "eval"}
    best = read_checkpoint(tmp_path / "checkpoints" / "best")
    assert values[best.progress["step"]] == min(values.values())
