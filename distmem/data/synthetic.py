"""Data made from a seed, for benchmarks and trials. A random teacher makes the targets: there is something to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distmem.data.split import Windows, token_dtype
from distmem.errors import DataError

FOLLOWERS = 4  # of each token; the best loss on tokens is ln 4 = 1.386


class Synthetic:
    """kind: classification, images or tokens. samples: train and test together.

    classification: x (n, features) float32 ~ N(0, 1), y the largest output of a random linear map;
    images: x (n, channels, size, size) uint8, a random pattern of its class under noise;
    tokens: windows of context tokens, each drawn evenly from the four followers of the one before.
    """

    def __init__(
        self,
        kind: Literal["classification", "images", "tokens"] = "classification",
        samples: int = 10000,
        features: int = 32,
        size: int = 32,
        channels: int = 3,
        classes: int = 10,
        vocab_size: int = 256,
        context: int = 128,
        seed: int = 0,
        test: float = 0.2,
    ):
        if kind not in ("classification", "images", "tokens"):
            raise DataError(f'kind is "{kind}"', remedy="classification, images or tokens")
        self.kind, self.samples, self.seed = kind, samples, seed
        self.features, self.size, self.channels, self.classes = features, size, channels, classes
        self.vocab_size, self.context = vocab_size, context
        self.held = round(samples * test)
        if not 0 <= self.held < samples:
            raise DataError(f"test: {test} of {samples} samples leaves no training samples")

    def splits(self) -> dict[str, Any]:
        random = np.random.default_rng(self.seed)
        if self.kind == "tokens":
            return self._token_splits(random)
        x, y = self._images(random) if self.kind == "images" else self._table(random)
        cut = self.samples - self.held
        return {"train": (x[:cut], y[:cut])} | ({"test": (x[cut:], y[cut:])} if self.held else {})

    def files(self) -> list[Path]:
        return []

    def prepare(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "images":
            x = x.to(torch.float32) / 127.5 - 1
        return (x.long() if self.kind == "tokens" else x), y.long()

    def hints(self) -> dict[str, int]:
        if self.kind == "tokens":
            return {"vocab_size": self.vocab_size, "context": self.context}
        if self.kind == "images":
            features = self.channels * self.size * self.size
            return {"features": features, "classes": self.classes, "channels": self.channels}
        return {"features": self.features, "classes": self.classes}

    def _table(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        teacher = random.standard_normal((self.features, self.classes), np.float32)
        x = random.standard_normal((self.samples, self.features), np.float32)
        return x, (x @ teacher).argmax(axis=1)

    def _images(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        shape = (self.channels, self.size, self.size)
        patterns = random.integers(0, 256, (self.classes, *shape), np.uint8)
        y = random.integers(0, self.classes, self.samples)
        x = random.integers(0, 256, (self.samples, *shape), np.uint8)
        # half noise, half pattern, without leaving bytes: the arrays of a benchmark are large
        np.floor_divide(x, 2, out=x)
        for label in range(self.classes):
            x[y == label] += patterns[label] // 2
        return x, y

    def _token_splits(self, random: np.random.Generator) -> dict[str, Any]:
        followers = random.integers(0, self.vocab_size, (self.vocab_size, FOLLOWERS))
        tokens = np.empty((self.samples, self.context), token_dtype(self.vocab_size))
        tokens[:, 0] = random.integers(0, self.vocab_size, self.samples)
        for position in range(1, self.context):
            choice = random.integers(0, FOLLOWERS, self.samples)
            tokens[:, position] = followers[tokens[:, position - 1], choice]
        cut = self.samples - self.held
        parts = {"train": tokens[:cut]} | ({"test": tokens[cut:]} if self.held else {})
        # one more token, so that the last window has its next one
        return {key: Windows(np.append(part, part[0, 0]), self.context) for key, part in parts.items()}
