"""The command line, as a user types it; and the wheel, as a user installs it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from launched import ROOT

from distmem import __version__, cli

COMMANDS = ("recipes", "new", "check", "run", "report")


@dataclass
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def distmem(capsys, monkeypatch, tmp_path):
    """distmem("check", "digits"): the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["distmem", *words])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Said(code, *capsys.readouterr())

    return call


@pytest.mark.parametrize("words", [("--help",), ("-h",)])
def test_help_names_every_command(distmem, words):
    said = distmem(*words)
    assert said.code == 0
    for command in COMMANDS:
        assert f" {command} " in said.out
        assert distmem(command, "--help").code == 0
    assert distmem("--version").out == f"distmem {__version__}\n"


def test_help_of_run_names_its_options(distmem):
    out = distmem("run", "--help").out
    for option in ("--launcher", "--procs", "--nodes", "--backend", "--out", "--resume", "--dry-run", "--debug"):
        assert option in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("rnu", "digits"), "rnu"),
        (("run",), "RECIPE"),
        (("run", "digits", "--proc", "2"), "--proc"),
        (("run", "digits", "--procs", "two"), "--procs"),
        (("run", "digits", "--procs", "0"), "procs_per_node"),
        (("run", "digits", "--launcher", "slrum"), "slurm"),
        (("run", "digits", "--backend", "dpp"), 'Did you mean "ddp"?'),
        (("run", "digits", "optim.lr"), "optim.lr"),
        (("run", "digits", "optm.lr=1"), 'Did you mean "optim"?'),
        (("run", "digit"), 'Did you mean "digits"?'),
        (("run", "digits", "--resume", "auto"), "no unfinished run of this recipe in runs/digits"),
        (("run", "digits", "--resume", "nowhere"), "no checkpoint in this folder"),
        (("run", "digits", "--nodes", "2"), "nodes"),
        (("check",), "which recipe?"),
        (("check", "."), "no recipe file"),
        (("recipes", "x"), "no recipe file"),
        (("new", "x"), "no recipe file"),
        (("report",), "RUN"),
    ],
)
def test_wrong_usage_is_2_and_starts_nothing(distmem, words, said):
    found = distmem(*words)
    assert found.code == 2
    assert said in found.err
    assert "Traceback" not in found.err
    assert list(Path().iterdir()) == []


def test_recipes(distmem):
    listed = distmem("recipes")
    as_json = json.loads(distmem("recipes", "--json").out)
    assert sorted(as_json) == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    for name in as_json:
        assert f"\n{name} " in f"\n{listed.out}"
    assert as_json["digits"][0] == "distmem run digits"
    assert distmem("recipes", "digits").out == (ROOT / "recipes" / "digits.yaml").read_text()


def test_new_and_check(distmem):
    said = distmem("new", "digits")
    assert said.code == 0
    assert said.out == "digits.yaml written; check it with: distmem check digits.yaml\n"
    assert Path("digits.yaml").read_text() == (ROOT / "recipes" / "digits.yaml").read_text()
    again = distmem("new", "digits")
    assert (again.code, "digits.yaml exists" in again.err) == (2, True)
    assert distmem("new", "digits", "mine.yaml").code == 0
    nowhere = distmem("new", "digits", "no/where.yaml")
    assert (nowhere.code, "cannot write no/where.yaml: No such file" in nowhere.err) == (2, True)
    checked = distmem("check", "mine.yaml", "launch.procs_per_node=2", "launch.device=cpu")
    assert checked.code == 0
    assert checked.out.startswith(
        "mine.yaml: fine. lenet_300_100 on digits, 2 x cpu, 32-true, backend ddp, launcher torch"
    )


def test_resolved_recipe_is_a_recipe(distmem):
    resolved = distmem("check", "digits", "--resolved", "train.epochs=3", "launch.device=cpu")
    Path("resolved.yaml").write_text(resolved.out)
    assert "epochs: 3" in resolved.out
    assert distmem("check", "resolved.yaml", "--resolved").out == resolved.out


def test_schema_is_a_schema(distmem):
    schema = json.loads(distmem("check", "--schema").out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert {"model", "data", "optim", "train", "after"} <= schema["properties"].keys()


def test_dry_run_tells_of_an_unfinished_run_and_writes_nothing(distmem):
    old = Path("runs/digits/20260101-000000")
    (old / "checkpoints/step-00000001").mkdir(parents=True)
    (old / "checkpoints/step-00000001/manifest.json").write_text("{}")
    (old / "recipe.yaml").write_text(distmem("check", "digits", "--resolved").out)
    before = sorted(Path().rglob("*"))
    said = distmem("run", "digits", "--dry-run")
    assert (said.code, said.err) == (
        0,
        f"an unfinished run of this recipe is in {old}; `--resume auto` goes on with it\n",
    )
    assert f"--out {old}" not in said.out
    again = distmem("run", "digits", "--dry-run", "--resume", "auto")
    assert (again.code, again.err) == (0, "")
    assert f"--out {old}\n" in again.out
    assert sorted(Path().rglob("*")) == before


def test_report(distmem):
    run = Path("run")
    run.mkdir()
    stage = {"name": "dense", "val_accuracy": 0.9, "val_loss": 0.3, "nonzeros": 5, "total": 10, "compression_rate": 2.0}
    (run / "recipe.yaml").write_text(distmem("check", "digits", "--resolved", "name=tiny").out)
    (run / "summary.json").write_text(json.dumps({"name": "tiny", "world_size": 1, "stages": [stage]}))
    said = distmem("report", "run")
    assert (said.code, said.out) == (0, "run/report.html\n"), said.err
    assert "tiny" in Path("run/report.html").read_text()
    assert distmem("report", "run", "run", "--out", "both.html").out == "both.html\n"
    nothing = distmem("report", "nothing")
    assert nothing.code == 1
    assert "nothing" in nothing.err


def test_debug_of_a_wrong_recipe_is_no_empty_line(distmem):
    said = distmem("run", "digits", "--debug", "--procs", "2", "optim.lr=fast")
    assert said.code == 2
    assert not said.err.startswith("\n")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's names, and the folder it is unpacked to."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [file] = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "unpacked")
        return archive.namelist(), folder / "unpacked"


def test_wheel_has_every_file(wheel):
    names, _ = wheel
    wanted = {f"distmem/{file.relative_to(ROOT / 'distmem')}" for file in (ROOT / "distmem").rglob("*.py")}
    for kind in ("recipes", "launch"):
        wanted |= {f"distmem/shipped/{kind}/{file.name}" for file in (ROOT / kind).iterdir()}
    wanted |= {f"distmem/report/report.{ending}" for ending in ("css", "js", "html.j2")}
    assert wanted <= set(names)
    assert {"distmem/shipped/recipes/digits.yaml", "distmem/shipped/launch/torchrun.sh"} <= wanted
    others = {name for name in names if not name.startswith("distmem/") and ".dist-info/" not in name}
    assert others == set()
    assert not [name for name in names if "__pycache__" in name or name.startswith("distmem/tests")]


def test_wheel_works_elsewhere(wheel, tmp_path):
    _, unpacked = wheel
    code = "import distmem, sys; print(distmem.__file__); sys.argv = ['distmem', *sys.argv[1:]]; "
    code += "from distmem.cli import main; main()"
    env = {"PYTHONPATH": str(unpacked), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    for words in (["check", "digits"], ["recipes", "--json"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        place, _, out = done.stdout.partition("\n")
        assert Path(place).is_relative_to(unpacked)
        assert out.startswith("digits: fine.") if words[0] == "check" else "digits" in json.loads(out)
