"""What a split is made of: len(split) samples, and whole batches gathered by sample id.

gather(ids) takes int64 ids (n,) in [0, len) on the CPU and returns contiguous CPU tensors (x, y) with first axis n.
Raw dtypes are kept: widening happens on the device, after the copy.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from distmem.errors import DataError


class Split(Protocol):
    def __len__(self) -> int: ...

    def gather(self, ids: Tensor) -> tuple[Tensor, Tensor]: ...


class Columns:
    """Two tensors, or numpy arrays, with samples along the first axis: x (n, ...) and y (n, ...)."""

    def __init__(self, x: Tensor | np.ndarray, y: Tensor | np.ndarray):
        self.x, self.y = as_tensor(x, "x"), as_tensor(y, "y")
        if self.x.ndim == 0 or self.y.ndim == 0 or len(self.x) != len(self.y):
            raise DataError(f"x has shape {tuple(self.x.shape)} and y {tuple(self.y.shape)}: the first axes differ")
        if len(self.x) == 0:
            raise DataError("a split has no samples")

    def __len__(self) -> int:
        return len(self.x)

    def gather(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.x.index_select(0, ids), self.y.index_select(0, ids)


class Windows:
    """Samples cut from one long sequence: sample i is tokens[i*length:(i+1)*length], its target the same one later.

    tokens: (m,) integers, m > length, of any dtype. Tokens after the last whole window are not used.
    """

    def __init__(self, tokens: Tensor | np.ndarray, length: int):
        self.tokens, self.length = as_tensor(tokens, "tokens"), length
        if self.tokens.ndim != 1 or self.tokens.is_floating_point():
            raise DataError(
                f"tokens are {self.tokens.dtype} of shape {tuple(self.tokens.shape)}: give integers, one axis"
            )
        if length < 1 or len(self.tokens) <= length:
            raise DataError(
                f"{len(self.tokens)} tokens hold no window of {length} and its next token",
                remedy="a shorter context, a longer text, or another test fraction",
            )
        count = (len(self.tokens) - 1) // length
        self._x = self.tokens[: count * length].view(count, length)
        self._y = self.tokens[1 : count * length + 1].view(count, length)

    def __len__(self) -> int:
        return len(self._x)

    def gather(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self._x.index_select(0, ids), self._y.index_select(0, ids)


class Items:
    """A torch map-style dataset whose items are pairs (x, y) that torch's default_collate can stack."""

    def __init__(self, dataset: Dataset[Any]):
        if not isinstance(dataset, Sized) or len(dataset) == 0:
            raise DataError(f"the dataset {type(dataset).__name__} has no length or no samples")
        self.dataset, self._length = dataset, len(dataset)

    def __len__(self) -> int:
        return self._length

    def gather(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        batch = default_collate([self.dataset[i] for i in ids.tolist() or [0]])
        if not isinstance(batch, (list, tuple)) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
            raise DataError(f"an item of {type(self.dataset).__name__} is not a pair (x, y) of tensors or numbers")
        x, y = batch
        return x[: len(ids)].contiguous(), y[: len(ids)].contiguous()


class Subset:
    """Some samples of a split, in the order of ids (n,) int64."""

    def __init__(self, split: Split, ids: Tensor):
        if len(ids) == 0:
            raise DataError("a split has no samples")
        self.split, self.ids = split, ids

    def __len__(self) -> int:
        return len(self.ids)

    def gather(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.split.gather(self.ids.index_select(0, ids))


def as_tensor(values: Tensor | np.ndarray, name: str) -> Tensor:
    """A contiguous CPU tensor without a graph, sharing memory where it can. Raises DataError."""
    if isinstance(values, Tensor):
        return values.detach().cpu().contiguous()
    if not isinstance(values, np.ndarray):
        raise DataError(f"{name} is a {type(values).__name__}", remedy="give a numpy array or a torch tensor")
    array = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False)).reshape(values.shape)
    try:
        # a read-only array (a memory map) cannot become a tensor without a copy
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except TypeError as fault:
        raise DataError(f"{name} has dtype {values.dtype}, which torch does not know") from fault


def token_dtype(vocab_size: int) -> type[np.unsignedinteger[Any]] | type[np.int32]:
    """The smallest dtype that holds the ids of a vocabulary."""
    return np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.int32


def split_bytes(split: Split) -> int | None:
    """Bytes of the tensors behind a split; None for a dataset that keeps its own."""
    if isinstance(split, Subset):
        return split_bytes(split.split)
    if isinstance(split, Windows):
        return split.tokens.untyped_storage().nbytes()
    if isinstance(split, Columns):
        return split.x.untyped_storage().nbytes() + split.y.untyped_storage().nbytes()
    return None
