"""Figures: a number as people read it, with the number itself kept beside it."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

from distmem.report.fields import Number
from distmem.units import format_bytes, format_seconds

ABSENT = "–"
NOT_MEASURED = "not measured"


class Figure(NamedTuple):
    """text: what is read; value: the exact number, None when there is none."""

    text: str
    value: Number | None = None

    @property
    def exact(self) -> str:
        """The number as JSON writes it, so that the page can be checked against the artefacts."""
        return json.dumps(self.value)


def percent(value: Number | None, absent: str = ABSENT) -> Figure:
    """A fraction as a percentage with two decimals."""
    return Figure(absent) if value is None else Figure(f"{100 * value:.2f} %", value)


def points(value: Number | None, absent: str = ABSENT) -> Figure:
    """A difference of fractions in percentage points, with its sign."""
    if value is None:
        return Figure(absent)
    return Figure(f"{100 * value:+.2f} pp".replace("-", "−"), round(value, 12))


def count(value: Number | None, absent: str = ABSENT) -> Figure:
    """A whole number with thousands separated."""
    return Figure(absent) if value is None else Figure(f"{value:,.0f}", value)


def plain(value: Number | None, absent: str = ABSENT) -> Figure:
    """Any other number with four significant digits."""
    return Figure(absent) if value is None else Figure(tidy(f"{value:.4g}"), value)


def rate(value: Number | None, absent: str = ABSENT) -> Figure:
    """How many times smaller."""
    return Figure(absent) if value is None else Figure(f"{value:.2f}x", value)


def size(value: Number | None, absent: str = ABSENT) -> Figure:
    """Bytes."""
    return Figure(absent) if value is None else Figure(format_bytes(value), value)


def duration(value: Number | None, absent: str = ABSENT) -> Figure:
    """Seconds; below one second in milliseconds."""
    if value is None or not math.isfinite(value):
        return Figure(absent)
    return Figure(f"{tidy(f'{1000 * value:.3g}')} ms" if 0 < value < 1 else format_seconds(value), value)


def metric(key: str, value: Number | None, absent: str = ABSENT) -> Figure:
    """A metric by its name: accuracies are fractions and shown in percent."""
    return percent(value, absent) if is_fraction(key) else plain(value, absent)


def is_fraction(key: str) -> bool:
    """Whether a metric of this name is a fraction."""
    return "accuracy" in key


def metric_name(key: str) -> str:
    """val_accuracy -> validation accuracy, train_loss -> training loss."""
    prefix, _, rest = key.partition("_")
    words = {"val": "validation", "train": "training"}
    return f"{words[prefix]} {rest.replace('_', ' ')}" if prefix in words and rest else key.replace("_", " ")


def tidy(text: str) -> str:
    """1e-05 -> 1e-5, 1e+06 -> 1e6, -0.1 with a real minus sign."""
    mantissa, mark, exponent = text.partition("e")
    return (f"{mantissa}e{int(exponent)}" if mark else mantissa).replace("-", "−")
