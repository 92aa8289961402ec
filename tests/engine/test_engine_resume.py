"""A run that was stopped, or whose process died, goes on as if nothing had happened."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from small_runs import (
    STEPS,
    assert_near,
    assert_same,
    finished,
    fit,
    fit_on,
    largest_difference,
    prepared,
    read_lines,
)

from distmem.checkpoint.store import CheckpointStore, read_checkpoint
from distmem.distributed import World
from distmem.errors import CheckpointError, TrainingError

DROPOUT = {"name": "small_parts:DropoutNet", "args": {"features": 64, "classes": 10}}
ADAM = ("optim.name=adam", "optim.lr=0.003", "optim.args={}", "optim.schedule={name: cosine, warmup_steps: 4}")
FREE = ("time_s",)


def without_times(lines):
    return [{key: value for key, value in line.items() if key not in FREE} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(World(), tmp_path_factory.mktemp("whole"), *ADAM, model=DROPOUT)


@pytest.mark.parametrize("stop", [1, 7, 12, 13, STEPS - 1])
def test_stopped_and_resumed_is_the_same_bit_by_bit(whole, stop, tmp_path):
    """Dropout, Adam's moments, the schedule and the order of samples, at any step of an epoch."""
    first = fit(World(), tmp_path, *ADAM, stop=stop, model=DROPOUT)
    assert first.stopped
    assert len(first.steps()) == stop
    second = fit(World(), tmp_path, *ADAM, model=DROPOUT)
    assert not second.stopped
    assert without_times(second.lines) == without_times(whole.lines)
    assert_same(second.weights, whole.weights)
    assert_same(second.optimizer, whole.optimizer)
    assert second.evaluation == whole.evaluation


def test_stopped_at_every_third_step(whole, tmp_path):
    lives = 0
    while (done := fit(World(), tmp_path, *ADAM, stop=3, model=DROPOUT)).stopped:
        lives += 1
    assert lives == STEPS // 3
    assert without_times(done.lines) == without_times(whole.lines)
    assert_same(done.weights, whole.weights)


def test_asked_to_stop_at_once_loses_nothing(whole, tmp_path):
    fit(World(), tmp_path, *ADAM, stop=5, model=DROPOUT)
    for _ in range(2):
        assert fit(World(), tmp_path, *ADAM, stop=0, model=DROPOUT).stopped
    assert fit(World(), tmp_path, *ADAM, model=DROPOUT).losses == whole.losses


def test_a_process_that_died_between_checkpoints(whole, tmp_path):
    """What the log holds beyond the checkpoint is forgotten: those steps come again."""
    done = fit(World(), tmp_path, *ADAM, "checkpoint.every=10steps", "checkpoint.keep=9", model=DROPOUT)
    folder = tmp_path / "checkpoints"
    assert [path.name for path in CheckpointStore(folder, 9, False).steps()] == [
        "step-00000010",
        "step-00000020",
        "step-00000026",
    ]
    for gone in ("step-00000020", "step-00000026"):
        shutil.rmtree(folder / gone)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "pha')  # a line that the power cut in two
    again = fit(World(), tmp_path, *ADAM, "checkpoint.every=10steps", model=DROPOUT)
    assert without_times(again.lines) == without_times(done.lines)
    assert_same(again.weights, whole.weights)


def test_a_process_that_died_before_its_first_checkpoint(whole, tmp_path):
    fit(World(), tmp_path, *ADAM, stop=5, model=DROPOUT)
    shutil.rmtree(tmp_path / "checkpoints")
    again = fit(World(), tmp_path, *ADAM, model=DROPOUT)
    assert without_times(again.lines) == without_times(whole.lines)


def test_two_ranks_stopped_and_resumed_on_two(tmp_path):
    whole = fit_on(2, tmp_path / "whole", *ADAM, model=DROPOUT)[0]
    first = fit_on(2, tmp_path / "parts", *ADAM, stop=14, model=DROPOUT)
    assert [done.stopped for done in first] == [True, True]
    second = fit_on(2, tmp_path / "parts", *ADAM, model=DROPOUT)[0]
    assert without_times(second.lines) == without_times(whole.lines)
    assert_same(second.weights, whole.weights)


def test_the_world_may_change_between_lives(tmp_path):
    """2 ranks, then 1, then 3: the same run, but for the order in which numbers are added."""
    exact = "train.precision=64-true"
    whole = fit(World(), tmp_path / "whole", *ADAM, exact)
    assert fit_on(2, tmp_path / "parts", *ADAM, exact, stop=9)[0].stopped
    assert fit(World(), tmp_path / "parts", *ADAM, exact, stop=9).stopped
    done = fit_on(3, tmp_path / "parts", *ADAM, exact)[0]
    assert [line["step"] for line in done.steps()] == list(range(1, STEPS + 1))
    assert largest_difference(done.losses, whole.losses) < 1e-10
    assert_near(done.weights, whole.weights, 1e-10)


def test_loss_scaling_goes_on(tmp_path):
    more = (
        *("train.precision=16-mixed", "train.batch_size=32", "train.steps=24", "loss=mse", "metrics=[mae]"),
        *("data.name=small_parts:steep", "optim.lr=1e-6", "model.args.hidden=[16]"),
    )
    whole = fit(World(), tmp_path / "whole", *more)
    fit(World(), tmp_path / "parts", *more, stop=4)  # in the midst of the overflows
    done = fit(World(), tmp_path / "parts", *more)
    assert done.skipped == whole.skipped > 4
    assert without_times(done.lines) == without_times(whole.lines)
    assert_same(done.weights, whole.weights)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_other_precisions_go_on(precision, tmp_path):
    whole = fit(World(), tmp_path / "whole", *ADAM, f"train.precision={precision}", model=DROPOUT)
    fit(World(), tmp_path / "parts", *ADAM, f"train.precision={precision}", stop=8, model=DROPOUT)
    done = fit(World(), tmp_path / "parts", *ADAM, f"train.precision={precision}", model=DROPOUT)
    assert done.losses == whole.losses
    assert_same(done.weights, whole.weights)


def test_a_run_of_another_recipe_is_refused(tmp_path):
    fit(World(), tmp_path, *ADAM, stop=5)
    for change in ("optim.lr=0.001", "train.batch_size=60", "model.args.hidden=[32]", "seed=4", "train.steps=30"):
        with pytest.raises(CheckpointError, match="was written by another recipe"):
            fit(World(), tmp_path, *ADAM, change)


def test_what_decides_no_number_may_change(whole, tmp_path):
    fit(World(), tmp_path, *ADAM, stop=5, model=DROPOUT)
    more = ("train.accumulate=1", "memory.activation_checkpointing=full", "checkpoint.every=3steps", "data.workers=2")
    done = fit(World(), tmp_path, *ADAM, *more, model=DROPOUT)
    assert done.losses == whole.losses
    assert_same(done.weights, whole.weights)


def test_the_best_is_kept_over_lives(tmp_path):
    more = ("optim.lr=0.5", "checkpoint.best=val_accuracy", "checkpoint.every=4steps", "train.eval_every=4steps")
    whole = fit(World(), tmp_path / "whole", *more)
    fit(World(), tmp_path / "parts", *more, stop=18)
    fit(World(), tmp_path / "parts", *more)
    scores = {line["step"]: line["val_accuracy"] for line in whole.lines if line["kind"] == "eval"}
    for run in ("whole", "parts"):
        best = read_checkpoint(tmp_path / run / "checkpoints" / "best")
        assert best.progress["step"] == next(step for step in scores if scores[step] == max(scores.values()))
        assert best.progress["best_value"] == max(scores.values())


def test_a_checkpoint_of_another_run_is_a_start(whole, tmp_path):
    fit(World(), tmp_path / "old", *ADAM, stop=10, model=DROPOUT)
    run, phase = prepared(World(), tmp_path / "new", *ADAM, model=DROPOUT)
    run.resume = tmp_path / "old" / "checkpoints" / "step-00000010"
    done = finished(run, phase)
    assert run.resumed_from == {"checkpoint": str(run.resume), "phase": "train", "step": 10}
    assert_same(done.weights, whole.weights)
    assert done.losses == whole.losses[10:]  # the log of the other run stays there


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    """The message has step, epoch and rate; the checkpoints that stay hold only numbers."""
    more = ("optim.lr=1e25", "checkpoint.every=1steps", "checkpoint.keep=99")
    message = r"(?s)(not finite after step|the loss is (nan|inf) at step) \d+.*lower optim.lr"
    with pytest.raises(TrainingError, match=message):
        fit(World(), tmp_path, *more)
    assert_only_numbers(tmp_path)


def test_a_gradient_that_is_not_finite_under_a_finite_loss(tmp_path):
    more = ("loss=small_parts:gradient_is_nan", "checkpoint.every=1steps", "checkpoint.keep=99")
    with pytest.raises(TrainingError, match="weights are not finite after step 1"):
        fit(World(), tmp_path, *more)
    assert_only_numbers(tmp_path)
    assert all(line["loss"] is not None for line in read_lines(tmp_path))


@pytest.mark.parametrize("size", [1, 2])
def test_every_rank_ends_when_the_loss_is_not_finite(size, tmp_path):
    from ranks import run_ranks

    with_rate = ("optim.lr=1e25", "checkpoint.every=1steps")
    messages = run_ranks(_not_finite, size, tmp_path, with_rate)
    assert len(set(messages)) == 1
    assert "finite" in messages[0]


def _not_finite(world, folder, overrides):
    with pytest.raises(TrainingError) as caught:
        fit(world, folder, *overrides)
    return str(caught.value)


def assert_only_numbers(folder):
    for path in CheckpointStore(folder / "checkpoints", 99, False).steps():
        for name, tensor in read_checkpoint(path).tensors.items():
            assert torch.isfinite(tensor).all(), (path, name)


def test_the_message_names_step_epoch_and_rate(tmp_path):
    model = {"name": "small_parts:NanLater", "args": {"features": 64, "classes": 10, "calls": 14}}
    with pytest.raises(TrainingError) as caught:
        fit(World(), tmp_path, "train.eval_every=99steps", "checkpoint.every=99steps", model=model)
    text = str(caught.value)
    assert "the loss is nan at step 15 (epoch 1, learning rate 0.1); at step 14 it was 1." in text
    assert "lower optim.lr" in text
    lines = read_lines(tmp_path)
    assert [line["loss"] is None for line in lines] == [False] * 14 + [True] * 12
    assert all(json.dumps(line, allow_nan=False) for line in lines)
    assert CheckpointStore(tmp_path / "checkpoints", 99, False).steps() == []


def test_a_model_that_comes_in_evaluation_mode(tmp_path):
    """It trains in training mode from the first step on, so also from the first step after a resume."""
    asleep = {**DROPOUT, "name": "small_parts:Asleep"}
    awake = fit(World(), tmp_path / "awake", model=DROPOUT)
    assert fit(World(), tmp_path / "asleep", stop=13, model=asleep).stopped
    done = fit(World(), tmp_path / "asleep", model=asleep)
    assert done.losses == awake.losses
    assert_same(done.weights, awake.weights)
