"""Sizes and durations: parsed from what people write, printed as people read them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_FACTORS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _FACTORS[f"{_letter}b"] = 1000**_power
    _FACTORS[f"{_letter}ib"] = 1024**_power


def parse_bytes(text: str | int) -> int:
    """Bytes of a size such as 8GiB, "500 MB" or 1024. Raises ValueError."""
    if isinstance(text, bool) or not isinstance(text, (str, int)):
        raise ValueError(f"{text!r} is not a size")
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", str(text))
    if not match or match[2].lower() not in _FACTORS:
        raise ValueError(f"{text!r} is not a size: write a number and B, KiB, MiB, GiB, TiB (or kB, MB, GB, TB)")
    return int(float(match[1]) * _FACTORS[match[2].lower()])


def format_bytes(size: float) -> str:
    """A size with three significant digits and a binary unit: 1.04 MiB."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(size) >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    if units[0] == "B":
        return f"{size:.0f} B"
    digits = 2 if abs(size) < 10 else 1 if abs(size) < 100 else 0
    return f"{size:.{digits}f} {units[0]}"


def format_seconds(seconds: float) -> str:
    """A duration: 0.8 s, 42 s, 3 min 12 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean "lr"?' for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""
