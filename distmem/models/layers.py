"""Layers with their activation inside, so that one layer is one block and keeps its plain parameter names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LinearReLU(nn.Linear):
    """dropout(relu(x W' + b)). x: (n, ...), flattened from the second axis on, to (n, in_features)."""

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.0):
        super().__init__(in_features, out_features)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(super().forward(x.flatten(1)))
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class ConvReLU(nn.Conv2d):
    """relu of the convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class ConvPool(nn.Conv2d):
    """The convolution, then 2x2 max-pooling."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(super().forward(x), 2)
