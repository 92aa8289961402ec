"""A multi-layer perceptron for tables."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from distmem.models.layers import LinearReLU


class Mlp(nn.Module):
    """features-hidden...-classes with ReLU between. 50-30-20-3 (hidden: [30, 20]) has 2,213 parameters.

    hidden: widths between; null: [50, 30, 20].
    x: (n, ...), flattened to (n, features) -> (n, classes), or (n,) for classes = 1: one number per sample, as
    mse and bce want it.
    """

    def __init__(self, features: int = 50, hidden: list[int] | None = None, classes: int = 3):
        super().__init__()
        widths = [features, *([50, 30, 20] if hidden is None else hidden)]
        layers = [LinearReLU(before, after) for before, after in itertools.pairwise(widths)]
        self.layers = nn.ModuleList([*layers, nn.Linear(widths[-1], classes)])

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x)
        return x.squeeze(-1) if x.shape[-1] == 1 else x

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)
