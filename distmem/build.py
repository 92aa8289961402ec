"""From a resolved recipe to what this rank trains with."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distmem import losses, metrics, models
from distmem.backends import load_backend
from distmem.batching import accumulation, micro_batch
from distmem.context import Phase, Run
from distmem.data.bundle import load
from distmem.data.cache import cache_folder
from distmem.data.loader import Loader
from distmem.distributed import World
from distmem.export import import_weights
from distmem.files import write_json
from distmem.log import MetricsLog
from distmem.memory.activation_checkpointing import apply_activation_checkpointing
from distmem.memory.optimizers import build_optimizer
from distmem.memory.precision import PRECISIONS
from distmem.recipe import Recipe
from distmem.seeding import be_deterministic, seed_all
from distmem.show import Show
from distmem.signals import StopFlag
from distmem.stages import check_stages


def prepare(
    recipe: Recipe, folder: Path, world: World, stop: StopFlag, arguments: argparse.Namespace
) -> tuple[Run, Phase]:
    """Data, model, backend and optimizer of this rank, and the training as a phase."""
    if recipe.train.deterministic:
        be_deterministic()
    if arguments.debug:
        torch.autograd.set_detect_anomaly(True)
    precision = PRECISIONS[recipe.train.precision]
    spec = recipe.data
    bundle = load(spec.name, spec.args, val=spec.val, seed=recipe.seed, shared=spec.shared, cache=cache_folder())
    seed_all(world.device, recipe.seed)
    model = models.build(recipe.model.name, recipe.model.args, bundle.hints)
    if recipe.model.init is not None:
        import_weights(model, Path(recipe.model.init))
    model.to(device=world.device, dtype=precision.dtype)
    apply_activation_checkpointing(models.blocks(model), recipe.memory.activation_checkpointing)
    optim = recipe.optim
    assert isinstance(optim.lr, float)
    optimizer = build_optimizer(optim.name, model.parameters(), optim.lr, optim.args)
    backend = load_backend(recipe.launch.backend)(model, world)
    loader = Loader(bundle.train, recipe.train.batch_size, recipe.seed, world, spec.workers)
    steps = recipe.train.steps or (recipe.train.epochs or 1) * loader.batches
    check_stages(recipe, model, loader.batches, steps)
    run = Run(
        recipe=recipe,
        folder=folder,
        world=world,
        backend=backend,
        bundle=bundle,
        loader=loader,
        loss=losses.build_loss(recipe.loss),
        metrics=metrics.build_metrics(recipe.metrics),
        precision=precision,
        log=MetricsLog(folder / "metrics.jsonl", world, keep=not arguments.debug),
        show=Show(world),
        stop=stop,
        debug=arguments.debug,
        resume=origin(folder, world, arguments.resume),
        decisive=decisive(recipe),
    )
    phase = Phase("train", 0, folder / "checkpoints", steps, optimizer, optim, best=recipe.checkpoint.best)
    introduce(run, model)
    return run, phase


def origin(folder: Path, world: World, resume: Path | None) -> Path | None:
    """The checkpoint that a run starts from; noted, so that a run killed before one of its own starts there again."""
    note = folder / "resume.json"
    if world.first and resume is not None:
        write_json(note, {"from": str(resume.absolute())})
    world.barrier()
    return Path(json.loads(note.read_text())["from"]) if note.exists() else None


def introduce(run: Run, model: nn.Module) -> None:
    """What is about to be trained."""
    recipe, world = run.recipe, run.world
    run.show.line(
        f"{recipe.name}: {recipe.model.name}, {count_parameters(model):,} parameters; "
        f"{recipe.data.name}, {len(run.bundle.train):,} samples"
    )
    run.show.line(
        f"{world.size} x {world.device.type}, {run.precision.name}; batch of {recipe.train.batch_size} = "
        f"{world.size} x {accumulation(recipe, world.size, 0)} x {micro_batch(recipe, world.size)} "
        "(processes x micro-batches x samples)"
    )
    run.show.line(f"run folder: {run.folder}")


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def decisive(recipe: Recipe) -> dict[str, Any]:
    """What decides the numbers of the training, by key; world size, memory, launcher and length are not part of it,
    unless the learning rate depends on the length."""
    optim, train, data = recipe.optim, recipe.train, recipe.data
    values = {
        "seed": recipe.seed,
        "model.name": recipe.model.name,
        "model.args": recipe.model.args,
        "data.name": data.name,
        "data.args": {key: value for key, value in data.args.items() if key not in ("root", "path")},
        "data.val": data.val,
        "loss": recipe.loss,
        "optim": optim.model_dump(),
        "train.batch_size": train.batch_size,
        "train.clip": train.clip.model_dump() if train.clip else None,
    }
    if optim.schedule.name not in ("constant", "step"):
        values |= {"train.epochs": train.epochs, "train.steps": train.steps}
    return json.loads(json.dumps(values, default=str))
