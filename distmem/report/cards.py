"""The verdict of a run: one card for each thing people ask first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from distmem.report import show
from distmem.report.fields import Number, number, objects, section
from distmem.report.read import Run
from distmem.report.show import Figure
from distmem.units import format_seconds


@dataclass
class Card:
    """label and figure; below: short lines under it; better: -1 when less is better, 1 when more is, 0 when neither."""

    label: str
    figure: Figure
    below: list[str] = field(default_factory=list)
    better: int = 0


def cards(run: Run) -> list[Card]:
    """Accuracy and other metrics, loss, steps, throughput, peak memory, compression rate and wall time.

    Cards without a number are left out, but for peak memory, which then says so.
    Raises ReportError for a field of summary.json that is not a number.
    """
    final = _final(run)
    stages = objects(run.summary, "stages", run.where("summary.json"))
    metrics = [key for key in final if key.startswith("val_") and key != "val_loss"]
    found = [
        *(_metric(key, final[key], stages, run) for key in sorted(metrics, key=lambda key: key != "val_accuracy")),
        _loss(final),
        _steps(run),
        _throughput(run),
        _memory(run),
        _compression(run, stages),
        _time(run),
    ]
    return [card for card in found if card.figure.value is not None or card.label == "Peak memory"]


def _final(run: Run) -> dict[str, Number | None]:
    """The final metrics; of an unfinished run the last ones known."""
    where = run.where("summary.json")
    if run.finished:
        final = section(run.summary, "final", where)
        return {key: number(final, key, where) for key in final}
    known: dict[str, Number | None] = {}
    for phase in run.metrics.phases:
        if phase.steps:
            known["train_loss"] = phase.steps[-1].loss
        for one in phase.evaluations[-1:]:
            known.update(one.values)
    return known


def _metric(key: str, value: Number | None, stages: list[dict[str, Any]], run: Run) -> Card:
    below = []
    if len(stages) > 1:
        where = run.where("summary.json")
        for stage in (stages[0], stages[-1]):
            known = number(stage, key, where)
            if known is not None:
                below.append(f"{stage.get('name', 'stage')} {show.metric(key, known).text}")
    better = 1 if show.is_fraction(key) else 0
    return Card(show.metric_name(key).capitalize(), show.metric(key, value), below, better)


def _loss(final: dict[str, Number | None]) -> Card:
    known = [key for key in ("val_loss", "train_loss") if final.get(key) is not None]
    if not known:
        return Card("Loss", Figure(show.ABSENT))
    below = [f"{show.metric_name(key)} {show.plain(final[key]).text}" for key in known[1:]]
    return Card(show.metric_name(known[0]).capitalize(), show.plain(final[known[0]]), below, -1)


def _steps(run: Run) -> Card:
    where, summary = run.where("summary.json"), run.summary
    steps = number(summary, "steps", where)
    if not run.finished:
        steps = next((phase.steps[-1].step for phase in run.metrics.phases[:1] if phase.steps), None)
        return Card("Steps", show.count(steps), ["so far"])
    below = []
    epochs = number(summary, "epochs", where)
    if epochs is not None:
        below.append(f"{epochs:g} epoch{'' if epochs == 1 else 's'}")
    for key in ("global_batch", "micro_batch", "accumulate"):
        value = number(summary, key, where)
        if value is not None:
            below.append(f"{key.replace('_', ' ')} {value:,g}")
    return Card("Steps", show.count(steps), below)


def _throughput(run: Run) -> Card:
    where = run.where("summary.json")
    throughput = section(run.summary, "throughput", where)
    speed, median = number(throughput, "samples_per_s", where), number(throughput, "step_s_median", where)
    figure = show.count(speed) if speed is None or speed >= 100 else show.plain(speed)
    below = ["samples per second"] + ([f"median step {show.duration(median).text}"] if median is not None else [])
    return Card("Throughput", figure, below, 1)


def _memory(run: Run) -> Card:
    where = run.where("summary.json")
    sizes = section(run.summary, "memory", where)
    measured, predicted = number(sizes, "measured_peak_bytes", where), number(sizes, "predicted_peak_bytes", where)
    below = []
    if predicted is not None:
        below.append(f"predicted {show.size(predicted).text}")
        if measured is not None and predicted > 0:
            below.append(f"measured / predicted {measured / predicted:.3f}")
    return Card("Peak memory", show.size(measured, show.NOT_MEASURED), below, -1)


def _compression(run: Run, stages: list[dict[str, Any]]) -> Card:
    where = run.where("summary.json")
    if len(stages) < 2:
        return Card("Compression rate", Figure(show.ABSENT))
    last = stages[-1]
    rates = {name: number(last, f"{name}_rate", where) for name in ("compression", "weights", "file")}
    below = [f"{name} {show.rate(rates[name]).text}" for name in ("weights", "file") if rates[name] is not None]
    sizes = [number(stage, "bytes", where) for stage in (stages[0], last)]
    if all(size is not None for size in sizes):
        below.append(" → ".join(show.size(size).text for size in sizes))
    return Card("Compression rate", show.rate(rates["compression"]), below, 1)


def _time(run: Run) -> Card:
    if not run.finished:
        times = [step.time_s for phase in run.metrics.phases for step in phase.steps[-1:]]
        known = [time for time in times if time is not None]
        return Card("Wall time", _seconds(sum(known) if known else None), ["so far"], -1)
    where = run.where("summary.json")
    wall = number(run.summary, "wall_s", where)
    restarts = objects(run.summary, "restarts", where)
    below = [f"{len(restarts)} restart{'' if len(restarts) == 1 else 's'}"] if restarts else []
    return Card("Wall time", _seconds(wall), below, -1)


def _seconds(value: Number | None) -> Figure:
    return Figure(show.ABSENT) if value is None else Figure(format_seconds(value), value)
