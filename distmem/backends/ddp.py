"""Data parallel: every rank holds the whole model, DistributedDataParallel adds the gradients. Also one process."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from distmem.checkpoint.canonical import load_replicated, replicated_state
from distmem.distributed import World
from distmem.errors import ModelError


class DDP:
    """Replicated parameters; gradients are summed in buckets while the backward pass goes on (VLDB 2020, Li et al.)."""

    def __init__(self, model: nn.Module, world: World):
        self.model, self.world = model, world
        self.wrapped: nn.Module = model
        if world.size > 1:
            self.wrapped = self._replicated()

    def _replicated(self) -> DistributedDataParallel:
        device = self.world.device
        try:
            return DistributedDataParallel(
                self.model,
                device_ids=[device.index] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,  # no second copy of the gradients (pytorch #41954)
            )
        except RuntimeError as error:
            kinds = {f"{name}: {buffer.dtype}" for name, buffer in self.model.named_buffers()}
            raise ModelError(
                f"the model cannot be copied to {self.world.size} ranks: {error}",
                remedy=f"one process, or other buffers ({', '.join(sorted(kinds)) or 'it has none'})",
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.wrapped(x)
        except RuntimeError as error:
            if "finished reduction" not in str(error):
                raise
            raise ModelError(
                "some parameters got no gradient in the step before, which several ranks cannot add up",
                remedy="set requires_grad=False on what forward does not use, or run one process",
            ) from error

    def accumulating(self) -> AbstractContextManager:
        return self.wrapped.no_sync() if isinstance(self.wrapped, DistributedDataParallel) else nullcontext()

    def backward(self, loss: Tensor) -> None:
        if self.world.size > 1:
            loss = loss * self.world.size  # DDP averages over ranks; the engine wants the sum
        loss.backward()

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]

    def gradient_norm(self) -> Tensor:
        return torch.nn.utils.get_total_norm(self._gradients())

    def scale_gradients(self, factor: Tensor) -> None:
        torch._foreach_mul_(self._gradients(), factor)

    def clamp_gradients(self, limit: float) -> None:
        torch.nn.utils.clip_grad_value_(self.model.parameters(), limit)

    def state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        return replicated_state(self.model, optimizer) if self.world.first else {}

    def load_state(self, state: dict[str, Tensor], optimizer: Optimizer) -> None:
        load_replicated(state, self.model, optimizer)
