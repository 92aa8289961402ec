from __future__ import annotations

import importlib.util
import inspect
import itertools
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from distmem.models import MODELS, blocks, build

needs_vision = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is an extra")

IMAGE = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))
CASES = [
    ("mnist_cnn", {}, IMAGE),
    ("lenet_300_100", {}, IMAGE),
    ("lenet5", {}, IMAGE),
    ("mlp", {"features": 784, "classes": 10}, IMAGE),
    ("gpt_char", {"vocab_size": 50, "width": 32}, TOKENS),
    ("gpt_char", {"vocab_size": 50, "width": 32, "position": "learned"}, TOKENS),
    pytest.param("resnet18", {"in_channels": 1, "small_input": True, "classes": 10}, IMAGE, marks=needs_vision),
    pytest.param("resnet50", {"in_channels": 1, "classes": 10}, IMAGE, marks=needs_vision),
]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("mnist_cnn", {}, 609_354),
        ("lenet_300_100", {}, 266_610),
        ("lenet5", {}, 431_080),
        ("mlp", {"features": 50, "hidden": [30, 20], "classes": 3}, 2_213),
        # torchvision's documented numbers
        pytest.param("resnet18", {}, 11_689_512, marks=needs_vision),
        pytest.param("resnet34", {}, 21_797_672, marks=needs_vision),
        pytest.param("resnet50", {}, 25_557_032, marks=needs_vision),
        pytest.param("resnet101", {}, 44_549_160, marks=needs_vision),
        pytest.param("resnet152", {}, 60_192_808, marks=needs_vision),
        # 4 layers of 12 C^2 + 2 norms, a last norm, one embedding for both ends
        ("gpt_char", {"vocab_size": 65}, 4 * (12 * 128**2 + 2 * 128) + 128 + 65 * 128),
        ("gpt_char", {"vocab_size": 65, "tie": False}, 4 * (12 * 128**2 + 2 * 128) + 128 + 2 * 65 * 128),
    ],
)
def test_parameter_counts(name, args, expected):
    with torch.device("meta") if name.startswith("resnet1") else torch.device("cpu"):
        assert count(build(name, args, {})) == expected


@pytest.mark.parametrize(("name", "args", "x"), CASES)
def test_blocks_are_a_chain_from_one_forward(name, args, x):
    model = build(name, args, {}).eval()
    calls: list[tuple[nn.Module, Tensor, Tensor, tuple[object, ...]]] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        calls.append((module, given[0], made, given[1:]))

    units = blocks(model)
    for unit in units:
        unit.register_forward_hook(note)
    model(x)
    assert len(units) >= 3
    assert [module for module, *_ in calls] == units
    for (_, _, made, others), (_, given, _, more) in itertools.pairwise(calls):
        assert given is made
        assert all(a is b for a, b in zip(others, more, strict=True))
    held = {id(parameter) for unit in units for parameter in unit.parameters()}
    assert len(held) == sum(len(list(unit.parameters())) for unit in units)


@pytest.mark.parametrize(("name", "args", "x"), CASES)
def test_every_parameter_learns(name, args, x):
    model = build(name, args, {})
    out = model(x)
    torch.nn.functional.cross_entropy(
        out.flatten(0, -2), torch.zeros(out.shape[:-1].numel(), dtype=torch.long)
    ).backward()
    dead = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not dead


@pytest.mark.parametrize(("name", "args", "x"), CASES)
def test_state_has_each_parameter_once(name, args, x):
    model = build(name, args, {})
    buffers = {name for name, _ in model.named_buffers()}
    assert set(model.state_dict()) - buffers == {name for name, _ in model.named_parameters()}


def test_mnist_cnn_equals_the_plain_layers():
    model = build("mnist_cnn", {}, {}).eval()
    reference = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(9216, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10), nn.LogSoftmax(1),
    )  # fmt: skip
    reference.load_state_dict(dict(zip(reference.state_dict(), model.state_dict().values(), strict=True)))
    assert torch.equal(model(IMAGE), reference.eval()(IMAGE))
    for net in (model, reference):
        net.train()
    torch.manual_seed(3)
    ours = model(IMAGE)
    torch.manual_seed(3)
    assert torch.equal(ours, reference(IMAGE))
    assert torch.allclose(ours.exp().sum(1), torch.ones(2))


def test_lenets_equal_the_plain_layers():
    flat = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    caffe = nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip
    for name, reference in (("lenet_300_100", flat), ("lenet5", caffe)):
        model = build(name, {}, {})
        reference.load_state_dict(dict(zip(reference.state_dict(), model.state_dict().values(), strict=True)))
        assert torch.equal(model(IMAGE), reference(IMAGE))
        assert {"fc1.weight", "fc2.weight"} <= set(model.state_dict())


def test_mlp_for_a_quantity_gives_one_number_per_sample():
    assert build("mlp", {"hidden": []}, {"features": 4, "classes": 1})(torch.randn(5, 4)).shape == (5,)
    assert build("mlp", {}, {"features": 64, "classes": 10})(torch.randn(5, 1, 8, 8)).shape == (5, 10)


@needs_vision
def test_resnet_takes_torchvisions_weights_and_agrees_with_it():
    from distmem.vision import load_torchvision

    theirs = load_torchvision().models.resnet18(num_classes=7).eval()
    ours = build("resnet18", {"classes": 7}, {}).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x), theirs(x))


@needs_vision
def test_nms_of_the_shim_on_known_boxes():
    from distmem.vision import _nms, load_torchvision

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [0, 0, 10, 10]])
    scores = torch.tensor([0.5, 0.9, 0.1, 0.4])
    # the first two overlap by 81 / 119 = 0.68
    assert _nms(boxes, scores, 0.5).tolist() == [1, 2]
    assert _nms(boxes, scores, 0.7).tolist() == [1, 0, 2]
    assert load_torchvision().ops.nms(boxes, scores, 0.5).tolist() == [1, 2]
    assert _nms(boxes[:0], scores[:0], 0.5).tolist() == []


def test_registry_is_free_of_torch():
    code = (
        "import sys, distmem.models, distmem.data; assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", MODELS)
def test_every_registered_model_has_annotated_defaults(name):
    if name.startswith("resnet") and importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is an extra")
    module, attribute = MODELS[name].split(":")
    found = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
    assert all(p.annotation is not p.empty and p.default is not p.empty for p in found.values())
