"""Measured bytes against bytes counted by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_runs import prepared
from torch import nn

from distmem.distributed import World
from distmem.engine import train
from distmem.memory.activation_checkpointing import apply_activation_checkpointing
from distmem.memory.measure import LiveBytes, model_bytes, peak_resident_bytes, storage_bytes

ROWS, WIDTH = 32, 40
HIDDEN = ROWS * WIDTH * 4  # bytes of one hidden activation in float32


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return torch.tanh(self.linear(x))


class Chain(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def kept(model, x):
    """What the graph keeps beyond parameters and input, by autograd's own hooks: storages of saved tensors, once."""
    known = {t.untyped_storage().data_ptr() for t in [x, *model.parameters()]}
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(x)
    return sum(saved.values()), output


@pytest.mark.parametrize("depth", [1, 4, 9])
def test_what_a_chain_keeps_for_the_backward_pass(depth):
    """tanh keeps its output, which is the next layer's input: one hidden activation per layer."""
    model, x = Chain(depth), torch.randn(ROWS, WIDTH)
    with LiveBytes() as live:
        output = model(x)
    assert live.live == depth * HIDDEN == kept(model, x)[0]
    assert depth * HIDDEN < live.peak <= (depth + 1) * HIDDEN  # the product of a layer dies when its tanh is there
    output.sum().backward()
    del output
    assert live.live == 0  # freed after the mode has ended: still counted down


def test_a_real_model_against_autograds_hooks():
    from distmem.models.lenet import LeNet300100

    model, x = LeNet300100(64, 10), torch.randn(50, 64)
    expected, _ = kept(model, x)
    with LiveBytes() as live:
        output = model(x)
    assert live.live == expected + output.untyped_storage().nbytes()


@pytest.mark.parametrize(("choice", "keeps"), [("full", 9), ({"blocks": 5}, 9), ("sqrt", 5), ("none", 9)])
def test_checkpointing_keeps_less(choice, keeps):
    """A chain of layers whose inside is three times their output: plain 9 x 4, checkpointed the inputs and little."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

        def forward(self, x):
            return torch.tanh(self.down(torch.tanh(self.up(x))))

    torch.manual_seed(0)
    layers = [Wide() for _ in range(9)]
    model = nn.Sequential(*layers)
    again = apply_activation_checkpointing(layers, choice)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    with LiveBytes() as live:
        output = model(x)
    # a layer that is kept has its inside and its output; a block that runs again has its output, which the next one
    # keeps as its input; a segment of three only that of the last
    inside = 3 * (9 - len(again))
    outputs = 9 if choice != "sqrt" else 2 + 3
    assert outputs == keeps
    random_state = 5056 + 64  # torch's generator is saved per unit that runs again, outside of any operation
    assert (inside + outputs) * HIDDEN <= live.live <= (inside + outputs) * HIDDEN + 9 * random_state
    output.sum().backward()
    assert x.grad is not None


def test_views_in_place_and_what_was_there_before_count_once():
    before = torch.randn(100)
    with LiveBytes() as live:
        a = torch.zeros(1000)
        view = a[10:20].view(2, 5)
        a += 1
        same = before.view(10, 10)
        before.mul_(2)
        assert live.live == 4000
        del a
        assert live.live == 4000  # the view holds the storage
        del view
        assert live.live == 0
        b = torch.zeros(10)
    assert live.live == 40
    assert live.peak == 4000
    assert b.sum() == 0
    assert same.shape == (10, 10)


def test_model_bytes_by_hand():
    model = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.Linear(20, 5))
    numbers = 10 * 20 + 20 + 20 + 20 + 20 * 5 + 5
    adam, sgd = torch.optim.Adam(model.parameters()), torch.optim.SGD(model.parameters(), lr=0.1)
    assert model_bytes(model, sgd) == {"parameters": 4 * numbers, "buffers": 4 * 40 + 8, "optimizer": 0}
    F.mse_loss(model(torch.randn(4, 10)), torch.zeros(4, 5)).backward()
    adam.step()
    assert model_bytes(model, adam)["optimizer"] == 8 * numbers + 6 * 4  # two moments and a step count per tensor
    assert storage_bytes(p.grad for p in model.parameters()) == 4 * numbers


def test_tied_parameters_and_views_are_counted_once():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    assert storage_bytes([model[0].weight, model[1].weight, model[0].weight[:2]]) == 256
    assert model_bytes(model, torch.optim.SGD(model.parameters(), lr=0.1))["parameters"] == 256
    assert storage_bytes([torch.zeros(0)]) == 0


@pytest.mark.parametrize(("accumulate", "rows"), [(1, 120), (4, 30)])
def test_what_a_run_measures(accumulate, rows, tmp_path):
    """64-32-16-10: gradients as large as the parameters; activations of one micro-batch."""
    run, phase = prepared(World(), tmp_path, f"train.accumulate={accumulate}", "train.steps=3")
    train(run, phase)
    parameters = 4 * (64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10)
    sizes = model_bytes(run.backend.model, phase.optimizer)
    assert run.gradient_bytes == sizes["parameters"] == sizes["optimizer"] == parameters  # SGD with momentum
    hidden, scores = 4 * rows * (32 + 16), 4 * rows * 10
    batch = 4 * rows * 64 + 8 * rows  # widened by prepare: pixels to float32, labels to int64
    # log_softmax keeps its result; the plain scores are gone
    assert hidden + scores + batch <= run.activation_bytes <= hidden + scores + batch + 64


def test_resident_bytes_grow_with_what_is_touched():
    before = peak_resident_bytes()
    block = torch.ones(40_000_000)
    assert before > 50_000_000
    assert peak_resident_bytes() >= before
    assert block.numel() * 4 == 160_000_000
