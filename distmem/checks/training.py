"""Numbers of the training that cannot be together."""

from __future__ import annotations

from collections.abc import Iterator

from distmem.batching import accumulation
from distmem.checks.fault import Fault, optimizers, world_size
from distmem.hardware import Hardware
from distmem.memory.optimizers import HALF_UNSAFE_EPS
from distmem.memory.precision import SMALLEST_HALF, SUPPORTED
from distmem.recipe.schema import Recipe
from distmem.units import did_you_mean


def length(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    train = recipe.train
    if train.epochs is None and train.steps is None:
        yield Fault(("train",), "says neither epochs nor steps", "add train.epochs: 10")
    if train.epochs is not None and train.steps is not None:
        yield Fault(("train", "steps"), "epochs and steps are both given", "keep one of the two")


def batch(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    """The global batch against processes and micro-batches."""
    train, world = recipe.train, world_size(recipe)
    if train.batch_size < world:
        yield Fault(
            ("train", "batch_size"),
            f"a global batch of {train.batch_size} gives {world} processes less than one sample each",
            f"batch_size of at least {world}, or fewer processes",
        )
        return
    micro = recipe.memory.micro_batch
    epochs = list(train.accumulate) if isinstance(train.accumulate, dict) else [0]
    pieces = [accumulation(recipe, world, epoch) for epoch in epochs]
    local = -(-train.batch_size // world)
    if max(pieces) > local:
        yield Fault(
            ("train", "accumulate"),
            f"{max(pieces)} micro-batches of {local} samples per process: some would be empty",
            f"accumulate of at most {local}",
        )
    if isinstance(micro, int) and train.accumulate != "auto" and micro * min(pieces) < local:
        yield Fault(
            ("memory", "micro_batch"),
            f"{micro} samples x {min(pieces)} micro-batches do not hold the {local} samples of a process",
            "give one of memory.micro_batch and train.accumulate and leave the other to auto",
        )


def precision(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    """The precision against the device and the optimizer's eps."""
    precision, device = recipe.train.precision, recipe.launch.device
    if precision not in SUPPORTED[device]:
        yield Fault(
            ("train", "precision"),
            f"{precision} does not work on {device}",
            f"one of {', '.join(SUPPORTED[device])}",
        )
    if precision == "16-true":
        for path, optim in optimizers(recipe):
            eps = optim.args.get("eps", 1e-8)
            if optim.name.lower() in HALF_UNSAFE_EPS and isinstance(eps, float) and eps < SMALLEST_HALF:
                yield Fault(
                    (*path, "args"),
                    f"eps {eps} of {optim.name} is zero in float16, so 0/0 would follow in the first step",
                    "args: {eps: 1e-4}, or train.precision=16-mixed, or bf16-true",
                )


def best(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    known = ["val_loss", *(f"val_{name.partition(':')[2] or name}" for name in recipe.metrics)]
    if recipe.checkpoint.best is not None and recipe.checkpoint.best not in known:
        best = recipe.checkpoint.best
        yield Fault(
            ("checkpoint", "best"),
            f'"{best}" is not measured.{did_you_mean(best, known)}',
            f"one of {', '.join(known)}",
        )
