"""One copy of a dataset per node: an immutable safetensors file, mapped by every process, held by the page cache.

Whoever comes first builds it under a lock; the kernel frees the lock of a killed builder, and the next one starts
afresh. There is no process group in it, so it works under any launcher and across jobs. Where a file cannot be had
(other kinds of splits, no space, no permission), every process keeps its own copy.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distmem.data.source import Source
from distmem.data.split import Columns, Split, Windows
from distmem.errors import DataError
from distmem.units import format_bytes

FORMAT = 1


@dataclass
class Stored:
    """Splits with what the source learned while reading them; path: the file they are mapped from, if any."""

    splits: dict[str, Split]
    state: dict[str, Any]
    path: Path | None = None


def load(source: Source, folder: Path) -> Stored:
    """The splits of a source, mapped from folder/<key>.safetensors, which is built if it is missing or damaged.

    source: one that has files(), with its state restored if it is to follow another's. Raises DataError.
    """
    key = fingerprint(source)
    path = folder / f"{key}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _only_ours(folder)
        if (stored := _open(path)) is not None:
            return stored
        with _locked(folder / f"{key}.lock"):
            return _open(path) or _build(source, path)
    except OSError as fault:
        warnings.warn(f"no shared copy of the data in {folder}: {fault}; each process keeps its own", stacklevel=2)
        return read(source)


def read(source: Source) -> Stored:
    """The splits of a source in this process's own memory."""
    splits = source.splits()
    return Stored(splits, source.state())


def fingerprint(source: Source) -> str:
    """Key of the data: source, arguments, its code, its files (path, size, mtime), restored state, format."""
    try:
        stats = [(str(path.resolve()), path.stat()) for path in source.files() or []]
    except OSError as fault:
        raise DataError(f"{fault.filename}: {fault.strerror}") from fault
    facts = {
        "format": FORMAT,
        "name": source.name,
        "args": source.args,
        "code": source.code(),
        "state": source.restored,
        "files": [(path, facts.st_size, facts.st_mtime_ns) for path, facts in stats],
    }
    text = json.dumps(facts, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def entries(folder: Path) -> list[tuple[Path, str, int]]:
    """The stored datasets of a folder: path, source name, bytes. Damaged files are left out."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        if (facts := _facts(path)) is not None:
            found.append((path, facts["name"], path.stat().st_size))
    return found


def _only_ours(folder: Path) -> None:
    """Data that others can write is not trusted. Raises OSError."""
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others can write there", str(folder))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # also frees the lock


def _build(source: Source, path: Path) -> Stored:
    """Reads the source and, if it can, replaces what it read by the mapped file. The caller holds the lock."""
    own = read(source)
    packed = _pack(own.splits)
    if packed is None:
        return own
    tensors, windows = packed
    facts = {"format": FORMAT, "name": source.name, "state": own.state, "windows": windows}
    size = sum(tensor.nbytes for tensor in tensors.values())
    try:
        _write(path, tensors, {"distmem": json.dumps(facts)}, size)
    except (OSError, SafetensorError) as fault:
        warnings.warn(
            f"no shared copy of {source.name} ({format_bytes(size)}) in {path.parent}: {fault}; "
            "each process keeps its own",
            stacklevel=2,
        )
        return own
    return _open(path) or own


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], size: int) -> None:
    for left in path.parent.glob(f"{path.stem}.*.tmp"):  # of a killed builder: its lock is ours now
        left.unlink()
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise OSError(f"only {format_bytes(free)} are free")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".tmp")
    os.close(handle)
    try:
        save_file(tensors, name, metadata)
        with open(name, "rb") as written:
            os.fchmod(written.fileno(), 0o600)
            os.fsync(written.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _pack(splits: Mapping[str, Split]) -> tuple[dict[str, Tensor], dict[str, int]] | None:
    """Tensors by "split.part", and the length of each split of windows; None if a split is not made of tensors."""
    tensors: dict[str, Tensor] = {}
    windows: dict[str, int] = {}
    for name, split in splits.items():
        if isinstance(split, Windows):
            tensors[f"{name}.tokens"], windows[name] = split.tokens, split.length
        elif isinstance(split, Columns):
            tensors[f"{name}.x"], tensors[f"{name}.y"] = split.x, split.y
        else:
            return None
    seen: set[int] = set()
    for key, tensor in tensors.items():
        # safetensors refuses tensors that share memory, such as two slices of one text
        if tensor.untyped_storage().data_ptr() in seen:
            tensors[key] = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
    return tensors, windows


def _open(path: Path) -> Stored | None:
    """The mapped file; None if it is missing, damaged or of another format."""
    facts = _facts(path)
    if facts is None:
        return None
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    splits: dict[str, Split] = {}
    for key in sorted(tensors):
        name, _, part = key.rpartition(".")
        if part == "tokens":
            splits[name] = Windows(tensors[key], facts["windows"][name])
        elif part == "x":
            splits[name] = Columns(tensors[key], tensors[f"{name}.y"])
    return Stored(splits, facts["state"], path)


def _facts(path: Path) -> dict[str, Any] | None:
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("distmem", "{}"))
    except (OSError, SafetensorError, ValueError):
        return None
    return facts if facts.get("format") == FORMAT else None
