"""All registered optimizers: their state by name, bit-exact continuation, the fused kernels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from distmem.errors import ModelError
from distmem.memory.optimizers import OPTIMIZERS, build_optimizer, load_named_state, named_state

ARGS = {"sgd": {"momentum": 0.9, "nesterov": True}, "adam": {"amsgrad": True}, "rmsprop": {"momentum": 0.5}}
HALVES = [torch.float16, torch.bfloat16]


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 17), nn.LayerNorm(17), nn.Linear(17, 3)).to(dtype)


def made(name, model, **more):
    return build_optimizer(name, model.parameters(), 0.01, {**ARGS.get(name, {}), **more})


def steps(model, optimizer, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()


def names(model):
    return {parameter: name for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_by_name_goes_on_bit_by_bit(name):
    model = net()
    optimizer = made(name, model)
    steps(model, optimizer, 0, 5)
    saved = {key: dict(values) for key, values in named_state(optimizer, names(model)).items()}
    saved = copy.deepcopy(saved)
    other = copy.deepcopy(model)
    steps(model, optimizer, 5, 12)

    again = made(name, other)
    load_named_state(again, names(other), saved)
    steps(other, again, 5, 12)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    ours, theirs = named_state(optimizer, names(model)), named_state(again, names(other))
    assert ours.keys() == theirs.keys() == {key for key, _ in model.named_parameters()}
    for key in ours:
        assert ours[key].keys() == theirs[key].keys()
        for part, value in ours[key].items():
            twin = theirs[key][part]
            assert torch.equal(value, twin) if isinstance(value, torch.Tensor) else value == twin, (key, part)

    fresh = made(name, copy.deepcopy(other))  # without the state the continuation is another one
    bare = copy.deepcopy(other)
    steps(bare, made(name, bare), 12, 14)
    steps(other, again, 12, 14)
    assert any(not torch.equal(one, two) for one, two in zip(other.parameters(), bare.parameters(), strict=True))
    assert type(fresh).__name__.lower() == name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loaded_state_is_a_copy(name):
    model = net()
    optimizer = made(name, model)
    steps(model, optimizer, 0, 2)
    saved = copy.deepcopy(named_state(optimizer, names(model)))
    kept = copy.deepcopy(saved)
    load_named_state(optimizer, names(model), saved)
    steps(model, optimizer, 2, 4)
    for key, values in kept.items():
        for part, value in values.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(value, saved[key][part])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adagrad"])
def test_state_of_halves_keeps_its_dtype(name, dtype):
    """A checkpoint holds float32; an optimizer of half parameters wants halves."""
    model = net(dtype)
    optimizer = made(name, model, **({} if name == "sgd" else {"eps": 1e-4}))
    steps(model, optimizer, 0, 3)
    saved = {
        key: {part: v.float() if isinstance(v, torch.Tensor) else v for part, v in values.items()}
        for key, values in named_state(optimizer, names(model)).items()
    }
    other = copy.deepcopy(model)
    again = made(name, other, **({} if name == "sgd" else {"eps": 1e-4}))
    load_named_state(again, names(other), saved)
    steps(model, optimizer, 3, 6)
    steps(other, again, 3, 6)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adagrad"])
def test_what_is_chosen_does_what_the_plain_loop_of_torch_does(name, dtype):
    """The way from the start after ten steps, against the unfused optimizer in float64."""
    model = net(dtype)
    start = [parameter.detach().double().clone() for parameter in model.parameters()]
    reference = copy.deepcopy(model).double()
    args = {} if name == "sgd" else {"eps": 1e-3}
    optimizer = made(name, model, **args)
    plain = getattr(torch.optim, type(optimizer).__name__)(
        reference.parameters(), lr=0.01, foreach=False, fused=False, **{**ARGS.get(name, {}), **args}
    )
    for step in range(10):
        generator = torch.Generator().manual_seed(step)
        for parameter, twin in zip(model.parameters(), reference.parameters(), strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
            twin.grad = parameter.grad.double()
        optimizer.step()
        plain.step()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.5}[dtype]
    for before, parameter, twin in zip(start, model.parameters(), reference.parameters(), strict=True):
        way, wanted = parameter.double() - before, twin - before
        assert (way - wanted).norm() <= tolerance * wanted.norm()


def test_fused_where_that_is_right():
    fused = {
        (name, dtype): bool(made(name, net(dtype)).defaults.get("fused"))
        for name in ("sgd", "adam", "adamw", "adagrad", "rmsprop")
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert all(fused[name, torch.float32] for name in ("sgd", "adam", "adamw", "adagrad"))
    assert fused["adam", torch.bfloat16]
    assert not fused["sgd", torch.bfloat16]  # pytorch issue 191763
    assert not fused["rmsprop", torch.float32]  # has no fused kernel
    for asked in ({"fused": False}, {"foreach": True}):
        assert not made("adam", net(), **asked).defaults["fused"]


def test_only_what_is_trained():
    model = net()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    optimizer = made("adam", model)
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == 2 * 17 + 17 * 3 + 3
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ModelError, match="no parameter that is trained"):
        made("adam", model)


def test_names_and_arguments_that_are_wrong():
    with pytest.raises(ModelError, match="adma"):
        build_optimizer("adma", net().parameters(), 0.1, {})
    with pytest.raises(ModelError, match="betta"):
        build_optimizer("adam", net().parameters(), 0.1, {"betta": 1})
    own = build_optimizer("torch.optim.sgd:SGD", net().parameters(), 0.1, {"momentum": 0.5})
    assert isinstance(own, torch.optim.SGD)
    assert own.defaults["momentum"] == 0.5
