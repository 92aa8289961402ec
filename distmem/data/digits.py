"""scikit-learn's 1,797 handwritten digits of 8x8 pixels. They come with the package: no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Digits:
    """x (n, 8, 8) uint8 in 0..16, y (n,) uint8; prepared: (n, 1, 8, 8) float32 in 0..1, int64.

    test: the fraction of each class that is kept for testing, always the same samples.
    """

    def __init__(self, test: float = 0.2):
        self.test = test

    def splits(self) -> dict[str, Any]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        x, y = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
        train_ids, test_ids = train_test_split(np.arange(len(y)), test_size=self.test, stratify=y, random_state=0)
        return {"train": (x[train_ids], y[train_ids]), "test": (x[test_ids], y[test_ids])}

    def files(self) -> list[Path]:
        return []

    def prepare(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x.unsqueeze(1).to(torch.float32) / 16, y.long()

    def hints(self) -> dict[str, int]:
        return {"features": 64, "classes": 10, "channels": 1}
