"""Series of points: smoothing, thinning and the ticks of an axis."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise

from distmem.report import show
from distmem.report.fields import Number

Point = tuple[float, float]
MAX_POINTS = 2000


def smooth(points: list[Point], window: int) -> list[Point]:
    """The mean over a centred window of that many points, shorter at both ends."""
    if window < 2:
        return points
    sums = [0.0, *accumulate(y for _, y in points)]
    half, last = window // 2, len(points)
    means = []
    for index, (x, _) in enumerate(points):
        low, high = max(0, index - half), min(last, index + half + 1)
        means.append((x, (sums[high] - sums[low]) / (high - low)))
    return means


def thin(points: list[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most limit of the points: the lowest and highest of every bucket, so that no spike is lost."""
    if len(points) <= limit:
        return points
    buckets = max(1, limit // 2)
    kept = []
    for bucket in range(buckets):
        part = range(bucket * len(points) // buckets, (bucket + 1) * len(points) // buckets)
        low = min(part, key=lambda index: points[index][1])
        high = max(part, key=lambda index: points[index][1])
        kept += [points[index] for index in sorted({low, high})]
    return kept


def every(points: list[Point], limit: int) -> list[Point]:
    """At most limit of the points, evenly spread, first and last included: for series already smooth."""
    if len(points) <= limit:
        return points
    last = len(points) - 1
    return [points[index * last // (limit - 1)] for index in range(limit)]


def quantiles(values: list[float], low: float, high: float) -> tuple[float, float]:
    """Two quantiles, to leave single spikes out of the range of an axis."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[math.floor(low * last)], ordered[math.ceil(high * last)]


def linear_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) from low to high."""
    raw = (high - low) / wanted
    if raw <= 0 or not math.isfinite(raw):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high; with more between them when there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades < 1.5 else (1, 3) if decades < 3.5 else (1,)
    stride = max(1, (last - first) // 6)
    ticks = [factor * 10.0**power for power in range(first, last + 1, stride) for factor in factors]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def tick_text(value: float, ticks: list[float], fraction: bool = False) -> str:
    """A tick as short as it stays distinct: 20k, 0.05, 1e-5, 97.5 %."""
    if fraction:
        steps = [b - a for a, b in pairwise(ticks)]
        digits = max(0, -math.floor(math.log10(100 * min(steps)) + 1e-9)) if steps else 2
        return f"{100 * value:.{digits}f} %"
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value and max(map(abs, ticks)) >= max(factor, 10_000):
            return show.tidy(f"{value / factor:.6g}") + letter
    return show.tidy(f"{value:.6g}") if abs(value) < 1000 else show.tidy(f"{value:,.6g}")


def numbers(pairs: list[tuple[int, Number | None]]) -> list[Point]:
    """The pairs that have a number."""
    return [(x, y) for x, y in pairs if y is not None]
