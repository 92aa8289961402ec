"""A global batch gives the same step whatever it is cut into: micro-batches, ranks, segments that run again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from small_parts import Tokens, few, uneven_tokens
from small_runs import assert_near, assert_same, fit, fit_on, largest_difference

from distmem.data.order import Order
from distmem.distributed import World

EXACT = "train.precision=64-true"  # what is left of a difference is a fault, not rounding
DROPOUT = {"name": "small_parts:DropoutNet", "args": {"features": 64, "classes": 10}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """26 steps on one rank without accumulation; two of them on the 117 samples at an epoch's end."""
    return fit(World(), tmp_path_factory.mktemp("whole"), EXACT)


@pytest.mark.parametrize("accumulate", ["3", "4", "5", "118", "{0: 5, 1: 2, 2: 1}"])
def test_accumulation_changes_nothing(whole, accumulate, tmp_path):
    done = fit(World(), tmp_path, EXACT, f"train.accumulate={accumulate}")
    assert largest_difference(done.losses, whole.losses) < 1e-11
    assert_near(done.weights, whole.weights, 1e-11)
    assert done.evaluation == whole.evaluation
    assert [line["lr"] for line in done.steps()] == [line["lr"] for line in whole.steps()]
    assert [line["samples"] for line in done.steps()] == [*[120] * 11, 117] * 2 + [120, 120]


def test_the_short_last_batch_weighs_as_much_as_its_samples(tmp_path):
    """65 samples in batches of 64: the second step of an epoch is one sample, and is the gradient of that one."""
    more = (EXACT, "optim.lr=0.5", "optim.args={}", "train.steps=2", "train.batch_size=64", "data.name=small_parts:few")
    runs = [fit(World(), tmp_path / str(count), *more, f"train.accumulate={count}") for count in (1, 4)]
    x, y = few()["train"]
    last = torch.from_numpy(Order(65, 3, 0).take(64, 65))
    for done in runs:
        first = fit(World(), tmp_path / f"first-{len(done.steps())}-{id(done)}", *more, "train.steps=1")
        weights = [weight.clone().requires_grad_() for weight in first.weights.values()]
        hidden = x[last].double()
        for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            hidden = F.relu(hidden @ weight.T + bias)
        loss = F.cross_entropy(hidden @ weights[-2].T + weights[-1], y[last])
        loss.backward()
        assert done.losses[1] == pytest.approx(float(loss.detach()), rel=1e-11)
        for weight, (name, value) in zip(weights, done.weights.items(), strict=True):
            assert torch.allclose(weight - 0.5 * weight.grad, value, rtol=0, atol=1e-12), name


@pytest.mark.parametrize(("size", "accumulate"), [(2, 1), (3, 1), (4, 1), (2, 4), (3, 5)])
def test_the_number_of_ranks_changes_nothing(whole, size, accumulate, tmp_path):
    done = fit_on(size, tmp_path, EXACT, f"train.accumulate={accumulate}")[0]
    assert largest_difference(done.losses, whole.losses) < 1e-11
    assert_near(done.weights, whole.weights, 1e-11)
    assert done.evaluation["val_accuracy"] == whole.evaluation["val_accuracy"]
    assert done.evaluation["val_loss"] == pytest.approx(whole.evaluation["val_loss"], rel=1e-6)


@pytest.mark.parametrize(("size", "accumulate", "samples"), [(2, 1, 65), (4, 1, 66), (3, 4, 70), (2, 4, 65)])
def test_ranks_and_micro_batches_without_a_sample(size, accumulate, samples, tmp_path):
    """The last batch of an epoch has 1, 2 or 6 samples: some ranks and micro-batches get none and still take part."""
    more = (EXACT, "data.name=small_parts:few", f"data.args.samples={samples}", "train.batch_size=64", "train.steps=6")
    alone = fit(World(), tmp_path / "1", *more)
    done = fit_on(size, tmp_path / "n", *more, f"train.accumulate={accumulate}")[0]
    assert [line["samples"] for line in done.steps()] == [64, samples - 64] * 3
    assert largest_difference(done.losses, alone.losses) < 1e-11
    assert_near(done.weights, alone.weights, 1e-11)


@pytest.mark.parametrize("loss", ["mse", "small_parts:half_of_squares"])
def test_other_losses_without_a_sample(loss, tmp_path):
    more = [EXACT, "train.batch_size=32", "train.steps=4", f"loss={loss}", "optim.lr=1e-7"]
    if loss == "mse":  # 96 samples
        more += ["data.name=small_parts:steep", "metrics=[mae]", "train.batch_size=95"]
    else:
        more += ["data.name=small_parts:few", "train.batch_size=64"]
    alone = fit(World(), tmp_path / "1", *more)
    done = fit_on(2, tmp_path / "2", *more, "train.accumulate=3")[0]
    assert [line["samples"] for line in done.steps()][1] == 1
    assert largest_difference(done.losses, alone.losses) < 1e-9
    assert_near(done.weights, alone.weights, 1e-9)


TOKENS = ("data.name=small_parts:uneven_tokens", "metrics=[accuracy]", "train.batch_size=32", "train.steps=9")


@pytest.mark.parametrize(("size", "accumulate"), [(1, 1), (1, 5), (2, 1), (3, 4), (4, 3)])
def test_each_counted_token_weighs_the_same(size, accumulate, tmp_path):
    """Targets of -100 lie unevenly over samples, so over ranks and micro-batches; 70 samples, the last batch has 6."""
    model = {"name": "small_parts:Tokens"}
    done = fit_on(size, tmp_path, EXACT, *TOKENS, f"train.accumulate={accumulate}", model=model)[0]
    net = Tokens().double()
    net.load_state_dict(done.start)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x, y = uneven_tokens()["train"]
    losses = []
    for step in range(9):
        epoch, batch = divmod(step, 3)
        ids = torch.from_numpy(Order(70, 3, epoch).take(32 * batch, min(70, 32 * batch + 32)))
        loss = F.cross_entropy(net(x[ids]).flatten(0, 1), y[ids].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert largest_difference(done.losses, losses) < 1e-11
    assert_near(done.weights, dict(net.state_dict()), 1e-11)
    x, y = uneven_tokens()["test"]
    scores, counted = net(x).detach(), y != -100
    right = float((scores.argmax(-1) == y)[counted].double().mean())
    assert done.evaluation["val_accuracy"] == pytest.approx(right, rel=1e-9)
    assert done.evaluation["val_loss"] == pytest.approx(float(F.cross_entropy(scores[counted], y[counted])), rel=1e-6)


def test_a_batch_without_a_counted_token_makes_no_step(tmp_path):
    """Nothing to learn from: a loss of 0, gradients of 0, no division by zero."""
    model = {"name": "small_parts:Tokens"}
    more = ("data.name=small_parts:no_targets", "metrics=[accuracy]", "optim.args={}", "train.steps=2")
    done = fit(World(), tmp_path, *more, model=model)
    assert done.losses == [0.0, 0.0]
    assert_same(done.weights, done.start)


@pytest.mark.parametrize("choice", ["full", "sqrt", "{blocks: 4}", "{blocks: 0}"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_activation_checkpointing_gives_the_same_bits(choice, precision, tmp_path):
    """With dropout in every block and accumulation: the second run of a block must draw what the first one drew."""
    more = ("train.steps=12", "train.accumulate=3", f"train.precision={precision}", "optim.name=adam", "optim.args={}")
    kept = fit(World(), tmp_path / "kept", *more, model=DROPOUT)
    again = fit(World(), tmp_path / "again", *more, f"memory.activation_checkpointing={choice}", model=DROPOUT)
    assert again.losses == kept.losses
    assert_same(again.weights, kept.weights)
    assert again.evaluation == kept.evaluation


def test_dropout_is_really_there(tmp_path):
    """Or the test above shows nothing: another seed of the same start gives other losses."""
    first = fit(World(), tmp_path / "a", "train.steps=3", model=DROPOUT)
    without = fit(World(), tmp_path / "b", "train.steps=3", model={**DROPOUT, "name": "small_parts:NoDropoutNet"})
    assert_same(first.start, without.start)
    assert largest_difference(first.losses, without.losses) > 1e-3


@pytest.mark.parametrize("choice", ["full", "sqrt"])
def test_activation_checkpointing_on_two_ranks(choice, tmp_path):
    more = ("train.steps=6", "train.accumulate=2")
    kept = fit_on(2, tmp_path / "kept", *more, model=DROPOUT)[0]
    again = fit_on(2, tmp_path / "again", *more, f"memory.activation_checkpointing={choice}", model=DROPOUT)[0]
    assert again.losses == kept.losses
    assert_same(again.weights, kept.weights)


def test_ranks_draw_different_dropout(tmp_path):
    one, two = run_ranks(_first_draws, 2, tmp_path)
    assert not torch.equal(one, two)


def _first_draws(world, folder):
    fit(world, folder, "train.steps=1", model=DROPOUT)
    return torch.rand(4)


@pytest.mark.parametrize("size", [1, 2])
def test_the_same_run_twice_gives_the_same_bits_and_another_seed_does_not(size, tmp_path):
    more = ("train.steps=8", "train.deterministic=true" if size == 2 else "train.deterministic=false")
    first = fit_on(size, tmp_path / "1", *more, model=DROPOUT)[0]
    second = fit_on(size, tmp_path / "2", *more, model=DROPOUT)[0]
    other = fit_on(size, tmp_path / "3", *more, model=DROPOUT, seed=4)[0]
    assert first.losses == second.losses
    assert_same(first.weights, second.weights)
    assert first.losses[0] != other.losses[0]


@pytest.mark.parametrize("workers", [1, 3])
def test_loader_threads_change_nothing(whole, workers, tmp_path):
    done = fit(World(), tmp_path, EXACT, f"data.workers={workers}")
    assert done.losses == whole.losses
    assert_same(done.weights, whole.weights)


def test_mixed_precision_with_loss_scaling_on_two_ranks(tmp_path):
    """Ranks agree on which steps are skipped, and on the scale."""
    more = (
        *("train.precision=16-mixed", "train.clip={norm: 2.0}", "train.batch_size=32", "train.steps=24"),
        *("loss=mse", "metrics=[mae]", "data.name=small_parts:steep", "model.args.hidden=[16]", "optim.lr=1e-4"),
    )
    alone, (first, second) = fit(World(), tmp_path / "1", *more), fit_on(2, tmp_path / "2", *more)
    assert first.skipped == second.skipped > 0
    assert [line["scale"] for line in first.steps()] != [65536.0] * 24
    assert largest_difference(first.losses, alone.losses) < 0.02
    assert_near(first.weights, alone.weights, 0.02)
