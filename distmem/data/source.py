"""A source of data, whoever wrote it, behind one face. docs/your-own-model-and-data.md tells what a source may have."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from distmem import imports
from distmem.data import SOURCES
from distmem.data.split import Columns, Items, Split, Windows
from distmem.errors import DataError

Prepare = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Source:
    """One source with its arguments. Raises DataError for an unknown name, argument or a failing constructor."""

    def __init__(self, name: str, args: Mapping[str, Any]):
        self.name, self.args = name, dict(args)
        self.restored: dict[str, Any] = {}  # the state it took over, if any
        self.target = imports.find("data source", name, SOURCES, DataError)
        made = imports.call("data source", name, self.target, self.args, DataError)
        # a plain function has read the data already; anything else is asked for it when it is needed
        self._read = made if isinstance(made, Mapping) else None
        self.inner: Any = made
        if self._read is None and not callable(getattr(made, "splits", None)):
            raise DataError(
                f'data source "{name}" made a {type(made).__name__}',
                remedy='a class with a method splits(), or a function that returns {"train": (x, y), ...}',
            )

    def splits(self) -> dict[str, Split]:
        """Reads the data. Raises DataError."""
        found = self._read if self._read is not None else self._call("splits")
        if not isinstance(found, Mapping) or not found:
            raise DataError(f'data source "{self.name}" gave no splits', remedy='return {"train": (x, y), ...}')
        return {str(key): self._as_split(str(key), value) for key, value in found.items()}

    def files(self) -> list[Path] | None:
        """The files it is made from; [] if its arguments alone decide; None if it does not say."""
        return [Path(path) for path in self._call("files")] if self.has("files") else None

    def state(self) -> dict[str, Any]:
        """What splits() learned besides the tensors (JSON): labels, categories, characters."""
        return self._call("state") if self.has("state") else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over a state, instead of learning it."""
        if state:
            self.restored = dict(state)
            self._call("restore", self.restored)

    def follows(self, other: Source) -> bool:
        """Whether it can take over the other's state: both are of one kind."""
        own, theirs = getattr(type(self.inner), "restore", None), getattr(type(other.inner), "restore", None)
        return own is not None and own is theirs

    def fit(self, train: Split) -> None:
        """Shows it the training samples, if it asks for them and they are tensors."""
        if self.has("fit") and not isinstance(train, (Windows, Items)):
            x, y = (train.x, train.y) if isinstance(train, Columns) else train.gather(torch.arange(len(train)))
            self._call("fit", x, y)

    def hints(self, splits: Mapping[str, Split]) -> dict[str, int]:
        """What a model wants to know: its own, else derived from the tensors."""
        return dict(self._call("hints")) if self.has("hints") else _derived_hints(splits)

    def prepare(self, splits: Mapping[str, Split]) -> Prepare:
        if self.has("prepare"):
            return self.inner.prepare
        return widen if any(isinstance(split, Windows) for split in splits.values()) else widen_labels

    def code(self) -> str:
        """Hash of the file that defines it: other code may read other data."""
        try:
            return hashlib.sha256(Path(inspect.getfile(self.target)).read_bytes()).hexdigest()
        except (OSError, TypeError):
            return ""

    def has(self, method: str) -> bool:
        return self._read is None and callable(getattr(self.inner, method, None))

    def _call(self, method: str, *args: Any) -> Any:
        try:
            return getattr(self.inner, method)(*args)
        except DataError:
            raise
        except Exception as fault:
            raise DataError(f'data source "{self.name}": {method}() failed: {type(fault).__name__}: {fault}') from fault

    def _as_split(self, key: str, value: Any) -> Split:
        try:
            if isinstance(value, (Columns, Windows, Items)):
                return value
            if isinstance(value, Dataset):
                return Items(value)
            if isinstance(value, (tuple, list)) and len(value) == 2:
                return Columns(*value)
        except DataError as fault:
            raise DataError(f'data source "{self.name}", split "{key}": {fault.cause}', remedy=fault.remedy) from fault
        raise DataError(
            f'data source "{self.name}": the split "{key}" is a {type(value).__name__}',
            remedy="a pair (x, y), a torch Dataset with a length, or Windows(tokens, length)",
        )


def widen_labels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x as it is; integer y to int64, as losses want class numbers."""
    return x, y if y.is_floating_point() else y.long()


def widen(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens to int64."""
    return x.long(), y.long()


def _derived_hints(splits: Mapping[str, Split]) -> dict[str, int]:
    hints: dict[str, int] = {}
    for split in splits.values():
        if isinstance(split, Windows):
            hints["context"] = split.length
            hints["vocab_size"] = max(hints.get("vocab_size", 0), _largest(split.tokens) + 1)
        elif isinstance(split, Columns):
            hints["features"] = split.x[0].numel()
            if split.x.ndim == 4:
                hints["channels"] = split.x.shape[1]
            if split.y.ndim == 1:
                own = 1 if split.y.is_floating_point() else _largest(split.y) + 1
                hints["classes"] = max(hints.get("classes", 0), own)
    return hints


def _largest(values: Tensor) -> int:
    # uint16 and uint32 tensors have no max()
    return int(values.numpy().max())
