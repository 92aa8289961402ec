"""YAML with a place for every node: values as plain Python, and where each of them stands.

Only what a recipe needs: scalars, lists, mappings with plain keys, anchors. `yaml.compose` gives the nodes
with their marks; nothing is constructed by tag, so a recipe can never run code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from distmem.errors import RecipeError
from distmem.units import format_bytes

LARGEST_FILE = 256 << 10  # bytes; a recipe is read by people
MOST_NODES = 10_000  # after aliases are followed: a "billion laughs" file ends here
DEEPEST = 50

KeyPath = tuple[str | int, ...]
_CORE = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """The YAML 1.2 core schema: 1e-3 is a number, 01:00:00 and on are text (PyYAML follows YAML 1.1)."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own class attribute)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would take for something else."""


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_CORE}{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


class Places:
    """Where each key and value of a recipe was written: "file:line:column", or the override that set it."""

    def __init__(self, file: str):
        self.file = file
        self._at: dict[KeyPath, str] = {}

    def put(self, path: KeyPath, mark: yaml.Mark) -> None:
        self._at[path] = f"{self.file}:{mark.line + 1}:{mark.column + 1}"

    def put_override(self, path: KeyPath, text: str) -> None:
        for known in [known for known in self._at if known[: len(path)] == path]:
            del self._at[known]
        self._at[path] = f'override "{text}"'

    def of(self, path: KeyPath) -> str:
        """The place of the value, or of the nearest mapping or list around it."""
        while path not in self._at and path:
            path = path[:-1]
        return self._at.get(path, self.file)


def read_yaml(path: Path) -> tuple[Any, Places]:
    """Values of a YAML file and the place of each. Raises RecipeError (missing, too large, not UTF-8, bad YAML)."""
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise RecipeError(
                f"the file has {format_bytes(size)}; a recipe has at most {format_bytes(LARGEST_FILE)}",
                where=str(path),
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"cannot read the recipe: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"not a text file: byte {error.start} is not UTF-8", where=str(path)) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, file: str) -> tuple[Any, Places]:
    """The same for a text; `file` names it in messages."""
    places = Places(file)
    try:
        node = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, file) from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        where = f"{file}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        raise RecipeError(f"the character U+{ord(text[error.position]):04X} is not allowed", where=where) from error
    except RecursionError as error:
        raise RecipeError(f"more than {DEEPEST} levels: not a recipe", where=file) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML lets "\UFFFFFFFF" through to chr()
        raise RecipeError(f"not valid YAML: {error}", where=file) from error
    return _Reader(places).value(node, ()) if node else None, places


def _syntax_error(error: yaml.MarkedYAMLError, file: str) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
    problem = error.problem or error.context or "unreadable"
    if r"'\t'" in problem:
        return RecipeError("a tab where YAML wants spaces", remedy="indent with spaces", where=where)
    if "another document" in problem:
        return RecipeError("a second document begins here", remedy="one recipe per file, without ---", where=where)
    start = error.context_mark
    inside = f", {error.context} that starts in line {start.line + 1}" if error.context and start else ""
    return RecipeError(
        f"not valid YAML: {problem}{inside}",
        remedy="check the indentation and quote text that holds : # { [ or *",
        where=where,
    )


def parse_scalar(text: str, file: str) -> Any:
    """The value after `key=`: a number, true, null, text, or YAML in one line such as {norm: 1.0}."""
    return parse_yaml(text, file)[0]


def dump_yaml(values: Any) -> str:
    """YAML that `parse_yaml` reads as the same values."""
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    if re.search("[\x85\u2028\u2029\ufeff]", text):  # PyYAML would fold these line ends; escaped they stay
        text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=110)
    return text


class _Reader:
    """Turns nodes into values and notes their places."""

    def __init__(self, places: Places):
        self.places = places
        self.seen = 0
        self.open: set[int] = set()  # nodes being read: meeting one again means a cycle
        self.scalars = yaml.constructor.SafeConstructor()

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.seen += 1
        if self.seen > MOST_NODES or len(path) > DEEPEST:
            raise self.error(node, f"more than {MOST_NODES} values (aliases counted) or {DEEPEST} levels: not a recipe")
        if id(node) in self.open:
            raise self.error(node, "an alias that contains itself", "write the values out")
        if isinstance(node, yaml.CollectionNode) and node.tag not in (f"{_CORE}map", f"{_CORE}seq"):
            raise self.tag_error(node)
        if path not in self.places._at:
            self.places.put(path, node.start_mark)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self.scalar(node)
        finally:
            self.open.discard(id(node))

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str | int, Any]:
        result: dict[str | int, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(key_node, "a key must be plain text or a number")
            key = self.scalar(key_node)
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise self.error(key_node, f"a key must be text or a whole number, not {key_node.value!r}")
            if key in result:
                raise self.error(key_node, f'the key "{key}" stands here twice', "keep one of the two")
            self.places.put((*path, key), key_node.start_mark)
            result[key] = self.value(value_node, (*path, key))
        return result

    def scalar(self, node: yaml.Node) -> Any:
        kind = node.tag.removeprefix(_CORE)
        if kind == "int" and len(node.value) > 30:
            raise self.error(node, "a number with more than 30 digits")
        try:
            if kind == "float":
                return float(re.sub(r"\.(?=[a-z])", "", node.value.lower()))  # .inf and .nan
            if kind == "int":
                return int(node.value, 0) if node.value[:2] in ("0x", "0o") else int(node.value)
            if kind in ("bool", "null"):
                return self.scalars.construct_object(node)
        except (ValueError, KeyError) as error:  # only after a tag of its own, such as !!int abc
            raise self.error(node, f'"{node.value}" is no {kind}', "remove the tag") from error
        if kind != "str":
            raise self.tag_error(node)
        try:  # JSON writes characters beyond U+FFFF as "\ud83d\ude00"
            return node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise self.error(node, "half of a surrogate pair: no character") from error

    def tag_error(self, node: yaml.Node) -> RecipeError:
        tag = node.tag.replace(_CORE, "!!")
        return self.error(node, f"the tag {tag} is not used in recipes: values are plain", "remove the tag")

    def error(self, node: yaml.Node, cause: str, remedy: str | None = None) -> RecipeError:
        mark = node.start_mark
        return RecipeError(cause, remedy=remedy, where=f"{self.places.file}:{mark.line + 1}:{mark.column + 1}")
