from __future__ import annotations

import itertools
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distmem.compress import kmeans
from distmem.compress.kmeans import assign, kmeans_1d
from distmem.errors import CompressError

values_of = hnp.arrays(np.float32, st.integers(1, 80), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False))


def samples(kind, size, seed):
    random = np.random.default_rng(seed)
    drawn = {
        "gauss": lambda: random.normal(size=size) * 0.05,
        "pruned": lambda: (lambda x: x[abs(x) > 0.08])(random.normal(size=4 * size) * 0.05),
        "student": lambda: random.standard_t(3, size=size) * 0.02,
        "laplace": lambda: random.laplace(size=size),
        "lognormal": lambda: random.lognormal(0, 2, size=size),
        "cauchy": lambda: random.standard_cauchy(size=size),
        "outliers": lambda: np.concatenate([random.normal(size=size) * 0.05, [3, -2, 5]]),
        "far": lambda: 1000 + random.normal(size=size),
        "integers": lambda: random.integers(0, 60, size=size).astype(float),
    }
    return drawn[kind]().astype(np.float32)


def error_of(values, centroids):
    """Brute force: the distance to every centroid."""
    distances = np.abs(values.astype(np.float64)[:, None] - centroids.astype(np.float64)[None])
    return np.square(distances.min(axis=1)).sum()


KINDS = ["gauss", "pruned", "student", "laplace", "lognormal", "cauchy", "outliers", "far", "integers"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "clusters"), [(60, 4), (300, 16), (3000, 32), (4000, 8)])
def test_at_least_as_good_as_scikit_learn(kind, size, clusters):
    from sklearn.cluster import KMeans

    values = samples(kind, size, seed=size + clusters)
    start = np.linspace(values.min(), values.max(), clusters, dtype=np.float64)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = KMeans(clusters, init=start, n_init=1).fit(values.astype(np.float64)[:, None])
    centroids, inertia = kmeans_1d(values, clusters)
    assert len(centroids) == clusters
    assert inertia <= reference.inertia_ * (1 + 1e-6)
    assert inertia == pytest.approx(error_of(values, centroids), rel=1e-9)


def best_possible(values, clusters):
    """All ways to cut the sorted values."""
    ordered = np.sort(values.astype(np.float64))
    cuts = itertools.combinations(range(1, len(ordered)), clusters - 1)
    parts = (np.split(ordered, cut) for cut in cuts)
    return min(sum(np.square(part - part.mean()).sum() for part in split) for split in parts)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, st.integers(4, 10), elements=st.floats(-10, 10, width=16)), st.integers(1, 4), st.booleans()
)
def test_few_values_are_clustered_optimally(values, clusters, linear):
    inertia = kmeans_1d(values, clusters, "linear" if linear else "density")[1]
    assert inertia == pytest.approx(best_possible(values, min(clusters, len(values))), rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(values_of, st.integers(1, 12), st.sampled_from(["linear", "density"]), st.randoms())
def test_what_always_holds(values, clusters, init, random):
    centroids, inertia = kmeans_1d(values, clusters, init)
    assert centroids.dtype == np.float32
    assert len(centroids) <= min(clusters, len(np.unique(values)))
    assert (np.diff(centroids) > 0).all()
    assert values.min() <= centroids[0]
    assert centroids[-1] <= values.max()
    assert inertia == pytest.approx(error_of(values, centroids), rel=1e-6, abs=1e-30)
    shuffled = values.copy()
    random.shuffle(shuffled)
    again = kmeans_1d(shuffled, clusters, init)
    assert (again[0].tobytes(), again[1]) == (centroids.tobytes(), inertia)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_point_is_reached(kind):
    values = samples(kind, 3000, seed=1)
    centroids, _ = kmeans_1d(values, 16)
    codes = assign(values, centroids)
    means = [values[codes == code].mean(dtype=np.float64) for code in range(len(centroids))]
    assert np.allclose(means, centroids, rtol=2e-7, atol=1e-9)


def test_far_more_values_than_bins():
    values = samples("student", 50_000, seed=3)
    centroids, inertia = kmeans_1d(values, 32)
    coarse = kmeans_1d(values, 31)[1]
    assert len(centroids) == 32
    assert inertia < coarse


def test_no_more_distinct_values_than_clusters():
    values = np.array([3, 1, 3, -2, 1], dtype=np.float32)
    centroids, inertia = kmeans_1d(values, 3)
    assert (centroids.tolist(), inertia) == ([-2, 1, 3], 0)
    assert kmeans_1d(values, 99)[0].tolist() == [-2, 1, 3]
    assert kmeans_1d(np.zeros(0, dtype=np.float32), 4)[0].size == 0


def test_one_cluster_is_the_mean():
    values = samples("gauss", 500, seed=0)
    assert kmeans_1d(values, 1)[0] == pytest.approx(values.mean(dtype=np.float64), rel=1e-6)


def test_many_clusters_skip_the_search():
    values = samples("laplace", 6000, seed=0)
    centroids, inertia = kmeans_1d(values, kmeans._BINS)
    assert len(centroids) == kmeans._BINS
    assert inertia < kmeans_1d(values, 256)[1]


def test_values_that_differ_by_more_than_64_bits_hold():
    values = np.array([1e30, 1e-30, 2e-30, 3e-30, -1e-30, 0, 5e29], dtype=np.float32)
    centroids, _ = kmeans_1d(values, 4)
    assert 2 <= len(centroids) <= 4
    assert centroids[-1] == np.float32(1e30)


few_values = hnp.arrays(np.float32, st.integers(1, 9), elements=st.floats(-1e3, 1e3, width=32))


@settings(deadline=None, max_examples=150)
@given(few_values, few_values)
def test_assignment_is_the_nearest_the_lower_one_half_way(values, centroids):
    centroids = np.unique(centroids)
    exact = [Fraction(float(centroid)) for centroid in centroids]
    distances = [[abs(Fraction(float(value)) - centroid) for centroid in exact] for value in values]
    nearest = [row.index(min(row)) for row in distances]
    assert assign(values, centroids).tolist() == nearest


def test_assignment_at_midpoints_no_float32_can_hold():
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2))
    centroids = np.array([low, high])
    assert assign(centroids, centroids).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("values", "clusters", "init", "message"),
    [
        (np.array([1.0, np.nan], np.float32), 2, "linear", "1 values are NaN"),
        (np.array([1.0, np.inf], np.float32), 2, "linear", "infinite"),
        (np.array([1.0, 2.0]), 2, "linear", "float64"),
        (np.ones((2, 2), np.float32), 2, "linear", "flat"),
        (np.ones(2, np.float32), 0, "linear", "clusters is 0"),
        (np.ones(2, np.float32), 2, "forgy", 'init is "forgy"'),
    ],
)
def test_impossible_inputs_are_refused(values, clusters, init, message):
    with pytest.raises(CompressError, match=message):
        kmeans_1d(values, clusters, init)
