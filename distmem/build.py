"""From a resolved recipe to what this rank trains with."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

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
from distmem.log import MetricsLog
from distmem.memory.activation_checkpointing import apply_activation_checkpointing
from distmem.memory.optimizers import build_optimizer
from distmem.memory.precision import PRECISIONS
from distmem.recipe import Recipe
from distmem.seeding import be_deterministic, seed_all
from distmem.show import Show
from distmem.signals import StopFlag
from distmem.stages import check_layers


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
    check_layers(recipe, model)
    model.to(device=world.device, dtype=precision.dtype)
    apply_activation_checkpointing(models.blocks(model), recipe.memory.activation_checkpointing)
    backend = load_backend(recipe.launch.backend)(model, world)
    loader = Loader(bundle.train, recipe.train.batch_size, recipe.seed, world, spec.workers)
    optim = recipe.optim
    assert isinstance(optim.lr, float)
    optimizer = build_optimizer(optim.name, model.parameters(), optim.lr, optim.args)
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
        log=MetricsLog(folder / "metrics.jsonl", world),
        show=Show(world),
        stop=stop,
        debug=arguments.debug,
        resume=arguments.resume,
        identity=identity(recipe),
    )
    steps = recipe.train.steps or (recipe.train.epochs or 1) * loader.batches
    phase = Phase("train", 0, folder / "checkpoints", steps, optimizer, optim, best=recipe.checkpoint.best)
    introduce(run, model)
    return run, phase


def introduce(run: Run, model: nn.Module) -> None:
    """What is about to be trained, in one line."""
    recipe, world = run.recipe, run.world
    parts = [
        f"{recipe.name}: {recipe.model.name}, {count_parameters(model):,} parameters",
        f"{recipe.data.name}, {len(run.bundle.train):,} samples",
        f"{world.size} x {world.device.type}, {run.precision.name}",
        f"batch {recipe.train.batch_size} = {world.size} ranks x {accumulation(recipe, world.size, 0)} micro-batches"
        f" of {micro_batch(recipe, world.size)}",
    ]
    run.show.line("; ".join(parts))
    run.show.line(f"run folder: {run.folder}")


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def identity(recipe: Recipe) -> str:
    """A hash of what decides the numbers of the training; world size, memory and launcher are not part of it."""
    values = recipe.model_dump()
    train = {key: values["train"][key] for key in ("epochs", "steps", "batch_size", "clip")}
    model = {key: values["model"][key] for key in ("name", "args")}
    data_ = {key: values["data"][key] for key in ("name", "args", "val")}
    decisive = [recipe.seed, model, data_, recipe.loss, values["optim"], train]
    return hashlib.blake2b(json.dumps(decisive, default=str).encode(), digest_size=8).hexdigest()
