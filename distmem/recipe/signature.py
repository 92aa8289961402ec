"""Parameters of a class or function, read from its source without importing it.

Checking a recipe must not wait for torch to import (seconds), nor run a user's code.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Signature:
    """parameters: name -> (annotation as text or "", whether it has a default); open: takes any other name too."""

    parameters: dict[str, tuple[str, bool]]
    open: bool

    def required(self) -> list[str]:
        return [name for name, (_, has_default) in self.parameters.items() if not has_default]


def find_module(name: str) -> Path | None:
    """The source file of a module on sys.path or in the working folder; only files are looked at."""
    top, *rest = name.split(".")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        local = _below(Path.cwd(), [top, *rest])
        if local:
            return local
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or []:
        if found := _below(Path(folder), rest):
            return found
    return None


def _below(folder: Path, parts: list[str]) -> Path | None:
    stem = folder.joinpath(*parts)
    for file in (stem.with_suffix(".py"), stem / "__init__.py"):
        if file.is_file():
            return file
    return None


def public_names(file: Path) -> list[str]:
    """Classes and functions defined at the top of a module, and names imported there."""
    names = []
    for node in _tree(file).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.append(node.name)
        elif isinstance(node, (ast.ImportFrom, ast.Import)):
            names.extend((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign):
            names.extend(target.id for target in node.targets if isinstance(target, ast.Name))
    return [name for name in names if not name.startswith("_")]


def read_signature(file: Path, attribute: str) -> Signature | None:
    """Signature of a class's constructor or of a function; None when the source alone doesn't tell."""
    definitions = {n.name: n for n in _tree(file).body if isinstance(n, (ast.ClassDef, ast.FunctionDef))}
    node = definitions.get(attribute)
    while isinstance(node, ast.ClassDef):
        constructor = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if constructor:
            return _of(constructor, skip_self=True)
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        node = next((definitions[base] for base in bases if base in definitions), None)
    return _of(node, skip_self=False) if isinstance(node, ast.FunctionDef) else None


def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError):
        return ast.Module(body=[], type_ignores=[])  # importing it will say what is wrong, with its own line


def _of(function: ast.FunctionDef, skip_self: bool) -> Signature:
    spec = function.args
    positional = [*spec.posonlyargs, *spec.args][1 if skip_self else 0 :]
    defaults = [None] * (len(positional) - len(spec.defaults)) + list(spec.defaults)
    pairs: list[tuple[ast.arg, Any]] = [
        *zip(positional, defaults, strict=True),
        *zip(spec.kwonlyargs, spec.kw_defaults, strict=True),
    ]
    parameters = {
        arg.arg: (ast.unparse(arg.annotation) if arg.annotation else "", default is not None) for arg, default in pairs
    }
    return Signature(parameters, open=spec.kwarg is not None)


_PLAIN: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "None": (type(None),),
    "list": (list,),
    "dict": (dict,),
}


def fits(value: Any, annotation: str) -> bool:
    """Whether a recipe's value suits an annotation such as `int | None`; what isn't plain suits everything."""
    choices = [part.strip().split("[")[0] for part in annotation.split("|")]
    if not annotation or any(choice not in _PLAIN for choice in choices):
        return True
    if isinstance(value, bool):
        return "bool" in choices
    return any(isinstance(value, _PLAIN[choice]) for choice in choices)
