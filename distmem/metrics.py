"""Metrics as (sum, count) pairs, so that ranks and batches add up exactly.

A metric of one's own, by import path, is a function (output, target) -> (sum, count) of a batch.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from distmem import imports
from distmem.errors import TrainingError
from distmem.losses import IGNORED

Metric = Callable[[Tensor, Tensor], "tuple[Tensor, Tensor | int]"]


def accuracy(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
    """Right answers and their number; classes are the last axis, targets of -100 are not counted."""
    counted = target != IGNORED
    return ((output.argmax(-1) == target) & counted).sum(), counted.sum()


def top5(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
    """Samples whose target is among the five highest scores; targets of -100 are not counted."""
    best = output.topk(min(5, output.shape[-1]), dim=-1).indices
    counted = target != IGNORED
    return ((best == target.unsqueeze(-1)).any(-1) & counted).sum(), counted.sum()


def mae(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
    """Absolute error, mean over all values."""
    return (output.reshape(target.shape).float() - target.float()).abs().sum(), target.numel()


METRICS: dict[str, Metric] = {"accuracy": accuracy, "top5": top5, "mae": mae}


def build_metrics(names: list[str]) -> dict[str, Metric]:
    """Metrics by name or import path; the part behind the colon names them in logs. Raises TrainingError."""
    return {
        name.partition(":")[2] or name: METRICS[name]
        if name in METRICS
        else imports.find("metric", name, {}, TrainingError)
        for name in names
    }
