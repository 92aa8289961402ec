"""metrics.jsonl: the records of every phase, in order, with the repeats of a resumed run taken out."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from distmem.errors import ReportError
from distmem.report.fields import Number, number


class Step(NamedTuple):
    """One optimizer step; time_s counts from the start of its phase."""

    step: int
    epoch: Number | None
    loss: Number | None
    lr: Number | None
    grad_norm: Number | None
    grad_norm_clipped: Number | None
    samples: Number | None
    time_s: Number | None
    scale: Number | None
    skipped: bool


_STEP_NUMBERS = [name for name in Step._fields if name not in ("step", "skipped")]


class Evaluation(NamedTuple):
    """One evaluation: values holds every val_* number."""

    step: int
    epoch: Number | None
    time_s: Number | None
    values: dict[str, Number | None]


@dataclass
class Phase:
    """Training, or a stage that trains: steps and evaluations in the order of their steps."""

    name: str
    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    def add_step(self, step: Step) -> None:
        """Append a step; one that was there already means a resumed run, whose new records count."""
        if self.steps and step.step <= self.steps[-1].step:
            del self.steps[bisect_left(self.steps, step.step, key=lambda known: known.step) :]
            self.evaluations = [known for known in self.evaluations if known.step <= step.step]
        self.steps.append(step)

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Append an evaluation; a later one at the same step replaces the earlier one."""
        while self.evaluations and self.evaluations[-1].step >= evaluation.step:
            self.evaluations.pop()
        self.evaluations.append(evaluation)


@dataclass
class Metrics:
    """phases: in order of appearance; truncated: the last line was cut short, as a killed process leaves it."""

    phases: list[Phase] = field(default_factory=list)
    truncated: bool = False


def read_metrics(path: Path) -> Metrics:
    """The metrics of a run. A damaged last line is left out; any other raises ReportError with file:line."""
    phases: dict[str, Phase] = {}
    metrics = Metrics()
    for line, record in _records(path):
        if record is None:
            metrics.truncated = True
            break
        where = f"{path}:{line}"
        kind = record.get("kind")
        if kind not in ("step", "eval"):
            continue
        name = str(record.get("phase", "train"))
        phase = phases.setdefault(name, Phase(name))
        if kind == "step":
            phase.add_step(_step(record, where))
        else:
            phase.add_evaluation(_evaluation(record, where))
    metrics.phases = list(phases.values())
    return metrics


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line number, record) of every line; (line number, None) when the last line is damaged."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ReportError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    for index, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if index == len(lines):
                yield index, None
                return
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8 text"
            raise ReportError(
                f"damaged line: {reason}", where=f"{path}:{index}", remedy="delete this line and write the report again"
            ) from error
        if not isinstance(record, dict):
            raise ReportError("damaged line: an object is expected", where=f"{path}:{index}")
        yield index, record


def _position(record: dict[str, Any], where: str) -> int:
    step = number(record, "step", where)
    if step is None or step != int(step) or step < 0:
        raise ReportError(f"step is {json.dumps(record.get('step'))}; a whole number is expected", where=where)
    return int(step)


def _step(record: dict[str, Any], where: str) -> Step:
    values = {name: number(record, name, where) for name in _STEP_NUMBERS}
    return Step(step=_position(record, where), skipped=record.get("skipped") is True, **values)


def _evaluation(record: dict[str, Any], where: str) -> Evaluation:
    values = {key: number(record, key, where) for key in record if key.startswith("val_")}
    return Evaluation(_position(record, where), number(record, "epoch", where), number(record, "time_s", where), values)
