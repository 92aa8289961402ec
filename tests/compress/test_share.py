from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distmem.compress.kmeans import assign
from distmem.compress.prune import sparsity_masks
from distmem.compress.select import select
from distmem.compress.share import rate, share_, share_layer, shared_bits, write_shared_
from distmem.errors import CompressError


def pruned_layer(dtype=torch.float32, shape=(40, 50)):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.1
    return (weight * (weight.abs() > 0.12)).to(dtype)


def test_a_layer_takes_the_nearest_of_its_centroids():
    weight = pruned_layer()
    codes, centroids = share_layer(weight, 4)
    values = weight[weight != 0].numpy()
    assert (codes.dtype, centroids.dtype, len(centroids)) == (torch.uint8, torch.float32, 16)
    assert codes.numel() == weight.count_nonzero()
    assert np.array_equal(codes.numpy(), np.abs(values[:, None] - centroids.numpy()[None]).argmin(axis=1))
    assert set(codes.tolist()) == set(range(16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_shared_weights_read_back_the_same_codes(dtype):
    weight = pruned_layer(dtype)
    zeros = weight == 0
    codes, centroids = share_layer(weight, 3)
    write_shared_(weight, codes, centroids)
    assert torch.equal(weight == 0, zeros)
    assert torch.equal(weight[weight != 0].float(), centroids[codes.long()])
    assert np.array_equal(assign(weight[weight != 0].float().numpy(), centroids.numpy()), codes.numpy())


def test_other_memory_formats_are_written_in_place():
    weight = pruned_layer(shape=(8, 6, 3, 3)).to(memory_format=torch.channels_last)
    plain = weight.contiguous()
    for layer in (weight, plain):
        write_shared_(layer, *share_layer(layer, 3))
    assert torch.equal(weight, plain)
    assert len(plain.unique()) <= 9


@settings(deadline=None, max_examples=80)
@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])),
    st.integers(1, 3),
)
def test_zero_stays_zero_and_nothing_else_becomes_zero(values, bits):
    weight = torch.from_numpy(values.copy())
    codes, centroids = share_layer(weight, bits)
    assert len(centroids) <= 2**bits
    assert (centroids != 0).all()
    assert (centroids.diff() > 0).all()
    write_shared_(weight, codes, centroids)
    assert np.array_equal(weight.numpy() == 0, values == 0)


def test_a_centroid_at_zero_becomes_a_weight_of_its_cluster():
    weight = torch.tensor([-1.0, 1.0, -1.0, 1.0, 0.25, -0.25, 8.0, 0.0])
    codes, centroids = share_layer(weight, 1)
    assert centroids.tolist() == [0.25, 8.0]
    assert codes.tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_a_centroid_that_vanishes_in_16_bits_is_moved():
    weight = torch.tensor([-1e-3, 1.00001e-3, 1.0, 2.0, 3.0], dtype=torch.float16)
    codes, centroids = share_layer(weight, 1)
    write_shared_(weight, codes, centroids)
    assert weight.count_nonzero() == 5


def test_layers_of_zeros_and_of_few_values():
    codes, centroids = share_layer(torch.zeros(3, 3), 5)
    assert (codes.numel(), centroids.numel()) == (0, 0)
    weight = torch.zeros(3, 3)
    write_shared_(weight, codes, centroids)
    codes, centroids = share_layer(torch.tensor([[3.0, 0.0], [3.0, -1.0]]), 5)
    assert (codes.tolist(), centroids.tolist()) == ([1, 1, 0], [-1.0, 3.0])


def test_the_digits_net_keeps_its_accuracy(net, digits):
    params = dict(net.named_parameters())
    weights = select(params)
    masks = sparsity_masks(weights, 0.5)
    masks.apply_(params)
    before = {name: weight.detach().clone() for name, weight in weights.items()}

    def accuracy():
        return float((net(digits[0][1400:]).argmax(1) == digits[1][1400:]).float().mean())

    pruned = accuracy()
    shared = share_(params, dict.fromkeys(weights, 5), masks)
    assert accuracy() >= pruned - 0.02
    for name, layer in shared.items():
        assert torch.equal(params[name] != 0, masks[name])
        assert len(params[name].unique()) <= 33
        assert layer["bits"] == 5
        changes = (params[name].detach() - before[name]).double().square().sum()
        assert layer["inertia"] == pytest.approx(float(changes))
        assert 0 < layer["inertia"] < 0.01 * float(before[name].square().sum())


def test_the_same_weights_give_the_same_bits():
    one, other = pruned_layer(), pruned_layer().t().contiguous().t()
    first, second = share_({"w": one}, {"w": 5})["w"], share_({"w": other}, {"w": 5})["w"]
    assert first["centroids"].numpy().tobytes() == second["centroids"].numpy().tobytes()
    assert torch.equal(first["codes"], second["codes"])
    assert one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()


def test_sharing_again_changes_nothing():
    weight = pruned_layer()
    share_({"w": weight}, {"w": 4})
    once = weight.clone()
    assert share_({"w": weight}, {"w": 4})["w"]["inertia"] == 0
    assert torch.equal(weight, once)


def test_a_fault_in_one_layer_leaves_all_unchanged():
    params = {"a": pruned_layer(), "b": torch.tensor([1.0, float("nan")])}
    before = params["a"].clone()
    with pytest.raises(CompressError, match='cannot share "b": 1 values are NaN'):
        share_(params, {"a": 2, "b": 2})
    assert torch.equal(params["a"], before)


@pytest.mark.parametrize("bits", [0, 9, 2.0, True, "5"])
def test_bits_are_a_whole_number_up_to_8(bits):
    with pytest.raises(CompressError, match="bits is"):
        share_layer(pruned_layer(), bits)


def test_faults_are_refused():
    weight = pruned_layer()
    with pytest.raises(CompressError, match="apply the masks"):
        share_layer(weight, 4, torch.zeros_like(weight, dtype=torch.bool))
    with pytest.raises(CompressError, match='"other"'):
        share_({"w": weight}, {"other": 4})
    with pytest.raises(CompressError, match="non-zeros"):
        write_shared_(weight, torch.zeros(3, dtype=torch.uint8), torch.ones(1))
    with pytest.raises(CompressError, match="too small"):
        share_layer(torch.tensor([1e-60, 1.0], dtype=torch.float64), 4)


def test_rate_is_that_of_deep_compression():
    # the example of section 3: 16 weights, 4 clusters, 32 bits: 16 * 32 / (16 * 2 + 4 * 32) = 3.2
    assert rate(16, 16, 4) == pytest.approx(3.2)
    assert rate(266_200, 16_000, 32) == pytest.approx(266_200 * 32 / (16_000 * 5 + 32 * 32))
    assert rate(100, 10, 1, weight_bits=16) == pytest.approx(100)
    assert shared_bits(16, 4) == 160
    assert shared_bits(0, 1) == 0
    with pytest.raises(CompressError):
        rate(100, 0, 4)
