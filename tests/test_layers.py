"""The shape of the house: imports run one way, backends are asked for by name in one place, files stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launched import ROOT

from distmem.checks import check
from distmem.recipe import load_recipe
from distmem.shipped import header, shipped_recipes

PACKAGE = ROOT / "distmem"
FILES = sorted(PACKAGE.rglob("*.py"))

# A room may import from the rooms in the lines above it, and from nothing in its own line or below.
LAYERS = [
    "errors units signals launched files",
    "imports seeding distributed vision recipe shipped compress report",
    "models memory losses hardware schedules batching runs launchers show log data",
    "metrics checkpoint",
    "backends export",
    "checks context",
    "evaluation resume",
    "engine",
    "stages",
    "build",
    "summary",
    "rank",
    "worker",
    "cli",
    "__main__",
]
FLOOR = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms.split()}
ONLY = {"report": {"errors", "units"}, "recipe": {"errors", "units"}, "errors": set(), "units": set(), "signals": set()}
NEVER = {
    "cli": {"rank", "worker", "engine", "stages", "context", "build", "summary"},
    "launchers": {"rank", "engine", "runs", "checks"},
}


def room_of(module: str) -> str:
    return module.split(".")[1]


def imports(file: Path) -> Iterator[str]:
    """Modules of distmem that a file names in an import statement, wherever it stands."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("distmem."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            if node.module == "distmem":
                yield from (f"distmem.{alias.name}" for alias in node.names if alias.name != "__version__")
            elif (node.module or "").startswith("distmem."):
                yield str(node.module)


def between_rooms() -> Iterator[tuple[Path, str, str]]:
    for file in FILES:
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for module in imports(file):
            if room_of(module) != own:
                yield file, own, room_of(module)


def test_every_room_has_a_floor():
    rooms = {
        path.name.removesuffix(".py")
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__"} == set(FLOOR)


def test_imports_run_one_way():
    edges = list(between_rooms())
    assert len(edges) > 100
    wrong = [
        f"{file.relative_to(ROOT)}: {own} imports {other}"
        for file, own, other in edges
        if FLOOR[other] >= FLOOR[own] or other not in ONLY.get(own, {other}) or other in NEVER.get(own, ())
    ]
    assert wrong == []


def test_backends_are_compared_only_in_their_own_room():
    def names(node: ast.expr) -> bool:
        return (node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")) == "backend"

    def is_constant(node: ast.expr) -> bool:
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            return all(map(is_constant, node.elts))
        return isinstance(node, ast.Constant) and isinstance(node.value, str)

    wrong = []
    for file in FILES:
        if "backends" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            if isinstance(node, ast.Match):
                sides = [node.subject, ast.Constant("")]
            if any(map(names, sides)) and any(map(is_constant, sides)):
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []


def test_files_are_small():
    assert [f"{file}: {lines}" for file in FILES if (lines := len(file.read_text().splitlines())) > 400] == []


def test_the_command_line_does_not_import_torch(tmp_path):
    """Nor other libraries that take long, even to check a recipe and to build its command."""
    code = """
import sys, pathlib
import distmem.cli, distmem.runs, distmem.launchers.start, distmem.launchers.files
from distmem import checks, launchers
from distmem.recipe import load_recipe
from distmem.shipped import find_recipe
recipe = checks.check(load_recipe(find_recipe("digits"), ["launch.procs_per_node=2"]))
launchers.build_command(recipe, [], 2)
heavy = {"torch", "numpy", "pandas", "sklearn", "torchvision", "matplotlib", "pyarrow", "safetensors", "scipy"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_is_unpickled():
    wrong = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import) and any(alias.name in ("pickle", "dill", "joblib") for alias in node.names):
                wrong.append(f"{file}:{node.lineno}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "torch.load",
                "yaml.load",
                "eval",
                "exec",
                "os.system",
            ):
                wrong.append(f"{file}:{node.lineno}")
            if isinstance(node, ast.keyword) and node.arg == "shell":
                wrong.append(f"{file}:{node.value.lineno}")
    assert wrong == []


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_pass_the_check_by_the_command_in_their_header(name, tmp_path, monkeypatch):
    """Words in capitals, and files, stand for what a user has."""
    file = shipped_recipes()[name]
    lines = header(file)
    assert lines, f"{name} has no header"
    command = re.fullmatch(rf"distmem run {name}((?: [a-z_.]+=\S+)*)(?:  .*)?", lines[0])
    assert command, lines[0]
    assert any(line.startswith("expected: ") for line in lines), f"{name} does not say what to expect"
    monkeypatch.chdir(tmp_path)
    overrides = command[1].split()
    for override in overrides:
        value = override.partition("=")[2]
        if "." in value:
            Path(value).write_text("")
    recipe = check(load_recipe(file, overrides))
    assert recipe.name.replace("-", "_") == name


def test_the_first_recipe_needs_nothing():
    assert header(shipped_recipes()["digits"])[0] == "distmem run digits"
