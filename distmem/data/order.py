"""The order of samples: a function of (seed, epoch, position), with nothing to save and nothing to hold.

A keyed permutation (balanced Feistel network, Luby and Rackoff 1988) over the smallest even power of two that
holds all samples; images beyond the last sample are sent through it again (cycle walking, Black and Rogaway
2002), which leaves a permutation of exactly the samples. Any rank of any world finds its ids without the others.
"""

from __future__ import annotations

import numpy as np

from distmem.seeding import mix

ROUNDS = 6
BLOCK = 1 << 16  # positions computed at once: numpy's cost per call is spread over many


class Order:
    """The permutation of `samples` ids in one epoch; not shuffled when seed is None."""

    def __init__(self, samples: int, seed: int | None, epoch: int):
        self.samples, self.shuffled = samples, seed is not None
        self.half = max(1, (max(2, samples) - 1).bit_length() + 1 >> 1)  # bits of one half of the Feistel network
        self.keys = [np.uint64(mix(seed or 0, epoch, round_)) for round_ in range(ROUNDS)]
        self._block, self._ids = -1, np.empty(0, dtype=np.int64)

    def take(self, start: int, stop: int) -> np.ndarray:
        """Ids at positions start to stop (exclusive), int64."""
        if not self.shuffled:
            return np.arange(start, stop)
        parts = []
        while start < stop:
            block, offset = divmod(start, BLOCK)
            if block != self._block:
                last = min(self.samples, (block + 1) * BLOCK)
                self._block, self._ids = block, self._permute(np.arange(block * BLOCK, last, dtype=np.uint64))
            end = min(stop, (block + 1) * BLOCK)
            parts.append(self._ids[offset : offset + end - start])
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, dtype=np.int64)])

    def _permute(self, values: np.ndarray) -> np.ndarray:
        values = self._feistel(values)
        outside = np.flatnonzero(values >= self.samples)
        while len(outside):
            values[outside] = self._feistel(values[outside])
            outside = outside[values[outside] >= self.samples]
        return values.astype(np.int64)

    def _feistel(self, values: np.ndarray) -> np.ndarray:
        shift, mask = np.uint64(self.half), np.uint64((1 << self.half) - 1)
        left, right = values >> shift, values & mask
        for key in self.keys:
            mixed = (right + key) * np.uint64(0xBF58476D1CE4E5B9)
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ (mixed >> np.uint64(64 - self.half))
        return (left << shift) | right
