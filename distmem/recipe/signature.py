"""Parameters of a class or function, read from its source without importing it.

Checking a recipe must not wait for torch to import (seconds), nor run a user's code.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
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


def defined_names(file: Path) -> list[str] | None:
    """Names that a module defines or imports; None when its source alone doesn't tell (import *, __getattr__)."""
    names = []
    for node in _top_level(_tree(file).body):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names.append(node.name)
        elif isinstance(node, (ast.ImportFrom, ast.Import)):
            names.extend((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        else:
            names.extend(part.id for part in ast.walk(node) if isinstance(part, ast.Name) and _stored(part))
    return None if {"*", "__getattr__"} & set(names) else names


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those under `if`, `try`, `with` and loops too."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _top_level(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from _top_level(handler.body)


def _stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def read_signature(file: Path, attribute: str) -> Signature | None:
    """Signature of a class's constructor or of a function; None when the source alone doesn't tell."""
    definitions = {n.name: n for n in _tree(file).body if isinstance(n, (ast.ClassDef, ast.FunctionDef))}
    node = definitions.get(attribute)
    while isinstance(node, ast.ClassDef) and not node.decorator_list:
        constructor = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if constructor:
            return None if constructor.decorator_list else _of(constructor, skip_self=True)
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        node = next((definitions[base] for base in bases if base in definitions), None)
    plain = isinstance(node, ast.FunctionDef) and not node.decorator_list  # a decorator may change the arguments
    return _of(node, skip_self=False) if plain and isinstance(node, ast.FunctionDef) else None


def syntax_fault(file: Path) -> tuple[str, str] | None:
    """("file:line:column", what is wrong) when a source file cannot be parsed."""
    try:
        ast.parse(file.read_bytes())
    except SyntaxError as error:
        return f"{file}:{error.lineno}:{error.offset}", error.msg
    except (OSError, ValueError) as error:
        return str(file), str(error)
    return None


def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except (SyntaxError, OSError, ValueError):
        return ast.Module(body=[], type_ignores=[])  # syntax_fault says what is wrong


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


_PLAIN: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "text"),
    "bool": ((bool,), "true or false"),
    "None": ((type(None),), "null"),
    "list": ((list,), "a list"),
    "dict": ((dict,), "a mapping"),
}


def fits(value: Any, annotation: str) -> bool:
    """Whether a recipe's value suits an annotation such as `list[int] | None`; what isn't plain suits everything."""
    return not annotation or _fits(value, ast.parse(annotation, mode="eval").body)


def _fits(value: Any, node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _fits(value, node.left) or _fits(value, node.right)
    if isinstance(node, ast.Subscript):
        kind = ast.unparse(node.value)
        if kind == "Literal":
            choices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return any(isinstance(choice, ast.Constant) and choice.value == value for choice in choices)
        if kind == "list" and isinstance(value, list):
            return all(_fits(item, node.slice) for item in value)
        return _fits(value, node.value)
    types = _PLAIN.get(ast.unparse(node), ((object,), ""))[0]
    if isinstance(value, bool):
        return bool in types or object in types
    return isinstance(value, types)


def words(annotation: str) -> str:
    """An annotation for people: `list[int] | None` is "a list of int or null"."""
    node = ast.parse(annotation, mode="eval").body
    if isinstance(node, ast.BinOp):
        return f"{words(ast.unparse(node.left))} or {words(ast.unparse(node.right))}"
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
        choices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return f"one of {', '.join(str(c.value) for c in choices if isinstance(c, ast.Constant))}"
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "list":
        return f"a list of {ast.unparse(node.slice)}"
    name = ast.unparse(node)
    return _PLAIN[name][1] if name in _PLAIN else name
