"""A small net on scikit-learn's digits, trained once for the room."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session")
def digits():
    """Inputs [1797, 64] in 0..1 and labels [1797]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)


@pytest.fixture(scope="session")
def _trained(digits):
    torch.manual_seed(0)
    inputs, labels = digits
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.LayerNorm(48), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(200):
        part = torch.arange(step * 128, step * 128 + 128) % 1400
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[part]), labels[part]).backward()
        optimizer.step()
    return model


@pytest.fixture
def net(_trained):
    """A fresh copy of the trained net: 0.weight [48, 64], 2 is a LayerNorm, 3.weight [10, 48]."""
    return copy.deepcopy(_trained)
