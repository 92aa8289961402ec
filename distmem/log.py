"""metrics.jsonl: one object per optimizer step and per evaluation, written by rank 0.

Values of steps stay tensors until a flush, so that no step waits for the device; a flush adds the losses of all
ranks and finds a loss that is not finite.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distmem.distributed import World
from distmem.errors import TrainingError
from distmem.files import write_text


class MetricsLog:
    """Buffers steps, flushes them as lines. Every rank calls the same methods in the same order.

    keep: whether to write; a debug run leaves nothing.
    """

    def __init__(self, path: Path, world: World, keep: bool = True):
        self.path, self.world, self.keep = path, world, keep
        self._buffer: list[tuple[dict[str, Any], Tensor, float, Tensor | None, Tensor | None]] = []
        self.last: dict[str, Any] = {}
        self._sum = self._weight = 0.0  # since the last evaluation

    def mean(self) -> dict[str, float]:
        """{"train_loss": mean loss per sample or token since the last call}; empty when nothing was trained."""
        mean = {"train_loss": self._sum / self._weight} if self._weight else {}
        self._sum = self._weight = 0.0
        return mean

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
            line = {"kind": "step", **fields, "loss": loss_sum / max(weight, 1), "weight": weight}
            if norm is not None and clipped is not None:
                line |= {"grad_norm": float(norm), "grad_norm_clipped": float(clipped)}
            lines.append(line)
        self.write(lines)
        for line in lines:
            if not math.isfinite(line["loss"]):
                raise self._not_finite(line)
            self._remember(line)
        return lines

    def _remember(self, line: dict[str, Any]) -> None:
        self.last = line
        self._sum += line["loss"] * line["weight"]
        self._weight += line["weight"]

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Append whole lines; numbers that JSON has not (nan, inf) become null."""
        if self.world.first and self.keep:
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

    def cut(self, phase: str, step: int) -> None:
        """Forget what a phase wrote after a step: it will be done again. And half a line of a killed process."""
        if not (self.world.first and self.keep and self.path.exists()):
            return
        text = self.path.read_text(encoding="utf-8")
        lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
        kept = [line for line in lines if (read := json.loads(line))["phase"] != phase or read["step"] <= step]
        if "".join(kept) != text:
            write_text(self.path, "".join(kept))
        for line in kept:
            if line.startswith('{"kind": "eval"'):
                self.mean()
            else:
                self._remember(json.loads(line))

    def last_train_loss(self) -> float | None:
        """The mean training loss up to the last evaluation of the run, as the log has it."""
        if not self.path.exists():
            return None
        evaluations = [line for line in self.path.read_text().splitlines() if line.startswith('{"kind": "eval"')]
        return json.loads(evaluations[-1]).get("train_loss") if evaluations else None


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
