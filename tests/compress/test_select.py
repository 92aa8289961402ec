from __future__ import annotations

import pytest
import torch
from torch import nn

from distmem.compress.select import per_layer, select, untied
from distmem.errors import CompressError


def params_of(model):
    return dict(model.named_parameters(remove_duplicate=False))


def test_default_takes_matrices_and_leaves_biases_and_norms(net):
    assert list(select(params_of(net))) == ["0.weight", "3.weight"]


def test_convolution_kernels_are_selected():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    assert list(select(params_of(model))) == ["0.weight", "3.weight"]


def test_vectors_come_when_the_pattern_names_them(net):
    params = params_of(net)
    assert list(select(params, "*.bias")) == ["0.bias", "2.bias", "3.bias"]
    assert list(select(params, ["3.weight", "2.weight"])) == ["2.weight", "3.weight"]
    assert list(select(params, "*")) == ["0.weight", "3.weight"]


def test_selected_tensors_are_the_parameters_themselves(net):
    assert select(params_of(net))["0.weight"] is net[0].weight


def test_tied_weights_count_once():
    model = nn.ModuleDict({"embed": nn.Embedding(7, 5), "head": nn.Linear(5, 7, bias=False)})
    model["head"].weight = model["embed"].weight
    assert list(params_of(model)) == ["embed.weight", "head.weight"]
    assert list(select(params_of(model))) == ["embed.weight"]
    assert list(select(params_of(model), "head.*")) == ["head.weight"]


def test_views_of_one_memory_are_tied_only_when_they_cover_the_same():
    flat = torch.arange(12.0)
    whole, other = flat.view(3, 4), torch.arange(12.0).view(3, 4)
    parts = {"a": flat[:6].view(2, 3), "b": flat[6:].view(2, 3)}
    assert list(untied({"w": whole, "wt": whole.t(), "other": other})) == ["w", "other"]
    assert list(untied(parts)) == ["a", "b"]


def test_tensors_without_memory_are_not_taken_for_tied():
    meta = {"a": torch.empty(2, 2, device="meta"), "b": torch.empty(2, 2, device="meta")}
    empty = {"a": torch.empty(0, 2), "b": torch.empty(0, 2)}
    assert list(untied(meta)) == list(untied(empty)) == ["a", "b"]


def test_a_pattern_without_a_match_names_the_nearest(net):
    with pytest.raises(CompressError, match=r'"3.wieght".*Did you mean "3.weight".*0\.weight, 0\.bias'):
        select(params_of(net), ["*.weight", "3.wieght"])
    with pytest.raises(CompressError, match="empty list"):
        select(params_of(net), [])


def test_case_matters():
    with pytest.raises(CompressError):
        select({"fc.weight": torch.ones(2, 2)}, "FC.weight")


def test_a_long_list_of_names_is_cut():
    params = {f"layer{i}.weight": torch.ones(1, 1) for i in range(300)}
    with pytest.raises(CompressError, match="and 280 more"):
        select(params, "nothing")


NAMES = ["fc1.weight", "fc2.weight", "fc3.weight"]


def test_one_value_for_all():
    assert per_layer(2.0, NAMES, "sensitivity") == dict.fromkeys(NAMES, 2.0)
    assert per_layer(5, [], "bits") == {}


def test_the_first_match_wins():
    assert per_layer({"fc3.*": 1.5, "*": 2}, NAMES, "sensitivity") == {
        "fc1.weight": 2,
        "fc2.weight": 2,
        "fc3.weight": 1.5,
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"fc1.*": 1.0}, 'no value for "fc2.weight"'),
        ({"fc9.weight": 1.0, "*": 2.0}, 'matches nothing. Did you mean "fc3.weight"'),
        ({"*": 2.0, "fc1.weight": 1.0}, "has no effect"),
        ({"*": "two"}, "not a number"),
        ({"*": True}, "not a number"),
        (float("nan"), "not a number"),
        ({}, "no value"),
    ],
)
def test_values_that_decide_nothing_are_errors(value, message):
    with pytest.raises(CompressError, match=message):
        per_layer(value, NAMES, "sensitivity")
