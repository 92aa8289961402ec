"""From text to Recipe and back: faults with place and remedy, did-you-mean, and the round trip of every recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmem.errors import RecipeError
from distmem.recipe import dump_recipe, load_recipe, recipe_from_text
from distmem.recipe.load import known_keys
from distmem.shipped import shipped_recipes

BASE = "name: one\nmodel: {name: mlp}\ndata: {name: digits}\n"
SHIPPED = shipped_recipes()


def faults(text: str, *overrides: str) -> list[RecipeError]:
    with pytest.raises(RecipeError) as caught:
        recipe_from_text(text, "f", list(overrides))
    return caught.value.faults or [caught.value]


def fault(text: str, *overrides: str) -> RecipeError:
    (only,) = faults(text, *overrides)
    return only


def test_a_short_recipe_gets_the_defaults():
    recipe = recipe_from_text(BASE).recipe
    assert (recipe.seed, recipe.loss, recipe.metrics, recipe.train.epochs) == (42, "cross_entropy", ["accuracy"], 1)
    assert (recipe.optim.name, recipe.optim.lr, recipe.train.batch_size) == ("adam", 0.001, 64)
    assert (recipe.launch.device, recipe.checkpoint.async_, recipe.after) == ("auto", True, [])


def test_short_forms_become_the_long_ones():
    recipe = recipe_from_text(
        BASE + "train: {epochs: 2, precision: 16, eval_every: 500, accumulate: {4: 2, 0: 8}}\nmemory: {budget: 8GiB}\n"
        "checkpoint: {every: 2 epochs}\noptim: {lr: 1}"
    ).recipe
    assert recipe.train.precision == "16-mixed"
    assert recipe.train.eval_every == "500steps"
    assert list(recipe.train.accumulate) == [0, 4]  # type: ignore[arg-type]
    assert recipe.memory.budget == 8 << 30
    assert recipe.checkpoint.every == "2epochs"
    assert type(recipe.optim.lr) is float


@pytest.mark.parametrize(
    ("text", "near", "listed"),
    [
        ("trian: {}", "train", "checkpoint"),
        ("train: {epoch: 1}", "epochs", "batch_size"),
        ("optim: {schedule: {warmup: 3}}", "warmup_steps", "gamma"),
        ("launch: {slurm: {partitoin: gpu}}", "partition", "account"),
        ("checkpoint: {asinc: true}", "async", "keep"),
        ("after: [{prunee: {}}]", "prune", "share"),
        ("after: [{prune: {sensitivity: 1, layer: x}}]", "layers", "sparsity"),
        ("after: [{retrain: {epochs: 1, optim: {lrr: 1}}}]", "lr", "schedule"),
    ],
)
def test_a_typo_in_a_key_names_the_nearest_key_and_all_others(text: str, near: str, listed: str):
    error = fault(BASE + text)
    assert error.where is not None
    assert error.where.startswith("f:4:")
    assert error.cause.endswith(f'Did you mean "{near}"?')
    assert {near, listed} <= set(str(error.remedy).removeprefix("one of ").split(", "))


@pytest.mark.parametrize(
    ("text", "where", "cause", "remedy"),
    [
        ("seed: -1", "4:1", "seed: -1 is not at least 0", None),
        ("seed: true", "4:1", "seed: true is not a whole number", None),
        ("seed: '3'", "4:1", 'seed: "3" is not a whole number', "3 without quotes"),
        ("train: {epochs: 1.5}", "4:9", "train.epochs: 1.5 is not a whole number", None),
        ("train: {deterministic: on}", "4:9", 'train.deterministic: "on" is not true or false', "true"),
        ("train: {clip: {norm: 0}}", "4:16", "train.clip.norm: 0 is not above 0.0", None),
        ("optim: {schedule: {final: 2}}", "4:20", "optim.schedule.final: 2 is not at most 1.0", None),
        ("metrics: accuracy", "4:1", 'metrics: "accuracy" is not a list', "[accuracy]"),
        ("after: [share]", "4:9", 'after.0: "share" is not a mapping of keys', "- share: {...}"),
        ("launch: 5", "4:1", "launch: 5 is not a mapping of keys", None),
        (
            "launch: {device: gpu}",
            "4:10",
            'launch.device: "gpu" is not allowed. Did you mean "cuda"?',
            "one of auto, cpu, cuda, mps",
        ),
        ("1: 2", "4:1", "1: 1 is not text, as a key must be", None),
        ("after: [{share: {bits: .inf}}]", "4:10", "after.0.share: bits: inf is no whole number from 1 to 8", None),
        ("after: [{share: {bits: .nan}}]", "4:10", "after.0.share: bits: nan is no whole number from 1 to 8", None),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_right(text: str, where: str, cause: str, remedy: str | None):
    error = fault(BASE + text)
    assert (error.where, error.cause, error.remedy) == (f"f:{where}", cause, remedy)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: {precision: bf16-mix}", r'"bf16-mix" is no precision\. Did you mean "bf16-mixed"\? Allowed: 16-mixed'),
        ("train: {accumulate: {4: 1}}", r"does not say what holds from epoch 0"),
        ("train: {accumulate: {0: 0}}", r"numbers of micro-batches from 1"),
        ("train: {eval_every: 0}", r"0 is no interval"),
        ("train: {eval_every: true}", r"True is no interval"),
        ("optim: {lr: true}", r"True is no learning rate: a number above 0, such as 0\.001 or 1e-3"),
        ("memory: {budget: 8 gigs}", r"'8 gigs' is not a size: write a number and B, KiB"),
        ("memory: {activation_checkpointing: sqr}", r'Did you mean "sqrt"\?'),
        ("memory: {activation_checkpointing: {blocks: -1}}", r"is none of none, full, sqrt"),
        ("memory: {micro_batch: 0}", r"0 is neither a whole number from 1 nor auto"),
        ("after: [{prune: {sparsity: 0.5}}]", r"method std needs sensitivity, and no sparsity"),
        ("after: [{prune: {method: layer, sparsity: 1.0}}]", r"sparsity 1\.0 must be above 0 and below 1"),
        ("after: [{prune: {sensitivity: .nan}}]", r"sensitivity nan must be above 0"),
        ("after: [{share: {bits: {a: b}}}]", r"is neither a number nor a table of layer patterns"),
        ("after: [{share: {layers: []}}]", r"is neither a layer pattern"),
        ("after: [{share: {}, retrain: {epochs: 1}}]", r"one stage with its settings, such as - share"),
    ],
)
def test_values_with_several_forms_name_them(text: str, says: str):
    error = fault(BASE + text)
    assert re.search(says, error.cause)
    assert str(error.where).startswith("f:4:")


@pytest.mark.parametrize(
    "value", ["1.5", "0.0", "-0.1", "3", "{args: {}}", "{name: csv, args: 3}", "{name: csv, args: {1: 2}}"]
)
def test_validation_data_is_a_split_a_fraction_or_a_source(value: str):
    assert (
        "neither a split's name, nor a fraction"
        in fault(f"name: one\nmodel: {{name: mlp}}\ndata: {{name: digits, val: {value}}}").cause
    )


def test_all_faults_come_at_once_in_the_order_of_the_file():
    found = faults("loss: 3\nname: one\ntrain: {epochs: 0, x: 1}\noptim: {lr: -1}\nmodel: {name: mlp}\n")
    assert [error.where for error in found] == ["f:1:1", "f:1:1", "f:3:9", "f:3:20", "f:4:9"]
    assert {error.cause for error in found[:2]} == {"data is missing", "loss: 3 is not text"}


def test_an_override_at_fault_is_shown_as_written():
    error = fault(BASE, "train.epochs=many")
    assert error.where == 'override "train.epochs=many"'
    assert error.cause == 'train.epochs: "many" is not a whole number'


@pytest.mark.parametrize("text", ["- a", "5", "text", "[]"])
def test_a_recipe_is_a_mapping(text: str):
    assert fault(text).cause.startswith("a recipe is a mapping of keys")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "null"])
def test_an_empty_recipe(text: str):
    assert fault(text).cause == "the recipe is empty"


def test_known_keys_follow_sections_lists_and_aliases():
    assert known_keys(())[:3] == ["name", "seed", "model"]
    assert "async" in known_keys(("checkpoint",))
    assert known_keys(("after", 3, "prune", "gradual", "optim", "schedule"))[0] == "name"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_reads_back_as_it_was_written(name: str, tmp_path: Path):
    recipe = load_recipe(SHIPPED[name]).recipe
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    again = load_recipe(tmp_path / "again.yaml").recipe
    assert again == recipe
    assert dump_recipe(again) == dump_recipe(recipe)


@pytest.mark.parametrize(
    "text", ["1e5", "0o17", "on", "01:00:00", "1_000", "~", "", ".5", "a\x85b", "a\u2028 b", "café", "😀"]
)
def test_text_that_looks_like_something_else_stays_text(text: str):
    recipe = recipe_from_text(BASE, overrides=[f"model.args.a={json.dumps(text)}"]).recipe
    assert recipe.model.args == {"a": text}
    assert recipe_from_text(dump_recipe(recipe)).recipe == recipe


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), min_size=1, max_size=12)
PLAIN = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | TEXTS
ANYTHING = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2), max_leaves=5
)
OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "model.args": st.dictionaries(TEXTS, ANYTHING, max_size=3),
        "data.val": st.sampled_from(["test", 0.25, {"name": "csv"}, {"name": "csv", "args": {"path": "x"}}]),
        "loss": TEXTS,
        "optim.lr": st.sampled_from(["auto", 1, 1e-300, 0.1]) | st.floats(1e-9, 1e9),
        "optim.schedule": st.sampled_from([{"name": "step", "every": 7}, {"name": "cosine", "final": 0.5}]),
        "train.precision": st.sampled_from([16, "32", "bf16", "64-true", "auto"]),
        "train.accumulate": st.sampled_from(["auto", 4, {0: 8, 4: 4}]),
        "train.clip": st.sampled_from([None, {"norm": 1}, {"value": 0.5}, {"norm": 2.5, "value": 1e9}]),
        "train.averaging": st.none() | st.dictionaries(TEXTS, ANYTHING, max_size=2),
        "memory.budget": st.sampled_from([None, "8GiB", 12345, "1.5 MB"]),
        "memory.activation_checkpointing": st.sampled_from(["none", "sqrt", {"blocks": 6}, None]),
        "launch.slurm": st.fixed_dictionaries({"time": TEXTS, "extra": st.lists(TEXTS, max_size=3)}),
        "checkpoint.async": st.booleans(),
        "after": st.lists(
            st.sampled_from(
                [
                    {"prune": {"sensitivity": {"fc3.*": 1.0, "*": 2}}},
                    {"prune": {"method": "global", "sparsity": 0.9, "gradual": {"epochs": 2, "optim": {"lr": 1}}}},
                    {"retrain": {"epochs": 3, "optim": {"name": "sgd", "args": {"momentum": 0.9}}}},
                    {"share": {"bits": {"a.*": 4, "*": 5}, "layers": ["a", "b"]}},
                    {"share": {}},
                ]
            ),
            max_size=3,
        ),
    },
)


@settings(max_examples=50, deadline=None)
@given(OVERRIDES)
def test_a_recipe_with_any_overrides_reads_back_as_it_was_written(values: dict):
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items() if "accumulate" not in key]
    if "train.accumulate" in values:
        overrides.append(f"train.accumulate={values['train.accumulate']}".replace("'", ""))
    recipe = recipe_from_text(BASE, overrides=overrides).recipe
    dumped = dump_recipe(recipe)
    assert recipe_from_text(dumped).recipe == recipe
    assert dump_recipe(recipe_from_text(dumped).recipe) == dumped


KEYS = ["name", "seed", "model", "data", "train", "optim", "memory", "launch", "after", "args", "lr", "epochs", "clip"]
KEYS += ["prune", "share", "bits", "sparsity", "method", "accumulate", "schedule", "val", "every", "log", "x", "1", "~"]
VALUES = st.sampled_from(["auto", "mlp", "digits", "1", "-1", "1e400", ".nan", "0", "true", "null", "'3'", "{}", "[]"])
TREES = st.recursive(
    VALUES,
    lambda inner: (
        st.dictionaries(st.sampled_from(KEYS), inner, max_size=4).map(
            lambda node: "{" + ", ".join(f"{key}: {value}" for key, value in node.items()) + "}"
        )
        | st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(
    st.text()
    | TREES
    | st.dictionaries(st.sampled_from(KEYS), TREES, min_size=3).map(
        lambda node: (
            BASE + "\n".join(f"{key}: {value}" for key, value in node.items() if key not in ("name", "model", "data"))
        )
    )
)
def test_any_text_gives_a_recipe_or_a_recipe_error(text: str):
    try:
        loaded = recipe_from_text(text, "f")
    except RecipeError as error:
        for one in error.faults or [error]:
            assert str(one.where).startswith("f")
            assert one.cause
    else:
        assert recipe_from_text(dump_recipe(loaded.recipe)).recipe == loaded.recipe
