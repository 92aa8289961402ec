"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere, nothing on other ranks."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distmem.distributed import World

PERCENT = ("accuracy", "top5")


def describe(values: dict[str, float]) -> str:
    """train_loss 0.0321  val_accuracy 98.21 %"""
    parts = []
    for name, value in values.items():
        if any(name.endswith(word) for word in PERCENT):
            parts.append(f"{name} {100 * value:.2f} %")
        else:
            parts.append(f"{name} {value:.4g}")
    return "  ".join(parts)


class Show:
    """Output of rank 0; other ranks have one too, and it says nothing."""

    def __init__(self, world: World):
        from rich.console import Console

        self.active = world.first
        width = None if sys.stdout.isatty() else 120
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True, width=width)
        self._bar: Any = None
        self._task: Any = None

    def line(self, text: str) -> None:
        if self.active:
            self.console.print(text, markup=False)

    def print(self, renderable: Any) -> None:
        if self.active:
            self.console.print(renderable)

    @contextmanager
    def bar(self, title: str, total: int, done: int) -> Iterator[None]:
        """A bar over optimizer steps, on a terminal."""
        if not (self.active and self.console.is_terminal):
            yield
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as self._bar:
            self._task = self._bar.add_task(title, total=total, completed=done, rate="", note="")
            yield
        self._bar = None

    def update(self, step: int, samples_per_s: float, note: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step, rate=f"{samples_per_s:,.0f} samples/s", note=note)


class Rate:
    """Samples per second and seconds per step, without the time of evaluations and saves."""

    def __init__(self) -> None:
        self.samples, self.seconds = 0, 0.0
        self.step_seconds: list[float] = []
        self._since = time.perf_counter()

    def start(self) -> None:
        self._since = time.perf_counter()

    def step(self, samples: int) -> None:
        now = time.perf_counter()
        self.step_seconds.append(now - self._since)
        self.seconds += now - self._since
        self.samples += samples
        self._since = now

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def step_s_median(self) -> float:
        return sorted(self.step_seconds)[len(self.step_seconds) // 2] if self.step_seconds else 0.0
