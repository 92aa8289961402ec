"""Evaluation: every sample once, whatever the world size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distmem.batching import accumulation, micro_batch
from distmem.context import Clock, Phase, Run, to_device
from distmem.data.loader import evaluation_batches
from distmem.show import describe

LOWER_IS_BETTER = ("val_loss", "val_mae")
DEBUG_BATCHES = 2


@torch.no_grad()
def evaluate(run: Run) -> dict[str, float]:
    """Loss and metrics over the validation split, each sample once, whatever the world size."""
    model, device = run.backend.model, run.world.device
    for buffer in model.buffers():
        run.world.broadcast(buffer)  # batch statistics differ between ranks: measured is what rank 0 will save
    model.eval()
    names, sums, counts = ["loss", *run.metrics], [], []
    size = run.recipe.train.eval_batch_size
    if not isinstance(size, int):  # no gradients are kept, yet what was cut to fit stays cut
        whole = accumulation(run.recipe, run.world.size, 0) == 1
        size = micro_batch(run.recipe, run.world.size)
        size = max(64, size) if whole else size
    batches = evaluation_batches(run.bundle.val, size, run.world, run.recipe.data.workers)
    for number, (x, y) in enumerate(batches):
        if run.debug and number == DEBUG_BATCHES:
            break
        weight = run.loss.weight(y)
        x, y = to_device(run, x, y)
        with run.precision.context(device.type):
            output = model(x)
            pairs = [(run.loss.total(output, y), weight), *(metric(output, y) for metric in run.metrics.values())]
        sums.append(_row(run, [total for total, _ in pairs]))
        counts.append(_row(run, [count for _, count in pairs]))
    model.train()
    local = [
        torch.stack(rows).cpu().double().sum(0).tolist() if rows else [0.0] * len(names) for rows in (sums, counts)
    ]
    totals = run.world.sum([*local[0], *local[1]])
    return {f"val_{name}": totals[i] / max(1.0, totals[i + len(names)]) for i, name in enumerate(names)}


def _row(run: Run, numbers: list[Tensor | int]) -> Tensor:
    """Numbers of a batch as one tensor on the device, so that no batch waits for it."""
    dtype, device = run.precision.sums, run.world.device
    return torch.stack([torch.as_tensor(number, dtype=dtype, device=device) for number in numbers])


def tell(run: Run, phase: Phase, epoch: int, evaluation: dict[str, float], clock: Clock) -> None:
    """One evaluation into the log and onto the screen."""
    values = {**run.log.mean(), **evaluation}
    line = {"kind": "eval", "phase": phase.name, "step": phase.step, "epoch": epoch, **values}
    run.log.write([{**line, "time_s": round(clock.seconds(), 4)}])
    epochs = -(-phase.steps // run.loader.batches)
    speed = f"{run.rate.samples_per_s:,.0f} samples/s"
    run.show.line(f"{phase.name}  epoch {epoch + 1}/{epochs}  step {phase.step}  {describe(values)}  {speed}")


def improves(phase: Phase, evaluation: dict[str, float]) -> bool:
    """Whether this evaluation is the best of the phase so far, by the value that the recipe names."""
    if phase.best is None:
        return False
    value = evaluation[phase.best]
    if math.isnan(value):
        return False
    lower_is_better = phase.best in LOWER_IS_BETTER
    better = phase.best_value is None or (value < phase.best_value if lower_is_better else value > phase.best_value)
    if better:
        phase.best_value = value
    return better
