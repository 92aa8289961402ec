"""What a run and a phase of it consist of, on one rank."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from distmem import schedules
from distmem.backends.base import Backend
from distmem.compress.masks import Masks
from distmem.data.bundle import Bundle
from distmem.data.loader import Loader
from distmem.distributed import World
from distmem.log import MetricsLog
from distmem.losses import Loss
from distmem.memory.precision import Precision
from distmem.metrics import Metric
from distmem.recipe.schema import Optim, Recipe
from distmem.show import Rate, Show
from distmem.signals import StopFlag


@dataclass
class Run:
    """What all phases of a run share on this rank."""

    recipe: Recipe
    folder: Path
    world: World
    backend: Backend
    bundle: Bundle
    loader: Loader
    loss: Loss
    metrics: dict[str, Metric]
    precision: Precision
    log: MetricsLog
    show: Show
    stop: StopFlag
    debug: bool = False
    resume: Path | None = None  # a checkpoint of another run to start from
    decisive: dict[str, Any] = field(default_factory=dict)  # what in the recipe decides the numbers, by key
    rate: Rate = field(default_factory=Rate)
    activation_bytes: int | None = None  # what the graph of a micro-batch keeps, measured in the first one
    gradient_bytes: int | None = None  # measured in the first step, before they are dropped
    resumed_from: dict[str, Any] | None = None


@dataclass
class Phase:
    """One stretch of training with its own optimizer, masks and checkpoints: the training itself, or a stage."""

    name: str
    index: int
    folder: Path
    steps: int
    optimizer: Optimizer
    optim: Optim
    masks: Masks | None = None
    prune: Callable[[int], Masks | None] | None = None  # new masks due before this step, in gradual pruning
    best: str | None = None  # the value to keep the best checkpoint by
    best_value: float | None = None
    step: int = 0
    seconds: float = 0.0  # spent in earlier lives of the run
    skipped: int = 0

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        assert isinstance(self.optim.lr, float)
        return self.optim.lr * schedules.factor(self.optim.schedule, step, self.steps, steps_per_epoch)


def to_device(run: Run, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Raw bytes travel, the device widens and normalises them; floating batches get the parameters' dtype."""
    device = run.world.device
    pinned = device.type == "cuda"  # elsewhere the bytes may be gone before they are copied
    x, y = x.to(device, non_blocking=pinned), y.to(device, non_blocking=pinned)
    x, y = run.bundle.prepare(x, y)
    dtype = run.precision.dtype
    return (x.to(dtype) if x.is_floating_point() else x), (y.to(dtype) if y.is_floating_point() else y)


class Clock:
    """Seconds of a phase over all its lives, and since numbers were last shown."""

    def __init__(self, before: float):
        self.started = self._shown = time.perf_counter()
        self.before = before

    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.started

    def since_shown(self) -> float:
        return time.perf_counter() - self._shown

    def shown(self) -> None:
        self._shown = time.perf_counter()
