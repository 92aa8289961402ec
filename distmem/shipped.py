"""Recipes and launch files that come with the package: inside an installed wheel, beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

from distmem.errors import UsageError
from distmem.units import did_you_mean


def shipped_folder(kind: str) -> Path:
    """The folder of "recipes" or "launch" files."""
    package = Path(__file__).parent
    inside = package / "shipped" / kind
    return inside if inside.is_dir() else package.parent / kind


def shipped_recipes() -> dict[str, Path]:
    """Recipe files by name."""
    return {file.stem: file for file in sorted(shipped_folder("recipes").glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """A file of the user's, or a shipped recipe by name. Raises UsageError."""
    if _is_file(name):
        return Path(name)
    shipped = shipped_recipes()
    stem = name.removeprefix("recipes/").removesuffix(".yaml")  # works from another folder too
    if stem in shipped:
        return shipped[stem]
    raise UsageError(
        f'there is no recipe file "{name[:100]}", and no shipped recipe of that name.{did_you_mean(name, shipped)}',
        remedy=f"a path, or one of {', '.join(shipped)}",
    )


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # longer than a file name may be: somebody gave the text of a recipe
        return False


def header(file: Path) -> list[str]:
    """The comment lines at the top of a recipe: its command and what to expect."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return lines
