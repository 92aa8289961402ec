"""One rank of a run: from the recipe to the report."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from distmem.build import prepare
from distmem.checks import check
from distmem.distributed import World, join_world, leave_world
from distmem.engine import train
from distmem.errors import Stopped
from distmem.export import export_weights
from distmem.files import write_json, write_text
from distmem.launched import launched
from distmem.recipe import Recipe, dump_recipe, load_recipe
from distmem.runs import hold, may_go_on, new_folder
from distmem.shipped import find_recipe
from distmem.signals import StopFlag
from distmem.stages import run_stages
from distmem.summary import finish, measure


def run_rank(arguments: argparse.Namespace, stop: StopFlag) -> None:
    """Train, compress and report as the recipe says. Raises DistmemError; Stopped after a save on request."""
    overrides = [*arguments.overrides, *([] if arguments.managed else as_launched())]
    recipe = check(load_recipe(find_recipe(arguments.recipe), overrides))
    world = join_world(recipe.launch.device)
    with run_folder(arguments.out, recipe, world) as folder:
        run_in(folder, recipe, world, stop, arguments)
    leave_world(world)


def run_in(folder: Path, recipe: Recipe, world: World, stop: StopFlag, arguments: argparse.Namespace) -> None:
    """The run, in its folder."""
    if not world.first:
        quiet(folder, world.rank)
    started = time.time()
    run, phase = prepare(recipe, folder, world, stop, arguments)
    try:
        dense = train(run, phase)
        measured = measure(run, phase)
        if world.first and not run.debug:
            export_weights(run.backend.model, folder / "model.safetensors")
        stages = run_stages(run, dense, phase.seconds)
    except Stopped as stopped:
        if world.first:
            write_json(folder / "outcome.json", {"state": "stopped", "message": str(stopped)})
        leave_world(world)
        raise
    finish(run, phase, stages, measured, started)


def as_launched() -> list[str]:
    """Overrides that say how a launcher of the user's own has started this process."""
    process = launched()
    if process.size > 1:
        return ["launch.launcher=torchrun", f"launch.procs_per_node={process.local_size}"]
    return ["launch.launcher=local", "launch.procs_per_node=1", "launch.restarts=0"]


@contextmanager
def run_folder(out: Path | None, recipe: Recipe, world: World) -> Iterator[Path]:
    """The folder of this run, made by rank 0, with the resolved recipe in it; rank 0 holds it against other runs."""
    with ExitStack() as held:
        folder = None
        if world.first:
            folder = out or new_folder(recipe.name)
            may_go_on(folder, recipe)
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(hold(folder))
            (folder / "outcome.json").unlink(missing_ok=True)
            write_text(folder / "recipe.yaml", dump_recipe(recipe))
            (folder / "logs").mkdir(exist_ok=True)
        yield Path(world.gather(str(folder))[0])


def quiet(folder: Path, rank: int) -> None:
    """What this rank prints goes to its own log."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(folder / "logs" / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
