"""Models, data, optimizers, losses and metrics by name: are they there, and do their arguments fit?

Signatures are read from source files: nothing is imported, and no code of the user's runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distmem.checks.fault import Fault, optimizers
from distmem.data import SOURCES
from distmem.hardware import Hardware
from distmem.memory.optimizers import OPTIMIZERS
from distmem.models import MODELS
from distmem.recipe.schema import Recipe
from distmem.recipe.signature import defined_names, find_module, fits, read_signature, syntax_fault, words
from distmem.recipe.yamlfile import KeyPath
from distmem.units import did_you_mean

LOSSES = ("cross_entropy", "nll", "mse", "bce")  # the keys of losses.LOSSES and metrics.METRICS, which import torch
METRICS = ("accuracy", "top5", "mae")


def names(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    yield from _callable(("model",), "model", recipe.model.name, MODELS, recipe.model.args)
    yield from _callable(("data",), "data source", recipe.data.name, SOURCES, recipe.data.args)
    if isinstance(recipe.data.val, dict):
        yield from _callable(("data", "val"), "data source", recipe.data.val["name"], SOURCES, recipe.data.val["args"])
    for path, optim in optimizers(recipe):
        for key in sorted({"lr", "params"} & set(optim.args)):
            yield Fault((*path, "args", key), f"{key} is no argument here", "the rate is optim.lr" * (key == "lr"))
        args = {**optim.args, "params": [], "lr": 0.1}
        yield from _callable(path, "optimizer", optim.name, OPTIMIZERS, args)
    yield from _named(("loss",), "loss", recipe.loss, dict.fromkeys(LOSSES))
    for index, name in enumerate(recipe.metrics):
        yield from _named(("metrics", index), "metric", name, dict.fromkeys(METRICS))


def files(recipe: Recipe, _: Hardware) -> Iterator[Fault]:
    """Paths that a recipe names must be there before anything starts."""
    here = f"paths count from {Path.cwd()}"
    init = recipe.model.init
    if init is not None and not Path(init).exists():
        yield Fault(("model", "init"), f"there is no file or folder {init}", here)
    for path, source in (("data", "args"), recipe.data), (("data", "val", "args"), recipe.data.val):
        args = source["args"] if isinstance(source, dict) else getattr(source, "args", {})
        file = args.get("path")
        if isinstance(file, str) and not _there(file):
            yield Fault((*path, "path"), f"there is no file {file}", here)


def _there(file: str) -> bool:
    try:
        return Path(file).expanduser().exists()
    except RuntimeError:  # ~name of no user
        return False


def _callable(
    path: KeyPath, kind: str, name: str, registry: Mapping[str, str | None], args: Mapping[str, Any]
) -> Iterator[Fault]:
    """Faults of the `name` and the `args` in the section at `path`."""
    wrong = list(_named((*path, "name"), kind, name, registry))
    yield from wrong
    target = _target(name, registry)
    if wrong or target is None:
        return
    module, _, attribute = target.partition(":")
    file = find_module(module)
    signature = read_signature(file, attribute) if file else None
    if signature is None:
        return
    args_path = (*path, "args")
    allowed = [key for key in signature.parameters if kind != "optimizer" or key not in ("params", "lr")]
    takes = f"it takes {', '.join(allowed) or 'no arguments'}"
    for key, value in args.items():
        if key not in signature.parameters:
            if not signature.open:
                cause = f'{kind} "{name}" has no argument "{key}".{did_you_mean(key, allowed)}'
                yield Fault((*args_path, key), cause, takes)
        elif not fits(value, annotation := signature.parameters[key][0]):
            yield Fault((*args_path, key), f"{value!r} is not {words(annotation)}")
    missing = [key for key in signature.required() if key not in args]
    if missing and kind == "data source":  # a model gets what it lacks from the data
        yield Fault(args_path, f'data source "{name}" needs {", ".join(missing)}', f"add {missing[0]}: ... here")


def _named(path: KeyPath, kind: str, name: str, registry: Mapping[str, str | None]) -> Iterator[Fault]:
    """Faults of a registry name or import path at `path`."""
    target = _target(name, registry)
    if target is None:
        return
    module, colon, attribute = target.partition(":")
    if not colon or not module or not attribute:
        yield Fault(
            path,
            f'there is no {kind} "{name}".{did_you_mean(name, registry)}',
            f'one of {", ".join(registry)}, or an import path such as "my_pkg.my_module:name"',
        )
        return
    file = find_module(module)
    if file is None:
        yield Fault(
            path,
            f'there is no module "{module}" here or on PYTHONPATH',
            f"start in the folder that holds {module.partition('.')[0]}, or put that folder on PYTHONPATH",
        )
    elif fault := syntax_fault(file):
        yield Fault(path, f"{fault[0]}: {fault[1]}", "correct the file")
    else:
        known = defined_names(file)
        if known is not None and attribute.partition(".")[0] not in known:
            public = [name for name in known if not name.startswith("_")]
            yield Fault(path, f'{file} has no "{attribute}".{did_you_mean(attribute, public)}')


def _target(name: str, registry: Mapping[str, str | None]) -> str | None:
    """The import path behind a name; the name itself when it is not registered; None when it needs no import."""
    if name in registry:
        return registry[name]
    return registry.get(name.lower(), name) if registry is OPTIMIZERS else name
