"""The model and the data of equality.py, named by import path in its recipes."""

from __future__ import annotations

import torch
from torch import Tensor

from distmem.models.mnist_cnn import MnistCnn


class CnnWithoutDropout(MnistCnn):
    """The CNN for MNIST; its two blocks with dropout stay as in evaluation."""

    def __init__(self, classes: int = 10, channels: int = 1):
        super().__init__(classes, channels)
        self.train()

    def train(self, mode: bool = True) -> CnnWithoutDropout:
        super().train(mode)
        self.conv2.training = self.fc1.training = False
        return self


def images(root: str | None = None, samples: int = 293) -> dict[str, tuple[Tensor, Tensor]]:
    """The first images of MNIST in root, or of scikit-learn's digits enlarged to 28x28: x (n, 1, 28, 28) float32."""
    if root is not None:
        from distmem.data.mnist import Mnist

        source = Mnist(root)
        train, test = source.splits()["train"], source.splits()["test"]
        return {
            "train": source.prepare(train[0][:samples], train[1][:samples]),
            "test": source.prepare(test[0][:200], test[1][:200]),
        }
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    x = torch.nn.functional.pad(x.repeat_interleave(3, 2).repeat_interleave(3, 3), (2, 2, 2, 2))
    y = torch.tensor(digits.target)
    return {"train": (x[:samples], y[:samples]), "test": (x[-200:], y[-200:])}
