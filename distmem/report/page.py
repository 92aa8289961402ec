"""The page: everything gathered from the runs and handed to the template."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from distmem.report import show
from distmem.report.cards import Card, cards
from distmem.report.curves import curves
from distmem.report.fields import number, objects, section
from distmem.report.memory import Memory, memory
from distmem.report.read import Run
from distmem.report.stages import Stages, stages

EVALUATIONS_SHOWN = 200


@dataclass(frozen=True)
class View:
    """One run as the template sees it."""

    run: Run
    facts: list[tuple[str, str]]
    cards: list[Card]
    memory: Memory | None
    stages: Stages
    evaluations: list[dict[str, Any]]
    evaluations_left_out: int


def render(runs: list[Run]) -> str:
    """The whole page of one run, or of several side by side. Raises ReportError for a field of the wrong type."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    _label(runs)
    views = [_view(run, used) for run, used in zip(runs, memory(runs), strict=True)]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=" · ".join(dict.fromkeys(run.name for run in runs)),
        views=views,
        comparison=_comparison(views) if len(views) > 1 else [],
        charts=curves(runs),
        metric=show.metric,
        metric_name=show.metric_name,
    )


def _label(runs: list[Run]) -> None:
    """Short names that tell the runs apart: the name, else the name and the folder, else a number as well."""
    for index, run in enumerate(runs):
        run.label = run.name
        if sum(other.name == run.name for other in runs) > 1:
            run.label = f"{run.name} {run.folder.resolve().name}"
        if any(other.label == run.label for other in runs[:index]):
            run.label = f"{run.label} ({index + 1})"


def _view(run: Run, used: Memory | None) -> View:
    evaluations, left_out = _evaluations(run)
    return View(run, _facts(run), cards(run), used, stages(run), evaluations, left_out)


def _facts(run: Run) -> list[tuple[str, str]]:
    """What ran where: the plain fields of summary.json, in the order people ask for them."""
    where, summary = run.where("summary.json"), run.summary
    known = [(key, summary.get(key)) for key in ("backend", "launcher", "device", "precision")]
    facts = [(key, str(value)) for key, value in known if value is not None]
    for key, name in (("world_size", "processes"), ("parameters", "parameters")):
        value = number(summary, key, where)
        if value is not None:
            facts.append((name, show.count(value).text))
    facts += [(name, str(version)) for name, version in section(summary, "versions", where).items()]
    facts += [(key, _time(summary[key])) for key in ("started", "finished") if summary.get(key) is not None]
    if summary.get("resumed_from") is not None:
        facts.append(("resumed from", str(summary["resumed_from"])))
    for restart in objects(summary, "restarts", where):
        step, size = number(restart, "step", where), number(restart, "world_size", where)
        with_ranks = f" with {size:,.0f} process{'' if size == 1 else 'es'}" if size is not None else ""
        at = f" at {_time(restart['time'])}" if restart.get("time") is not None else ""
        facts.append(("restarted", f"step {show.count(step).text}{with_ranks}{at}"))
    return [*facts, ("folder", run.folder.resolve().name)]


def _time(value: Any) -> str:
    """An ISO time as people write it; anything else as it is."""
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    except ValueError:
        return str(value)


def _evaluations(run: Run) -> tuple[list[dict[str, Any]], int]:
    """The evaluations as table rows, the last ones when there are many, and how many were left out."""
    rows = [
        {"phase": phase.name, "step": one.step, "epoch": one.epoch, "values": one.values}
        for phase in run.metrics.phases
        for one in phase.evaluations
    ]
    return rows[-EVALUATIONS_SHOWN:], max(0, len(rows) - EVALUATIONS_SHOWN)


def _comparison(views: list[View]) -> list[tuple[str, list[tuple[Card | None, bool]]]]:
    """(label, one card per run and whether it is the best of them) for every card that some run has."""
    labels = list(dict.fromkeys(card.label for view in views for card in view.cards))
    rows = []
    for label in labels:
        found = [next((card for card in view.cards if card.label == label), None) for view in views]
        scores = [_score(card) if view.run.finished else None for card, view in zip(found, views, strict=True)]
        known = [score for score in scores if score is not None]
        best = max(known) if len(known) > 1 and len(set(known)) > 1 else None
        rows.append((label, [(card, best is not None and s == best) for card, s in zip(found, scores, strict=True)]))
    return rows


def _score(card: Card | None) -> float | None:
    """More is better; None for what has no better or worse."""
    return card.figure.value * card.better if card and card.better and card.figure.value is not None else None
