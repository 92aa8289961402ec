"""The order of samples: a permutation that a seed, an epoch and a position decide, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distmem.data.order import BLOCK, Order


@given(samples=st.integers(1, 5000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10_000))
def test_each_sample_once(samples, seed, epoch):
    ids = Order(samples, seed, epoch).take(0, samples)
    assert ids.dtype == np.int64
    assert np.array_equal(np.sort(ids), np.arange(samples))


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 15, 16, 17, 255, 257, 4095, 4097, BLOCK, BLOCK + 1, 3 * BLOCK - 7])
def test_at_the_edges_of_its_powers_and_blocks(samples):
    assert np.array_equal(np.sort(Order(samples, 1, 1).take(0, samples)), np.arange(samples))


@settings(max_examples=50)
@given(samples=st.integers(1, 200_000), data=st.data())
def test_any_part_is_that_part_of_the_whole(samples, data):
    """So ranks, resumed runs and worlds of another size agree without asking."""
    start = data.draw(st.integers(0, samples))
    stop = data.draw(st.integers(start, samples))
    whole = Order(samples, 7, 3).take(0, samples)
    assert np.array_equal(Order(samples, 7, 3).take(start, stop), whole[start:stop])


def test_pieces_in_any_sequence_from_one_object():
    order, whole = Order(150_000, 5, 0), Order(150_000, 5, 0).take(0, 150_000)
    for start, stop in [(0, 10), (65_530, 65_545), (149_990, 150_000), (10, 20), (60_000, 140_000), (7, 7)]:
        assert np.array_equal(order.take(start, stop), whole[start:stop])


def test_seeds_and_epochs_are_keys():
    orders = [Order(1000, seed, epoch).take(0, 1000) for seed in range(5) for epoch in range(5)]
    # two random permutations agree at 1 place on average, at more than 12 with a probability below 1e-10
    agree = [int((a == b).sum()) for i, a in enumerate(orders) for b in orders[:i]]
    assert max(agree) <= 12
    assert 0.7 < np.mean(agree) < 1.3
    assert np.array_equal(Order(1000, 3, 4).take(0, 1000), Order(1000, 3, 4).take(0, 1000))


def test_without_a_seed_it_is_the_order_of_the_source():
    assert np.array_equal(Order(100, None, 5).take(20, 40), np.arange(20, 40))


@pytest.mark.parametrize("samples", [60, 64])
def test_each_sample_is_equally_likely_at_each_place(samples):
    """Chi-square over 5,000 epochs at the first, a middle and the last place."""
    epochs = 5_000
    counts = np.zeros((3, samples))
    for epoch in range(epochs):
        ids = Order(samples, 11, epoch).take(0, samples)
        for row, place in enumerate((0, samples // 2, samples - 1)):
            counts[row, ids[place]] += 1
    for row in counts:
        assert stats.chisquare(row).pvalue > 1e-6


def test_neighbours_are_not_kept_together():
    """Distances between ids at neighbouring places are those of a random permutation, of any block of the data."""
    samples = 60_000
    ids = Order(samples, 2, 0).take(0, samples)
    random = np.random.default_rng(0).permutation(samples)
    ours, theirs = np.abs(np.diff(ids)), np.abs(np.diff(random))
    assert stats.ks_2samp(ours, theirs).pvalue > 1e-6
    assert abs(stats.spearmanr(np.arange(samples), ids).statistic) < 0.02


def test_batches_mix_the_classes():
    """A source sorted by class, ten of 6,000: each batch of 600 has of each class what chance gives."""
    classes = Order(60_000, 0, 0).take(0, 60_000) // 6000
    table = np.stack([np.bincount(batch, minlength=10) for batch in classes.reshape(100, 600)])
    statistic = ((table - 60) ** 2 / 60).sum(1)
    assert stats.kstest(statistic * 1 / (1 - 600 / 60_000), stats.chi2(9).cdf).pvalue > 1e-6
