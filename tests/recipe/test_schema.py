"""`distmem check --schema`: JSON Schema for editors, with every key a recipe may have."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from distmem import cli
from distmem.recipe import json_schema, load_recipe
from distmem.recipe.load import known_keys
from distmem.shipped import shipped_recipes

SCHEMA = json.loads(json_schema())
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
KNOWN = {"type", "enum", "const", "anyOf", "$ref", "properties", "required", "additionalProperties", "items"}
KNOWN |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "pattern", "minLength", "maxLength"}
WORDS = {"title", "description", "default", "$defs", "$schema"}


def accepts(schema: dict[str, Any], value: Any) -> bool:
    """The part of JSON Schema 2020-12 that this schema uses; any other keyword is an error here."""
    assert set(schema) <= KNOWN | WORDS, schema
    if "$ref" in schema:
        return accepts(SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], value)
    if "anyOf" in schema and not any(accepts(choice, value) for choice in schema["anyOf"]):
        return False
    kinds = schema.get("type", list(TYPES))
    types = tuple(kind for name in ([kinds] if isinstance(kinds, str) else kinds) for kind in TYPES[name])
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        return False
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return False
    if isinstance(value, dict):
        return _accepts_mapping(schema, value)
    if isinstance(value, list):
        return all(accepts(schema.get("items", {}), item) for item in value)
    if isinstance(value, str):
        long_enough = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9)
        return long_enough and re.search(schema.get("pattern", ""), value) is not None
    return _accepts_number(schema, value)


def _accepts_mapping(schema: dict[str, Any], value: dict) -> bool:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    if not set(schema.get("required", [])) <= set(value):
        return False
    rest = {} if others is True else others
    return all(rest is not False or key in known for key in value) and all(
        accepts(known.get(key, rest if isinstance(rest, dict) else {}), item) for key, item in value.items()
    )


def _accepts_number(schema: dict[str, Any], value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    low = value >= schema.get("minimum", value) and value > schema.get("exclusiveMinimum", value - 1)
    return low and value <= schema.get("maximum", value) and value < schema.get("exclusiveMaximum", value + 1)


def test_it_is_a_closed_schema_of_the_whole_recipe():
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["required"] == ["name", "model", "data"]
    assert list(SCHEMA["properties"]) == known_keys(())
    for name, section in SCHEMA["$defs"].items():
        assert section["type"] == "object", name
        assert section["additionalProperties"] is False, name


def test_every_reference_has_its_definition_and_every_definition_a_reference():
    found = set(re.findall(r'"#/\$defs/(\w+)"', json_schema()))
    assert found == set(SCHEMA["$defs"])


def test_keys_that_are_python_words_stand_as_a_recipe_writes_them():
    assert "async" in SCHEMA["$defs"]["Checkpoint"]["properties"]
    assert "async_" not in json_schema()


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_is_accepted_as_it_is_written(name: str):
    assert accepts(SCHEMA, yaml.safe_load(shipped_recipes()[name].read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "text",
    [
        "trian: {}",
        "seed: -1",
        "train: {epochs: '3'}",
        "train: {precision: bf16-mix}",
        "train: {accumulate: []}",
        "optim: {lr: -1}",
        "optim: {schedule: {name: cosin}}",
        "memory: {micro_batch: 0}",
        "launch: {device: gpu}",
        "metrics: accuracy",
        "after: [share]",
        "after: [{prunee: {}}]",
        "data: {name: digits, workers: many}",
    ],
)
def test_what_the_loader_refuses_the_schema_refuses_too(text: str):
    values = {"name": "x", "model": {"name": "mlp"}, "data": {"name": "digits"}}
    assert accepts(SCHEMA, values)
    assert not accepts(SCHEMA, {**values, **yaml.safe_load(text)})


@pytest.mark.parametrize("value", [16, "bf16", "32-true", "auto"])
def test_short_precisions_are_accepted(value):
    assert accepts(SCHEMA["$defs"]["Train"]["properties"]["precision"], value)


def test_the_command_prints_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.argv", ["distmem", "check", "--schema"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


def test_shipped_recipes_load():
    assert len(shipped_recipes()) >= 2
    for file in shipped_recipes().values():
        assert load_recipe(file).recipe.name
