"""Where the memory of every rank went: measured bytes, with the predicted ones beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distmem.report import show
from distmem.report.fields import Number, number
from distmem.report.read import Run
from distmem.report.show import Figure

CLASSES = [
    *("parameters", "buffers", "gradients", "optimizer", "activations"),
    *("masks", "data", "communication", "workspace"),
]
PEAKS = {"peak_device": "device peak", "peak_resident": "process peak"}
RANKS_DRAWN = 16


@dataclass(frozen=True)
class Part:
    """One class in a bar; width in percent of the widest bar of the page, colour the place of its class."""

    name: str
    colour: int
    size: Figure
    width: float


@dataclass(frozen=True)
class Bar:
    """The classes of one rank, stacked."""

    rank: str
    source: str
    parts: list[Part]
    total: Figure

    @property
    def description(self) -> str:
        """The bar in words."""
        listed = ", ".join(f"{part.name} {part.size.text}" for part in self.parts)
        return f"rank {self.rank}, {self.source}: {listed}, together {self.total.text}"


@dataclass(frozen=True)
class Row:
    """One line of the memory table: figures in the order of its columns."""

    rank: str
    source: str
    figures: list[Figure]


@dataclass(frozen=True)
class Memory:
    """Bars of the first ranks and a table of all; classes are (name, colour) of those that are not empty."""

    bars: list[Bar]
    classes: list[tuple[str, int]]
    columns: list[str]
    rows: list[Row]
    ranks: int


def memory(runs: list[Run]) -> list[Memory | None]:
    """The memory section of every run, all bars at one scale; None where nothing was measured or predicted."""
    widest = max((_sum(_bytes(one, where)) for run in runs for _, _, one, where in _entries(run)), default=0)
    return [_memory(run, widest) for run in runs]


def _entries(run: Run) -> list[tuple[str, str, dict[str, Any], str]]:
    """(rank, source, entry, file) by rank, measured before predicted."""
    found = []
    for order, (source, entries, name) in enumerate(
        (("measured", run.measured, "measured.json"), ("predicted", run.predicted, "plan.json"))
    ):
        for index, entry in enumerate(entries):
            rank = number(entry, "rank", run.where(name))
            found.append((index if rank is None else int(rank), order, source, entry, run.where(name)))
    found.sort(key=lambda one: one[:2])
    return [(str(rank), source, entry, where) for rank, _, source, entry, where in found]


def _bytes(entry: dict[str, Any], where: str) -> dict[str, Number | None]:
    return {name: number(entry, name, where) for name in CLASSES}


def _sum(sizes: dict[str, Number | None]) -> Number:
    return sum(size for size in sizes.values() if size is not None)


def _memory(run: Run, widest: Number) -> Memory | None:
    entries = _entries(run)
    if not entries:
        return None
    sizes = [_bytes(entry, where) for _, _, entry, where in entries]
    present = [name for name in CLASSES if any(one[name] is not None for one in sizes)]
    filled = [name for name in CLASSES if any(one[name] for one in sizes)]
    bars = [
        _bar(rank, source, one, widest)
        for (rank, source, _, _), one in zip(entries, sizes, strict=True)
        if int(rank) < RANKS_DRAWN and _sum(one)
    ]
    peaks = [key for key in PEAKS if any(number(entry, key, where) is not None for _, _, entry, where in entries)]
    return Memory(
        bars=bars,
        classes=[(name, CLASSES.index(name)) for name in filled],
        columns=[*present, "sum", *(PEAKS[key] for key in peaks)],
        rows=_rows(entries, sizes, present, peaks),
        ranks=len({rank for rank, *_ in entries}),
    )


def _bar(rank: str, source: str, sizes: dict[str, Number | None], widest: Number) -> Bar:
    parts = [
        Part(name, CLASSES.index(name), show.size(size), round(100 * size / widest, 3))
        for name, size in sizes.items()
        if size
    ]
    return Bar(rank, source, parts, show.size(_sum(sizes)))


def _rows(
    entries: list[tuple[str, str, dict[str, Any], str]],
    sizes: list[dict[str, Number | None]],
    present: list[str],
    peaks: list[str],
) -> list[Row]:
    """Measured, predicted and their ratio, rank by rank."""
    rows: list[Row] = []
    by_source: dict[str, dict[str, list[Number | None]]] = {}
    for (rank, source, entry, where), one in zip(entries, sizes, strict=True):
        values = [*(one[name] for name in present), _sum(one), *(number(entry, key, where) for key in peaks)]
        absent = show.NOT_MEASURED if source == "measured" else show.ABSENT
        rows.append(Row(rank, source, [show.size(value, absent) for value in values]))
        pair = by_source.setdefault(rank, {})
        pair[source] = values
        if source == "predicted" and "measured" in pair:
            rows.append(Row(rank, "ratio", _ratios(pair["measured"], values)))
    return rows


def _ratios(measured: list[Number | None], predicted: list[Number | None]) -> list[Figure]:
    return [
        Figure(f"{a / b:.3f}", a / b) if a is not None and b else Figure(show.ABSENT)
        for a, b in zip(measured, predicted, strict=True)
    ]
