"""JSON files and their fields, checked: a fault names the file and the line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from distmem.errors import ReportError

Number = int | float


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises ReportError."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ReportError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ReportError(f"is not UTF-8 text ({error.reason})", where=f"{path}:{line}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ReportError with file:line:column."""
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise ReportError(f"damaged JSON: {error.msg}", where=where) from error
    if not isinstance(value, dict):
        raise ReportError(f"holds {_short(value)}; an object is expected", where=f"{path}:1")
    return value


def number(record: dict[str, Any], key: str, where: str) -> Number | None:
    """A number, or None where it is missing, null or not finite. Raises ReportError for anything else."""
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ReportError(f"{key} is {_short(value)}; a number is expected", where=where)
    return value if math.isfinite(value) else None


def section(record: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """An object inside an object, empty when missing. Raises ReportError."""
    value = record.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ReportError(f"{key} is {_short(value)}; an object is expected", where=where)
    return value


def objects(record: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """A list of objects inside an object, empty when missing. Raises ReportError."""
    value = record.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ReportError(f"{key} is {_short(value)}; a list of objects is expected", where=where)
    return value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
