"""The curves of one run, or of several laid over each other."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from distmem.report import series, show
from distmem.report.fields import Number
from distmem.report.metrics import Phase, Step
from distmem.report.plot import Chart, Frame, Line, Mark, Segment, chart
from distmem.report.read import Run
from distmem.report.series import Point

SMOOTH_POINTS = 1000
BUCKETS = 200


def curves(runs: list[Run]) -> list[Chart]:
    """Loss, every metric, learning rate, gradient norm, throughput and loss scale, as far as they were recorded."""
    frame = _frame(runs)
    found = [
        _loss(runs, frame),
        *(_metric(runs, key, frame) for key in _metric_keys(runs)),
        chart("Learning rate", _step_lines(runs, _alone(runs, "learning rate"), 0, lambda step: step.lr), frame),
        _gradient_norm(runs, frame),
        _throughput(runs, frame),
        chart("Loss scale", _step_lines(runs, _alone(runs, "loss scale"), 4, lambda step: step.scale), frame),
    ]
    return [one for one in found if one is not None]


def _offsets(run: Run) -> list[tuple[Phase, int]]:
    """Every phase with the steps done before it; a phase that goes on counting keeps its numbers."""
    found, before = [], 0
    for phase in run.metrics.phases:
        steps = [step.step for step in phase.steps] + [one.step for one in phase.evaluations]
        starts_over = any(step < before for step in steps) or any(step.step <= before for step in phase.steps[:1])
        offset = before if starts_over else 0
        found.append((phase, offset))
        before = max([before, *(offset + step for step in steps)])
    return found


def _frame(runs: list[Run]) -> Frame:
    """All steps of all runs; the phases of a single run are marked."""
    steps = [
        offset + record.step
        for run in runs
        for phase, offset in _offsets(run)
        for records in (phase.steps, phase.evaluations)
        for record in (*records[:1], *records[-1:])
    ]
    placed = [(phase, offset) for run in runs for phase, offset in _offsets(run) if phase.steps]
    marks = [Mark(offset + phase.steps[0].step, phase.name) for phase, offset in placed[1:]]
    return Frame(min(steps, default=0), max(steps, default=0), marks if len(runs) == 1 else [])


def _name(runs: list[Run], run: Run, what: str) -> str:
    """A line is called by what it shows; over several runs by the run, and by what it shows where that differs."""
    return what if len(runs) == 1 else f"{run.label} {what}".strip()


def _alone(runs: list[Run], what: str) -> str:
    """The name of the only kind of line in a chart: over several runs the title says it already."""
    return what if len(runs) == 1 else ""


def _colour(runs: list[Run], index: int, own: int) -> int:
    """Several runs differ by colour; the lines of a single run have their own."""
    return own if len(runs) == 1 else index % 8


def _segments(run: Run, points: Callable[[Phase], list[Point]]) -> list[Segment]:
    return [Segment(phase.name, offset, points(phase)) for phase, offset in _offsets(run)]


def _of_steps(value: Callable[[Step], Number | None]) -> Callable[[Phase], list[Point]]:
    return lambda phase: series.numbers([(step.step, value(step)) for step in phase.steps])


def _of_evaluations(key: str) -> Callable[[Phase], list[Point]]:
    return lambda phase: series.numbers([(one.step, one.values.get(key)) for one in phase.evaluations])


def _thinned(points: Callable[[Phase], list[Point]], phases: int) -> Callable[[Phase], list[Point]]:
    return lambda phase: series.thin(points(phase), series.MAX_POINTS // max(phases, 1))


def _step_lines(
    runs: list[Run], what: str, colour: int, value: Callable[[Step], Number | None], style: str = "solid"
) -> list[Line]:
    lines = []
    for index, run in enumerate(runs):
        points = _thinned(_of_steps(value), len(run.metrics.phases))
        lines.append(Line(_name(runs, run, what), _colour(runs, index, colour), style, _segments(run, points)))
    return lines


def _evaluation_lines(runs: list[Run], what: str, key: str, solid: bool) -> list[Line]:
    """Points at every evaluation, joined by a line when nothing else is in the chart."""
    lines = []
    for index, run in enumerate(runs):
        segments = _segments(run, _thinned(_of_evaluations(key), len(run.metrics.phases)))
        colour = _colour(runs, index, 1)
        lines.append(Line(_name(runs, run, what), colour, "dots", segments))
        if solid:
            lines.append(Line("", colour, "solid", segments, readout=False, named=False))
    return lines


def _smoothed_lines(runs: list[Run], what: str, colour: int, value: Callable[[Step], Number | None]) -> list[Line]:
    """The values as they are, and their mean over a window before them when there are many."""
    window = _window(runs)
    lines = _step_lines(runs, what, colour, value, "faint" if window > 1 else "solid")
    if window == 1:
        return lines
    means = []
    for index, run in enumerate(runs):
        segments = _segments(run, _of_steps(value))
        for one in segments:
            one.points = series.every(series.smooth(one.points, window), SMOOTH_POINTS)
        means.append(Line("", _colour(runs, index, colour), "solid", segments, readout=False, named=False))
    return lines + means


def _loss(runs: list[Run], frame: Frame) -> Chart | None:
    lines = _smoothed_lines(runs, "training loss", 0, lambda step: step.loss)
    lines += _evaluation_lines(runs, "validation loss", "val_loss", solid=False)
    notes = [f"training loss: every step faint, {_mean_over(runs)} strong"] if _window(runs) > 1 else []
    return chart("Loss", lines, frame, note="; ".join(notes + _broken_steps(runs)), wide=True)


def _mean_over(runs: list[Run]) -> str:
    return f"mean over {_window(runs)} steps"


def _window(runs: list[Run]) -> int:
    longest = max((len(phase.steps) for run in runs for phase in run.metrics.phases), default=0)
    return longest // 60 | 1 if longest >= 120 else 1


def _broken_steps(runs: list[Run]) -> list[str]:
    steps = [step for run in runs for phase in run.metrics.phases for step in phase.steps]
    missing, skipped = sum(step.loss is None for step in steps), sum(step.skipped for step in steps)
    counted = ((missing, "without a finite loss"), (skipped, "skipped by the loss scaler"))
    return [f"{number:,} step{'' if number == 1 else 's'} {what}" for number, what in counted if number]


def _metric_keys(runs: list[Run]) -> list[str]:
    keys: dict[str, None] = {}
    for run in runs:
        for phase in run.metrics.phases:
            for one in phase.evaluations:
                keys.update(dict.fromkeys(one.values))
    return [key for key in keys if key != "val_loss"]


def _metric(runs: list[Run], key: str, frame: Frame) -> Chart | None:
    name = show.metric_name(key)
    lines = _evaluation_lines(runs, _alone(runs, name), key, solid=True)
    return chart(name.capitalize(), lines, frame, fraction=show.is_fraction(key))


def _gradient_norm(runs: list[Run], frame: Frame) -> Chart | None:
    lines = _smoothed_lines(runs, _alone(runs, "gradient norm"), 5, lambda step: step.grad_norm)
    notes = [f"every step faint, {_mean_over(runs)} strong"] if _window(runs) > 1 else []
    clipped = any(
        step.grad_norm_clipped is not None and step.grad_norm_clipped != step.grad_norm
        for run in runs
        for phase in run.metrics.phases
        for step in phase.steps
    )
    # Over several runs the norms after clipping would only hide one another.
    if clipped and len(runs) == 1:
        lines += _smoothed_lines(runs, "after clipping", 6, lambda step: step.grad_norm_clipped)
    return chart("Gradient norm", lines, frame, note="; ".join(notes))


def _throughput(runs: list[Run], frame: Frame) -> Chart | None:
    lines = []
    for index, run in enumerate(runs):
        label = _name(runs, run, _alone(runs, "samples per second"))
        lines.append(Line(label, _colour(runs, index, 2), "solid", _segments(run, _speed)))
    return chart("Throughput", lines, frame, note="samples per second, without the time of evaluations")


def _speed(phase: Phase) -> list[Point]:
    """Samples per second over at most BUCKETS spans; the steps around an evaluation or a restart are left out."""
    evaluated = {one.step for one in phase.evaluations}
    parts: list[tuple[int, Number, float]] = []
    for before, step in zip(phase.steps, phase.steps[1:], strict=False):
        if before.time_s is None or step.time_s is None or step.samples is None:
            continue
        seconds = step.time_s - before.time_s
        if seconds >= 0 and not evaluated & {before.step, before.step + 1}:
            parts.append((step.step, step.samples, seconds))
    if not parts:
        return []
    size = -(-len(parts) // BUCKETS)
    spans = [parts[start : start + size] for start in range(0, len(parts), size)]
    return [_rate(span) for span in spans if sum(seconds for _, _, seconds in span) > 0]


def _rate(span: list[tuple[int, Number, float]]) -> Point:
    """The middle step of a span and its samples per second."""
    steps, samples, seconds = zip(*span, strict=True)
    return median(steps), sum(samples) / sum(seconds)
