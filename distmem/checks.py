"""What a recipe's values may not be together, on a device, or under a backend: refused before anything starts.

Nothing here imports torch or runs a user's code: signatures are read from source files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distmem.backends import BACKENDS
from distmem.batching import accumulation
from distmem.data import SOURCES
from distmem.errors import RecipeError
from distmem.hardware import Hardware, detect
from distmem.memory.optimizers import HALF_UNSAFE_EPS, OPTIMIZERS
from distmem.memory.precision import SMALLEST_HALF, SUPPORTED, choose
from distmem.models import MODELS
from distmem.recipe.load import Loaded
from distmem.recipe.schema import Optim, Recipe
from distmem.recipe.signature import find_module, fits, public_names, read_signature
from distmem.recipe.yamlfile import KeyPath
from distmem.units import did_you_mean

LOSSES = ("cross_entropy", "nll", "mse", "bce")
METRICS = ("accuracy", "top5", "mae")


@dataclass(frozen=True)
class Fault:
    """path: the key at fault."""

    path: KeyPath
    cause: str
    remedy: str | None = None


Check = Callable[[Recipe, Hardware], Iterator[Fault]]


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
        raise RecipeError.of(faults)
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


def _length(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    train = recipe.train
    if train.epochs is None and train.steps is None:
        yield Fault(("train",), "says neither epochs nor steps", "add train.epochs: 10")
    if train.epochs is not None and train.steps is not None:
        yield Fault(("train", "steps"), "epochs and steps are both given", "keep one of the two")


def _batch(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
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


def _precision(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    precision, device = recipe.train.precision, recipe.launch.device
    if precision not in SUPPORTED[device]:
        yield Fault(
            ("train", "precision"),
            f"{precision} does not work on {device}",
            f"on {device}: {', '.join(SUPPORTED[device])}",
        )
    if precision == "16-true":
        for path, optim in _optimizers(recipe):
            eps = optim.args.get("eps", 1e-8)
            if optim.name.lower() in HALF_UNSAFE_EPS and isinstance(eps, float) and eps < SMALLEST_HALF:
                yield Fault(
                    (*path, "args"),
                    f"eps {eps} of {optim.name} is zero in float16, so 0/0 would follow in the first step",
                    "eps: 1e-4, or precision 16-mixed or bf16-true",
                )


def _device(recipe: Recipe, hardware: Hardware) -> Iterator[Fault]:
    device, procs = recipe.launch.device, recipe.launch.procs_per_node
    have = ["cpu", *(["cuda"] if hardware.cuda_devices else []), *(["mps"] if hardware.mps else [])]
    if device not in have:
        yield Fault(("launch", "device"), f"this machine has no {device}", f"one of {', '.join(have)}, or auto")
    elif device == "cuda" and isinstance(procs, int) and procs > hardware.cuda_devices:
        yield Fault(
            ("launch", "procs_per_node"),
            f"{procs} processes and {hardware.cuda_devices} CUDA devices: each process needs its own",
            f"at most {hardware.cuda_devices}",
        )
    elif device == "mps" and procs != 1:
        yield Fault(("launch", "procs_per_node"), f"{procs} processes: mps has one device", "procs_per_node: 1")


def _launch(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    launch = recipe.launch
    if launch.backend not in BACKENDS:
        yield _not_yet(("launch", "backend"), launch.backend, BACKENDS)
        return
    able = BACKENDS[launch.backend]
    if launch.launcher not in able.launchers:
        yield _not_yet(("launch", "launcher"), launch.launcher, able.launchers, launch.backend)
    if launch.launcher == "local" and world_size(recipe) > 1:
        yield Fault(
            ("launch", "launcher"),
            f"local is one process, and {world_size(recipe)} are asked for",
            "launcher: torchrun, or procs_per_node: 1",
        )
    if launch.nodes > 1:
        yield Fault(
            ("launch", "nodes"),
            f"{launch.nodes} nodes: distmem starts the processes of one node",
            "start `torchrun --nnodes ... -m distmem.worker RECIPE` on each node",
        )
    if launch.restarts and launch.launcher == "local":
        yield Fault(("launch", "restarts"), "only torchrun restarts failed processes", "launcher: torchrun")


def _levers(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    memory, backend = recipe.memory, recipe.launch.backend
    able = BACKENDS.get(backend)
    if able is None:
        return
    choice = memory.activation_checkpointing
    kind = choice if isinstance(choice, str) else "blocks"
    if kind not in able.activation_checkpointing:
        yield _not_yet(("memory", "activation_checkpointing"), kind, able.activation_checkpointing, backend)
    if memory.shard not in able.shard:
        yield _not_yet(("memory", "shard"), memory.shard, able.shard, backend)
    if memory.offload not in able.offload:
        yield _not_yet(("memory", "offload"), memory.offload, able.offload, backend)
    if memory.budget is not None:
        yield Fault(
            ("memory", "budget"),
            "choosing levers for a budget needs the planner, which is not here yet",
            "budget: null",
        )
    if memory.compile:
        yield _not_yet(("memory", "compile"), "true", ("false",), backend)
    if recipe.train.averaging is not None:
        yield _not_yet(("train", "averaging"), "averaging", ("null",), backend)
    if recipe.optim.lr == "auto":
        yield Fault(("optim", "lr"), "the learning-rate finder is not here yet", "a number, such as 0.001")
    for index, name in enumerate(recipe.log):
        if name != "jsonl":
            yield _not_yet(("log", index), name, ("jsonl",))


def _names(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    yield from _callable(("model", "name"), "model", recipe.model.name, MODELS, recipe.model.args, ("model", "args"))
    yield from _callable(("data", "name"), "data source", recipe.data.name, SOURCES, recipe.data.args, ("data", "args"))
    if isinstance(recipe.data.val, dict):
        path: KeyPath = ("data", "val")
        yield from _callable(
            (*path, "name"), "data source", recipe.data.val["name"], SOURCES, recipe.data.val["args"], (*path, "args")
        )
    for where, optim in _optimizers(recipe):
        args = {"params": [], "lr": 0.1, **optim.args}
        yield from _callable((*where, "name"), "optimizer", optim.name, OPTIMIZERS, args, (*where, "args"))
    yield from _callable(("loss",), "loss", recipe.loss, dict.fromkeys(LOSSES))
    for index, name in enumerate(recipe.metrics):
        yield from _callable(("metrics", index), "metric", name, dict.fromkeys(METRICS))


def _callable(
    path: KeyPath,
    kind: str,
    name: str,
    registry: Mapping[str, str | None],
    args: Mapping[str, Any] | None = None,
    args_path: KeyPath = (),
) -> Iterator[Fault]:
    """Faults of a registry name or import path, and of the arguments that it would be called with."""
    known = {key.lower(): value for key, value in registry.items()}
    target = known.get(name.lower(), name) if kind == "optimizer" else registry.get(name, name)
    if target is None:
        return
    module, colon, attribute = target.partition(":")
    if not colon or not module or not attribute:
        yield Fault(
            path,
            f'there is no {kind} "{name}".{did_you_mean(name, registry)}',
            f'one of {", ".join(registry)}, or an import path such as "my_pkg.my_module:name"',
        )
        return
    file = find_module(module)
    if file is None:
        yield Fault(
            path,
            f'there is no module "{module}" here or on PYTHONPATH',
            f"start in the folder that holds {module.partition('.')[0]}, or put that folder on PYTHONPATH",
        )
        return
    names = public_names(file)
    if names and attribute.partition(".")[0] not in names:
        yield Fault(path, f'{file} has no "{attribute}".{did_you_mean(attribute, names)}')
        return
    signature = read_signature(file, attribute) if args is not None else None
    if signature is None or args is None:
        return
    for key, value in args.items():
        if key not in signature.parameters:
            if not signature.open:
                allowed = [name for name in signature.parameters if name not in ("params", "lr")]
                yield Fault(
                    (*args_path, key),
                    f'{kind} "{name}" has no argument "{key}".{did_you_mean(key, allowed)}',
                    f"it takes {', '.join(allowed) or 'no arguments'}",
                )
        elif not fits(value, annotation := signature.parameters[key][0]):
            yield Fault((*args_path, key), f"{value!r} is not {annotation}")
    missing = [key for key in signature.required() if key not in args]
    if missing and kind == "data source":
        yield Fault(args_path, f'data source "{name}" needs {", ".join(missing)}', f"add {missing[0]}: ... here")


def _files(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    """Paths that a recipe names must be there before anything starts."""
    if recipe.model.init is not None and not Path(recipe.model.init).exists():
        yield Fault(("model", "init"), f"there is no file or folder {recipe.model.init}")
    for path, source in (("data", "args"), recipe.data), (("data", "val", "args"), recipe.data.val):
        args = source["args"] if isinstance(source, dict) else getattr(source, "args", {})
        file = args.get("path")
        if isinstance(file, str) and not Path(file).exists():
            yield Fault((*path, "path"), f"there is no file {file}", f"paths count from {Path.cwd()}")


def _best(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    known = ["val_loss", *(f"val_{name.partition(':')[2] or name}" for name in recipe.metrics)]
    if recipe.checkpoint.best is not None and recipe.checkpoint.best not in known:
        best = recipe.checkpoint.best
        yield Fault(
            ("checkpoint", "best"),
            f'"{best}" is not measured.{did_you_mean(best, known)}',
            f"one of {', '.join(known)}",
        )


def _stages(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    able = BACKENDS.get(recipe.launch.backend)
    shared = False
    for index, stage in enumerate(recipe.after):
        if able is not None and stage.name not in able.stages:
            yield _not_yet(("after", index), stage.name, able.stages, recipe.launch.backend)
        if shared and stage.name == "retrain":
            yield Fault(
                ("after", index), "training after share would move weights off their shared values", "put share last"
            )
        shared = shared or stage.name == "share"


CHECKS: tuple[Check, ...] = (
    _length, _batch, _device, _precision, _launch, _levers, _names, _files, _best, _stages,
)  # fmt: skip


def world_size(recipe: Recipe) -> int:
    """Processes over all nodes."""
    procs = recipe.launch.procs_per_node
    return (procs if isinstance(procs, int) else 1) * recipe.launch.nodes


def _optimizers(recipe: Recipe) -> Iterator[tuple[KeyPath, Optim]]:
    yield ("optim",), recipe.optim
    for index, stage in enumerate(recipe.after):
        settings = stage.settings
        gradual = getattr(settings, "gradual", None)
        for path, optim in (
            (("optim",), getattr(settings, "optim", None)),
            (("gradual", "optim"), getattr(gradual, "optim", None)),
        ):
            if optim is not None:
                yield ("after", index, stage.name, *path), optim


def _not_yet(path: KeyPath, value: str, works: Any, backend: str | None = None) -> Fault:
    under = f" with backend {backend}" if backend else ""
    return Fault(path, f"{value} does not work yet{under}", f"what works: {', '.join(works)}")
