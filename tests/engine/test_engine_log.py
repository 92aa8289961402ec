"""metrics.jsonl, seeds, the cutting of batches: the small parts around the loop."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks
from small_runs import fit, read_lines, recipe_of

from distmem.batching import accumulation, micro_batch, rank_batch
from distmem.data.loader import cut
from distmem.distributed import World
from distmem.errors import TrainingError
from distmem.log import MetricsLog
from distmem.seeding import mix, seed_all

CPU = torch.device("cpu")


def noted(log, step, loss, weight=10.0, phase="train"):
    fields = {"phase": phase, "step": step, "epoch": 0, "lr": 0.1}
    log.step(fields, torch.tensor(loss), weight, torch.tensor(3.0), torch.tensor(1.0))


def test_steps_stay_in_memory_until_a_flush(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", World())
    noted(log, 1, 25.0)
    noted(log, 2, 15.0)
    assert not log.path.exists()
    lines = log.flush()
    assert lines == read_lines(tmp_path)
    assert [line["loss"] for line in lines] == [2.5, 1.5]
    assert all(type(value) in (int, float, str) for line in lines for value in line.values())
    assert log.flush() == []
    assert log.last["step"] == 2


def _logged(world, folder):
    log = MetricsLog(folder / "metrics.jsonl", world)
    for step in (1, 2):
        noted(log, step, float(step * (world.rank + 1)), 6.0)
    lines = log.flush()
    noted(log, 3, float("inf") if world.rank == 1 else 0.0)
    try:
        log.flush()
    except TrainingError as error:
        return lines, str(error)


def test_losses_of_ranks_are_added_and_one_that_is_not_finite_ends_all(tmp_path):
    results = run_ranks(_logged, 3, tmp_path)
    for lines, message in results:
        assert [line["loss"] for line in lines] == [1.0, 2.0]  # (1 + 2 + 3) / 6
        assert "the loss is inf at step 3" in message
        assert "at step 2 it was 2" in message
    written = read_lines(tmp_path)
    assert [line["step"] for line in written] == [1, 2, 3]  # once, by rank 0
    assert written[2]["loss"] is None


@pytest.mark.parametrize("half", ["", '{"kind": "step", "phase": "1-prune", "ste', '{"kind": "st', "{"])
def test_what_is_forgotten_when_a_run_goes_on(half, tmp_path):
    def written():
        log = MetricsLog(tmp_path / "metrics.jsonl", World())
        log.path.unlink(missing_ok=True)
        for phase, steps in (("train", 3), ("1-prune", 2)):
            for step in range(1, steps + 1):
                noted(log, step, 10.0 * step, phase=phase)
        lines = log.flush()
        with log.path.open("a") as file:
            file.write(half)
        return MetricsLog(log.path, World()), lines

    for phase, step, left in (
        ("train", 3, lines_of("train", "1-prune")),
        ("train", 1, lines_of("train", "1-prune", without=(2, 3))),
        ("train", 0, lines_of("1-prune")),
        ("1-prune", 0, lines_of("train")),
        ("2-retrain", 0, lines_of("train", "1-prune")),
    ):
        log, lines = written()
        log.cut(phase, step)
        assert [(line["phase"], line["step"]) for line in read_lines(tmp_path)] == left
        assert (log.last["phase"], log.last["step"]) == left[-1]
        noted(log, 9, 1.0)
        log.flush()
        assert len(read_lines(tmp_path)) == len(left) + 1
        assert lines[0]["weight"] > 0


def lines_of(*phases, without=()):
    """(phase, step) of the lines that stay; steps `without` of the first phase are gone."""
    steps = {"train": (1, 2, 3), "1-prune": (1, 2)}
    return [(p, step) for p in phases for step in steps[p] if p != phases[0] or step not in without]


def test_the_mean_training_loss_goes_on_too(tmp_path):
    def noted_six(log):
        for step in range(1, 4):
            noted(log, step, float(step))
        log.flush()

    log = MetricsLog(tmp_path / "metrics.jsonl", World())
    noted_six(log)
    again = MetricsLog(log.path, World())
    again.cut("train", 3)
    mean = log.mean()
    assert again.mean() == mean
    assert mean["train_loss"] > 0
    assert log.mean() == {}


def test_numbers_that_json_has_not(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", World())
    log.write([{"a": float("nan"), "b": float("inf"), "c": 1.5, "d": "x"}])
    text = log.path.read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {"a": None, "b": None, "c": 1.5, "d": "x"}


def test_what_a_line_says(tmp_path):
    done = fit(World(), tmp_path, "train.clip={norm: 0.2}", "train.precision=16-mixed", "train.steps=13")
    step = done.steps()[-1]
    assert step["kind"] == "step"
    assert (step["phase"], step["step"], step["epoch"], step["lr"], step["samples"]) == ("train", 13, 1, 0.1, 120)
    assert step["grad_norm"] >= step["grad_norm_clipped"] > 0
    assert (step["scale"], step["skipped"]) == (65536.0, False)
    times = [line["time_s"] for line in done.lines]
    assert times == sorted(times)
    plain = fit(World(), tmp_path / "plain", "train.steps=1").steps()[0]
    assert not {"grad_norm", "grad_norm_clipped", "scale", "skipped"} & plain.keys()


@given(total=st.integers(0, 1000), parts=st.integers(1, 40))
def test_cut_leaves_nothing_out(total, parts):
    pieces = [cut(total, parts, index) for index in range(parts)]
    assert pieces[0][0] == 0
    assert pieces[-1][1] == total
    assert all(before[1] == after[0] for before, after in pairwise(pieces))
    sizes = [end - start for start, end in pieces]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=40)
@given(batch=st.integers(8, 3000), world=st.integers(1, 8), micro=st.integers(1, 3000))
def test_micro_batches_hold_the_batch_and_fit_the_limit(batch, world, micro):
    recipe = recipe_of(train={"steps": 1, "batch_size": batch}, memory={"micro_batch": micro})
    pieces = accumulation(recipe, world, 0)
    assert micro_batch(recipe, world) <= micro
    assert micro_batch(recipe, world) * pieces * world >= batch
    assert pieces == 1 or -(-rank_batch(recipe, world) // (pieces - 1)) > micro  # not one more than needed


def test_accumulation_by_epoch():
    recipe = recipe_of("train.accumulate={0: 8, 4: 4, 8: 1}")
    assert [accumulation(recipe, 1, epoch) for epoch in (0, 3, 4, 7, 8, 100)] == [8, 8, 4, 4, 1, 1]
    assert accumulation(recipe_of(), 1, 0) == 1
    assert micro_batch(recipe_of("train.accumulate=7"), 2) == 9  # 120 samples, 60 of them per rank


def test_seeds_reach_all_generators():
    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]

    seed_all(CPU, 1, 2, 3)
    first = draws()
    seed_all(CPU, 1, 2, 4)
    other = draws()
    seed_all(CPU, 1, 2, 3)
    assert draws() == first
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_mix_has_no_collisions_among_small_numbers():
    """Seeds, stages, steps and ranks are small: their order and their place must count."""
    numbers = [mix(a, b, c, d) for a in range(6) for b in range(6) for c in range(60) for d in range(6)]
    assert len(set(numbers)) == len(numbers)
    assert len({number & 0xFFFFFFFF for number in numbers}) == len(numbers)
    assert len({mix(), mix(0), mix(0, 0), mix(0, 0, 0)}) == 4
    ones = sum(number.bit_count() for number in numbers) / len(numbers)
    assert 31.5 < ones < 32.5
