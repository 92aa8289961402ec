"""Which blocks run again, how often, and that gradients stay as they were."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from distmem.errors import ModelError
from distmem.memory.activation_checkpointing import apply_activation_checkpointing


class Counted(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.linear, self.calls = nn.Linear(width, width), 0

    def forward(self, x):
        self.calls += 1
        return x + nn.functional.dropout(torch.tanh(self.linear(x)), 0.4, self.training)


class Chain(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.layers = nn.ModuleList(Counted() for _ in range(count))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def gradients(model, seed=1):
    torch.manual_seed(seed)
    model.zero_grad()
    x = torch.randn(5, 6, requires_grad=True)
    output = model(x)
    output.square().sum().backward()
    return [output.detach(), x.grad, *(parameter.grad.clone() for parameter in model.parameters())], torch.rand(3)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 9, 16])
@pytest.mark.parametrize("choice", ["none", "full", "sqrt", {"blocks": 0}, {"blocks": 1}])
def test_same_gradients_and_the_named_blocks_run_twice(count, choice):
    torch.manual_seed(0)
    plain = Chain(count)
    model = copy.deepcopy(plain)
    names = list(model.state_dict())
    again = apply_activation_checkpointing(list(model.layers), choice)
    (expected, draw), (found, same_draw) = gradients(plain), gradients(model)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(draw, same_draw)  # the random state behind the pass is the plain one
    assert [layer.calls for layer in model.layers] == [2 if i in again else 1 for i in range(count)]
    assert list(model.state_dict()) == names
    if choice == "full":
        assert again == list(range(count))
    elif choice == "sqrt":
        assert again == list(range(len(again)))
        assert 1 <= count - len(again) <= math.ceil(math.sqrt(count))
    elif isinstance(choice, dict):
        assert again == list(range(choice["blocks"]))


@pytest.mark.parametrize("choice", ["full", "sqrt"])
def test_nothing_runs_again_in_evaluation(choice):
    model = Chain(9)
    apply_activation_checkpointing(list(model.layers), choice)
    model.eval()
    model(torch.randn(2, 6, requires_grad=True)).sum().backward()
    assert [layer.calls for layer in model.layers] == [1] * 9
    with torch.no_grad():
        model.train()
        model(torch.randn(2, 6))
    assert [layer.calls for layer in model.layers] == [2] * 9


def test_two_passes_before_a_backward():
    """Accumulation with the graphs of two micro-batches alive."""
    torch.manual_seed(0)
    plain = Chain(6).eval()
    model = copy.deepcopy(plain).train()
    for layer in [*plain.layers, *model.layers]:
        layer.forward = lambda x, layer=layer: x + torch.tanh(layer.linear(x))
    apply_activation_checkpointing(list(model.layers), "sqrt")
    a, b = torch.randn(3, 6), torch.randn(3, 6)
    for net in (plain, model):
        (net(a).square().sum() + net(b).sum()).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), model.parameters(), strict=True))


class NoChain(Chain):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x) * 2
        return x


def test_sqrt_refuses_what_is_no_chain():
    model = NoChain(9)
    apply_activation_checkpointing(list(model.layers), "sqrt")
    with pytest.raises(ModelError, match="one after the other"):
        model(torch.randn(2, 6))


def test_blocks_that_are_not_there():
    with pytest.raises(ModelError, match="asks for 7 blocks, and the model has 3"):
        apply_activation_checkpointing(list(Chain(3).layers), {"blocks": 7})
    with pytest.raises(ModelError, match="has none"):
        apply_activation_checkpointing([], "full")
