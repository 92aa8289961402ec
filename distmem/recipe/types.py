"""Values of a recipe that may be written in several ways; each is one type with one message when it is wrong."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from distmem.units import did_you_mean, parse_bytes

PRECISIONS = ("16-mixed", "bf16-mixed", "16-true", "bf16-true", "32-true", "64-true")
SHORT_PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _positive_or_auto(value: Any) -> Any:
    if value == "auto" or (_number(value) and value >= 1):
        return value
    raise ValueError(f"{value!r} is neither a whole number from 1 nor auto")


def _workers(value: Any) -> Any:
    if value == "auto" or (_number(value) and 0 <= value <= 256):
        return value
    raise ValueError(f"{value!r} is neither a whole number from 0 to 256 nor auto")


def _accumulate(value: Any) -> Any:
    if value == "auto" or (_number(value) and value >= 1):
        return value
    if isinstance(value, dict) and value:
        if not all(_number(k) and k >= 0 and _number(v) and v >= 1 for k, v in value.items()):
            raise ValueError(f"{value!r}: epochs count from 0, numbers of micro-batches from 1")
        if 0 not in value:
            raise ValueError(f"{value!r} does not say what holds from epoch 0")
        return dict(sorted(value.items()))
    raise ValueError(
        f"{value!r} is neither a whole number from 1, nor a table by epoch such as {{0: 8, 4: 4}}, nor auto"
    )


def _precision(value: Any) -> Any:
    name = SHORT_PRECISIONS.get(str(value), value)
    if name in PRECISIONS or name == "auto":
        return name
    allowed = [*PRECISIONS, *SHORT_PRECISIONS, "auto"]
    raise ValueError(f'"{value}" is no precision.{did_you_mean(str(value), allowed)} Allowed: {", ".join(allowed)}')


def _rate(value: Any) -> Any:
    if value == "auto":
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf"):
        return float(value)
    raise ValueError(f"{value!r} is no learning rate: a number above 0, such as 0.001 or 1e-3")


def _size(value: Any) -> Any:
    return None if value is None else parse_bytes(value)


def parse_every(value: Any) -> tuple[int, str]:
    """(count, unit) of an interval: "1epoch" -> (1, "epoch"), 500 or "500steps" -> (500, "step"). Raises ValueError."""
    match = re.fullmatch(r"\s*([0-9]+)\s*(epoch|step)?s?\s*", str(value))
    if isinstance(value, bool) or not match or int(match[1]) < 1:
        raise ValueError(f'{value!r} is no interval: write "1epoch", "500steps" or a number of steps')
    return int(match[1]), match[2] or "step"


def steps_of(every: str, steps_per_epoch: int) -> int:
    """An interval in optimizer steps."""
    count, unit = parse_every(every)
    return count * (steps_per_epoch if unit == "epoch" else 1)


def _every(value: Any) -> Any:
    count, unit = parse_every(value)
    return f"{count}{unit}{'s' if count > 1 else ''}"


def _activation_checkpointing(value: Any) -> Any:
    names = ("none", "full", "sqrt", "selective", "optimal")
    if value in names if isinstance(value, str) else value is None:
        return value or "none"
    if isinstance(value, dict) and set(value) == {"blocks"} and _number(value["blocks"]) and value["blocks"] >= 0:
        return value
    near = did_you_mean(value, names) if isinstance(value, str) else ""
    raise ValueError(f"{value!r} is none of {', '.join(names)} or {{blocks: 6}}.{near}")


def _val(value: Any) -> Any:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, float) and 0 < value < 1:
        return value
    if isinstance(value, dict) and isinstance(value.get("name"), str) and set(value) <= {"name", "args"}:
        args = value.get("args") or {}
        if isinstance(args, dict) and all(isinstance(key, str) for key in args):
            return {"name": value["name"], "args": args}
    raise ValueError(
        f"{value!r} is neither a split's name, nor a fraction between 0 and 1, nor {{name: ..., args: ...}}"
    )


def _real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _by_layer(value: Any) -> Any:
    if _real(value):
        return value
    if isinstance(value, dict) and value and all(isinstance(k, str) and _real(v) for k, v in value.items()):
        return value
    raise ValueError(f'{value!r} is neither a number nor a table of layer patterns such as {{"fc3.*": 1.0, "*": 2.0}}')


def _patterns(value: Any) -> Any:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) and item for item in value):
        return value
    raise ValueError(f'{value!r} is neither a layer pattern such as "*.weight" nor a list of them')


_WHOLE: dict = {"type": "integer", "minimum": 1}
_AUTO: dict = {"const": "auto"}
_TEXT: dict = {"type": "string"}
_TABLE: dict = {"type": "object"}


def _schema(*choices: dict) -> WithJsonSchema:
    return WithJsonSchema(choices[0] if len(choices) == 1 else {"anyOf": list(choices)})


PositiveOrAuto = Annotated[int | str, PlainValidator(_positive_or_auto), _schema(_WHOLE, _AUTO)]
Workers = Annotated[int | str, PlainValidator(_workers), _schema({"type": "integer", "minimum": 0}, _AUTO)]
Accumulate = Annotated[int | str | dict[int, int], PlainValidator(_accumulate), _schema(_WHOLE, _AUTO, _TABLE)]
Precision = Annotated[str, PlainValidator(_precision), _schema({"enum": [*PRECISIONS, 16, 32, 64, "bf16", "auto"]})]
Rate = Annotated[float | str, PlainValidator(_rate), _schema({"type": "number", "exclusiveMinimum": 0}, _AUTO)]
Size = Annotated[int | None, PlainValidator(_size), _schema({"type": ["string", "integer", "null"]})]
Every = Annotated[str, PlainValidator(_every), _schema(_WHOLE, {"type": "string", "pattern": "epoch|step"})]
ActivationCheckpointing = Annotated[
    str | dict[str, int],
    PlainValidator(_activation_checkpointing),
    _schema({"enum": ["none", "full", "sqrt", "selective", "optimal"]}, {"type": "object", "required": ["blocks"]}),
]
Validation = Annotated[str | float | dict, PlainValidator(_val), _schema(_TEXT, {"type": "number"}, _TABLE)]
ByLayer = Annotated[
    int | float | dict[str, int | float], PlainValidator(_by_layer), _schema({"type": "number"}, _TABLE)
]
Patterns = Annotated[str | list[str], PlainValidator(_patterns), _schema(_TEXT, {"type": "array", "items": _TEXT})]
