"""The state of a phase as a checkpoint, and back: what the engine needs to go on as if nothing had happened."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distmem.checkpoint.canonical import below
from distmem.checkpoint.store import CheckpointStore, newest_everywhere, read_checkpoint
from distmem.compress.masks import Masks
from distmem.context import Clock, Phase, Run
from distmem.errors import CheckpointError, TrainingError


def snapshot(run: Run, phase: Phase, scaler: Any, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything needed to go on after this step, as copies that training does not change.

    Raises TrainingError when a weight is not finite: such a state is never kept.
    """
    weights = [parameter.detach() for parameter in run.backend.model.parameters()]
    if not torch.isfinite(torch.nn.utils.get_total_norm(weights)):
        raise TrainingError(
            f"weights are not finite after step {phase.step}; the checkpoints before it are whole",
            remedy="lower optim.lr, set train.clip: {norm: 1.0}, or use a wider precision",
        )
    tensors = run.backend.state(phase.optimizer)
    if phase.masks and tensors:
        tensors |= {f"masks/{name}": mask.to("cpu", copy=True) for name, mask in phase.masks.items()}
    epoch, batch = divmod(phase.step, run.loader.batches)
    progress = {
        "phase": phase.name,
        "step": phase.step,
        "epoch": epoch,
        "batch": batch,
        "seed": run.recipe.seed,
        "decisive": run.decisive,
        "global_batch": run.recipe.train.batch_size,
        "world_size": run.world.size,
        "precision": run.precision.name,
        "scaler": scaler.state_dict(),
        "skipped": phase.skipped,
        "best_value": phase.best_value,
        "seconds": clock.seconds(),
        "samples": len(run.bundle.train),
        "groups": [_numbers(group) for group in phase.optimizer.param_groups],
    }
    return tensors, progress


def restore(run: Run, phase: Phase, scaler: Any, store: CheckpointStore) -> None:
    """Go on where the newest checkpoint of the phase stands; nothing happens when there is none."""
    saved = newest_everywhere(run.world, store)
    if saved is None and run.resume is not None and phase.index == 0:
        saved = read_checkpoint(run.resume)
        saved.progress["best_value"] = None  # the best of the other run stays there
    if saved is None:
        run.log.cut(phase.name, 0)  # of an earlier life that ended before its first checkpoint
        return
    for damaged in saved.passed_over:
        run.show.line(f"passed over: {damaged}")
    progress = saved.progress
    was, now = progress["decisive"], run.decisive
    if differing := [key for key in was.keys() & now.keys() if was[key] != now[key]]:
        told = "; ".join(f"{key} was {was[key]}, now {now[key]}" for key in sorted(differing))
        raise CheckpointError(
            f"{saved.path} was written by another recipe: {told}",
            remedy="resume with the recipe it was made with, or start from its weights alone with model.init",
        )
    if progress["phase"] != phase.name:
        raise CheckpointError(
            f"{saved.path} was written in {progress['phase']}, and {phase.name} cannot go on from it",
            remedy="resume the whole run with --out DIR, or start from its weights alone with model.init",
        )
    if progress["samples"] != len(run.bundle.train):
        raise CheckpointError(
            f"{saved.path} was written with {progress['samples']:,} training samples, and now there are "
            f"{len(run.bundle.train):,}",
            remedy="resume with the data it was made with, or start from its weights alone with model.init",
        )
    run.backend.load_state(saved.tensors, phase.optimizer)
    for group, numbers in zip(phase.optimizer.param_groups, progress["groups"], strict=True):
        group.update(numbers)
    if masks := below(saved.tensors, "masks/"):
        phase.masks = Masks({name: mask.to(run.world.device) for name, mask in masks.items()})
    if scaler.is_enabled() and progress["scaler"]:
        scaler.load_state_dict(progress["scaler"])
    phase.step, phase.seconds, phase.skipped = progress["step"], progress["seconds"], progress["skipped"]
    phase.best_value = progress["best_value"]
    run.log.cut(phase.name, phase.step)
    run.resumed_from = {"checkpoint": str(saved.path), "phase": phase.name, "step": phase.step}
    run.show.line(f"{phase.name}: goes on after step {phase.step} of {phase.steps} ({saved.path})")


def _numbers(group: dict[str, Any]) -> dict[str, float]:
    """What an optimizer counts per group (Prodigy's d, a schedule-free optimizer's k); lr comes from the schedule."""
    return {key: value for key, value in group.items() if type(value) in (int, float) and key != "lr"}
