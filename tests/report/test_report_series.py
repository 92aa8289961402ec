"""Smoothing, thinning and ticks, against plain definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmem.report import series
from distmem.report.plot import Axis

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300)


@given(values, st.integers(1, 41))
def test_smoothing_is_the_mean_of_the_window(numbers, window):
    half = window // 2 if window > 1 else 0
    known = [np.mean(numbers[max(0, i - half) : i + half + 1]) for i in range(len(numbers))]
    found = series.smooth(list(enumerate(numbers)), window)
    assert [x for x, _ in found] == list(range(len(numbers)))
    np.testing.assert_allclose([y for _, y in found], known, rtol=1e-6, atol=1e-6)


@given(values, st.integers(2, 50))
def test_thinning_keeps_order_ends_of_the_range_and_real_points(numbers, limit):
    points = list(enumerate(numbers))
    kept = series.thin(points, limit)
    assert len(kept) <= max(limit, 2)
    assert kept == sorted(set(kept))
    assert set(kept) <= set(points)
    assert {min(y for _, y in kept), max(y for _, y in kept)} == {min(numbers), max(numbers)}


@given(values, st.integers(2, 50))
def test_even_thinning_keeps_the_ends(numbers, limit):
    points = list(enumerate(numbers))
    kept = series.every(points, limit)
    assert len(kept) == min(limit, len(points))
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(set(kept))


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_linear_ticks_are_round_and_inside(low, span):
    high = low + span
    ticks = series.linear_ticks(low, high)
    assert 1 <= len(ticks) <= 7
    assert all(low - 1e-6 * span <= tick <= high + 1e-6 * span for tick in ticks)
    gaps = np.diff(ticks)
    assert np.allclose(gaps, gaps[0], rtol=1e-3) if len(gaps) else True


@given(st.floats(1e-8, 1e3), st.floats(50, 1e9))
def test_log_ticks_are_inside_and_few(low, ratio):
    ticks = series.log_ticks(low, low * ratio)
    assert 1 <= len(ticks) <= 13
    assert ticks == sorted(set(ticks))
    assert all(0.99 * low <= tick <= 1.01 * low * ratio for tick in ticks)


@given(st.floats(1e-6, 1e3), st.floats(1.1, 1e6), st.booleans())
def test_an_axis_maps_its_ends_to_zero_and_one(low, ratio, log):
    axis = Axis(low, low * ratio, log)
    assert axis.place(low) == pytest.approx(0)
    assert axis.place(low * ratio) == pytest.approx(1)
    middle = math.sqrt(low * low * ratio) if log else low * (1 + ratio) / 2
    assert axis.place(middle) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("value", "ticks", "fraction", "text"),
    [
        (0.975, [0.97, 0.975, 0.98], True, "97.5 %"),
        (0.9, [0.8, 0.9, 1.0], True, "90 %"),
        (20_000, [0, 20_000], False, "20k"),
        (2_000, [0, 2_000, 4_000], False, "2,000"),
        (2_500_000, [0, 2_500_000], False, "2.5M"),
        (0, [0, 20_000], False, "0"),
        (1e-5, [0, 1e-5], False, "1e−5"),
        (-0.5, [-0.5, 0], False, "−0.5"),
    ],
)
def test_ticks_are_written_short(value, ticks, fraction, text):
    assert series.tick_text(value, ticks, fraction) == text


def test_one_spike_does_not_decide_the_range():
    low, high = series.quantiles([1.0] * 500 + [1e9], 0.01, 0.99)
    assert (low, high) == (1.0, 1.0)
