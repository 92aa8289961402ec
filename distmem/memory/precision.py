"""Precisions: what the parameters, the arithmetic and the loss scaling are, and which device has them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Precision:
    """parameters: dtype of weights and batches; autocast: dtype inside torch.autocast, if any;
    scaled: dynamic loss scaling, because float16 gradients underflow below 6e-8 (arXiv 1710.03740)."""

    name: str
    parameters: str
    autocast: str | None = None
    scaled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return getattr(torch, self.parameters)

    @property
    def sums(self) -> torch.dtype:
        """Of sums of losses and metrics: what a half would round away, float32 keeps; float64 stays."""
        import torch

        return torch.promote_types(self.dtype, torch.float32)

    def context(self, device: str) -> AbstractContextManager:
        """The region in which forward passes and losses run."""
        if self.autocast is None:
            return nullcontext()
        import torch

        return torch.autocast(device, dtype=getattr(torch, self.autocast))

    def scaler(self, device: str, optimizer: torch.optim.Optimizer) -> torch.amp.GradScaler:
        """Loss scaling, or one that does nothing. A step with a gradient that overflowed is left out as a whole."""
        import torch

        if self.scaled and hasattr(optimizer, "_step_supports_amp_scaling"):
            # A fused kernel would leave the step out itself; that of SGD has by then given out a momentum that nothing
            # has filled (torch 2.13), and the scaler leaves the step out before the optimizer is called.
            optimizer._step_supports_amp_scaling = False
        return torch.amp.GradScaler(device, enabled=self.scaled)


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("32-true", "float32"),
        Precision("64-true", "float64"),
        Precision("16-true", "float16"),
        Precision("bf16-true", "bfloat16"),
        Precision("16-mixed", "float32", autocast="float16", scaled=True),
        Precision("bf16-mixed", "float32", autocast="bfloat16"),
    )
}

# mps has no float64, and loss scaling has not been tried there. cuda before Ampere emulates bfloat16 slowly.
SUPPORTED = {
    "cpu": tuple(PRECISIONS),
    "cuda": tuple(PRECISIONS),
    "mps": ("32-true", "16-true", "bf16-true", "bf16-mixed"),
}

SMALLEST_HALF = 2.0**-24  # of float16, subnormal: a smaller eps of an optimizer becomes zero, and 0/0 follows


def choose(device: str) -> str:
    """`auto`: bfloat16 where the hardware is fast at it, else float32."""
    return "bf16-mixed" if device == "cuda" else "32-true"
