"""THE training loop: one for every backend, precision and stage, to be read from top to bottom.

A step is one global batch. Each rank takes its slice of it, cuts the slice into micro-batches, and divides each
loss by the number of samples (or tokens) of the whole global batch, so gradients add up to those of the large
batch whatever the world size, the accumulation and the length of the last batch. What happens at a step depends
on its number alone: the samples, the learning rate, the random numbers. So a run can go on at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from distmem.backends.base import Backend
from distmem.batching import accumulation
from distmem.checkpoint.store import CheckpointStore
from distmem.context import Clock, Phase, Run, to_device
from distmem.data.loader import Loader, Window
from distmem.errors import Stopped
from distmem.evaluation import evaluate, improves, tell
from distmem.memory.measure import LiveBytes, storage_bytes
from distmem.recipe.schema import Clip
from distmem.recipe.types import steps_of
from distmem.resume import restore, snapshot
from distmem.seeding import seed_all
from distmem.show import describe

SHOW_SECONDS = 1.0  # how often numbers reach the log and the progress bar
DEBUG_STEPS = 3


def train(run: Run, phase: Phase) -> dict[str, float]:
    """Train a phase to its end, from its newest checkpoint on; gives its last evaluation.

    Raises Stopped at a step boundary, after saving, when any rank was asked to stop; TrainingError when the loss
    is not finite.
    """
    settings, world = run.recipe.checkpoint, run.world
    store = CheckpointStore(phase.folder, settings.keep, settings.async_, active=world.first)
    scaler = run.precision.scaler(world.device.type, phase.optimizer)
    restore(run, phase, scaler, store)
    if run.debug:
        phase.steps = min(phase.steps, phase.step + DEBUG_STEPS)
    evaluate_due, save_due = _due(run.recipe.train.eval_every, run.loader), _due(settings.every, run.loader)
    clock, evaluation, saved_at = Clock(phase.seconds), {}, phase.step
    run.backend.model.train()  # a model may come in evaluation mode
    run.rate.start()

    with run.show.bar(phase.name, phase.steps, phase.step), store.settled():
        for window in remaining_windows(run, phase):
            weight = sum(run.loss.weight(y) for _, y in window.micro_batches)
            show_now = world.first and clock.since_shown() > SHOW_SECONDS
            total_weight, stop, show = world.sum([weight, run.stop.is_set, show_now])
            if stop:
                run.log.flush()
                if saved_at != phase.step and not run.debug:
                    store.save(*snapshot(run, phase, scaler, clock))
                store.wait()
                raise Stopped(f"stopped on request after step {phase.step} of {phase.steps} of {phase.name}")

            train_window(run, phase, window, total_weight, scaler, clock)
            phase.step += 1
            run.rate.step(window.samples)

            last = phase.step == phase.steps
            evaluate_now, save_now = evaluate_due(phase.step) or last, save_due(phase.step) or last
            if show or evaluate_now or save_now:
                run.log.flush()  # before a save: a state behind a loss that is not finite is never kept
                run.show.update(phase.step, run.rate.samples_per_s, describe({"loss": run.log.last["loss"]}))
                clock.shown()
            if evaluate_now:
                evaluation = evaluate(run)
                tell(run, phase, window.epoch, evaluation, clock)
            better = evaluate_now and improves(phase, evaluation)
            if (save_now or better) and not run.debug:
                store.save(*snapshot(run, phase, scaler, clock), best=better)
                saved_at = phase.step
            if evaluate_now or save_now:
                run.rate.start()
        store.wait()
    phase.seconds = clock.seconds()
    return evaluation or evaluate(run)


def remaining_windows(run: Run, phase: Phase) -> Iterator[Window]:
    """The global batches from the phase's step to its end; the caller counts the steps."""
    while phase.step < phase.steps:
        epoch, batch = divmod(phase.step, run.loader.batches)
        for window in run.loader.windows(epoch, batch, accumulation(run.recipe, run.world.size, epoch)):
            yield window
            if phase.step == phase.steps:
                return


def train_window(run: Run, phase: Phase, window: Window, total_weight: float, scaler: Any, clock: Clock) -> None:
    """One optimizer step on one global batch. total_weight: its samples or tokens over all ranks."""
    backend, optimizer = run.backend, phase.optimizer
    if phase.prune and (masks := phase.prune(phase.step)):
        phase.masks = masks
        # or momentum would move weights that are pruned from now on
        masks.zero_moments_(optimizer, dict(backend.model.named_parameters()))
    seed_all(run.world.device, run.recipe.seed, phase.index, phase.step, run.world.rank)
    lr = phase.learning_rate(phase.step, run.loader.batches)
    for group in optimizer.param_groups:
        group["lr"] = lr

    loss_sum = torch.zeros((), dtype=run.precision.sums, device=run.world.device)
    for index, (x, y) in enumerate(window.micro_batches):
        last = index == len(window.micro_batches) - 1
        with nullcontext() if last else backend.accumulating():
            loss = forward(run, x, y)
            backend.backward(scaler.scale(loss / max(total_weight, 1)))
        loss_sum += loss.detach()

    scaler.unscale_(optimizer)
    parameters = dict(backend.model.named_parameters()) if phase.masks else {}
    if phase.masks:
        phase.masks.mask_gradients_(parameters)
    if run.gradient_bytes is None:
        run.gradient_bytes = storage_bytes(p.grad for p in backend.model.parameters() if p.grad is not None)
    norm, clipped = clip_gradients(backend, run.recipe.train.clip)
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    if phase.masks:
        phase.masks.apply_(parameters)  # an optimizer may move a weight that has no gradient
    optimizer.zero_grad(set_to_none=True)

    line = {"phase": phase.name, "step": phase.step + 1, "epoch": window.epoch, "lr": lr, "samples": window.samples}
    line["time_s"] = round(clock.seconds(), 4)
    if scaler.is_enabled():
        skipped = scaler.get_scale() < scale  # a gradient was not finite: no step was made
        phase.skipped += skipped
        line |= {"scale": scale, "skipped": skipped}
    run.log.step(line, loss_sum, total_weight, norm, clipped)


def forward(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """Sum of the losses of a micro-batch, with its graph. The first call measures what the graph keeps."""
    empty = len(y) == 0
    if empty:
        run.backend.model.eval()  # a stand-in sample must leave no trace in running statistics
    with LiveBytes() if run.activation_bytes is None and not empty else nullcontext() as live:
        x, y = to_device(run, x, y)
        with run.precision.context(run.world.device.type):
            loss = run.loss.total(run.backend.forward(x), y)
        if live is not None:
            run.activation_bytes = live.live
    if empty:
        run.backend.model.train()
    return loss


def clip_gradients(backend: Backend, clip: Clip | None) -> tuple[Tensor | None, Tensor | None]:
    """Clip as the recipe says; the gradient's norm before and after, or None where nothing is clipped."""
    if clip is None:
        return None, None
    norm = clipped = backend.gradient_norm()
    if clip.norm is not None:
        factor = torch.clamp(clip.norm / (norm + 1e-6), max=1.0)  # as torch.nn.utils.clip_grad_norm_
        backend.scale_gradients(factor)
        clipped = norm * factor
    if clip.value is not None:
        backend.clamp_gradients(clip.value)
        clipped = backend.gradient_norm()
    return norm, clipped


def _due(every: str, loader: Loader) -> Callable[[int], bool]:
    steps = steps_of(every, loader.batches)
    return lambda step: step % steps == 0
