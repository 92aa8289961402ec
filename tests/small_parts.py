"""Models, data and losses that tests name by import path."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DropoutNet(nn.Module):
    """A chain of blocks with dropout in each, so that activation checkpointing has random numbers to restore."""

    def __init__(self, features: int, classes: int, width: int = 24, depth: int = 6):
        super().__init__()
        self.first = nn.Linear(features, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)


class Block(nn.Module):
    rate = 0.3

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(F.gelu(self.linear(x)), self.rate, self.training)


class NoDropoutNet(DropoutNet):
    """The same weights, and nothing dropped."""

    def __init__(self, features: int, classes: int):
        super().__init__(features, classes)
        for layer in self.layers:
            layer.rate = 0.0


class Asleep(DropoutNet):
    """Comes in evaluation mode, as models with pretrained weights do."""

    def __init__(self, features: int, classes: int):
        super().__init__(features, classes)
        self.eval()


class NormNet(nn.Module):
    """Batch normalisation: statistics that each rank gathers for itself."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(features, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Tokens(nn.Module):
    """x (n, t) of token ids -> logits (n, t, vocabulary)."""

    def __init__(self, vocabulary: int = 11, width: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(x)))


def uneven_tokens(samples: int = 70, length: int = 9) -> dict[str, Any]:
    """Sequences of which some have no counted target at all, some few and some all."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 11, (samples, length), generator=generator)
    y = (x + 3) % 11
    counted = torch.randint(0, length + 1, (samples, 1), generator=generator)
    y[torch.arange(length) >= counted] = -100
    assert (counted == 0).any()
    assert (counted == length).any()
    return {"train": (x, y), "test": (x[:25], y[:25])}


def no_targets() -> dict[str, Any]:
    """Sequences in which no target counts."""
    x = torch.arange(40).view(10, 4) % 11
    return {"train": (x, torch.full_like(x, -100)), "test": (x, x)}


def few(samples: int = 65) -> dict[str, Any]:
    """The first digits: how many decides how short the last batch is. x (n, 64) in 0..1, y (n,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    return {"train": (x[:samples], y[:samples]), "test": (x[-201:], y[-201:])}


def steep() -> dict[str, Any]:
    """One large number to be learned per sample: gradients that overflow float16 at the first scale."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 8, generator=generator)
    y = 300 * x.sum(1) + 900
    return {"train": (x, y), "test": (x[:10], y[:10])}


def gradient_is_nan(output: Tensor, target: Tensor) -> Tensor:
    """Finite itself, with a gradient that is not: sqrt at zero."""
    return F.cross_entropy(output, target) + torch.sqrt(output.detach() * 0 + output * 0).sum()


def half_of_squares(output: Tensor, target: Tensor) -> Tensor:
    """One number for the batch, a mean, as most losses of one's own are."""
    return 0.5 * F.mse_loss(output, F.one_hot(target, 10).to(output.dtype))


def off_by(output: Tensor, target: Tensor) -> tuple[Tensor, int]:
    """A metric: how far off the class numbers are."""
    return (output.argmax(-1) - target).abs().sum(), len(target)


class NanLater(nn.Module):
    """Gives what is not a number from its call number `calls` (from 0) on."""

    def __init__(self, features: int, classes: int, calls: int):
        super().__init__()
        self.layer = nn.Linear(features, classes)
        self.left = calls

    def forward(self, x: Tensor) -> Tensor:
        self.left -= self.training
        return self.layer(x.flatten(1)) * (float("nan") if self.left < 0 else 1.0)


class Drift(torch.optim.SGD):
    """Moves every weight a little at each step, whatever its gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(1e-4)


class ChannelsLast(nn.Module):
    """Weights that are not row-major, and a scalar parameter."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3).to(memory_format=torch.channels_last)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.head = nn.Linear(4 * 36, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x) * self.scale).flatten(1))


class CountingSGD(torch.optim.SGD):
    """Keeps a number of its own in its groups, as Prodigy and schedule-free optimizers do."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group["lr"] /= group["k"]
        return super().step(closure)


class NoisyItems(torch.utils.data.Dataset):
    """Items that draw random numbers, as augmentations do."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((1, 8, 8), float(index)) / 50 + 0.1 * torch.randn(1, 8, 8), index % 10


def noisy() -> dict[str, Any]:
    return {"train": NoisyItems(), "test": NoisyItems()}


class Unused(DropoutNet):
    """One layer is never run."""

    def __init__(self, features: int, classes: int):
        super().__init__(features, classes)
        self.spare = nn.Linear(3, 3)


def numbers() -> dict[str, Any]:
    """A regression."""
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    return {"train": (x, x.sum(1)), "test": (x, x.sum(1))}
