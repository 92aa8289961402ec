"""Rows of the stage table and of the non-zero tables, for the page and for the terminal alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distmem.report import show
from distmem.report.fields import Number, number
from distmem.report.show import Figure

STAGES, LAYERS = "summary.json, stages", "stage.json, layers"
_STAGE_NUMBERS = [
    *("val_accuracy", "val_loss", "nonzeros", "total"),
    *("compression_rate", "weights_rate", "file_rate", "bytes", "wall_s"),
]


@dataclass(frozen=True)
class StageRow:
    """One stage; change is against the first row, removed a fraction of all weights."""

    name: str
    accuracy: Figure
    change: Figure
    loss: Figure
    nonzeros: Figure
    total: Figure
    removed: Figure
    rate: Figure
    weights_rate: Figure
    file_rate: Figure
    size: Figure
    seconds: Figure


@dataclass(frozen=True)
class LayerRow:
    """One parameter, or the sum of all; kept and removed are fractions."""

    name: str
    shape: str
    nonzeros: Figure
    total: Figure
    kept: Figure
    removed: Figure
    size: Figure
    codebook: Figure


def stage_rows(stages: list[dict[str, Any]], where: str = STAGES) -> list[StageRow]:
    """The rows of the stage table; the first stage is what the others are compared with.

    stages: objects with name, val_accuracy (a fraction), val_loss, nonzeros, total, compression_rate, bytes, wall_s.
    Raises ReportError for a field that is not a number.
    """
    rows = []
    first = number(stages[0], "val_accuracy", where) if stages else None
    for index, stage in enumerate(stages):
        values = {key: number(stage, key, where) for key in _STAGE_NUMBERS}
        accuracy = values["val_accuracy"]
        compared = index > 0 and accuracy is not None and first is not None
        rows.append(
            StageRow(
                name=str(stage.get("name", index)),
                accuracy=show.percent(accuracy),
                change=show.points(accuracy - first if compared else None),  # type: ignore[operator]
                loss=show.plain(values["val_loss"]),
                nonzeros=show.count(values["nonzeros"]),
                total=show.count(values["total"]),
                removed=show.percent(_removed(values["nonzeros"], values["total"])),
                rate=show.rate(values["compression_rate"]),
                weights_rate=show.rate(values["weights_rate"]),
                file_rate=show.rate(values["file_rate"]),
                size=show.size(values["bytes"]),
                seconds=show.duration(values["wall_s"]),
            )
        )
    return rows


def layer_rows(layers: list[dict[str, Any]], where: str = LAYERS) -> tuple[list[LayerRow], LayerRow, Figure]:
    """The rows of a non-zero table, their total, and the compression rate total / nonzeros.

    layers: objects with name, shape, nonzeros, total, bytes and codebook (entries, or null).
    Raises ReportError for a field that is not a number.
    """
    rows = [_layer_row(layer, where) for layer in layers]
    sums = {key: _sum([number(layer, key, where) for layer in layers]) for key in ("nonzeros", "total", "bytes")}
    total = _layer_row({"name": "total", **sums}, where)
    nonzeros, everything = sums["nonzeros"], sums["total"]
    return rows, total, show.rate(everything / nonzeros if nonzeros and everything is not None else None)


def _layer_row(layer: dict[str, Any], where: str) -> LayerRow:
    nonzeros, total = number(layer, "nonzeros", where), number(layer, "total", where)
    removed = _removed(nonzeros, total)
    shape = layer.get("shape")
    return LayerRow(
        name=str(layer.get("name", "?")),
        shape=" × ".join(str(side) for side in shape) if isinstance(shape, (list, tuple)) else "",
        nonzeros=show.count(nonzeros),
        total=show.count(total),
        kept=show.percent(None if removed is None else nonzeros / total),  # type: ignore[operator]
        removed=show.percent(removed),
        size=show.size(number(layer, "bytes", where)),
        codebook=show.count(number(layer, "codebook", where)),
    )


def _removed(nonzeros: Number | None, total: Number | None) -> float | None:
    return 1 - nonzeros / total if nonzeros is not None and total else None


def _sum(values: list[Number | None]) -> Number | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
