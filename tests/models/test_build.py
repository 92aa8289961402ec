from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from distmem.errors import ModelError
from distmem.models import blocks
from distmem.models import build as typed_build

build: Any = typed_build  # the tests look at attributes of the models they know


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules of a package of the user's; the package is gone afterwards."""
    (tmp_path / "own_nets").mkdir()
    (tmp_path / "own_nets" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def write(module: str, text: str) -> str:
        (tmp_path / "own_nets" / f"{module}.py").write_text(text)
        return f"own_nets.{module}"

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_nets"]:
        del sys.modules[name]


NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self, features, num_classes=2, width=8):
        super().__init__()
        self.fc = nn.Linear(features, width)
        self.out = nn.Linear(width, num_classes)
not_callable = 3
def number(): return 3
def open_ended(**anything): return nn.Linear(anything["a"], anything["b"])
def fails(width: int = 1): return nn.Linear(-width, 1)
"""


def test_hints_fill_what_the_recipe_leaves_out(package):
    net = build(f"{package('good', NET)}:Net", {"width": 5}, {"features": 7, "classes": 4, "channels": 3})
    assert (net.fc.in_features, net.fc.out_features, net.out.out_features) == (7, 5, 4)
    assert build("lenet_300_100", {}, {"features": 64, "classes": 4}).fc3.out_features == 4
    assert build("lenet5", {}, {"channels": 3, "features": 2352}).conv1.in_channels == 3
    assert build("gpt_char", {}, {"vocab_size": 65, "context": 32}).context == 32


def test_an_argument_of_the_recipe_wins_unless_it_is_too_small():
    assert (
        build("lenet_300_100", {"features": 9, "classes": 12}, {"features": 64, "classes": 10}).fc3.out_features == 12
    )
    with pytest.raises(ModelError, match=r"classes: 7, but the data has 10"):
        build("lenet_300_100", {"classes": 7}, {"classes": 10})
    with pytest.raises(ModelError, match=r"vocab_size: 64, but the data has 65"):
        build("gpt_char", {"vocab_size": 64}, {"vocab_size": 65})


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("lenet_300_10", {}, 'no model "lenet_300_10".* Did you mean "lenet_300_100"'),
        ("lenet5", {"clases": 10}, 'no argument "clases".* Did you mean "classes".*\n.*classes, channels'),
        ("gpt_char", {"width": 30, "heads": 4}, "width 30 is not a multiple of heads 4"),
        ("gpt_char", {"width": 12, "heads": 4}, "width 3, which rope cannot pair"),
        ("gpt_char", {"position": "sin"}, '"sin"'),
        ("not_there_at_all.nets:Net", {}, 'no module "not_there_at_all"(.|\n)*PYTHONPATH'),
        ("distmem.models.nets:Net", {}, 'no module "distmem.models.nets"'),
        ("distmem.models.lenet:LeNet300", {}, 'no "LeNet300".* Did you mean "LeNet300100"'),
        (":Net", {}, "not an import path"),
    ],
)
def test_faults_are_named(name, args, message):
    with pytest.raises(ModelError, match=message):
        build(name, args, {})


def test_faults_in_a_users_module(package):
    path = package("good", NET)
    for name, message in {
        "not_callable": "is a int",
        "number": "made a int",
        "Net": "needs features",
        "Nett": 'Did you mean "Net"',
    }.items():
        with pytest.raises(ModelError, match=message):
            build(f"{path}:{name}", {}, {})
    assert build(f"{path}:open_ended", {"a": 2, "b": 3}, {"features": 9}).out_features == 3
    with pytest.raises(ModelError, match=r"fails\" \(width=1\) failed: RuntimeError") as caught:
        build(f"{path}:fails", {"width": 1}, {})
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_import_that_fails_in_user_code_keeps_its_cause(package):
    with pytest.raises(ModelError, match="ZeroDivisionError") as caught:
        build(f"{package('broken', '1 / 0')}:Net", {}, {})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ModelError, match="needs the module surely_absent, which is not installed"):
        build(f"{package('needy', 'import surely_absent')}:Net", {}, {})


def test_blocks_without_a_method():
    chain = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert blocks(chain) == list(chain)

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act = nn.Linear(2, 2), nn.ReLU()
            self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    plain = Plain()
    assert blocks(plain) == [plain.first, *plain.blocks]
    assert blocks(nn.ReLU()) == []
    assert torch.is_tensor(plain.first(torch.ones(2)))
