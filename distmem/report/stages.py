"""The stages after training: their table, the picture of the accuracy and the non-zeros of every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distmem.report import show
from distmem.report.fields import number, objects, section
from distmem.report.plot import Axis
from distmem.report.read import Run
from distmem.report.rows import LayerRow, StageRow, layer_rows, stage_rows
from distmem.report.show import Figure


@dataclass(frozen=True)
class Dot:
    """The accuracy of one stage; left and top in percent of the picture; above: where its label has room."""

    name: str
    left: float
    top: float
    above: bool
    accuracy: Figure


@dataclass(frozen=True)
class LayerTable:
    """The non-zeros after one stage; settings as written in its stage.json."""

    title: str
    settings: list[tuple[str, str]]
    rows: list[LayerRow]
    total: LayerRow
    rate: Figure


@dataclass(frozen=True)
class Stages:
    """Everything the page shows of the stages; two_rates: some row tells weights and file rate apart."""

    rows: list[StageRow]
    two_rates: bool
    timed: bool
    dots: list[Dot]
    tables: list[LayerTable]


def stages(run: Run) -> Stages:
    """The stages of a run, from summary.json, or from the stage.json files of an unfinished one.

    Raises ReportError for a field of the wrong type.
    """
    where = run.where("summary.json")
    listed = objects(run.summary, "stages", where)
    entries = _timed(listed, run.stage_files) if listed else run.stage_files
    rows = stage_rows(entries, where if listed else run.where("stages"))
    return Stages(
        rows=rows,
        two_rates=any(row.weights_rate.value is not None or row.file_rate.value is not None for row in rows),
        timed=any(row.seconds.value is not None for row in rows),
        dots=_dots(rows),
        tables=[_layer_table(stage) for stage in run.stage_files if stage.get("layers")],
    )


def _timed(listed: list[dict[str, Any]], files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of summary.json; seconds that they lack are taken from the stage.json of the same index and name."""
    by_place = {(stage.get("index"), stage.get("name")): stage for stage in files}
    filled = []
    for index, row in enumerate(listed):
        written = by_place.get((index, row.get("name")), {})
        filled.append({**row, "wall_s": row.get("wall_s", written.get("wall_s"))})
    return filled


def _dots(rows: list[StageRow]) -> list[Dot]:
    """One dot per stage with an accuracy; nothing when there are fewer than two."""
    known = [(index, row, row.accuracy.value) for index, row in enumerate(rows) if row.accuracy.value is not None]
    if len(known) < 2:
        return []
    values = [value for _, _, value in known]
    margin = 0.25 * (max(values) - min(values)) or 0.01
    axis = Axis(min(values) - margin, max(values) + margin)
    dots = []
    for place, (index, row, value) in enumerate(known):
        beside = values[max(0, place - 1) : place + 2]
        left, top = 100 * (index + 0.5) / len(rows), 100 * (1 - axis.place(value))
        dots.append(Dot(row.name, round(left, 3), round(top, 3), 2 * value >= min(beside) + max(beside), row.accuracy))
    return dots


def _layer_table(stage: dict[str, Any]) -> LayerTable:
    where = str(stage["file"])
    rows, total, rate = layer_rows(objects(stage, "layers", where), where)
    written = number(stage, "compression_rate", where)
    settings = [(str(key), _setting(value)) for key, value in section(stage, "settings", where).items()]
    return LayerTable(
        title=str(stage.get("name", "stage")),
        settings=settings,
        rows=rows,
        total=total,
        rate=rate if written is None else show.rate(written),
    )


def _setting(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)
