"""From the data part of a recipe to splits that a loader can gather from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distmem.data import store
from distmem.data.source import Prepare, Source
from distmem.data.split import Columns, Split, Subset, Windows
from distmem.errors import DataError
from distmem.units import did_you_mean


@dataclass
class Bundle:
    """The data of a run.

    test: the source's own test split, if validation was held out of train; prepare: turns a gathered batch, already
    on the device, into what the model and the loss take; hints: features, classes, channels, vocab_size, context;
    shared_file: where train is mapped from, None if each process has its own copy.
    """

    train: Split
    val: Split
    test: Split | None
    prepare: Prepare
    hints: dict[str, int]
    shared_file: Path | None
    source: Source


def load(
    name: str,
    args: Mapping[str, Any],
    *,
    val: str | float | Mapping[str, Any],
    seed: int,
    shared: bool,
    cache: Path,
) -> Bundle:
    """Reads a source.

    name: a key of SOURCES or an import path; val: a split's name, a fraction of train in (0, 1) held out by seed, or
    {"name", "args"} of another source, whose train or only split it is; shared: one copy per node, in cache/store.
    The result is the same at any world size. Raises DataError.
    """
    source = Source(name, args)
    stored = _read(source, shared, cache)
    splits = stored.splits
    train, test = _named(splits, "train", name), None
    if isinstance(val, Mapping):
        validation = _other(source, stored, val, shared, cache)
    elif isinstance(val, str):
        validation = _named(splits, val, name)
    else:
        train, validation = hold_out(train, val, seed)
        test = splits.get("test")
    source.fit(train)
    return Bundle(train, validation, test, source.prepare(splits), source.hints(splits), stored.path, source)


def hold_out(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """(rest, held out), both in the order of the source; the choice depends on seed and length alone."""
    count = round(len(train) * fraction)
    if not 0 < fraction < 1 or not 0 < count < len(train):
        raise DataError(f"val: {fraction} of {len(train)} samples leaves no training or no validation samples")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return Subset(train, order[count:].sort().values), Subset(train, order[:count].sort().values)


def _read(source: Source, shared: bool, cache: Path) -> store.Stored:
    stored = store.load(source, cache / "store") if shared and source.has("files") else store.read(source)
    if stored.path is not None:
        source.restore(stored.state)
    return stored


def _other(source: Source, stored: store.Stored, val: Mapping[str, Any], shared: bool, cache: Path) -> Split:
    other = Source(val["name"], val.get("args") or {})
    if other.follows(source):
        other.restore(stored.state)
    found = _read(other, shared, cache).splits
    split = next(iter(found.values())) if len(found) == 1 else _named(found, "train", other.name)
    # train's prepare is used for both, so both must look alike
    ours, theirs = _shape(stored.splits["train"]), _shape(split)
    if ours != theirs:
        raise DataError(f"samples of {source.name} are {ours}, those of the validation source {other.name} {theirs}")
    return split


def _named(splits: Mapping[str, Split], wanted: str, name: str) -> Split:
    if wanted not in splits:
        raise DataError(
            f'data source "{name}" has no split "{wanted}".{did_you_mean(wanted, splits)}',
            remedy=f"it has {', '.join(splits)}; a fraction such as val: 0.1 holds samples out of train",
        )
    return splits[wanted]


def _shape(split: Split) -> str:
    if isinstance(split, Columns):
        return f"{tuple(split.x.shape[1:])} {split.x.dtype} with targets {tuple(split.y.shape[1:])}"
    return f"windows of {split.length} tokens" if isinstance(split, Windows) else "items"
