"""key=value on the command line: where it is put, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmem.errors import RecipeError
from distmem.recipe.overrides import apply_overrides
from distmem.recipe.yamlfile import parse_yaml

TEXT = """\
name: one
train: {epochs: 3, accumulate: {0: 8, 4: 4}}
after:
  - prune: {sensitivity: 2.0}
  - share: {bits: 5}
"""


def overridden(*texts: str, base: str = TEXT) -> dict[str, Any]:
    values, places = parse_yaml(base, "f")
    apply_overrides(values, places, list(texts))
    return values


def refusal(*texts: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        overridden(*texts)
    return caught.value


def test_values_are_yaml():
    values = overridden(
        "seed=7", "optim.lr=1e-3", "train.clip={norm: 1.0}", "loss=mse", "metrics=[mae]", "memory.budget=8GiB", "model="
    )
    assert values["seed"] == 7
    assert values["optim"] == {"lr": 0.001}
    assert values["train"] == {"epochs": 3, "accumulate": {0: 8, 4: 4}, "clip": {"norm": 1.0}}
    assert values["loss"] == "mse"
    assert values["metrics"] == ["mae"]
    assert values["memory"] == {"budget": "8GiB"}
    assert values["model"] is None


def test_a_value_may_hold_equals_signs_colons_and_spaces():
    assert overridden("data.args.path=a=b c")["data"]["args"]["path"] == "a=b c"
    assert overridden("launch.slurm.time=01:00:00")["launch"]["slurm"]["time"] == "01:00:00"


def test_list_items_are_named_by_index():
    values = overridden("after.0.prune.sensitivity=1.5", "after.1={retrain: {epochs: 2}}")
    assert values["after"] == [{"prune": {"sensitivity": 1.5}}, {"retrain": {"epochs": 2}}]


def test_the_next_index_appends():
    values = overridden("after.2.retrain.epochs=4", "after.3={share: {bits: 3}}")
    assert values["after"][2:] == [{"retrain": {"epochs": 4}}, {"share": {"bits": 3}}]


def test_numbers_as_keys_stay_numbers():
    assert overridden("train.accumulate.8=1")["train"]["accumulate"] == {0: 8, 4: 4, 8: 1}


def test_later_ones_win_and_a_short_form_gives_way_to_a_section():
    assert overridden("train.epochs=5", "train.epochs=6")["train"]["epochs"] == 6
    assert overridden("data=digits", "data.name=mnist")["data"] == {"name": "mnist"}


def test_places_name_the_override():
    values, places = parse_yaml(TEXT, "f")
    apply_overrides(values, places, ["train={epochs: 4}", "after.0.prune.sensitivity=1"])
    assert places.of(("train", "epochs")) == 'override "train={epochs: 4}"'
    assert places.of(("after", 0, "prune", "sensitivity")) == 'override "after.0.prune.sensitivity=1"'
    assert places.of(("after", 0, "prune")) == "f:4:5"
    assert places.of(("name",)) == "f:1:1"


@pytest.mark.parametrize("text", ["train.epochs", "=3", " =3", "--procs", ""])
def test_what_is_no_override(text: str):
    error = refusal(text)
    assert error.cause == f'"{text}" is not an override'
    assert error.remedy == "write it as key.key=value, without spaces"


@pytest.mark.parametrize("key", ["3", "-1", "x", "", "²", "0x1", "9" * 5000])
def test_an_index_that_is_not_there(key: str):
    error = refusal(f"after.{key}=1")
    assert error.where == f'override "after.{key}=1"'
    assert error.cause.startswith('"after" is a list of 2: ')
    assert error.remedy == "use an index from 0 to 2"


def test_a_stage_named_instead_of_counted_gets_a_hint():
    assert 'Did you mean "prune"?' in refusal("after.prun.sensitivity=1").cause


def test_a_value_that_is_no_yaml_is_said_with_the_override():
    error = refusal("train.clip={norm: 1")
    assert error.where is not None
    assert error.where.startswith('override "train.clip={norm: 1"')
    assert "not valid YAML" in error.cause


@given(
    st.lists(st.sampled_from(["train", "epochs", "after", "0", "1", "2", "prune", "x", "", "²", "-1"]), min_size=1),
    st.text(max_size=12),
)
def test_any_override_is_applied_or_refused(keys: list[str], value: str):
    text = f"{'.'.join(keys)}={value}"
    try:
        values = overridden(text)
    except RecipeError as error:
        said = str(error)
    else:
        said = f"override gives {values}"
    assert "override" in said
