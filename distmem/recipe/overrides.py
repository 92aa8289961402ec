"""`key=value` on the command line: train.epochs=3, after.0.prune.sensitivity=1.5, train.clip={norm: 1}."""

from __future__ import annotations

import re
from typing import Any

from distmem.errors import RecipeError
from distmem.recipe.yamlfile import KeyPath, Places, parse_scalar
from distmem.units import did_you_mean


def apply_overrides(values: dict, places: Places, overrides: list[str]) -> None:
    """Set each key=value in `values` (in place); a list index must exist or be the next one. Raises RecipeError."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f'"{text}" is not an override', remedy="write it as key.key=value, without spaces")
        where = f'override "{text}"'
        path = _set(values, key.strip().split("."), parse_scalar(value, where), where)
        places.put_override(path, text)


def _set(values: Any, keys: list[str], value: Any, where: str) -> KeyPath:
    path: list[str | int] = []
    here = values
    for position, key in enumerate(keys[:-1]):
        index = _index(here, key, ".".join(keys[:position]), where)
        path.append(index)
        if not isinstance(_get(here, index), (dict, list)):
            _put(here, index, {})  # a section left out, or written in its short form
        here = _get(here, index)
    last = _index(here, keys[-1], ".".join(keys[:-1]), where)
    _put(here, last, value)
    return (*path, last)


def _get(here: Any, index: str | int) -> Any:
    if isinstance(here, list):
        return here[index] if isinstance(index, int) and index < len(here) else None
    return here.get(index)


def _put(here: Any, index: str | int, value: Any) -> None:
    if isinstance(here, list) and index == len(here):
        here.append(value)
    else:
        here[index] = value


def _index(here: Any, key: str, parent: str, where: str) -> str | int:
    if isinstance(here, list):
        if _is_index(key) and int(key) <= len(here):
            return int(key)
        known = [name for item in here if isinstance(item, dict) for name in item]
        raise RecipeError(
            f'"{parent}" is a list of {len(here)}: "{key}" is none of its places.{did_you_mean(key, known)}',
            remedy=f"use an index from 0 to {len(here)}",
            where=where,
        )
    if _is_index(key) and key not in here:
        return int(key)  # {0: 8, 4: 4}: mappings by epoch have numbers as keys
    return key


def _is_index(key: str) -> bool:
    return re.fullmatch("[0-9]{1,9}", key) is not None
