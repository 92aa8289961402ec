"""The contract of a backend: gradients are sums over ranks, state has canonical names."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from small_parts import NormNet
from small_runs import assert_same
from torch import nn

from distmem.backends import BACKENDS, load_backend
from distmem.backends.ddp import DDP
from distmem.distributed import World
from distmem.errors import LaunchError


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def part(rank):
    return torch.randn(4 + rank, 5, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def _gradients(world, passes):
    """Per backward pass: what each rank has of the gradients, and the norm."""
    backend = DDP(net(), world)
    seen = []
    for index in range(passes):
        if index < passes - 1:
            with backend.accumulating():
                backend.backward(backend.forward(part(world.rank)).square().sum())
        else:
            backend.backward(backend.forward(part(world.rank)).square().sum())
        seen.append([parameter.grad.clone() for parameter in backend.model.parameters()])
    return seen, float(backend.gradient_norm())


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_gradients_are_the_sum_over_ranks_and_passes(size, passes):
    model = net()
    own = []
    for rank in range(size):
        model.zero_grad()
        model(part(rank)).square().sum().backward()
        own.append([parameter.grad.clone() for parameter in model.parameters()])
    total = [passes * sum(gradients) for gradients in zip(*own, strict=True)]
    norm = float(torch.cat([gradient.flatten() for gradient in total]).norm())
    for rank, (seen, its_norm) in enumerate(run_ranks(_gradients, size, passes)):
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(seen[-1], total, strict=True))
        assert its_norm == pytest.approx(norm, rel=1e-12)
        if passes == 3:  # no exchange inside the window: still what this rank alone has, in DDP's scale
            scale = 2 * size
            assert all(torch.allclose(a, scale * b, rtol=1e-12) for a, b in zip(seen[1], own[rank], strict=True))


def test_scaling_and_clamping():
    backend = DDP(net(), World())
    backend.backward(backend.forward(part(0)).square().sum())
    before = [parameter.grad.clone() for parameter in backend.model.parameters()]
    backend.scale_gradients(torch.tensor(0.25))
    assert all(torch.equal(p.grad, 0.25 * g) for p, g in zip(backend.model.parameters(), before, strict=True))
    backend.clamp_gradients(0.5)
    for parameter, gradient in zip(backend.model.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, (0.25 * gradient).clamp(-0.5, 0.5))


def _state(world):
    backend = DDP(NormNet(5, 3), world)
    optimizer = torch.optim.Adam(backend.model.parameters())
    backend.backward(backend.forward(torch.randn(6, 5)).sum())
    optimizer.step()
    return backend.state(optimizer)


def test_state_is_written_by_rank_0_under_names_without_a_wrapper():
    first, second = run_ranks(_state, 2)
    alone = _state(World())
    assert second == {}
    assert first.keys() == alone.keys()
    assert {"model/layers.1.weight", "model/layers.2.running_mean", "optimizer/layers.4.bias/exp_avg"} <= first.keys()
    assert not any("module" in name for name in first)


def test_state_is_a_copy_and_comes_back():
    source, target = NormNet(5, 3), NormNet(5, 3)
    backend, other = DDP(source, World()), DDP(target, World())
    optimizer, second = (torch.optim.Adam(model.parameters()) for model in (source, target))
    backend.backward(backend.forward(torch.randn(6, 5)).sum())
    optimizer.step()
    state = backend.state(optimizer)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    optimizer.step()  # training goes on while the state is written
    assert_same(state, kept)
    other.load_state(state, second)
    assert_same(other.state(second), kept)


def _other_weights(world):
    torch.manual_seed(world.rank)
    backend = DDP(nn.Linear(3, 2), world)
    return [parameter.detach().clone() for parameter in backend.model.parameters()]


def test_all_ranks_start_with_the_weights_of_rank_0():
    first, second = run_ranks(_other_weights, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_registry():
    assert load_backend("ddp") is DDP
    assert set(BACKENDS) == {"ddp"}
    with pytest.raises(LaunchError, match="dpp"):
        load_backend("dpp")
