from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distmem.compress import prune
from distmem.compress.kth import histograms, kth_keys, magnitude_keys
from distmem.compress.masks import Masks
from distmem.compress.prune import cubic_sparsity, mean_and_std, moments, sparsity_masks, std_masks
from distmem.compress.select import select
from distmem.errors import CompressError

floats = hnp.arrays(
    np.float32, hnp.array_shapes(max_dims=3, max_side=8), elements=st.floats(-100, 100, width=32, allow_nan=False)
)
# few different values: many ties, many exact zeros
tied = hnp.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -3.0]))


def random_weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (40, 30), "b": (7, 40), "c": (3, 4, 5, 2)}
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


# --- threshold by standard deviation


def test_threshold_is_sensitivity_times_torch_std():
    weights = random_weights()
    masks = std_masks(weights, {"a": 2.0, "b": 0.5, "c": 1.0})
    for name, sensitivity in {"a": 2.0, "b": 0.5, "c": 1.0}.items():
        limit = sensitivity * weights[name].double().std()
        assert torch.equal(masks[name], weights[name].double().abs() >= limit)
        assert 0 < masks[name].sum() < masks[name].numel()


@settings(deadline=None)
@given(floats)
def test_std_equals_torch(values):
    weight = torch.from_numpy(values)
    std = mean_and_std(moments({"w": weight}))[1][0]
    if values.size > 1:
        assert float(std) == pytest.approx(float(weight.double().std()), rel=1e-9, abs=1e-6)
    else:
        assert std == 0


@pytest.mark.parametrize("mean", [1e3, 1e6])
def test_std_survives_a_large_mean(mean):
    weight = mean + 1e-3 * torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    std = float((weight - mean).std())
    means, plain = mean_and_std(moments({"w": weight}))
    assert float(mean_and_std(moments({"w": weight}, means))[1]) == pytest.approx(std, rel=1e-8)
    if mean == 1e6:
        assert float(plain) != pytest.approx(std, rel=0.1), "else the second pass would not be needed"
    # a threshold at the mean parts the weights in halves, one of another std keeps all or none
    assert 0.4 < std_masks({"w": weight}, {"w": mean / std})["w"].float().mean() < 0.6


def test_16_bit_weights_are_compared_with_the_exact_threshold():
    weight = torch.randn(100, 100).to(torch.bfloat16)
    limit = float(weight.double().std())
    assert torch.equal(std_masks({"w": weight}, {"w": 1.0})["w"], weight.double().abs() >= limit)


def test_the_threshold_itself_is_kept():
    weight = torch.tensor([-1.0, 1.0, -1.0, 1.0, 0.0])
    assert std_masks({"w": weight}, {"w": 1.0})["w"].tolist() == [True, True, True, True, False]


def test_constant_and_single_weights_stay():
    masks = std_masks({"same": torch.full((3, 3), 0.5), "one": torch.tensor([2.0])}, {"same": 2.0, "one": 2.0})
    assert masks.nonzeros() == 10


def test_moments_of_shards_add_up():
    weights = random_weights()
    whole = moments(weights)
    for shards in (2, 3):
        parts = [{n: w.reshape(-1)[r::shards] for n, w in weights.items()} for r in range(shards)]
        assert torch.allclose(sum(moments(part) for part in parts), whole, rtol=1e-13, atol=0)


def test_large_layers_are_read_in_pieces(monkeypatch):
    weights = random_weights()
    whole = std_masks(weights, dict.fromkeys(weights, 1.0))
    monkeypatch.setattr(prune, "_PIECE", 17)
    assert std_masks(weights, dict.fromkeys(weights, 1.0)) == whole


def test_std_keeps_what_was_pruned_before():
    weights = {"w": torch.tensor([0.0, 0.0, 5.0, 1.0])}
    previous = Masks({"w": torch.tensor([False, True, False, True])})
    assert std_masks(weights, {"w": 0.0}, previous)["w"].tolist() == [False, True, False, True]


# --- exact sparsity


def reference_masks(arrays, number):
    """The `number` smallest magnitudes pruned, ties by position: numpy's stable sort."""
    flat = np.concatenate([np.abs(array).reshape(-1) for array in arrays])
    keep = np.ones(flat.size, dtype=bool)
    keep[np.argsort(flat, kind="stable")[:number]] = False
    pieces = np.split(keep, np.cumsum([array.size for array in arrays])[:-1])
    return [piece.reshape(array.shape) for piece, array in zip(pieces, arrays, strict=True)]


@settings(deadline=None, max_examples=80)
@given(st.one_of(floats, tied), st.floats(0, 1))
def test_layer_sparsity_is_exact(values, sparsity):
    mask = sparsity_masks({"w": torch.from_numpy(values)}, sparsity)["w"]
    assert int(mask.sum()) == values.size - round(sparsity * values.size)
    assert np.array_equal(mask.numpy(), reference_masks([values], round(sparsity * values.size))[0])


@settings(deadline=None, max_examples=80)
@given(st.lists(st.one_of(floats, tied), min_size=1, max_size=4), st.floats(0, 1))
def test_global_sparsity_is_exact(arrays, sparsity):
    weights = {str(i): torch.from_numpy(array) for i, array in enumerate(arrays)}
    masks = sparsity_masks(weights, sparsity, "global")
    number = round(sparsity * sum(array.size for array in arrays))
    for mask, expected in zip(masks.values(), reference_masks(arrays, number), strict=True):
        assert np.array_equal(mask.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_precision_is_ordered_exactly(dtype):
    weight = (torch.randn(50, 40, dtype=torch.float64) * 1e-3).to(dtype)
    if dtype == torch.float64:
        weight = 1.0 + weight * 1e-8  # all equal in float32
    expected = reference_masks([weight.double().numpy()], 1500)[0]
    assert np.array_equal(sparsity_masks({"w": weight}, 0.75)["w"].numpy(), expected)


def test_values_per_layer():
    weights = random_weights()
    masks = sparsity_masks(weights, {"a": 0.9, "b": 0.5, "c": 0.0})
    assert [int(mask.sum()) for mask in masks.values()] == [120, 140, 120]


def test_large_and_tiny_magnitudes_keep_their_order():
    values = torch.tensor([3e38, 1e-45, -1e-40, 0.0, -0.0, -3.4e38, 1.0])
    assert sparsity_masks({"w": values}, 4 / 7)["w"].tolist() == [True, False, False, False, False, True, True]


def test_kth_magnitude_equals_torch():
    weight = torch.randn(10_001)
    for rank in (1, 2, 5000, 10_001):
        keys, ties = kth_keys([magnitude_keys(weight)], [0], [rank], 32)
        assert keys.to(torch.int32).view(torch.float32) == weight.abs().kthvalue(rank).values
        assert ties == 1


def test_histograms_of_shards_add_up():
    keys = magnitude_keys(torch.randn(1000))
    whole = histograms([keys], [0], None, 16)
    assert int(whole.sum()) == 1000
    assert torch.equal(sum(histograms([keys[r::3]], [0], None, 16) for r in range(3)), whole)


def test_gradual_pruning_never_brings_a_weight_back(net, digits):
    params = dict(net.named_parameters())
    weights = select(params)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    masks = None
    for step in range(0, 60):
        if step % 5 == 0:
            sparsity = cubic_sparsity(step, 0, 50, 0.95, 0.1)
            latest = sparsity_masks(weights, sparsity, "global", masks)
            assert latest.nonzeros() == latest.total() - round(sparsity * latest.total())
            assert masks is None or all(not (latest[name] & ~masks[name]).any() for name in latest)
            assert masks is None or step > 50 or latest.nonzeros() < masks.nonzeros()
            masks = latest
            masks.apply_(params)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(digits[0][:400]), digits[1][:400]).backward()
        masks.mask_gradients_(params)
        optimizer.step()
        masks.apply_(params)
    assert sum(int(weight.count_nonzero()) for weight in weights.values()) == masks.nonzeros()


@settings(deadline=None, max_examples=60)
@given(tied, st.lists(st.floats(0, 1), min_size=2, max_size=4))
def test_pruned_stays_pruned_among_ties_at_zero(values, shares):
    weight, masks = torch.from_numpy(values.copy()), None
    fewest = 0
    for share in shares:
        latest = sparsity_masks({"w": weight}, share, "layer", masks)
        fewest = max(fewest, round(share * values.size))
        assert latest.nonzeros() == values.size - fewest
        assert masks is None or not (latest["w"] & ~masks["w"]).any()
        masks = latest
        masks.apply_({"w": weight})


def test_an_accidental_zero_does_not_replace_a_pruned_weight():
    previous = Masks({"w": torch.tensor([True, True, False, True])})
    weight = {"w": torch.tensor([0.0, 3.0, 0.0, 1.0])}
    assert sparsity_masks(weight, 0.25)["w"].tolist() == [False, True, True, True]
    assert sparsity_masks(weight, 0.25, previous=previous)["w"].tolist() == [True, True, False, True]


def test_the_weights_are_not_changed():
    weights = random_weights()
    before = {name: weight.clone() for name, weight in weights.items()}
    sparsity_masks(weights, 0.5, "global")
    std_masks(weights, dict.fromkeys(weights, 1.0))
    assert all(torch.equal(weights[name], before[name]) for name in weights)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    weights = {"good": torch.ones(2), "broken": torch.tensor([1.0, bad])}
    for prune_with in (
        lambda: std_masks(weights, {"good": 1.0, "broken": 1.0}),
        lambda: sparsity_masks(weights, 0.5),
        lambda: sparsity_masks(weights, 0.5, "global"),
    ):
        with pytest.raises(CompressError, match='"broken" has 1 weights'):
            prune_with()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.5,), "is 1.5"),
        ((-0.1, "global"), "is -0.1"),
        ((float("nan"),), "is nan"),
        (({"other": 0.5},), 'no value for "w"'),
        (({"w": 0.5}, "global"), "scope is global"),
        ((0.5, "network"), 'scope is "network"'),
        ((0.5, "layer", Masks({"w": torch.tensor([True])})), "shape"),
    ],
)
def test_impossible_sparsities_are_refused(arguments, message):
    with pytest.raises(CompressError, match=message):
        sparsity_masks({"w": torch.ones(3)}, *arguments)


def test_impossible_sensitivities_are_refused():
    for sensitivity in ({}, {"w": -1.0}, {"w": float("nan")}):
        with pytest.raises(CompressError, match="sensitivity"):
            std_masks({"w": torch.ones(3)}, sensitivity)


def test_nothing_selected_gives_no_masks():
    assert len(std_masks({}, {})) == len(sparsity_masks({}, 0.5)) == len(sparsity_masks({}, 0.5, "global")) == 0


# --- schedule


def test_cubic_schedule():
    # Zhu and Gupta: s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3
    assert cubic_sparsity(50, 0, 100, 0.8) == pytest.approx(0.8 * (1 - 0.5**3))
    assert cubic_sparsity(35, 10, 110, 0.9, 0.2) == pytest.approx(0.9 - 0.7 * 0.75**3)
    assert [cubic_sparsity(step, 10, 20, 0.9, 0.2) for step in (0, 10, 20, 99)] == [0.2, 0.2, 0.9, 0.9]


@given(st.integers(0, 50), st.integers(1, 50), st.floats(0, 1), st.floats(0, 1))
def test_cubic_schedule_grows_and_stays_inside(begin, length, one, other):
    initial, final = sorted((one, other))
    shares = [cubic_sparsity(step, begin, begin + length, final, initial) for step in range(begin + length + 3)]
    assert all(later >= earlier - 1e-15 for earlier, later in itertools.pairwise(shares))
    assert shares[0] >= initial - 1e-15
    assert shares[-1] == final


@pytest.mark.parametrize("arguments", [(5, 10, 10, 0.5), (5, 10, 0, 0.5), (0, 0, 9, 1.1), (0, 0, 9, 0.2, 0.5)])
def test_impossible_schedules_are_refused(arguments):
    with pytest.raises(CompressError):
        cubic_sparsity(*arguments)
