"""The two LeNets of the pruning literature: Han et al. 2015, "Learning both weights and connections" (table 1)."""

from __future__ import annotations

from torch import Tensor, nn

from distmem.models.layers import ConvPool, LinearReLU


class LeNet300100(nn.Module):
    """features-300-100-classes with ReLU; 266,610 parameters for MNIST. x: (n, ...) -> logits (n, classes).

    dropout: of the two hidden layers; the literature's network has none.
    """

    def __init__(self, features: int = 784, classes: int = 10, dropout: float = 0.0):
        super().__init__()
        self.fc1 = LinearReLU(features, 300, dropout)
        self.fc2 = LinearReLU(300, 100, dropout)
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks():
            x = block(x)
        return x

    def blocks(self) -> list[nn.Module]:
        return [self.fc1, self.fc2, self.fc3]


class LeNet5(nn.Module):
    """Caffe's LeNet-5 (no ReLU after the convolutions); 431,080 parameters.

    x: (n, channels, 28, 28) -> logits (n, classes).
    """

    def __init__(self, classes: int = 10, channels: int = 1):
        super().__init__()
        self.conv1 = ConvPool(channels, 20, 5)
        self.conv2 = ConvPool(20, 50, 5)
        self.fc1 = LinearReLU(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks():
            x = block(x)
        return x

    def blocks(self) -> list[nn.Module]:
        return [self.conv1, self.conv2, self.fc1, self.fc2]
