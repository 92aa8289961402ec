"""Which folder a run lives in, whether it goes on, and who holds it."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from distmem.errors import RecipeError, UsageError
from distmem.files import write_text
from distmem.recipe import Recipe, dump_recipe, load_recipe

FREE = ("launch", "memory", "checkpoint", "log")  # parts that may change when a run goes on: they decide no number
FREE_KEYS = ("train.accumulate", "train.eval_batch_size", "data.workers", "data.shared")
LOCK = ".lock"


def choose_folder(recipe: Recipe, out: Path | None, resume: str | None, make: bool) -> tuple[Path, Path | None]:
    """(run folder, checkpoint of another run to start from).

    --out DIR goes on with the run in DIR, if it has one; --resume auto with the newest unfinished run of the same
    recipe; --resume PATH starts a new run from a checkpoint. make: create a new folder, so that no other run takes
    the same one. Raises UsageError when a folder holds another run.
    """
    start_from = Path(resume) if resume not in (None, "auto", "never") else None
    if start_from is not None and not (start_from / "manifest.json").exists():
        raise UsageError(
            f"--resume {start_from}: there is no checkpoint in this folder",
            remedy="name one such as runs/NAME/STAMP/checkpoints/step-00000469, or auto",
        )
    if out is None and resume == "auto":
        out = unfinished_like(recipe)
        if out is None:
            raise UsageError(
                f"no unfinished run of this recipe in {_base(recipe.name)}", remedy="leave --resume auto out"
            )
    if out is None:
        return new_folder(recipe.name, make), start_from
    may_go_on(out, recipe, resume)
    return out, start_from


def unfinished_like(recipe: Recipe) -> Path | None:
    """The newest unfinished run of the same recipe that nobody is working on."""
    return next((folder for folder in _unfinished(_base(recipe.name)) if _same(folder, recipe)), None)


def new_folder(name: str, make: bool = True) -> Path:
    """A folder for a new run. make: create it; of two runs that start in the same second each gets its own."""
    base = _base(name)
    stamp, number = datetime.datetime.now().strftime("%Y%m%d-%H%M%S"), 0
    while True:
        folder = base / (f"{stamp}-{number}" if number else stamp)
        number += 1
        if not make and not folder.exists():
            return folder
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(f"cannot make {folder}: {error.strerror}", remedy="name a folder with --out") from error


def _base(name: str) -> Path:
    return Path("runs") / name


def _unfinished(base: Path) -> list[Path]:
    """Run folders that have a checkpoint and did not finish, and that are not held, newest first."""
    if not base.is_dir():
        return []
    folders = sorted((folder for folder in base.iterdir() if (folder / "recipe.yaml").exists()), reverse=True)
    return [
        folder
        for folder in folders
        if not is_finished(folder) and any(folder.glob("**/manifest.json")) and not is_held(folder)
    ]


def is_finished(folder: Path) -> bool:
    """Whether the run in a folder came to its end; the note of that is its last file."""
    note = folder / "outcome.json"
    return note.is_file() and json.loads(note.read_text()).get("state") == "done"


def may_go_on(folder: Path, recipe: Recipe, resume: str | None = None) -> None:
    """Nothing when a run of this recipe may begin or go on in a folder. Raises UsageError."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"--out {folder} is a file", remedy="name a folder")
    if all(entry.name.startswith(".") for entry in folder.iterdir()):
        return  # nothing, or what a start that was killed has left
    if not (folder / "recipe.yaml").exists():
        raise UsageError(f"--out {folder} holds something that is no run of distmem", remedy="name another folder")
    if is_finished(folder):
        raise UsageError(f"the run in {folder} is finished", remedy="name another folder with --out")
    if resume == "never":
        raise UsageError(f"--resume never, and {folder} holds a run already", remedy="name another folder with --out")
    differing = _differences(folder, recipe) if any(folder.glob("**/manifest.json")) else []
    if differing == ["after"] and not any(folder.glob("stages/*/stage.json")):
        differing = []  # no stage has ended: the trained model goes on into the new ones
    if differing:
        raise UsageError(
            f"{folder} holds a run of another recipe; they differ in {', '.join(differing)}",
            remedy="name another folder with --out, or start from its weights with model.init",
        )
    if is_held(folder):
        raise _held(folder)


def _same(folder: Path, recipe: Recipe) -> bool:
    with contextlib.suppress(RecipeError):  # of another version, or damaged: it does not concern this recipe
        return not _differences(folder, recipe)
    return False


def _differences(folder: Path, recipe: Recipe) -> list[str]:
    """Keys that decide numbers and differ between the run in a folder and a recipe."""
    old, new = load_recipe(folder / "recipe.yaml").recipe.model_dump(), recipe.model_dump()
    found = []
    for section in new:
        if section in FREE or old[section] == new[section]:
            continue
        if isinstance(new[section], dict):
            found += [f"{section}.{key}" for key in new[section] if old[section].get(key) != new[section][key]]
        else:
            found.append(section)
    return [key for key in found if key not in FREE_KEYS]


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep a run folder to this process; the kernel frees it when the process ends, however it does.

    Raises UsageError when another process holds it.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _lock(handle):
            raise _held(folder)
        yield
    finally:
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Whether a process is at work in a run folder."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)  # a file system without locks holds nobody back
    return True


def _held(folder: Path) -> UsageError:
    return UsageError(
        f"another process is at work on the run in {folder}",
        remedy="wait for it, or stop it with Ctrl-C or SIGTERM; or name another folder with --out",
    )


def write_launch_files(folder: Path, recipe: Recipe, script: str) -> None:
    """The resolved recipe and the launch script, in the run folder, which is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "recipe.yaml", dump_recipe(recipe))
        write_text(folder / "launch.sh", script)
        (folder / "launch.sh").chmod(0o755)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}", remedy="name a folder with --out") from error
