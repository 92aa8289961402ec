"""What the device, the launcher and the backend can do."""

from __future__ import annotations

from collections.abc import Iterator

from distmem.backends import BACKENDS
from distmem.checks.fault import Fault, not_yet, optimizers, world_size
from distmem.hardware import Hardware
from distmem.recipe.schema import Recipe, Slurm


def device(recipe: Recipe, hardware: Hardware) -> Iterator[Fault]:
    device, procs = recipe.launch.device, recipe.launch.procs_per_node
    have = ["cpu", *(["cuda"] if hardware.cuda_devices else []), *(["mps"] if hardware.mps else [])]
    if device not in have:
        yield Fault(("launch", "device"), f"this machine has no {device}", f"one of {', '.join(have)}, auto")
    elif device == "cuda" and isinstance(procs, int) and procs > hardware.cuda_devices:
        yield Fault(
            ("launch", "procs_per_node"),
            f"{procs} processes and {hardware.cuda_devices} CUDA devices: each process needs its own",
            f"at most {hardware.cuda_devices}",
        )
    elif device == "mps" and procs != 1:
        yield Fault(("launch", "procs_per_node"), f"{procs} processes: mps has one device", "procs_per_node: 1")


def launch(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    """Backend, launcher, number of processes and nodes."""
    launch = recipe.launch
    if launch.backend not in BACKENDS:
        yield not_yet(("launch", "backend"), launch.backend, tuple(BACKENDS))
        return
    able = BACKENDS[launch.backend]
    if launch.device not in able.devices:
        yield not_yet(("launch", "device"), launch.device, able.devices, launch.backend)
    if launch.launcher not in able.launchers:
        yield not_yet(("launch", "launcher"), launch.launcher, able.launchers, launch.backend)
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
            "nodes: 1, and start `torchrun --nnodes ... -m distmem.worker RECIPE` on each node",
        )
    if launch.slurm != Slurm() and launch.launcher != "slurm":
        yield Fault(("launch", "slurm"), f"only the launcher slurm reads this, not {launch.launcher}", "remove it")
    if launch.restarts and launch.launcher == "local":
        yield Fault(("launch", "restarts"), "only torchrun restarts failed processes", "launcher: torchrun")


def levers(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    """Levers that the backend does not have (yet)."""
    memory, backend = recipe.memory, recipe.launch.backend
    able = BACKENDS.get(backend)
    if able is None:
        return
    if recipe.train.precision not in able.precisions:
        yield not_yet(("train", "precision"), recipe.train.precision, able.precisions, backend)
    choice = memory.activation_checkpointing
    kind = choice if isinstance(choice, str) else "blocks"
    if kind not in able.activation_checkpointing:
        works = [{"blocks": "{blocks: 6}"}.get(name, name) for name in able.activation_checkpointing]
        yield not_yet(("memory", "activation_checkpointing"), kind, works, backend)
    if memory.shard not in able.shard:
        yield not_yet(("memory", "shard"), memory.shard, able.shard, backend)
    if memory.offload not in able.offload:
        yield not_yet(("memory", "offload"), memory.offload, able.offload, backend)
    if memory.budget is not None:
        yield Fault(
            ("memory", "budget"),
            "choosing levers for a budget does not work yet",
            "budget: null, and the levers themselves, such as activation_checkpointing: sqrt",
        )
    if memory.compile:
        yield not_yet(("memory", "compile"), "compiling", ("false",), backend)
    if recipe.train.averaging is not None:
        yield not_yet(("train", "averaging"), "averaging weights", ("null",), backend)
    for path, optim in optimizers(recipe):
        if optim.lr == "auto":
            yield Fault((*path, "lr"), "auto does not work yet", "a number, such as 0.001")
    for index, name in enumerate(recipe.log):
        if name != "jsonl":
            yield not_yet(("log", index), name, ("jsonl",))


def stages(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    able = BACKENDS.get(recipe.launch.backend)
    shared = False
    for index, stage in enumerate(recipe.after):
        if able is not None and stage.name not in able.stages:
            yield not_yet(("after", index), stage.name, able.stages, recipe.launch.backend)
        trains = stage.name == "retrain" or getattr(stage.settings, "gradual", None)
        if shared and trains:
            cause = f"{stage.name} after share would move weights off their shared values"
            yield Fault(("after", index), cause, "put share last")
        shared = shared or stage.name == "share"
