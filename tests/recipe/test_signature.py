"""Signatures read from source: the same names that Python's own inspect finds, and no code is run."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

import pytest

from distmem.data import SOURCES
from distmem.memory.optimizers import OPTIMIZERS
from distmem.models import MODELS
from distmem.recipe.signature import defined_names, find_module, fits, read_signature, syntax_fault, words

TARGETS = sorted({*SOURCES.values(), *OPTIMIZERS.values(), *MODELS.values()})

OWN = """
import sys
sys.exit("this file must never be imported")
from functools import wraps as _wraps
import os.path as _path, json

if json:
    class Guarded: ...
try:
    from nowhere import Fast
except ImportError:
    Fast = None
first, (second, *third) = 1, (2, 3)
typed: int = 4
with open(__file__) as handle:
    inner = 5

class Base:
    def __init__(self, size: int, *, name: str = "x", **options): ...
class Derived(Base):
    hidden = 1
class Elsewhere(json.JSONDecoder): ...
@_wraps
class Decorated:
    def __init__(self, a): ...
@_wraps
def decorated(a): ...
def load(path, /, count: int | None = None, *rest, flag: bool): ...
async def later(): ...
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


@pytest.mark.parametrize("target", TARGETS)
def test_a_shipped_target_is_read_as_inspect_sees_it(target: str):
    module, _, attribute = target.partition(":")
    file = find_module(module)
    assert file is not None
    seen = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
    read = read_signature(file, attribute)
    assert read is not None
    assert set(read.parameters) == {name for name, one in seen.items() if one.kind is not one.VAR_KEYWORD}
    assert read.required() == [
        name for name, one in seen.items() if one.default is one.empty and one.kind is not one.VAR_KEYWORD
    ]
    assert attribute in (defined_names(file) or [])
    assert syntax_fault(file) is None


def test_a_constructor_is_found_in_the_class_or_its_base(own: Path):
    for name in ("Base", "Derived"):
        read = read_signature(own, name)
        assert read is not None
        assert read.parameters == {"size": ("int", False), "name": ("str", True)}
        assert read.open
        assert read.required() == ["size"]


def test_a_function_has_all_its_parameters(own: Path):
    read = read_signature(own, "load")
    assert read is not None
    assert read.parameters == {"path": ("", False), "count": ("int | None", True), "flag": ("bool", False)}
    assert not read.open


@pytest.mark.parametrize("name", ["Elsewhere", "Decorated", "decorated", "Guarded", "first", "nothing"])
def test_what_the_source_does_not_tell_is_left_to_the_run(own: Path, name: str):
    assert read_signature(own, name) is None


def test_names_under_if_try_and_with_count_too(own: Path):
    found = defined_names(own)
    assert found is not None
    expected = {"Guarded", "Fast", "first", "second", "third", "typed", "inner", "Base", "Derived", "load", "later"}
    assert expected | {"sys", "json", "_wraps", "_path"} <= set(found)
    assert "hidden" not in found
    assert "a" not in found


@pytest.mark.parametrize("line", ["from os.path import *", "def __getattr__(name): ...", "if 1:\n    from os import *"])
def test_a_module_that_may_have_any_name(line: str, tmp_path: Path):
    (tmp_path / "own.py").write_text(f"class Net: ...\n{line}\n")
    assert defined_names(tmp_path / "own.py") is None


def test_a_syntax_error_has_its_line(tmp_path: Path):
    file = tmp_path / "bad.py"
    file.write_text("x = 1\nclass Net:\n    def f(self:\n")
    where, what = syntax_fault(file) or ("", "")
    assert where.startswith(f"{file}:3:")
    assert what
    assert read_signature(file, "Net") is None
    for content in (b"\xff\xfe\x00", b"x = 1\0"):
        file.write_bytes(content)
        assert syntax_fault(file)
    assert syntax_fault(tmp_path / "missing.py")


def test_modules_are_found_in_the_working_folder_and_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pkg" / "deep").mkdir(parents=True)
    (tmp_path / "pkg" / "deep" / "__init__.py").touch()
    (tmp_path / "pkg" / "nets.py").touch()
    monkeypatch.chdir(tmp_path)
    assert find_module("pkg.nets") == tmp_path / "pkg" / "nets.py"
    assert find_module("pkg.deep") == tmp_path / "pkg" / "deep" / "__init__.py"
    assert find_module("torch.optim.adam")
    assert "pkg" not in sys.modules


@pytest.mark.parametrize(
    "name", ["", ".", "..x", "no_such_module", "sys", "a b", "pkg/nets", "\0", "x" * 5000, "json.no"]
)
def test_what_is_no_module_is_not_found(name: str):
    assert find_module(name) is None


@pytest.mark.parametrize(
    ("value", "annotation", "suits"),
    [
        (3, "int", True),
        (3.0, "int", False),
        (True, "int", False),
        (True, "bool", True),
        (1, "bool", False),
        (3, "float", True),
        ("3", "float", False),
        (None, "int | None", True),
        (None, "int", False),
        ([1, 2], "list[int] | None", True),
        ([1, "x"], "list[int] | None", False),
        (50, "list[int] | None", False),
        ({"a": 1}, "dict[str, int]", True),
        ([], "dict", False),
        ("char", "Literal['char', 'byte']", True),
        ("chars", "Literal['char', 'byte']", False),
        (5, "", True),
        (5, "Tensor", True),
        (True, "Tensor | None", True),
        ([0.9, 0.999], "tuple[float, float]", True),
        (0.1, "Union[float, Tensor]", True),
    ],
)
def test_a_value_suits_its_annotation(value, annotation: str, suits: bool):
    assert fits(value, annotation) is suits


def test_annotations_in_words():
    assert words("list[int] | None") == "a list of int or null"
    assert words("Literal['char', 'byte']") == "one of char, byte"
    assert words("int") == "a whole number"
    assert words("Tensor") == "Tensor"
