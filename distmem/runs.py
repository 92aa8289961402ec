"""Which folder a run lives in, and whether it goes on."""

from __future__ import annotations

import datetime
from pathlib import Path

from distmem.errors import UsageError
from distmem.recipe import Recipe, dump_recipe, load_recipe

FREE = ("launch", "memory", "checkpoint", "log")  # parts that may change when a run goes on: they decide no number


def choose_folder(recipe: Recipe, out: Path | None, resume: str | None) -> tuple[Path, Path | None]:
    """(run folder, checkpoint of another run to start from).

    --out DIR goes on with the run in DIR, if it has one; --resume auto with the newest unfinished run of the same
    recipe; --resume PATH starts a new run from a checkpoint. Raises UsageError when a folder holds another run.
    """
    start_from = Path(resume) if resume not in (None, "auto", "never") else None
    if start_from is not None and not (start_from / "manifest.json").exists():
        raise UsageError(
            f"--resume {start_from}: there is no checkpoint in this folder",
            remedy="name one such as runs/NAME/STAMP/checkpoints/step-00000469, or auto",
        )
    base = Path("runs") / recipe.name
    if out is None and resume == "auto":
        out = next((folder for folder in _unfinished(base) if not _differences(folder, recipe)), None)
        if out is None:
            raise UsageError(f"no unfinished run of this recipe in {base}", remedy="leave --resume auto out")
    if out is None:
        return _new(base), start_from
    _may_go_on(out, recipe, resume)
    return out, start_from


def unfinished_like(recipe: Recipe) -> Path | None:
    """The newest unfinished run of the same recipe, to tell the user of it."""
    return next((f for f in _unfinished(Path("runs") / recipe.name) if not _differences(f, recipe)), None)


def _new(base: Path) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder, number = base / stamp, 1
    while folder.exists():
        folder, number = base / f"{stamp}-{number}", number + 1
    return folder


def _unfinished(base: Path) -> list[Path]:
    if not base.is_dir():
        return []
    folders = sorted((folder for folder in base.iterdir() if (folder / "recipe.yaml").exists()), reverse=True)
    return [
        folder for folder in folders if not (folder / "summary.json").exists() and any(folder.glob("**/manifest.json"))
    ]


def _may_go_on(folder: Path, recipe: Recipe, resume: str | None) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"--out {folder} is a file", remedy="name a folder")
    if not any(folder.iterdir()):
        return
    if not (folder / "recipe.yaml").exists():
        raise UsageError(f"--out {folder} holds something that is no run of distmem", remedy="name another folder")
    if (folder / "summary.json").exists():
        raise UsageError(f"the run in {folder} is finished", remedy="name another folder with --out")
    if resume == "never":
        raise UsageError(f"--resume never, and {folder} holds a run already", remedy="name another folder with --out")
    if differing := _differences(folder, recipe):
        raise UsageError(
            f"{folder} holds a run of another recipe; they differ in {', '.join(differing)}",
            remedy="name another folder with --out, or start from its weights with model.init",
        )


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
    return [
        key for key in found if key not in ("train.accumulate", "train.eval_batch_size", "data.workers", "data.shared")
    ]


def write_launch_files(folder: Path, recipe: Recipe, script: str) -> Path:
    """Make the run folder with the resolved recipe and the launch script; gives the recipe's file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    launch = folder / "launch.sh"
    launch.write_text(script)
    launch.chmod(0o755)
    return file
