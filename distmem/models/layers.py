"""Layers with their activation inside, so that one layer is one block and keeps its plain parameter names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LinearReLU(nn.Linear):
    """relu(x W' + b). x: (n, ...), flattened from the second axis on, to (n, in_features)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x.flatten(1)))


class ConvReLU(nn.Conv2d):
    """relu of the convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class ConvPool(nn.Conv2d):
    """The convolution, then 2x2 max-pooling."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(super().forward(x), 2)
