"""The geometry of a line chart: axes, paths and the values behind them.

The drawing is stretched to the width of the page, so paths are in a box of WIDTH x HEIGHT and every
label is placed in percent of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from distmem.report import series
from distmem.report.series import Point

WIDTH, HEIGHT = 1000, 400
LOG_FROM = 50


@dataclass
class Segment:
    """The points of one line in one phase; x counts steps of the phase, offset the steps before it."""

    phase: str
    offset: int
    points: list[Point]

    def shifted(self) -> list[Point]:
        """The points where they stand on the axis of the whole run."""
        return [(x + self.offset, y) for x, y in self.points]


@dataclass
class Line:
    """style: solid, faint or dots; readout: its values are shown under the pointer; named: it is in the legend."""

    label: str
    colour: int
    style: str
    segments: list[Segment]
    readout: bool = True
    named: bool = True


@dataclass
class Mark:
    """A vertical hairline where a phase begins."""

    x: float
    text: str


@dataclass
class Frame:
    """What the charts of a page share: the range of steps and the phases marked in it."""

    low: float
    high: float
    marks: list[Mark] = field(default_factory=list)

    def axis(self) -> Axis:
        """The axis of steps, with one percent of air so that the last dot is not cut in half."""
        low = 0.0 if self.low < 0.1 * self.high else self.low
        return Axis(low, self.high + 0.01 * (self.high - low)) if self.high > low else Axis(low - 1, low + 1)


@dataclass
class Chart:
    """All that the template draws; left and bottom labels are (percent, text)."""

    title: str
    description: str
    note: str
    lines: list[tuple[str, int, str]] = field(default_factory=list)
    legend: list[Line] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    wide: bool = False


@dataclass
class Axis:
    """A range mapped to 0..1, linearly or by logarithm."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value stands: 0 at the low end, 1 at the high end; values outside may pass by half."""
        if self.log:
            place = math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        else:
            place = (value - self.low) / (self.high - self.low)
        return min(max(place, -0.5), 1.5)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values in the range, about as many as wanted."""
        return series.log_ticks(self.low, self.high) if self.log else series.linear_ticks(self.low, self.high, wanted)


def chart(
    title: str, lines: list[Line], frame: Frame, *, note: str = "", fraction: bool = False, wide: bool = False
) -> Chart | None:
    """A chart of the lines, or None when there is nothing to draw."""
    for line in lines:
        line.segments = [segment for segment in line.segments if segment.points]
    lines = [line for line in lines if line.segments]
    if not lines:
        return None
    y_axis, x_axis = _value_axis(lines, fraction), frame.axis()
    if y_axis.log:
        note = f"{note}; logarithmic scale" if note else "logarithmic scale"
    y_ticks, x_ticks = y_axis.ticks(), [tick for tick in x_axis.ticks(8) if tick == int(tick)]
    return Chart(
        title=title,
        description=_describe(title, lines),
        note=note,
        lines=[(line.style, line.colour, _path(line, x_axis, y_axis)) for line in _behind_first(lines)],
        legend=[line for line in lines if line.named],
        x_ticks=[(_percent(x_axis.place(tick)), series.tick_text(tick, x_ticks)) for tick in x_ticks],
        y_ticks=[(_percent(1 - y_axis.place(tick)), series.tick_text(tick, y_ticks, fraction)) for tick in y_ticks],
        marks=[(_percent(x_axis.place(mark.x)), mark.text) for mark in frame.marks],
        data=_data(lines, x_axis, fraction),
        wide=wide,
    )


def _behind_first(lines: list[Line]) -> list[Line]:
    order = {"faint": 0, "solid": 1, "dots": 2}
    return sorted(lines, key=lambda line: order[line.style])


def _value_axis(lines: list[Line], fraction: bool) -> Axis:
    """The range of the values; of a faint line only the inner 98 %, so that one spike does not flatten the rest."""
    ends: list[float] = []
    for line in lines:
        values = [y for segment in line.segments for _, y in segment.points]
        ends += series.quantiles(values, 0.01, 0.99) if line.style == "faint" else (min(values), max(values))
    low, high = min(ends), max(ends)
    if not fraction and low > 0 and high / low > LOG_FROM:
        margin = (high / low) ** 0.05
        return Axis(low / margin, high * margin, log=True)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    bottom, top = low - margin, high + margin
    if fraction:
        top = min(top, 1.0) if high < 1.0 else 1.0 + 0.03 * (1.0 - low or 1.0)
    return Axis(max(bottom, 0.0) if low >= 0 else bottom, top)


def _path(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    parts = []
    for segment in line.segments:
        placed = [f"{WIDTH * x_axis.place(x):.1f} {HEIGHT * (1 - y_axis.place(y)):.1f}" for x, y in segment.shifted()]
        # A stroke of no length with a round cap is a dot that stays round however the drawing is stretched.
        alone = line.style == "dots" or len(placed) == 1
        parts.append("".join(f"M{at}h0" for at in placed) if alone else "M" + "L".join(placed))
    return "".join(parts)


def _data(lines: list[Line], x_axis: Axis, fraction: bool) -> dict[str, Any]:
    """The values under the pointer: for every line of the legend its steps and exact values."""
    shown = [line for line in lines if line.readout]
    return {
        "low": x_axis.low,
        "high": x_axis.high,
        "percent": fraction,
        "lines": [
            {
                "label": line.label,
                "segments": [
                    {
                        "phase": segment.phase,
                        "offset": segment.offset,
                        "step": [x for x, _ in segment.points],
                        "value": [y for _, y in segment.points],
                    }
                    for segment in line.segments
                ],
            }
            for line in shown
        ],
    }


def _describe(title: str, lines: list[Line]) -> str:
    """What a reader who cannot see the chart is told: where every line begins and ends."""
    told = []
    for line in (line for line in lines if line.readout):
        (first, begin), (last, end) = line.segments[0].shifted()[0], line.segments[-1].shifted()[-1]
        told.append(f"{line.label} goes from {begin:.4g} at step {first:,.0f} to {end:.4g} at step {last:,.0f}")
    return f"{title}: {'; '.join(told)}."


def _percent(place: float) -> float:
    return round(100 * place, 3)
