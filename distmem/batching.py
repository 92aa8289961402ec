"""How a global batch is cut: the recipe fixes the batch, the world and the memory decide the pieces."""

from __future__ import annotations

from distmem.recipe.schema import Recipe


def rank_batch(recipe: Recipe, world_size: int) -> int:
    """The largest slice of a global batch that one rank gets, in samples."""
    return -(-recipe.train.batch_size // world_size)


def accumulation(recipe: Recipe, world_size: int, epoch: int) -> int:
    """Micro-batches of a global batch in an epoch: as the recipe says, or as many as memory.micro_batch asks for."""
    accumulate = recipe.train.accumulate
    if isinstance(accumulate, dict):
        return accumulate[max(start for start in accumulate if start <= epoch)]
    if isinstance(accumulate, int):
        return accumulate
    micro = recipe.memory.micro_batch
    return -(-rank_batch(recipe, world_size) // micro) if isinstance(micro, int) else 1


def micro_batch(recipe: Recipe, world_size: int, epoch: int = 0) -> int:
    """The largest micro-batch of a rank in an epoch, in samples."""
    return -(-rank_batch(recipe, world_size) // accumulation(recipe, world_size, epoch))
