"""Which parameters a stage works on, and with which value each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import Tensor

from distmem.errors import CompressError
from distmem.units import did_you_mean

Number = TypeVar("Number", bound=float)

_NAMES_SHOWN = 20


def select(params: Mapping[str, Tensor], layers: str | list[str] = "*.weight") -> dict[str, Tensor]:
    """The parameters whose names match one of the patterns, in the model's order; tied ones once.

    Patterns are those of the shell (fnmatch), case matters. A pattern that matches any matrix or kernel takes
    only those: "*.weight" leaves the scale of a norm alone. Vectors (biases, norms) are taken by a pattern that
    matches nothing else, such as "*.bias" or "norm1.weight".
    Raises CompressError if a pattern matches nothing.
    """
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if not patterns:
        raise CompressError("layers is an empty list", remedy='name at least one pattern, such as "*.weight"')
    chosen = {name for pattern in patterns for name in _matching(pattern, params)}
    return untied({name: param for name, param in params.items() if name in chosen})


def untied(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters with each memory once: of tied weights only the first name stays."""
    first: dict[tuple, str] = {}
    for name, param in params.items():
        first.setdefault(_memory_of(param), name)
    return {name: params[name] for name in first.values()}


def per_layer(value: Number | Mapping[str, Number], names: Iterable[str], what: str) -> dict[str, Number]:
    """One value per name, from a single value or from {pattern: value} where the first match wins.

    what: the setting's name, for messages. Raises CompressError if a value is no finite number, if a name has no
    value, or if a pattern decides nothing (it matches no name, or patterns before it take all it matches).
    """
    names = list(names)
    patterns = dict(value) if isinstance(value, Mapping) else {"*": value}
    for pattern, number in patterns.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise CompressError(f'{what} for "{pattern}" is {number!r}, not a number')
    winner = {name: _first_match(name, patterns) for name in names}
    for pattern in patterns if isinstance(value, Mapping) else ():
        if pattern not in winner.values():
            raise _useless_pattern(pattern, names, what)
    result = {}
    for name, found in winner.items():
        if found is None:
            raise CompressError(
                f'{what} has no value for "{name}": its patterns are {_listed(patterns)}',
                remedy='add the name, or "*" as the last pattern',
            )
        result[name] = patterns[found]
    return result


def _matching(pattern: str, params: Mapping[str, Tensor]) -> list[str]:
    names = [name for name in params if fnmatchcase(name, pattern)]
    if not names:
        raise CompressError(
            f'no parameter matches "{pattern}".{did_you_mean(pattern, params)} Parameters: {_listed(params)}',
            remedy='write a name or a pattern such as "fc*.weight"',
        )
    return [name for name in names if params[name].ndim > 1] or names


def _first_match(name: str, patterns: Iterable[str]) -> str | None:
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def _useless_pattern(pattern: str, names: list[str], what: str) -> CompressError:
    if any(fnmatchcase(name, pattern) for name in names):
        return CompressError(
            f'{what}: the pattern "{pattern}" has no effect, patterns before it take all its names',
            remedy="write the narrow patterns first: the first match wins",
        )
    return CompressError(
        f'{what}: the pattern "{pattern}" matches nothing.{did_you_mean(pattern, names)} Names: {_listed(names)}'
    )


def _memory_of(param: Tensor) -> tuple:
    """Equal for two tensors that are the same memory, a transposed view included."""
    address = param.untyped_storage().data_ptr()
    if address == 0:
        # meta and empty tensors have no memory: only the same object is the same parameter
        return ("object", id(param))
    return (param.device, address, param.storage_offset(), param.numel())


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
