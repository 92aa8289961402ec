"""--resume PATH: which checkpoints of another run a training may start from."""

from __future__ import annotations

import pytest
import torch
from small_runs import prepared

from distmem.checkpoint.store import CheckpointStore, write_checkpoint
from distmem.context import Clock
from distmem.distributed import World
from distmem.errors import CheckpointError
from distmem.resume import restore, snapshot

SCALER = torch.amp.GradScaler("cpu", enabled=False)


@pytest.mark.parametrize(
    ("phase_name", "overrides", "words"),
    [
        ("train", (), None),
        ("2-retrain", (), "was written in 2-retrain, and train cannot go on from it"),
        ("train", ("optim.lr=0.5",), "was written by another recipe: optim was .*0.5"),
    ],
)
def test_only_a_checkpoint_of_the_same_training_is_taken(tmp_path, phase_name, overrides, words):
    run, phase = prepared(World(), tmp_path / "one", *overrides)
    phase.name, phase.step = phase_name, 7
    write_checkpoint(tmp_path / "saved", *snapshot(run, phase, SCALER, Clock(0.0)))
    other, its = prepared(World(), tmp_path / "two")
    other.resume = tmp_path / "saved"
    store = CheckpointStore(its.folder, 1, background=False)
    if words is None:
        restore(other, its, SCALER, store)
        assert its.step == 7
    else:
        with pytest.raises(CheckpointError, match=words):
            restore(other, its, SCALER, store)
        assert its.step == 0
