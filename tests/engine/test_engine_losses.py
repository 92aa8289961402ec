"""Losses and metrics as sums: any split of a batch adds up to the whole, and the whole is torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from distmem.errors import TrainingError
from distmem.losses import build_loss
from distmem.metrics import build_metrics

SCORES = torch.randn(30, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CLASSES = torch.randint(0, 7, (30,), generator=torch.Generator().manual_seed(1))
SOME = CLASSES.masked_fill(torch.arange(30) % 3 == 0, -100)
VALUES = torch.randn(30, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
BITS = (VALUES > 0).double()

CASES = {
    "cross_entropy": (SCORES, SOME, F.cross_entropy(SCORES, SOME)),
    "nll": (SCORES.log_softmax(1), SOME, F.cross_entropy(SCORES, SOME)),
    "mse": (SCORES, VALUES, F.mse_loss(SCORES, VALUES)),
    "bce": (SCORES, BITS, F.binary_cross_entropy_with_logits(SCORES, BITS)),
    "torch.nn.functional:l1_loss": (SCORES, VALUES, F.l1_loss(SCORES, VALUES)),
}


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_any_split_adds_up_to_the_mean_of_torch(name, data):
    output, target, expected = CASES[name]
    cuts = sorted(data.draw(st.lists(st.integers(0, 30), max_size=6)))
    loss = build_loss(name)
    total = weight = 0.0
    for start, end in zip([0, *cuts], [*cuts, 30], strict=True):
        # a rank without a sample has one of x and none of y
        x = output[start:end] if start < end else output[:1]
        total += float(loss.total(x, target[start:end]))
        weight += loss.weight(target[start:end])
    assert total / weight == pytest.approx(float(expected), rel=1e-12)
    assert weight == (20 if name in ("cross_entropy", "nll") else 30)


@pytest.mark.parametrize("name", CASES)
def test_nothing_gives_zero_and_a_gradient_of_zeros(name):
    output, target, _ = CASES[name]
    output = output[:1].clone().requires_grad_()
    loss = build_loss(name).total(output, target[:0])
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.equal(output.grad, torch.zeros(1, 7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["cross_entropy", "nll", "mse", "bce"])
def test_a_sum_of_halves_is_not_a_half(name, dtype):
    output, target, _ = CASES[name]
    output, target = output.to(dtype).repeat(200, 1), target.repeat(200, *[1] * (target.dim() - 1))
    total = build_loss(name).total(output, target)
    exact = build_loss(name).total(output.double(), target)
    assert total.dtype == torch.float32
    assert float(total) == pytest.approx(float(exact), rel=1e-4)
    assert exact.dtype == torch.float64


def test_tokens_have_the_classes_last():
    scores, target = SCORES.view(5, 6, 7), SOME.view(5, 6)
    loss = build_loss("cross_entropy")
    assert float(loss.total(scores, target) / loss.weight(target)) == pytest.approx(
        float(F.cross_entropy(scores.movedim(-1, 1), target))
    )


def test_one_number_per_sample_against_columns():
    loss = build_loss("mse")
    flat, column = torch.randn(9), torch.randn(9, 1)
    assert float(loss.total(column, flat)) == pytest.approx(float((column[:, 0] - flat).square().sum()))


@pytest.mark.parametrize(("name", "output", "target"), [
    ("cross_entropy", torch.zeros(4, 7), torch.zeros(5, dtype=torch.long)),
    ("cross_entropy", torch.zeros(4, 7, 3), torch.zeros(4, 3, dtype=torch.long)),
    ("mse", torch.zeros(4, 2), torch.zeros(4)),
    ("bce", torch.zeros(4), torch.zeros(4, 3)),
])  # fmt: skip
def test_shapes_that_do_not_fit_are_errors(name, output, target):
    with pytest.raises(TrainingError, match="the model gives"):
        build_loss(name).total(output, target)


def test_a_loss_of_ones_own_with_too_many_numbers(monkeypatch):
    import small_parts

    monkeypatch.setattr(small_parts, "off_by", lambda output, target: output)
    with pytest.raises(TrainingError, match="one number per sample"):
        build_loss("small_parts:off_by").total(torch.zeros(6, 2), torch.zeros(3))


def test_metrics_add_up():
    metrics = build_metrics(["accuracy", "top5", "mae", "small_parts:off_by"])
    assert list(metrics) == ["accuracy", "top5", "mae", "off_by"]
    right, counted = metrics["accuracy"](SCORES, SOME)
    assert int(counted) == 20
    assert int(right) == int((SCORES.argmax(1) == SOME).sum())
    best, count = metrics["top5"](SCORES, CLASSES)
    ranks = (SCORES.gather(1, CLASSES[:, None]) < SCORES).sum(1)
    assert (int(best), count) == (int((ranks < 5).sum()), 30)
    error, count = metrics["mae"](SCORES, VALUES)
    assert float(error) / count == pytest.approx(float(F.l1_loss(SCORES, VALUES)), rel=1e-6)
