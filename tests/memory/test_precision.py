"""The table of precisions: dtypes, autocast, loss scaling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distmem.memory.precision import PRECISIONS, SMALLEST_HALF, SUPPORTED, choose
from distmem.recipe.types import PRECISIONS as NAMES


@pytest.mark.parametrize(("name", "weights", "product", "sums"), [
    ("32-true", torch.float32, torch.float32, torch.float32),
    ("64-true", torch.float64, torch.float64, torch.float64),
    ("16-true", torch.float16, torch.float16, torch.float32),
    ("bf16-true", torch.bfloat16, torch.bfloat16, torch.float32),
    ("16-mixed", torch.float32, torch.float16, torch.float32),
    ("bf16-mixed", torch.float32, torch.bfloat16, torch.float32),
])  # fmt: skip
def test_dtypes(name, weights, product, sums):
    precision = PRECISIONS[name]
    layer = nn.Linear(4, 4).to(precision.dtype)
    assert layer.weight.dtype == weights
    with precision.context("cpu"):
        assert layer(torch.randn(2, 4, dtype=precision.dtype)).dtype == product
    assert precision.sums == sums
    assert precision.scaled == (name == "16-mixed")


def test_names_are_those_of_the_recipe_and_every_device_has_some():
    assert set(PRECISIONS) == set(NAMES)
    assert set(SUPPORTED) == {"cpu", "cuda", "mps"}
    for device, names in SUPPORTED.items():
        assert set(names) <= set(PRECISIONS)
        assert choose(device) in names


def test_smallest_half():
    assert float(torch.tensor(SMALLEST_HALF, dtype=torch.float16)) == SMALLEST_HALF
    assert float(torch.tensor(SMALLEST_HALF / 2.01, dtype=torch.float16)) == 0.0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_overflows_leaves_no_trace(fused, momentum):
    """Fused SGD would give out a momentum that nothing has filled."""
    parameter = nn.Parameter(torch.ones(64))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=momentum, fused=fused)
    scaler = PRECISIONS["16-mixed"].scaler("cpu", optimizer)
    for value in (float("inf"), float("nan"), 1.0, 1.0):
        scale = scaler.get_scale()
        (scaler.scale(parameter * value)).sum().backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert (scaler.get_scale() < scale) == (value != 1.0)
        if value != 1.0:
            assert torch.equal(parameter, torch.ones(64))
            assert not optimizer.state.get(parameter)
        optimizer.zero_grad()
    expected = 1 - 0.1 - 0.1 * (1 + momentum)
    assert torch.allclose(parameter, torch.full((64,), expected))


def test_no_scaling_elsewhere():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, fused=True)
    for name, precision in PRECISIONS.items():
        assert precision.scaler("cpu", optimizer).is_enabled() == (name == "16-mixed")
