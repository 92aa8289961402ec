"""A folder of checkpoints: written to a temporary folder, hashed, renamed; read only after its hashes agree.

    checkpoints/step-00001407/   state.safetensors   progress.json   manifest.json (written last)
    checkpoints/best/            the same, for the best value so far

The tensors are in safetensors, not in torch.distributed.checkpoint's own files: those keep their index as a
pickle, and nothing that came from outside is unpickled here. DCP reads and writes the same format.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distmem.distributed import World
from distmem.errors import CheckpointError
from distmem.files import digest, sync_file, sync_folder, write_json
from distmem.units import format_bytes

FORMAT = 1
STATE, PROGRESS, MANIFEST = "state.safetensors", "progress.json", "manifest.json"


@dataclass
class Saved:
    """A verified checkpoint: tensors by canonical name, and the numbers that say where the run stood."""

    path: Path
    tensors: dict[str, Tensor]
    progress: dict[str, Any]
    passed_over: list[str] = field(default_factory=list)  # what is wrong with newer ones


class CheckpointStore:
    """Checkpoints of one phase of a run. active: whether this rank writes; every rank reads."""

    def __init__(self, folder: Path, keep: int, background: bool, active: bool = True):
        self.folder, self.keep, self.background, self.active = folder, keep, background, active
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._damaged: list[Path] = []  # what newest() passed over: must not count as kept

    def save(self, tensors: dict[str, Tensor], progress: dict[str, Any], best: bool = False) -> None:
        """Write a checkpoint of tensors that nobody changes any more; in a thread if `background`.

        best: also keep it as the best so far. Raises CheckpointError, for a write in the background at the next
        call; older checkpoints stay.
        """
        self.wait()
        if not self.active:
            return
        if not self.background:
            self._write(tensors, progress, best)
            return
        self._writer = threading.Thread(target=self._try_write, args=(tensors, progress, best), name="checkpoint")
        self._writer.start()

    def wait(self) -> None:
        """Wait for the write under way. Raises CheckpointError when it failed."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Whatever happens inside, a write under way comes to its end: it is the newest whole state."""
        try:
            yield
        finally:
            if self._writer is not None:
                self._writer.join()

    def _try_write(self, *args: Any) -> None:
        try:
            self._write(*args)
        except BaseException as failure:
            self._failure = failure

    def _write(self, tensors: dict[str, Tensor], progress: dict[str, Any], best: bool) -> None:
        if best:  # first: a kill between the two then repeats this step, and finds it to be the best again
            write_checkpoint(self.folder / "best", tensors, progress)
        path = self.folder / f"step-{progress['step']:08d}"
        write_checkpoint(path, tensors, progress)
        for damaged in {*self._damaged} - {path}:
            shutil.rmtree(damaged, ignore_errors=True)
        steps = self.steps()
        here = steps.index(path) + 1
        for old in steps[: max(0, here - self.keep)] + steps[here:]:  # later ones were damaged, or passed over
            shutil.rmtree(old, ignore_errors=True)

    def steps(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def newest(self) -> Saved | None:
        """The newest checkpoint whose hashes agree, with a word on the damaged ones that are newer; None when there
        is none at all.

        Raises CheckpointError when there are checkpoints and all are damaged: never a silent fresh start.
        """
        damaged: list[str] = []
        for path in reversed(steps := self.steps()):
            try:
                saved = read_checkpoint(path)
                saved.passed_over = damaged
                self._damaged = steps[steps.index(path) + 1 :]
                return saved
            except CheckpointError as error:
                damaged.append(str(error))
        if damaged:
            raise CheckpointError(
                "no checkpoint of this run can be read:\n  " + "\n  ".join(damaged),
                remedy=f"start again in another folder; nothing in {self.folder} was changed",
            )
        return None


def newest_everywhere(world: World, store: CheckpointStore) -> Saved | None:
    """The newest verified checkpoint as rank 0 sees it, on every rank."""
    saved = store.newest() if world.first else None
    path = world.gather(str(saved.path) if saved else None)[0]
    return None if path is None else saved or read_checkpoint(Path(path))


def write_checkpoint(path: Path, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Write one checkpoint folder atomically. Raises CheckpointError (no space, no permission)."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise OSError(28, f"the state has {format_bytes(size)}, and {format_bytes(free)} are free")
        temporary.mkdir()
        save_file(tensors, temporary / STATE)
        sync_file(temporary / STATE)
        write_json(temporary / PROGRESS, progress)
        hashes = {name: digest(temporary / name) for name in (STATE, PROGRESS)}
        write_json(temporary / MANIFEST, {"format": FORMAT, "files": hashes, "bytes": size})
        sync_folder(temporary)
        _replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise CheckpointError(
            f"cannot save {format_bytes(size)} to {path}: {reason}",
            remedy="free some space and resume; the checkpoints written before are whole",
        ) from error


def _replace(temporary: Path, path: Path) -> None:
    if path.exists():  # `best`, or a step that is done again: move the old one aside, so one of the two is always there
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old)
    else:
        temporary.rename(path)


def _sweep(folder: Path) -> None:
    """Remove what a killed writer left; one run has one writer, so nobody is at work on them."""
    for leftover in folder.glob(".*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    for old in folder.glob(".*.old"):
        path = folder / old.name[1 : -len(".old")]
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(path)


def read_checkpoint(path: Path) -> Saved:
    """Read and verify a checkpoint folder. Raises CheckpointError (missing, damaged, of another format)."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {manifest['format']}, and this version reads format {FORMAT}")
        files = manifest["files"]
        for name in (STATE, PROGRESS):
            if digest(path / name) != files[name]:
                raise CheckpointError(f"{path}: {name} is damaged: its hash is not the one in {MANIFEST}")
        progress = json.loads((path / PROGRESS).read_text())
        return Saved(path, load_file(path / STATE), progress)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is no checkpoint: {error.strerror}: {error.filename}") from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error
