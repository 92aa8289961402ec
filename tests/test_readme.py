"""README.md says what the benchmarks' JSON says, and what the program prints."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from distmem.errors import RecipeError
from distmem.recipe import load_recipe

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_its_tables_are_those_of_the_json():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    assert readme.rewritten(TEXT) == TEXT, "run python benchmarks/readme.py"
    tables = re.findall(r"<!-- table: \w+ -->\n(.*?)<!-- end -->", TEXT, flags=re.S)
    assert len(tables) == len(readme.TABLES)
    assert all(table.count("\n|") >= 2 for table in tables)


def test_its_example_of_faults_is_what_is_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(
        "name: my\nmodel: {name: lenet_300_100}\ndata:\n  name: digits\n  vla: test\n"
        "optim: {name: adam, lr: fast}\ntrain:\n  epochs: 3\n  batch_sise: 64\n"
    )
    with pytest.raises(RecipeError) as raised:
        load_recipe(Path("my.yaml"))
    assert str(raised.value) in TEXT


def test_its_recipe_is_one():
    block = next(b for b in re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.S))
    from distmem.checks import check
    from distmem.recipe import recipe_from_text

    assert check(recipe_from_text(block, "README.md", ["launch.device=cpu"])).train.accumulate == {0: 4, 5: 2}


def test_what_the_checks_know_by_name_is_what_there_is():
    from distmem.checks.names import LOSSES, METRICS
    from distmem.losses import LOSSES as losses
    from distmem.metrics import METRICS as metrics

    assert set(LOSSES) == set(losses)
    assert set(METRICS) == set(metrics)
