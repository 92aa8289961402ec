"""The convolutional network of PyTorch's MNIST example, with 64 hidden units instead of 128."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from distmem.models.layers import ConvReLU, LinearReLU


class ConvPoolDropout(ConvReLU):
    """Convolution, ReLU, 2x2 max-pooling, dropout 0.25."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.max_pool2d(super().forward(x), 2), 0.25, self.training)


class LinearDropout(LinearReLU):
    """Linear, ReLU, dropout 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


class LinearLogSoftmax(nn.Linear):
    """Linear, then log-probabilities."""

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(super().forward(x), dim=1)


class MnistCnn(nn.Module):
    """conv 32 - conv 64 - pool - 9216-64-10; 609,354 parameters.

    x: (n, channels, 28, 28) -> log-probabilities (n, classes), so its loss is nll.
    """

    def __init__(self, classes: int = 10, channels: int = 1):
        super().__init__()
        self.conv1 = ConvReLU(channels, 32, 3)
        self.conv2 = ConvPoolDropout(32, 64, 3)
        self.fc1 = LinearDropout(64 * 12 * 12, 64)
        self.fc2 = LinearLogSoftmax(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks():
            x = block(x)
        return x

    def blocks(self) -> list[nn.Module]:
        return [self.conv1, self.conv2, self.fc1, self.fc2]
