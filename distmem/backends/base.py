"""What the engine asks of a backend, and nothing more."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from distmem.distributed import World


class Backend(Protocol):
    """One model on all ranks.

    After the last backward of a window every rank's gradients are the SUM over ranks, whatever the library
    does inside: the engine has already divided by the samples or tokens of the whole window.
    """

    model: nn.Module  # as the user built it: names of parameters, evaluation, export

    def __init__(self, model: nn.Module, world: World): ...

    def forward(self, x: Tensor) -> Tensor:
        """The training forward pass, through whatever wraps the model."""

    def accumulating(self) -> AbstractContextManager:
        """Inside, backward passes keep their gradients local: no synchronisation before the window's end."""

    def backward(self, loss: Tensor) -> None:
        """Backward pass of this rank's part of the loss."""

    def gradient_norm(self) -> Tensor:
        """Euclidean norm of the whole gradient over all parameters and ranks; one number."""

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply all gradients by a factor that is the same on every rank."""

    def clamp_gradients(self, limit: float) -> None:
        """Limit each value of the gradient to [-limit, limit]."""

    def state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """Parameters, buffers and optimizer state by canonical name: what this rank writes."""

    def load_state(self, state: dict[str, Tensor], optimizer: Optimizer) -> None:
        """Put a canonical state back, from any backend and world size. Raises CheckpointError."""
