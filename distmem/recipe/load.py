"""From a YAML file and overrides to a Recipe; every fault with its place, all at once."""

from __future__ import annotations

import json
import re
import types as python_types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from distmem.errors import RecipeError
from distmem.recipe.overrides import apply_overrides
from distmem.recipe.schema import Recipe
from distmem.recipe.yamlfile import KeyPath, Places, dump_yaml, parse_yaml, read_yaml
from distmem.units import did_you_mean


@dataclass(frozen=True)
class Loaded:
    """A recipe and where each of its values was written."""

    recipe: Recipe
    places: Places


def load_recipe(path: Path, overrides: list[str] | None = None) -> Loaded:
    """Read, override and validate a recipe file. Raises RecipeError listing every fault."""
    values, places = read_yaml(path)
    return _validated(values, places, overrides or [])


def recipe_from_text(text: str, file: str = "recipe", overrides: list[str] | None = None) -> Loaded:
    """The same for a text."""
    values, places = parse_yaml(text, file)
    return _validated(values, places, overrides or [])


def dump_recipe(recipe: Recipe) -> str:
    """The full recipe as YAML, defaults included; reading it gives the same recipe."""
    values = recipe.model_dump(by_alias=True)
    values["after"] = [{stage.name: stage.settings.model_dump(by_alias=True)} for stage in recipe.after]
    return dump_yaml(values)


def json_schema() -> str:
    """JSON Schema of a recipe, for editors."""
    schema = Recipe.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2)


def _validated(values: Any, places: Places, overrides: list[str]) -> Loaded:
    if values is None and not overrides:
        raise RecipeError("the recipe is empty", remedy="`distmem recipes` lists some to start from", where=places.file)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping of keys such as name:, model: and data:", where=places.of(()))
    apply_overrides(values, places, overrides)
    try:
        return Loaded(Recipe.model_validate(values), places)
    except ValidationError as error:
        faults = [_fault(detail, values, places) for detail in error.errors(include_url=False)]
        raise RecipeError.of(in_file_order(faults)) from error


def in_file_order(faults: list[RecipeError]) -> list[RecipeError]:
    """Faults by line and column; those of overrides and of no place first."""
    return sorted(faults, key=lambda fault: [int(number) for number in re.findall(r":(\d+)", fault.where or "")[-2:]])


def _fault(detail: Any, values: dict, places: Places) -> RecipeError:
    path: KeyPath = tuple(detail["loc"])
    while path and not _exists(values, path) and detail["type"] != "missing":
        path = path[:-1]  # pydantic adds the name of the tried type behind the key
    where = places.of(path[:-1] if detail["type"] == "missing" else path)
    cause, remedy = _words(detail, path)
    return RecipeError(cause, remedy=remedy, where=where)


def _words(detail: Any, path: KeyPath) -> tuple[str, str | None]:
    """Cause and remedy of one of pydantic's errors."""
    kind, value, context = detail["type"], detail.get("input"), detail.get("ctx", {})
    key = _dotted(path)
    if kind == "extra_forbidden":
        known = known_keys(path[:-1])
        if path[0] == "after" and path[-1] in STAGES_TO_COME:
            return f"{key}: this stage does not work yet", f"one of {', '.join(known)}"
        return f'unknown key "{key}".{did_you_mean(str(path[-1]), known)}', f"one of {', '.join(known)}"
    if kind == "missing":
        return f"{key} is missing", f"add {path[-1]}: here"
    if kind == "value_error":
        return f"{key}: {context['error']}", None
    shown = _shown(value)
    if kind == "literal_error":
        allowed = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
        near = did_you_mean("cuda" if value == "gpu" else str(value), allowed)
        return f"{key}: {shown} is not allowed.{near}", f"one of {', '.join(allowed)}"
    if kind in _TYPES:
        return f"{key}: {shown} is not {_TYPES[kind]}", _remedy(kind, value, path)
    if kind in _LIMITS:
        return f"{key}: {shown} is not {_LIMITS[kind].format(**context)}", None
    if kind == "string_pattern_mismatch":
        return f"{key}: {shown} is no name for a folder", "letters and digits, then also '.', '_' and '-'"
    return f"{key}: {shown}: {detail['msg'][0].lower()}{detail['msg'][1:]}", None


_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "invalid_key": "text, as a key must be",
}
_LIMITS = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "allowed: at least {min_length} character",
    "string_too_long": "allowed: at most {max_length} characters",
}
STAGES_TO_COME = ("quantize", "distill", "pack", "rename")
_EXAMPLES = {
    "model": "{{name: {value}}}",
    "data": "{{name: {value}}}",
    "optim": "{{name: {value}}}",
    "schedule": "{{name: {value}}}",
    "clip": "{{norm: {value}}}",
    "prune": "{{method: std, sensitivity: {value}}}",
    "retrain": "{{epochs: {value}}}",
    "share": "{{bits: {value}}}",
}
_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


def _remedy(kind: str, value: Any, path: KeyPath) -> str | None:
    """What the author of a value of the wrong type probably wanted to write."""
    if kind in ("int_type", "float_type") and isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+", value):
        return f"{value} without quotes"
    if kind == "bool_type" and str(value).lower() in _BOOLEANS:
        return _BOOLEANS[str(value).lower()]
    if kind == "list_type" and isinstance(value, (str, int, float)):
        return f"[{value}]"
    if kind.startswith("model") and len(path) == 2 and path[0] == "after":
        return f"- {value}: {{...}}" if isinstance(value, str) and value in known_keys(path) else "- share: {bits: 5}"
    if kind.startswith("model") and path and path[-1] in _EXAMPLES and isinstance(value, (str, int, float)):
        return f"{path[-1]}: {_EXAMPLES[str(path[-1])].format(value=value)}"
    return None


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _exists(values: Any, path: KeyPath) -> bool:
    for key in path:
        in_list = isinstance(values, list) and isinstance(key, int) and key < len(values)
        if not in_list and not (isinstance(values, dict) and key in values):
            return False
        values = values[key]
    return True


def known_keys(path: KeyPath) -> list[str]:
    """The keys a recipe may have below `path`, in the order of the schema."""
    section: type[BaseModel] = Recipe
    for key in path:
        field = next((f for n, f in section.model_fields.items() if key in (n, f.alias)), None)
        if field is not None:
            section = _section_of(field.annotation) or section
    return [field.alias or name for name, field in section.model_fields.items()]


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, python_types.UnionType, list):
        return next(filter(None, map(_section_of, typing.get_args(annotation))), None)
    return None
