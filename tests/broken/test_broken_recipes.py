"""Every broken recipe gets the answer its header promises, and nothing on the disk changes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from cases import Case, Outcome, cases, in_process, prepare, run

from distmem import cli
from distmem.recipe.yamlfile import LARGEST_FILE

ALL = cases()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("broken")
    prepare(made)
    return made


@pytest.fixture(autouse=True)
def _cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTMEM_CACHE", str(folder / "cache"))


def contents(folder: Path) -> dict[str, str]:
    """Files and their hashes, the recipes that `run` copies here left out."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not re.match(r"\d+_", path.name)]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(outcome: Outcome, exit_code: int, says: str) -> None:
    assert outcome.exit == exit_code, outcome.err
    assert re.search(says, outcome.err), outcome.err
    assert "Traceback" not in outcome.out + outcome.err


def test_there_are_many_and_each_says_something_of_its_own():
    assert len(ALL) >= 45
    assert len({case.says for case in ALL}) > len(ALL) - 5
    assert all(len(case.says) > 12 for case in ALL)


@pytest.mark.parametrize("case", [case for case in ALL if case.command == "check"], ids=lambda case: case.file.stem)
def test_check_refuses_it(case: Case, folder: Path):
    before = contents(folder)

    outcome = run(case, folder)

    refused(outcome, case.exit, case.says)
    assert outcome.out == ""
    assert all(line.startswith((case.file.name, "  ")) for line in outcome.err.splitlines() if "faults" not in line)
    if case.place:
        assert f"{case.file.name}:{case.place}: " in outcome.err
    assert contents(folder) == before


@pytest.mark.parametrize("case", [case for case in ALL if case.command == "run"], ids=lambda case: case.file.stem)
def test_run_fails_with_a_message(case: Case, folder: Path):
    before = contents(folder)

    outcome = run(case, folder)

    refused(outcome, case.exit, case.says)
    after = contents(folder)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if name.endswith(("summary.json", "report.html", ".tmp"))]


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path):
    (tmp_path / "large.yaml").write_text("name: large\n" + "# nothing\n" * 500_000)

    outcome = in_process(tmp_path, cli.main, ["distmem", "check", "large.yaml"])

    refused(outcome, 2, rf"^large\.yaml: the file has 4\.\d+ MiB; a recipe has at most {LARGEST_FILE >> 10} KiB")


def test_an_empty_file_is_refused(tmp_path: Path):
    (tmp_path / "nothing.yaml").write_bytes(b"")

    outcome = in_process(tmp_path, cli.main, ["distmem", "check", "nothing.yaml"])

    refused(outcome, 2, r"^nothing\.yaml: the recipe is empty\n  try: `distmem recipes`")


def test_all_faults_are_listed_at_once_in_the_order_of_the_file(folder: Path):
    case = next(case for case in ALL if "many_faults" in case.file.name)

    outcome = run(case, folder)

    places = [tuple(map(int, found)) for found in re.findall(r"^\S+\.yaml:(\d+):(\d+): ", outcome.err, re.MULTILINE)]
    assert len(places) == 4
    assert places == sorted(places)
    assert outcome.err.endswith("4 faults in the recipe\n")


@pytest.mark.parametrize("name", ["no_such.yaml", ".", "x" * 5000, "name: mlp\nmodel: 3", "digts"])
def test_a_recipe_that_is_not_there(name: str, tmp_path: Path):
    outcome = in_process(tmp_path, cli.main, ["distmem", "check", name])

    refused(outcome, 2, "there is no recipe file")
    if name == "digts":
        assert 'Did you mean "digits"?' in outcome.err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epohs=3", r'^override "train\.epohs=3": unknown key "train\.epohs"\. Did you mean "epochs"\?'),
        ("train.epochs", r'^"train\.epochs" is not an override\n  try: write it as key\.key=value'),
        ("after.9.share.bits=3", r'"after" is a list of 3: "9" is none of its places'),
        ("train.clip={norm: -1}", r'^override "train\.clip={norm: -1}": train\.clip\.norm: -1 is not above 0'),
        ("train.epochs=[1", r"not valid YAML: expected ',' or '\]'"),
        ("loss=!!python/object/apply:os.system [id]", "tag !!python/object/apply:os.system is not used"),
    ],
)
def test_a_wrong_override_is_shown_as_it_was_written(override: str, says: str, tmp_path: Path):
    outcome = in_process(tmp_path, cli.main, ["distmem", "check", "digits", override])

    refused(outcome, 2, says)


def test_new_never_writes_over_a_file(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("precious\n")

    outcome = in_process(tmp_path, cli.main, ["distmem", "new", "digits", "mine.yaml"])

    refused(outcome, 2, r"^mine\.yaml exists\n  try: name another file")
    assert (tmp_path / "mine.yaml").read_text() == "precious\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]
