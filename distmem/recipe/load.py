"""From a YAML file and overrides to a Recipe; every fault with its place, all at once."""

from __future__ import annotations

import json
import types as python_types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from distmem.errors import RecipeError
from distmem.recipe.overrides import apply_overrides
from distmem.recipe.schema import Recipe
from distmem.recipe.yamlfile import KeyPath, Places, parse_yaml, read_yaml
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
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def json_schema() -> str:
    """JSON Schema of a recipe, for editors."""
    schema = Recipe.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2)


def _validated(values: Any, places: Places, overrides: list[str]) -> Loaded:
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping of keys such as name:, model: and data:", where=places.of(()))
    apply_overrides(values, places, overrides)
    try:
        return Loaded(Recipe.model_validate(values), places)
    except ValidationError as error:
        faults = [_fault(detail, values, places) for detail in error.errors(include_url=False)]
        raise RecipeError.of(faults) from error


def _fault(detail: Any, values: dict, places: Places) -> RecipeError:
    path: KeyPath = tuple(detail["loc"])
    while path and not _exists(values, path) and detail["type"] != "missing":
        path = path[:-1]  # pydantic adds the name of the tried type behind the key
    where = places.of(path[:-1] if detail["type"] == "missing" else path)
    cause, remedy = _words(detail, path)
    return RecipeError(f"{_dotted(path)}: {cause}" if path else cause, remedy=remedy, where=where)


def _words(detail: Any, path: KeyPath) -> tuple[str, str | None]:
    kind, value, context = detail["type"], detail.get("input"), detail.get("ctx", {})
    shown = _shown(value)
    if kind == "extra_forbidden":
        known = known_keys(path[:-1])
        return f'unknown key "{path[-1]}".{did_you_mean(str(path[-1]), known)}', f"one of {', '.join(known)}"
    if kind == "missing":
        return "is missing", f"add {path[-1]}: here"
    if kind == "literal_error":
        allowed = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
        return f"{shown} is not allowed.{did_you_mean(str(value), allowed)}", f"one of {', '.join(allowed)}"
    if kind == "value_error":
        return str(context["error"]), None
    if kind in _TYPES:
        return f"{shown} is not {_TYPES[kind]}", None
    if kind == "string_pattern_mismatch":
        return f"{shown} has characters that a file name should not have", "letters, digits, '.', '_' and '-'"
    return f"{shown}: {detail['msg'][0].lower()}{detail['msg'][1:]}", None


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
}


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
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
