"""What a check gives, and what several checks ask about a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distmem.recipe.schema import Optim, Recipe
from distmem.recipe.yamlfile import KeyPath


@dataclass(frozen=True)
class Fault:
    """path: the key at fault."""

    path: KeyPath
    cause: str
    remedy: str | None = None


def not_yet(path: KeyPath, value: str, works: Sequence[str], backend: str | None = None) -> Fault:
    """The fault of a value that a later version will know."""
    under = f" with backend {backend}" if backend else ""
    remedy = f"one of {', '.join(works)}" if len(works) > 1 else works[0]
    return Fault(path, f"{value} does not work yet{under}", remedy)


def world_size(recipe: Recipe) -> int:
    """Processes over all nodes."""
    procs = recipe.launch.procs_per_node
    return (procs if isinstance(procs, int) else 1) * recipe.launch.nodes


def optimizers(recipe: Recipe) -> Iterator[tuple[KeyPath, Optim]]:
    """Every optimizer of a recipe, of the stages too, with the path of its section."""
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
