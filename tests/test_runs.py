"""Which folder a run lives in: new, the same again, an unfinished one, or none because it is another's."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distmem.checkpoint.store import write_checkpoint
from distmem.checks import check
from distmem.errors import UsageError
from distmem.recipe import Recipe, dump_recipe, recipe_from_text
from distmem.runs import choose_folder, hold, is_held, may_go_on, new_folder, unfinished_like, write_launch_files

TEXT = "name: small\nmodel: {name: mlp}\ndata: {name: digits}\ntrain: {epochs: 2}\n"


def recipe(*overrides: str) -> Recipe:
    return check(recipe_from_text(TEXT, overrides=list(overrides)))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_in(folder: Path, *overrides: str, saved: bool = True, finished: bool = False) -> Path:
    """A run folder as a run that was stopped, or that is finished, leaves it."""
    write_launch_files(folder, recipe(*overrides), "#!/bin/sh\n")
    if saved:
        write_checkpoint(folder / "checkpoints" / "step-00000003", {"w": torch.ones(1)}, {"step": 3})
    if finished:
        (folder / "outcome.json").write_text('{"state": "done"}')
    return folder


def choose(out: str | None = None, resume: str | None = None, *overrides: str) -> tuple[Path, Path | None]:
    return choose_folder(recipe(*overrides), Path(out) if out else None, resume, make=False)


def test_a_new_folder_by_name_and_time(here):
    folder, start_from = choose()
    assert folder.parent == Path("runs/small")
    assert time.strptime(folder.name, "%Y%m%d-%H%M%S")
    assert start_from is None
    assert list(here.iterdir()) == []


def test_runs_that_start_in_the_same_second_get_their_own_folders():
    folders = [new_folder("small") for _ in range(5)]
    assert len(set(folders)) == 5
    assert all(folder.is_dir() for folder in folders)
    assert not new_folder("small", make=False).exists()


def test_out_is_taken_as_it_is():
    Path("empty").mkdir()
    for out in ("new/deep", "empty", str(Path.cwd() / "absolute")):
        assert choose(out) == (Path(out), None)


@pytest.mark.parametrize("resume", [None, "auto"])
def test_out_goes_on_with_its_run(resume):
    run_in(Path("mine"))
    assert choose("mine", resume) == (Path("mine"), None)


def refused(words: str, *args: str | None) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    with pytest.raises(UsageError) as caught:
        choose(*args)
    assert words in str(caught.value)
    assert "\n  try: " in str(caught.value)
    assert before == {path: path.stat().st_mtime_ns for path in Path().rglob("*")}


def test_folders_of_others_are_refused():
    run_in(Path("mine"))
    run_in(Path("finished"), finished=True)
    Path("photos").mkdir()
    Path("photos/cat.jpg").write_text("meow")
    Path("file").write_text("")
    refused("--out photos holds something that is no run of distmem", "photos")
    refused("--out file is a file", "file")
    refused("the run in finished is finished", "finished")
    refused("--resume never, and mine holds a run already", "mine", "never")
    refused("they differ in optim.lr, train.epochs", "mine", None, "optim.lr=0.5", "train.epochs=3")
    refused("they differ in seed", "mine", "auto", "seed=1")
    Path("mine/stages/01-share").mkdir(parents=True)
    Path("mine/stages/01-share/stage.json").write_text("{}")
    refused("they differ in after", "mine", None, "after=[{share: {bits: 4}}]")
    refused("--resume nowhere: there is no checkpoint in this folder", None, "nowhere")
    refused("--resume mine: there is no checkpoint in this folder", None, "mine")


def test_a_run_that_kept_nothing_is_no_hindrance():
    run_in(Path("failed"), "data.val=valid", saved=False)
    assert choose("failed") == (Path("failed"), None)
    run_in(Path("trained"))
    assert choose("trained", None, "after=[{share: {bits: 4}}]") == (Path("trained"), None)


@pytest.mark.parametrize(
    "change",
    ["launch.procs_per_node=2", "memory.micro_batch=8", "checkpoint.every=5steps", "train.accumulate=2",
     "train.eval_batch_size=10", "data.workers=3", "data.shared=false"],
)  # fmt: skip
def test_what_decides_no_number_may_change(change):
    run_in(Path("mine"))
    assert choose("mine", None, change) == (Path("mine"), None)


def test_auto_takes_the_newest_unfinished_run_of_the_recipe():
    refused("no unfinished run of this recipe in runs/small", None, "auto")
    base = Path("runs/small")
    run_in(base / "20260101-000000")
    wanted = run_in(base / "20260102-000000")
    run_in(base / "20260103-000000", "optim.lr=0.5")
    run_in(base / "20260104-000000", saved=False)
    run_in(base / "20260105-000000", finished=True)
    (base / "20260106-000000").mkdir()
    run_in(base / "20260107-000000")
    (base / "20260107-000000" / "recipe.yaml").write_text("name: [")  # of another version, or damaged
    assert unfinished_like(recipe()) == wanted
    assert choose(None, "auto") == (wanted, None)
    assert choose(None, "auto", "optim.lr=0.5") == (base / "20260103-000000", None)
    assert choose(None, "never")[0] not in base.iterdir()
    assert choose()[0] not in base.iterdir()


def test_an_unfinished_stage_counts():
    folder = run_in(Path("runs/small/20260101-000000"), saved=False)
    write_checkpoint(folder / "stages/02-retrain/checkpoints/step-00000001", {"w": torch.ones(1)}, {"step": 1})
    assert unfinished_like(recipe()) == folder


def test_a_checkpoint_of_another_run():
    checkpoint = run_in(Path("old")) / "checkpoints" / "step-00000003"
    assert choose("new", str(checkpoint)) == (Path("new"), checkpoint)
    assert choose(None, str(checkpoint))[1] == checkpoint


def test_what_a_killed_start_leaves_is_no_obstacle():
    """write_launch_files writes to hidden files first; a kill leaves one of them, or a folder with nothing in it."""
    Path("left").mkdir()
    Path("left/.recipe.yaml.k2x").write_text("name: sm")
    assert choose("left") == (Path("left"), None)
    Path("only_recipe").mkdir()
    Path("only_recipe/recipe.yaml").write_text(dump_recipe(recipe()))
    assert choose("only_recipe") == (Path("only_recipe"), None)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(epochs=st.integers(1, 10**6), lr=st.floats(1e-300, 1e300), seed=st.integers(0, 2**63 - 1))
def test_a_written_recipe_is_the_same_run(tmp_path_factory, epochs, lr, seed):
    folder = tmp_path_factory.mktemp("any") / "run"
    overrides = (f"train.epochs={epochs}", f"optim.lr={lr!r}", f"seed={seed}")
    run_in(folder, *overrides, saved=False)
    may_go_on(folder, recipe(*overrides))
    assert os.access(folder / "launch.sh", os.X_OK)


def test_a_held_folder():
    """Another process holds the run; when it is killed, the folder is free."""
    folder = run_in(Path("runs/small/20260101-000000"))
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        with hold(folder):
            os.write(write, b"!")
            time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    assert is_held(folder)
    refused("another process is at work on the run in runs/small/20260101-000000", str(folder))
    refused("no unfinished run", None, "auto")
    with pytest.raises(UsageError, match="another process is at work"), hold(folder):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not is_held(folder)
    assert choose(None, "auto") == (folder, None)
    with hold(folder):
        assert is_held(folder)
    assert not is_held(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written():
    Path("locked").mkdir(mode=0o500)
    with pytest.raises(UsageError, match=r"cannot write to locked/run: Permission denied"):
        write_launch_files(Path("locked/run"), recipe(), "")


def test_a_place_that_is_a_file():
    Path("runs").write_text("")
    with pytest.raises(UsageError, match=r"cannot make runs/small/.*Not a directory"):
        new_folder("small")
