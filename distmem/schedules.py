"""Learning-rate schedules: the factor on the base rate as a pure function of the optimizer step."""

from __future__ import annotations

import math

from distmem.recipe.schema import Schedule
from distmem.recipe.types import steps_of

ONECYCLE_RISE, ONECYCLE_START, ONECYCLE_END = 0.3, 1 / 25, 1 / 25e4  # torch's OneCycleLR, arXiv 1708.07120


def factor(schedule: Schedule, step: int, total: int, steps_per_epoch: int) -> float:
    """Factor for step 0, 1, ... of `total` optimizer steps. Warm-up rises linearly and counts as part of the total."""
    if step < schedule.warmup_steps:
        return (step + 1) / (schedule.warmup_steps + 1)
    step, total = step - schedule.warmup_steps, max(1, total - schedule.warmup_steps)
    done = min(1.0, step / total)
    if schedule.name == "cosine":
        return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * done)) / 2
    if schedule.name == "linear":
        return schedule.final + (1 - schedule.final) * (1 - done)
    if schedule.name == "step":
        return schedule.gamma ** (step // steps_of(schedule.every, steps_per_epoch))
    if schedule.name == "onecycle":
        return _onecycle(step, total)
    return 1.0


def _onecycle(step: int, total: int) -> float:
    peak = ONECYCLE_RISE * total - 1
    if step <= peak:
        return _cosine(ONECYCLE_START, 1.0, step / max(1e-9, peak))
    return _cosine(1.0, ONECYCLE_END, (step - peak) / max(1e-9, total - 1 - peak))


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, done))) / 2
