"""Learning rates against torch.optim.lr_scheduler, and that they count optimizer steps."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import fit
from torch.optim import lr_scheduler as theirs

from distmem.distributed import World
from distmem.recipe.schema import Schedule
from distmem.schedules import factor

TOTAL, EPOCH, LR = 60, 12, 0.5


def their_rates(make, total=TOTAL):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = make(optimizer)
        rates = []
        for _ in range(total):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return rates


CASES = {
    "constant": (Schedule(), lambda o: theirs.ConstantLR(o, 1.0)),
    "cosine": (Schedule(name="cosine"), lambda o: theirs.CosineAnnealingLR(o, TOTAL)),
    "cosine to a tenth": (
        Schedule(name="cosine", final=0.1),
        lambda o: theirs.CosineAnnealingLR(o, TOTAL, eta_min=0.1 * LR),
    ),
    "linear": (Schedule(name="linear"), lambda o: theirs.LinearLR(o, 1.0, 0.0, TOTAL)),
    "linear to a half": (Schedule(name="linear", final=0.5), lambda o: theirs.LinearLR(o, 1.0, 0.5, TOTAL)),
    "each epoch": (Schedule(name="step", gamma=0.7), lambda o: theirs.StepLR(o, EPOCH, 0.7)),
    "each 2 epochs": (Schedule(name="step", every="2epochs"), lambda o: theirs.StepLR(o, 2 * EPOCH, 0.1)),
    "each 7 steps": (Schedule(name="step", every="7steps", gamma=0.5), lambda o: theirs.StepLR(o, 7, 0.5)),
    "onecycle": (Schedule(name="onecycle"), lambda o: theirs.OneCycleLR(o, LR, TOTAL)),
}


@pytest.mark.parametrize("case", CASES)
def test_step_by_step_as_torch(case):
    schedule, make = CASES[case]
    rates = [LR * factor(schedule, step, TOTAL, EPOCH) for step in range(TOTAL)]
    assert rates == pytest.approx(their_rates(make), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("warmup", [1, 5, 20])
def test_warm_up_and_what_follows_as_torch(warmup):
    rest = TOTAL - warmup
    pairs = {
        "cosine": lambda o: theirs.CosineAnnealingLR(o, rest),
        "linear": lambda o: theirs.LinearLR(o, 1.0, 0.0, rest),
        "step": lambda o: theirs.StepLR(o, EPOCH, 0.1),
        "constant": lambda o: theirs.ConstantLR(o, 1.0),
    }
    for name, make in pairs.items():
        schedule = Schedule(name=name, warmup_steps=warmup)
        rates = [LR * factor(schedule, step, TOTAL, EPOCH) for step in range(TOTAL)]
        expected = their_rates(
            lambda o, make=make: theirs.SequentialLR(
                o, [theirs.LinearLR(o, 1 / (warmup + 1), 1.0, warmup), make(o)], [warmup]
            )
        )
        assert rates == pytest.approx(expected, rel=1e-9, abs=1e-12), name


@given(
    name=st.sampled_from(["constant", "cosine", "linear", "step", "onecycle"]),
    total=st.integers(1, 500),
    warmup=st.integers(0, 600),
    final=st.floats(0, 1),
    epoch=st.integers(1, 50),
)
def test_never_above_the_base_rate_nor_below_zero(name, total, warmup, final, epoch):
    schedule = Schedule(name=name, warmup_steps=warmup, final=final)
    rates = [factor(schedule, step, total, epoch) for step in range(total)]
    assert all(math.isfinite(rate) and 0 <= rate <= 1 + 1e-12 for rate in rates)
    rising = rates[:warmup]
    assert rising == sorted(rising)
    if name in ("cosine", "linear", "step"):
        assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("name", ["cosine", "onecycle", "step"])
def test_a_run_counts_optimizer_steps(name, accumulate, tmp_path):
    """26 optimizer steps of up to 4 micro-batches; an epoch has 12."""
    done = fit(
        World(), tmp_path, f"optim.schedule={{name: {name}}}", f"train.accumulate={accumulate}", f"optim.lr={LR}"
    )
    make = {
        "cosine": lambda o: theirs.CosineAnnealingLR(o, 26),
        "onecycle": lambda o: theirs.OneCycleLR(o, LR, 26),
        "step": lambda o: theirs.StepLR(o, 12, 0.1),
    }[name]
    assert [line["lr"] for line in done.steps()] == pytest.approx(their_rates(make, 26), rel=1e-9)
