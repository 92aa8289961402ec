from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from distmem.compress.count import count_nonzeros, totals
from distmem.compress.prune import sparsity_masks
from distmem.compress.select import select
from distmem.errors import CompressError


def test_rows_agree_with_numpy(net):
    params = dict(net.named_parameters())
    masks = sparsity_masks(select(params), 0.75)
    masks.apply_(params)
    rows = count_nonzeros(params, {"3.weight": 32})
    assert [row["name"] for row in rows] == list(params)
    for row in rows:
        array = params[row["name"]].detach().numpy()
        assert row["nonzeros"] == np.count_nonzero(array)
        assert (row["shape"], row["total"], row["bytes"]) == (list(array.shape), array.size, array.nbytes)
    assert [row["codebook"] for row in rows] == [None, None, None, None, 32, None]


def test_totals_of_lenet_300_100():
    layers = [nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)]
    params = {f"fc{i}.{name}": p for i, layer in enumerate(layers, 1) for name, p in layer.named_parameters()}
    sums = totals(count_nonzeros(params))
    assert (sums["total"], sums["bytes"]) == (266_610, 1_066_440)
    assert sums["compression_rate"] == sums["total"] / sums["nonzeros"]


def test_the_rate_counts_biases_too():
    rows = count_nonzeros({"w": torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "b": torch.ones(2)})
    assert totals(rows) == {"nonzeros": 3, "total": 6, "compression_rate": 2.0, "bytes": 24}


def test_16_bit_weights_take_two_bytes():
    assert count_nonzeros({"w": torch.ones(3, dtype=torch.bfloat16)})[0]["bytes"] == 6


def test_negative_zero_is_zero():
    assert count_nonzeros({"w": torch.tensor([-0.0, 1.0])})[0]["nonzeros"] == 1


def test_tied_weights_count_once():
    weight = torch.ones(4, 2)
    rows = count_nonzeros({"embed": weight, "head": weight, "copy": weight.clone()})
    assert [row["name"] for row in rows] == ["embed", "copy"]


def test_a_codebook_without_a_parameter_is_refused():
    with pytest.raises(CompressError, match=r'Did you mean "fc\.weight"'):
        count_nonzeros({"fc.weight": torch.ones(1)}, {"fc.wieght": 8})


def test_a_model_of_zeros_has_no_rate():
    with pytest.raises(CompressError, match="all 3 weights are zero"):
        totals(count_nonzeros({"w": torch.zeros(3)}))
    with pytest.raises(CompressError):
        totals([])
