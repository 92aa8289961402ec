"""Finding and calling what a recipe names: a registry entry or an import path such as "my_pkg.nets:Net"."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from distmem.errors import DistmemError
from distmem.units import did_you_mean


def find(kind: str, name: str, registry: Mapping[str, str], error: type[DistmemError]) -> Callable[..., Any]:
    """The callable behind a name.

    kind: the word for it in messages ("model"); registry: name -> "module:attribute".
    Raises error if the name is unknown, the import fails or the attribute is missing or not callable.
    """
    path = registry.get(name, name)
    module_name, colon, attribute = path.partition(":")
    if not colon:
        raise error(
            f'there is no {kind} "{name}".{did_you_mean(name, registry)}',
            remedy=f'one of {", ".join(sorted(registry))}, or an import path such as "my_pkg.module:Name"',
        )
    if not module_name or not attribute or module_name.startswith("."):
        raise error(f'"{name}" is not an import path', remedy='write it as "my_pkg.module:Name"')
    target: Any = _import(kind, module_name, error)
    for part in attribute.split("."):
        known = [key for key in dir(target) if not key.startswith("_")]
        if not hasattr(target, part):
            raise error(
                f'module {module_name} has no "{attribute}".{did_you_mean(part, known)}',
                remedy=f"it has {', '.join(sorted(known)[:20]) or 'nothing public'}",
            )
        target = getattr(target, part)
    if not callable(target):
        raise error(f'{kind} "{name}" is a {type(target).__name__}', remedy="name a class or a function")
    return target


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """The parameters a recipe may give by name; None when the callable takes any, or cannot be inspected."""
    try:
        found = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in found.values()):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in found.items() if parameter.kind in named}


def call(kind: str, name: str, target: Callable[..., Any], args: Mapping[str, Any], error: type[DistmemError]) -> Any:
    """target(**args), with unknown and missing arguments named. Raises error; the original one stays its cause."""
    allowed = parameters(target)
    if allowed is not None:
        for key in args:
            if key not in allowed:
                raise error(
                    f'{kind} "{name}" has no argument "{key}".{did_you_mean(key, allowed)}',
                    remedy=f"it takes {', '.join(allowed) or 'no arguments'}",
                )
        missing = [key for key, p in allowed.items() if p.default is p.empty and key not in args]
        if missing:
            raise error(
                f'{kind} "{name}" needs {", ".join(missing)}', remedy=f"give it under args: {{{missing[0]}: ...}}"
            )
    try:
        return target(**args)
    except DistmemError:
        raise
    except Exception as fault:
        shown = ", ".join(f"{key}={value!r}" for key, value in args.items())
        raise error(f'{kind} "{name}" ({shown}) failed: {type(fault).__name__}: {fault}') from fault


def _import(kind: str, module_name: str, error: type[DistmemError]) -> Any:
    top = module_name.partition(".")[0]
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as fault:
        if fault.name and (module_name == fault.name or module_name.startswith(f"{fault.name}.")):
            raise error(
                f'{kind}: there is no module "{fault.name}" in {os.getcwd()} or on PYTHONPATH',
                remedy=f"put the folder that contains {top}/ or {top}.py on PYTHONPATH: PYTHONPATH=/that/folder",
            ) from fault
        raise error(
            f"{kind}: importing {module_name} failed: it needs the module {fault.name}, which is not installed",
            remedy=f"pip install the package that provides {fault.name}",
        ) from fault
    except Exception as fault:
        raise error(f"{kind}: importing {module_name} failed: {type(fault).__name__}: {fault}") from fault
