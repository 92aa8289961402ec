"""YAML with places: every node's line and column, YAML 1.2 scalars, and nothing that runs code or never ends."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmem.errors import RecipeError
from distmem.recipe.yamlfile import DEEPEST, LARGEST_FILE, MOST_NODES, parse_scalar, parse_yaml, read_yaml

TEXT = """\
# a comment
name: one
train:
  epochs: 3
  clip: {norm: 1.0, value: null}
after:
  - prune:
      sparsity: 0.9
  - share: {bits: 5}
metrics: [accuracy, top5]
table: {0: 8, 4: 4}
"""


def fault(text: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "f")
    return caught.value


def said(text: str) -> str:
    try:
        return f"read {parse_yaml(text, 'f')[0]}"
    except RecipeError as error:
        return str(error)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ((), "2:1"),
        (("name",), "2:1"),
        (("train",), "3:1"),
        (("train", "epochs"), "4:3"),
        (("train", "clip"), "5:3"),
        (("train", "clip", "norm"), "5:10"),
        (("train", "clip", "value"), "5:21"),
        (("after", 0), "7:5"),
        (("after", 0, "prune", "sparsity"), "8:7"),
        (("after", 1, "share", "bits"), "9:13"),
        (("metrics", 1), "10:21"),
        (("table", 4), "11:15"),
    ],
)
def test_every_key_and_item_has_its_place(path: tuple, place: str):
    assert parse_yaml(TEXT, "f")[1].of(path) == f"f:{place}"


def test_what_was_not_written_has_the_place_of_what_is_around_it():
    places = parse_yaml(TEXT, "f")[1]
    assert places.of(("train", "precision")) == "f:3:1"
    assert places.of(("after", 1, "share", "layers")) == "f:9:5"
    assert places.of(("optim", "lr")) == "f:2:1"
    assert parse_yaml("", "f")[1].of(("name",)) == "f"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters(codec="ascii"), max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_", min_size=1, max_size=5), inner, max_size=3)
        ),
        max_leaves=12,
    )
)
def test_json_is_read_as_json_and_each_place_points_at_its_node(value):
    text = json.dumps({"top": value}, indent=1)
    read, places = parse_yaml(text, "f")
    assert read == {"top": value}
    lines = text.splitlines()

    def visit(node, path: tuple) -> None:
        line, column = map(int, places.of(path).split(":")[1:])
        starts = lines[line - 1][column - 1 :]
        shown = json.dumps(path[-1] if isinstance(path[-1], str) else node)
        assert starts.startswith(shown if not isinstance(node, (dict, list)) or isinstance(path[-1], str) else shown[0])
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            visit(inner, (*path, key))

    visit(value, ("top",))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("+7", 7),
        ("007", 7),
        ("0x1F", 31),
        ("0o17", 15),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("+.Inf", math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        # text, as in YAML 1.2, where YAML 1.1 has times, booleans and merge keys
        ("01:00:00", "01:00:00"),
        ("1:30", "1:30"),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("1e-", "1e-"),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        ('"\\ud83d\\ude00"', "😀"),  # as JSON writes it
        ("[1, {a: 2e0}]", [1, {"a": 2.0}]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value):
    read = parse_scalar(text, "f")
    assert read == value
    assert type(read) is type(value)


def test_nan_is_a_number():
    assert all(math.isnan(parse_scalar(text, "f")) for text in (".nan", ".NaN", ".NAN"))


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("a: 1\nb: 2\na: 3", "f:3:1", 'the key "a" stands here twice'),
        ("t:\n  0: 8\n  0: 4", "f:3:3", 'the key "0" stands here twice'),
        ("true: 1", "f:1:1", "a key must be text or a whole number, not 'true'"),
        ("1.5: 1", "f:1:1", "a key must be text or a whole number, not '1.5'"),
        ("? [1]\n: 2", "f:1:3", "a key must be plain text"),
        ("a: &x\n  b: *x", "f:1:4", "an alias that contains itself"),
        ("a: &x [1, *x]", "f:1:4", "an alias that contains itself"),
        ("a: *nobody", "f:1:4", "undefined alias 'nobody'"),
        ("a:\n\tb: 1", "f:2:1", "a tab where YAML wants spaces"),
        ("a: [1, 2\nb: 3", "f:2:2", "that starts in line 1"),
        ("a: 'x", "f:1:6", "quoted scalar that starts in line 1"),
        ("a: 1\n---\nb: 2", "f:2:1", "a second document begins here"),
        ("a: 1\nb: \x00", "f:2:4", "the character U+0000 is not allowed"),
        ("a: \x07", "f:1:4", "the character U+0007 is not allowed"),
        ('a: "\\ud800"', "f:1:4", "half of a surrogate pair"),
        ("a: !!int many", "f:1:4", '"many" is no int'),
        ("a: !!float much", "f:1:4", '"much" is no float'),
        ("a: !!bool maybe", "f:1:4", '"maybe" is no bool'),
        ("a: " + "9" * 31, "f:1:4", "a number with more than 30 digits"),
        ("a: 0x" + "f" * 31, "f:1:4", "a number with more than 30 digits"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, where: str, says: str):
    error = fault(text)
    assert error.where == where
    assert says in error.cause


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch OWNED']",
        "!!python/object/new:os.system ['touch OWNED']",
        "!!python/name:os.system",
        "!!python/object:__main__.X {a: 1}",
        "!!python/tuple [1, 2]",
        "!mine {a: 1}",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!binary aGVsbG8=",
        "!!timestamp 2024-01-01",
    ],
)
def test_tags_are_refused_and_never_run(tag: str, tmp_path: Path):
    error = fault(f"a: 1\nb: {tag.replace('OWNED', str(tmp_path / 'owned'))}")
    assert error.where == "f:2:4"
    assert f"the tag {tag.split()[0]} is not used in recipes" in error.cause
    assert not list(tmp_path.iterdir())


def test_aliases_give_equal_values_that_are_not_one_object():
    values, places = parse_yaml("a: &x {lr: 0.1}\nb: *x", "f")
    values["b"]["lr"] = 5
    assert values == {"a": {"lr": 0.1}, "b": {"lr": 5}}
    assert places.of(("a", "lr")) == "f:1:8"
    assert places.of(("b",)) == "f:2:1"


def test_a_billion_laughs_end_after_few_values():
    lines = ["l0: &l0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert f"more than {MOST_NODES} values" in fault("\n".join(lines)).cause


@pytest.mark.parametrize("text", ["[" * 200 + "]" * 200, "{a: " * 100 + "1" + "}" * 100, "[" * 50_000])
def test_deep_nesting_is_refused(text: str):
    assert f"{DEEPEST} levels" in fault(text).cause


def test_levels_up_to_the_limit_are_read():
    assert parse_yaml("[" * DEEPEST + "]" * DEEPEST, "f")[0]


def test_files_that_are_no_recipes(tmp_path: Path):
    def cause(name: str) -> str:
        with pytest.raises(RecipeError) as caught:
            read_yaml(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)
        return caught.value.cause

    (tmp_path / "large").write_bytes(b"#" * (LARGEST_FILE + 1))
    (tmp_path / "latin").write_bytes("name: caf\xe9".encode("latin-1"))
    assert "256 KiB" in cause("large")
    assert cause("latin") == "not a text file: byte 9 is not UTF-8"
    assert cause("missing") == "cannot read the recipe: No such file or directory"
    assert cause(".") == "cannot read the recipe: Is a directory"


def test_a_file_of_the_largest_size_a_byte_order_mark_and_line_ends_of_windows_are_read(tmp_path: Path):
    file = tmp_path / "f.yaml"
    file.write_bytes(b"\xef\xbb\xbfname: one\r\nseed: 2\r\n" + b"#" * (LARGEST_FILE - 23))
    assert file.stat().st_size == LARGEST_FILE
    values, places = read_yaml(file)
    assert values == {"name": "one", "seed": 2}
    assert places.of(("seed",)) == f"{file}:2:1"


@given(st.text())
def test_any_text_gives_values_or_a_recipe_error(text: str):
    assert said(text).startswith(("f", "read"))


PIECES = "a|b: |- |? |: |{|}|[|]|, |\n|\n  |\t|&x |*x |!!int |!t |>\n|'|\"|\\U|\\u|FFFFFFFF|#|%YAML 1.2\n|---"
PIECES += "|...|1|.|e|~|inf|<<|="
YAML_LIKE = st.lists(st.sampled_from(PIECES.split("|")), max_size=25).map("".join)


@given(YAML_LIKE)
def test_texts_that_look_like_yaml_give_values_or_a_recipe_error(text: str):
    assert said(text).startswith(("f", "read"))
