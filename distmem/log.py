"""metrics.jsonl: one object per optimizer step and per evaluation, written by rank 0.

Values of steps stay tensors until a flush, so that no step waits for the device; a flush adds the losses of all
ranks and finds a loss that is not finite.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distmem.distributed import World
from distmem.errors import TrainingError


class MetricsLog:
    """Buffers steps, flushes them as lines. Every rank calls the same methods in the same order."""

    def __init__(self, path: Path, world: World):
        self.path, self.world = path, world
        self._buffer: list[tuple[dict[str, Any], Tensor, float, Tensor | None, Tensor | None]] = []
        self.last: dict[str, Any] = {}

    def step(
        self, fields: dict[str, Any], loss_sum: Tensor, weight: float, norm: Tensor | None, clipped: Tensor | None
    ) -> None:
        """Note an optimizer step. loss_sum: of this rank; weight: samples or tokens of all ranks; norms: global."""
        self._buffer.append((fields, loss_sum, weight, norm, clipped))

    def flush(self) -> list[dict[str, Any]]:
        """Write what was noted. Raises TrainingError on every rank when a loss is not finite."""
        if not self._buffer:
            return []
        buffer, self._buffer = self._buffer, []
        sums = self.world.sum(torch.stack([entry[1] for entry in buffer]).double().tolist())
        lines = []
        for (fields, _, weight, norm, clipped), loss_sum in zip(buffer, sums, strict=True):
            line = {"kind": "step", **fields, "loss": loss_sum / max(weight, 1)}
            if norm is not None and clipped is not None:
                line |= {"grad_norm": float(norm), "grad_norm_clipped": float(clipped)}
            lines.append(line)
        self.write(lines)
        for line in lines:
            if not math.isfinite(line["loss"]):
                raise self._not_finite(line)
            self.last = line
        return lines

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Append whole lines; numbers that JSON has not (nan, inf) become null."""
        if self.world.first:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({k: _plain(v) for k, v in line.items()}) + "\n" for line in lines)

    def _not_finite(self, line: dict[str, Any]) -> TrainingError:
        before = f"; at step {self.last['step']} it was {self.last['loss']:.4g}" if self.last else ""
        return TrainingError(
            f"the loss is {line['loss']} at step {line['step']} (epoch {line['epoch']}, "
            f"learning rate {line['lr']:.3g}){before}",
            remedy="lower optim.lr, set train.clip: {norm: 1.0}, or use a wider precision; "
            "the newest checkpoint is from before this step",
        )

    def size(self) -> int:
        """Bytes written so far; a checkpoint notes it."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, size: int) -> None:
        """Forget lines written after a checkpoint was taken: their steps will be done again. And half a line."""
        if self.world.first and self.path.exists():
            text = self.path.read_bytes()[:size]
            text = text[: text.rfind(b"\n") + 1]  # a process that was killed may have written a part of a line
            os.truncate(self.path, len(text))
            steps = [line for line in text.splitlines() if line.startswith(b'{"kind": "step"')]
            self.last = json.loads(steps[-1]) if steps else {}

    def cut_phase(self, phase: str) -> None:
        """Forget a phase that begins anew, and whatever follows it."""
        if self.world.first and self.path.exists():
            text = self.path.read_bytes()
            begins = text.find(f'"phase": {json.dumps(phase)}'.encode())
            self.cut(len(text) if begins < 0 else text.rfind(b"\n", 0, begins) + 1)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
