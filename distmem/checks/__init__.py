"""What a recipe's values may not be together, on a device, or under a backend: refused before anything starts.

Nothing here imports torch or runs a user's code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from distmem.checks import machine, names, training
from distmem.checks.fault import Fault
from distmem.errors import RecipeError
from distmem.hardware import Hardware, detect
from distmem.memory.precision import choose
from distmem.recipe.load import Loaded, in_file_order
from distmem.recipe.schema import Recipe

Check = Callable[[Recipe, Hardware], Iterator[Fault]]

CHECKS: tuple[Check, ...] = (
    training.length, training.batch, machine.device, training.precision, machine.launch, machine.levers,
    names.names, names.files, training.best, machine.stages,
)  # fmt: skip


def check(loaded: Loaded, hardware: Hardware | None = None) -> Recipe:
    """The recipe with every `auto` that can be decided now made concrete. Raises RecipeError listing every fault."""
    hardware = hardware or detect()
    recipe = resolve(loaded.recipe, hardware)
    faults = [
        RecipeError(
            f"{'.'.join(map(str, fault.path))}: {fault.cause}", remedy=fault.remedy, where=loaded.places.of(fault.path)
        )
        for one in CHECKS
        for fault in one(recipe, hardware)
    ]
    if faults:
        raise RecipeError.of(in_file_order(faults))
    return recipe


def resolve(recipe: Recipe, hardware: Hardware) -> Recipe:
    """Device, precision, processes and launcher in place of `auto`."""
    launch, train = recipe.launch, recipe.train
    device = hardware.best_device if launch.device == "auto" else launch.device
    procs = launch.procs_per_node
    if procs == "auto":
        procs = max(1, hardware.cuda_devices) if device == "cuda" else 1
    launcher = launch.launcher
    if launcher == "auto":
        launcher = "local" if procs == 1 and launch.nodes == 1 else "torchrun"
    precision = choose(device) if train.precision == "auto" else train.precision
    return recipe.model_copy(
        update={
            "launch": launch.model_copy(update={"device": device, "procs_per_node": procs, "launcher": launcher}),
            "train": train.model_copy(update={"precision": precision}),
        }
    )
