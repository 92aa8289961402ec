"""Backends by name, and what each can do. The check of a recipe and the table in the README both read this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distmem.backends.base import Backend


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do; a lever that is not listed is refused when the recipe is checked."""

    path: str
    launchers: tuple[str, ...]
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    activation_checkpointing: tuple[str, ...]
    shard: tuple[str, ...] = ("none",)
    offload: tuple[str, ...] = ("none",)
    stages: tuple[str, ...] = ()


BACKENDS = {
    "ddp": Capabilities(
        path="distmem.backends.ddp:DDP",
        launchers=("local", "torchrun"),
        devices=("cpu", "cuda", "mps"),
        precisions=("16-mixed", "bf16-mixed", "16-true", "bf16-true", "32-true", "64-true"),
        activation_checkpointing=("none", "full", "sqrt", "blocks"),
        stages=("prune", "retrain", "share"),
    ),
}


def load_backend(name: str) -> type[Backend]:
    """The class of a backend; its libraries are imported here."""
    from distmem import imports
    from distmem.errors import LaunchError

    paths = {known: capabilities.path for known, capabilities in BACKENDS.items()}
    return imports.find("backend", name, paths, LaunchError)  # type: ignore[return-value]
