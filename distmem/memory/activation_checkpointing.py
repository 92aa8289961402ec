"""Activation checkpointing: blocks keep their input and are run again in the backward pass (arXiv 1604.06174).

Memory falls from all activations to the kept inputs plus those of one unit; the price is at most one more
forward pass. The random state is restored for the second run, so dropout gives the same masks.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from distmem.errors import ModelError


def apply_activation_checkpointing(blocks: list[nn.Module], choice: str | dict[str, int]) -> list[int]:
    """Wrap the blocks that `choice` names, in place; gives the indices of the blocks that run again.

    choice: none; full (every block); sqrt (segments of about sqrt(n) neighbours, the last one kept);
    {"blocks": k} (the first k: the last is needed at once, so keeping it costs nothing).
    Raises ModelError when there are no such blocks.
    """
    if choice == "none":
        return []
    if not blocks:
        raise ModelError(
            "activation checkpointing needs blocks, and the model has none",
            remedy="give it a method blocks() that lists them, or set memory.activation_checkpointing: none",
        )
    if choice == "sqrt":
        return _segments(blocks)
    chosen = range(choice["blocks"] if isinstance(choice, dict) else len(blocks))
    if len(chosen) > len(blocks):
        raise ModelError(
            f"activation checkpointing asks for {len(chosen)} blocks, and the model has {len(blocks)}",
            remedy=f"set memory.activation_checkpointing to {{blocks: {len(blocks)}}} or less, or to full",
        )
    for index in chosen:
        _checkpoint_forward(blocks[index])
    return list(chosen)


def _checkpoint_forward(block: nn.Module) -> None:
    # The method of the instance is replaced, not the module: parameter names stay as they are.
    plain = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(plain, *args, use_reentrant=False, **kwargs) if block.training else plain(*args, **kwargs)

    block.forward = forward


def _segments(blocks: list[nn.Module]) -> list[int]:
    length = math.ceil(len(blocks) / max(1, round(math.sqrt(len(blocks)))))
    segments = [blocks[start : start + length] for start in range(0, len(blocks), length)]
    for segment in segments[:-1]:
        _Segment(segment)
    return list(range(len(blocks) - len(segments[-1])))


class _Segment:
    """Neighbouring blocks run as one checkpointed unit.

    The first block's call runs them all; the others, called next with what the first returned, hand it on.
    That is only right in a chain, so each hand-over checks that it got the very tensor.
    """

    def __init__(self, blocks: list[nn.Module]):
        self.blocks = blocks
        self.running = False
        self.result: Any = None
        self.plain = [block.forward for block in blocks]
        if len(blocks) == 1:
            _checkpoint_forward(blocks[0])
            return
        for position, block in enumerate(blocks):
            block.forward = self._forward(position)

    def _forward(self, position: int) -> Any:
        def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
            if self.running or not self.blocks[position].training:
                return self.plain[position](x, *args, **kwargs)
            if position == 0:
                self.result = checkpoint(self._run, x, *args, use_reentrant=False, **kwargs)
            elif x is not self.result:
                raise ModelError(
                    f"activation_checkpointing: sqrt needs blocks called one after the other, and block "
                    f"{type(self.blocks[position]).__name__} does not get what the block before it returned",
                    remedy="use full or {blocks: k}, or list only a chain in the model's blocks()",
                )
            result, last = self.result, position == len(self.blocks) - 1
            if last:
                self.result = None  # or the segment's output would live until the next step
            return result

        return forward

    def _run(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self.running = True
        try:
            for block in self.blocks:
                x = block(x, *args, **kwargs)
            return x
        finally:
            self.running = False
