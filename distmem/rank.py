"""One rank of a run: from the recipe to the report."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distmem import losses, metrics, models
from distmem.backends import load_backend
from distmem.batching import accumulation, micro_batch
from distmem.checks import check
from distmem.context import Phase, Run
from distmem.data.bundle import load
from distmem.data.cache import cache_folder
from distmem.data.loader import Loader
from distmem.data.split import split_bytes
from distmem.distributed import World, end_with_parent, join_world, leave_world
from distmem.engine import train
from distmem.errors import Stopped, UsageError
from distmem.export import export_weights, import_weights
from distmem.files import write_json, write_text
from distmem.log import MetricsLog
from distmem.memory.activation_checkpointing import apply_activation_checkpointing
from distmem.memory.measure import model_bytes, peak_device_bytes, peak_resident_bytes
from distmem.memory.optimizers import build_optimizer
from distmem.memory.precision import PRECISIONS
from distmem.recipe import Recipe, dump_recipe, load_recipe
from distmem.seeding import be_deterministic, seed_all
from distmem.show import Show
from distmem.signals import StopFlag
from distmem.stages import run_stages


def run_rank(arguments: argparse.Namespace) -> None:
    """Train, compress and report as the recipe says. Raises DistmemError; Stopped after a save on request."""
    stop = StopFlag()
    stop.install()
    if arguments.managed:
        end_with_parent()
    recipe = check(load_recipe(arguments.recipe, arguments.overrides))
    world = join_world(recipe.launch.device)
    folder = run_folder(arguments.out, recipe, world)
    if not world.first:
        quiet(folder, world.rank)
    started = time.time()
    run, phase = prepare(recipe, folder, world, stop, arguments)
    try:
        dense = train(run, phase)
        measured = measure(run, phase)
        if world.first and not run.debug:
            export_weights(run.backend.model, folder / "model.safetensors")
        stages = run_stages(run, dense)
    except Stopped as stopped:
        if world.first:
            write_json(folder / "outcome.json", {"state": "stopped", "message": str(stopped)})
        leave_world(world)
        raise
    finish(run, phase, stages, measured, started)
    leave_world(world)


def run_folder(out: Path | None, recipe: Recipe, world: World) -> Path:
    """The folder of this run, made by rank 0; with the resolved recipe in it."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(world.gather(str(out or Path("runs") / recipe.name / stamp))[0])
    if world.first:
        if (folder / "summary.json").exists():
            raise UsageError(f"the run in {folder} is finished", remedy="choose another folder with --out")
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        (folder / "outcome.json").unlink(missing_ok=True)
        write_text(folder / "recipe.yaml", dump_recipe(recipe))
    world.barrier()
    return folder


def quiet(folder: Path, rank: int) -> None:
    """What this rank prints goes to its own log."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(folder / "logs" / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def prepare(
    recipe: Recipe, folder: Path, world: World, stop: StopFlag, arguments: argparse.Namespace
) -> tuple[Run, Phase]:
    """Data, model, backend and optimizer of this rank."""
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


def measure(run: Run, phase: Phase) -> list[dict[str, Any]]:
    """Bytes by class on every rank, as they were after the last step of the training."""
    device = run.world.device
    mine: dict[str, Any] = {
        "rank": run.world.rank,
        **model_bytes(run.backend.model, phase.optimizer),
        "gradients": run.gradient_bytes,
        "activations": run.activation_bytes,
        "data": 0 if run.bundle.shared_file else split_bytes(run.bundle.train),
        "peak_device": peak_device_bytes(device),
        "peak_resident": peak_resident_bytes(),
    }
    rows = run.world.gather(mine)
    file = run.folder / "measured.json"
    if run.world.first and (run.activation_bytes is not None or not file.exists()):  # a resumed run may train no step
        write_json(file, {"device": device.type, "per_rank": rows})
    return rows


def finish(
    run: Run, phase: Phase, stages: list[dict[str, Any]], measured: list[dict[str, Any]], started: float
) -> None:
    """summary.json, the tables and the report."""
    if not run.world.first or run.debug:
        if run.world.first:
            run.show.line("debug run finished: a few batches of each part; nothing was saved")
        return
    recipe, world = run.recipe, run.world
    rows = [{key: value for key, value in row.items() if key != "layers"} for row in stages]
    peaks = [row["peak_device"] or row["peak_resident"] for row in measured]
    final = {key: value for key, value in rows[-1].items() if key.startswith("val_")}
    summary = {
        "name": recipe.name,
        "backend": recipe.launch.backend,
        "launcher": recipe.launch.launcher,
        "world_size": world.size,
        "device": world.device.type,
        "precision": run.precision.name,
        "steps": phase.steps,
        "epochs": -(-phase.steps // run.loader.batches),
        "global_batch": recipe.train.batch_size,
        "micro_batch": micro_batch(recipe, world.size),
        "accumulate": accumulation(recipe, world.size, 0),
        "final": {"train_loss": run.log.last.get("loss"), **final},
        "throughput": {"samples_per_s": run.rate.samples_per_s, "step_s_median": run.rate.step_s_median},
        "memory": {"predicted_peak_bytes": None, "measured_peak_bytes": max(peaks)},
        "resumed_from": run.resumed_from,
        "skipped_steps": phase.skipped,
        "parameters": count_parameters(run.backend.model),
        "wall_s": round(time.time() - started, 3),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "stages": rows,
    }
    write_json(run.folder / "summary.json", summary)
    from distmem.report import write_report
    from distmem.report.tables import nonzero_table, stage_table

    run.show.print(nonzero_table(stages[-1]["layers"]))
    run.show.print(stage_table(rows))
    run.show.line(f"report: {write_report([run.folder])}")
    write_json(run.folder / "outcome.json", {"state": "done"})
