"""k-means on a line: sorted values, cells as intervals, sums of a cell as differences of prefix sums."""

from __future__ import annotations

import itertools

import numpy as np

from distmem.errors import CompressError

# a round costs microseconds, and real layers need some hundreds
_ROUNDS = 100_000
_BINS = 2048


def kmeans_1d(values: np.ndarray, clusters: int, init: str = "linear") -> tuple[np.ndarray, float]:
    """Lloyd's k-means on numbers, run until no value changes its cluster; twice, to leave a bad local optimum.

    values: float32 [n], any order. init: "linear" spreads the first centroids evenly from minimum to maximum,
    "density" evenly over the sorted values (Deep Compression, Han, Mao, Dally 2016, arXiv 1510.00149, section 3.2;
    linear was best there, since it keeps centroids for the few large weights). Centroids of clusters left empty go
    where they lower the error most. The clusters found are then cut into bins, the bins are clustered optimally,
    and Lloyd's steps follow from there; up to 2048 distinct values and 1024 clusters the result
    is the global optimum.
    If there are no more distinct values than clusters, they are the centroids.
    Returns the centroids (float32, sorted, distinct, at most `clusters`) and the inertia (sum of squared distances
    to the nearest of them). The same values give the same bits, in whatever order they come.
    Raises CompressError on values that are not finite float32, on clusters < 1 and on an unknown init.
    """
    values = _checked(values, clusters)
    if init not in ("linear", "density"):
        raise CompressError(f'init is "{init}"', remedy='write "linear" or "density"')
    ordered = np.sort(values)
    distinct = ordered[np.flatnonzero(np.diff(ordered, prepend=np.nan) != 0)]
    if distinct.size <= clusters:
        return distinct, 0.0
    if init == "linear":
        start = np.linspace(float(ordered[0]), float(ordered[-1]), clusters)
    else:
        start = ordered[(2 * np.arange(clusters) + 1) * ordered.size // (2 * clusters)].astype(np.float64)
    bounds = _Line(ordered).solve(start)
    # means of the cells themselves: differences of prefix sums carry the rounding of all values before
    means = [ordered[begin:end].mean(dtype=np.float64) for begin, end in itertools.pairwise(bounds)]
    centroids = np.unique(np.array(means, dtype=np.float32))
    nearest = centroids[assign(ordered, centroids)]
    return centroids, float(np.square(ordered.astype(np.float64) - nearest).sum())


def assign(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The index of the nearest centroid of each value (the lower one half-way): integers, the shape of values.

    values: float32; centroids: float32, sorted. Exact: comparing in float32 with the midpoint rounded down gives
    what comparing with the midpoint itself would give.
    """
    middle = _midpoints(centroids.astype(np.float64))
    rounded = middle.astype(np.float32)
    below = np.nextafter(rounded, np.float32(-np.inf))
    return np.searchsorted(np.where(rounded > middle, below, rounded), values, side="left")


class _Line:
    """Sorted values and their prefix sums. Bounds [k + 1] say where each cell begins, and n at the end."""

    def __init__(self, ordered: np.ndarray):
        # centred, so that the sums of squares lose nothing when all values lie far from zero
        self.centre = float(ordered.mean(dtype=np.float64))
        self.values = ordered.astype(np.float64) - self.centre
        self.sums = np.concatenate([[0.0], np.cumsum(self.values)])
        self.squares = np.concatenate([[0.0], np.cumsum(np.square(self.values))])

    def solve(self, start: np.ndarray) -> np.ndarray:
        """Bounds of a fixed point of Lloyd's step, from the best clustering of the bins around the first one."""
        first = self._converged(start - self.centre)
        if start.size > _BINS // 2:
            return first
        best = self._converged(self._means(self._best_cuts(self._bins(first), start.size)))
        # rounding could let the first one be better; never return the worse
        return min(first, best, key=lambda bounds: self._errors(bounds).sum())

    def _converged(self, centroids: np.ndarray) -> np.ndarray:
        """Lloyd's algorithm: cut half-way between the centroids, take the means, until nothing changes."""
        cells, bounds = centroids.size, np.zeros(0, dtype=np.int64)
        for _ in range(_ROUNDS):
            inner = np.searchsorted(self.values, _midpoints(centroids), side="right")
            latest = self._filled(np.unique(np.concatenate([[0], inner, [self.values.size]])), cells)
            if np.array_equal(latest, bounds):
                break
            bounds, centroids = latest, self._means(latest)
        return bounds

    def _bins(self, bounds: np.ndarray) -> np.ndarray:
        """Bounds of some thousand bins: every cell cut at its mean, and its parts again; or all distinct values."""
        size = 0
        while size < bounds.size <= _BINS:
            size = bounds.size
            cuts = np.searchsorted(self.values, self._means(bounds), side="right")
            bounds = np.unique(np.concatenate([bounds, cuts]))
        return bounds

    def _best_cuts(self, bins: np.ndarray, cells: int) -> np.ndarray:
        """The bounds among those of the bins with the least error, by dynamic programming.

        errors[j], the least error of the first j bins in q cells, is the minimum over i of that of the first i bins
        in q - 1 cells plus the error of one cell over bins i..j (Wang and Song 2011, Ckmeans.1d.dp).
        """
        errors = self._error(np.zeros_like(bins), bins)
        choices = []
        for _ in range(cells - 1):
            errors, choice = self._one_cell_more(bins, errors)
            choices.append(choice)
        at, chosen = bins.size - 1, [bins.size - 1, 0]
        for choice in reversed(choices):
            at = int(choice[at])
            chosen.append(at)
        return np.unique(bins[chosen])

    def _one_cell_more(self, bins: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The least errors with one cell more, and the i that gives each.

        The best i grows with j, so each j is searched only between the answers of its neighbours on a coarser
        grid: all j of one grid at once, O(bins * log bins) in all.
        """
        result, choice = np.zeros_like(errors), np.zeros(bins.size, dtype=np.int32)
        stride = 1 << (bins.size - 1).bit_length()
        while stride := stride // 2:
            ends = np.arange(stride, bins.size, 2 * stride)
            low, after = choice[ends - stride], ends + stride
            high = np.where(after < bins.size, choice[np.minimum(after, bins.size - 1)], ends)
            lengths = np.minimum(high, ends) - low + 1
            begins = np.cumsum(lengths) - lengths
            tried = np.arange(lengths.sum()) + np.repeat(low - begins, lengths)
            found = errors[tried] + self._error(bins[tried], np.repeat(bins[ends], lengths))
            result[ends] = np.minimum.reduceat(found, begins)
            hits = np.flatnonzero(found == np.repeat(result[ends], lengths))
            choice[ends] = tried[hits[np.searchsorted(hits, begins)]]
        return result, choice

    def _filled(self, bounds: np.ndarray, cells: int) -> np.ndarray:
        """Bounds with as many cells as wanted: the cell that gains most is cut at its mean, one after the other."""
        while bounds.size <= cells:
            begins, ends = bounds[:-1], bounds[1:]
            cuts = np.searchsorted(self.values, self._means(bounds), side="right")
            # rounding may put the mean of nearly equal values beside them
            cuts = np.clip(cuts, begins + 1, np.maximum(begins + 1, ends - 1))
            gains = self._error(begins, ends) - self._error(begins, cuts) - self._error(cuts, ends)
            gains[self.values[begins] == self.values[ends - 1]] = 0.0
            best = int(np.argmax(gains))
            if gains[best] <= 0:
                break
            bounds = np.insert(bounds, best + 1, cuts[best])
        return bounds

    def _means(self, bounds: np.ndarray) -> np.ndarray:
        return np.diff(self.sums[bounds]) / np.diff(bounds)

    def _errors(self, bounds: np.ndarray) -> np.ndarray:
        return self._error(bounds[:-1], bounds[1:])

    def _error(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Sum of squared distances to the mean of the values in begin..end, 0 for an empty one."""
        totals = self.sums[ends] - self.sums[begins]
        return self.squares[ends] - self.squares[begins] - np.square(totals) / np.maximum(ends - begins, 1)


def _midpoints(centroids: np.ndarray) -> np.ndarray:
    return (centroids[:-1] + centroids[1:]) / 2


def _checked(values: np.ndarray, clusters: int) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype != np.float32 or values.ndim != 1:
        raise CompressError(f"k-means needs a flat float32 array, not {values.dtype} {list(values.shape)}")
    if not np.isfinite(values).all():
        raise CompressError(f"{int((~np.isfinite(values)).sum())} values are NaN or infinite")
    if clusters < 1:
        raise CompressError(f"clusters is {clusters}", remedy="choose at least 1")
    return values
