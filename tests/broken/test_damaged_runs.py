"""A disk that is full, checkpoints that are damaged, and folders that belong to something else."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cases import Outcome, in_process
from small_runs import StopBefore

from distmem import cli, worker
from distmem.checkpoint.store import read_checkpoint

RECIPE = """\
name: stopped
model: {name: lenet_300_100}
data: {name: digits, shared: false}
train: {epochs: 4, batch_size: 256}
checkpoint: {every: 6steps, keep: 3}
launch: {device: cpu, procs_per_node: 1}
"""
LARGEST_WRITE = 300_000  # bytes: above every log and JSON file, below the 0.6 MB of a checkpoint


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after step 15 of 24, with checkpoints of steps 6, 12 and 15."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "StopFlag", lambda: StopBefore(15))
        ended = in_process(folder, worker.main, ["distmem.worker", "recipe.yaml", "--out", "run"])
    assert ended.exit == 75, ended.err
    assert [path.name for path in checkpoints(folder / "run")] == [f"step-{n:08d}" for n in (6, 12, 15)]
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(stopped, tmp_path / "copy")
    return tmp_path / "copy"


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def flip(file: Path) -> None:
    """One wrong bit, in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def distmem(folder: Path, *words: str, limit: int | None = None) -> Outcome:
    """The command in a process of its own. limit: no file may grow beyond these bytes, as on a full disk."""

    def prepare() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    package = str(Path(cli.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-m", "distmem", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=prepare,
        check=False,
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


def refused_by_cli(folder: Path, *words: str) -> str:
    """What the command says before it starts anything; nothing may change."""
    before = contents(folder)
    outcome = in_process(folder, cli.main, ["distmem", "run", *words])
    assert outcome.exit == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert contents(folder) == before
    return outcome.err


def test_a_full_disk_then_a_damaged_checkpoint_then_the_end(folder: Path):
    run = folder / "run"
    old = {name: digest for name, digest in contents(run).items() if name.startswith("checkpoints")}

    full = distmem(folder, "run", "recipe.yaml", "--out", "run", limit=LARGEST_WRITE)

    assert full.exit == 1, full.err
    assert re.match(r"cannot save \d+ KiB to run/checkpoints/step-00000018: .*File too large.*\n  try: free", full.err)
    assert "Traceback" not in full.out + full.err
    assert {name: digest for name, digest in contents(run).items() if name.startswith("checkpoints")} == old
    assert not list(run.rglob("*.tmp"))
    assert not (run / "summary.json").exists()
    assert [read_checkpoint(path).progress["step"] for path in checkpoints(run)] == [6, 12, 15]

    flip(run / "checkpoints" / "step-00000015" / "state.safetensors")
    again = distmem(folder, "run", "recipe.yaml", "--out", "run")

    assert again.exit == 0, again.err
    assert "Traceback" not in again.out + again.err
    assert re.search(r"passed over: .*step-00000015: state\.safetensors is damaged", again.out)
    assert re.search(r"goes on after step 12 of 24", again.out)
    assert [read_checkpoint(path).progress["step"] for path in checkpoints(run)] == [12, 18, 24]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["resumed_from"]["step"] == 12
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if line["kind"] == "step"] == list(range(1, 25))

    says = refused_by_cli(folder, "recipe.yaml", "--out", "run")
    assert says.startswith("the run in run is finished\n  try: name another folder")


def test_damaged_checkpoints_are_never_a_silent_fresh_start(folder: Path):
    run = folder / "run"
    flip(run / "checkpoints" / "step-00000006" / "state.safetensors")
    (run / "checkpoints" / "step-00000012" / "manifest.json").write_text("{")
    (run / "checkpoints" / "step-00000015" / "progress.json").unlink()
    before = {name: digest for name, digest in contents(run).items() if name.startswith("checkpoints")}

    outcome = in_process(folder, worker.main, ["distmem.worker", "recipe.yaml", "--out", "run"])

    assert outcome.exit == 1
    assert outcome.err.startswith("no checkpoint of this run can be read:\n")
    assert "step-00000015 is no checkpoint: No such file or directory" in outcome.err
    assert "step-00000012 is damaged" in outcome.err
    assert "step-00000006: state.safetensors is damaged: its hash is not the one in manifest.json" in outcome.err
    assert "try: start again in another folder; nothing in run/checkpoints was changed" in outcome.err
    assert "Traceback" not in outcome.err
    assert {name: digest for name, digest in contents(run).items() if name.startswith("checkpoints")} == before


def test_the_folder_of_another_recipe(folder: Path):
    says = refused_by_cli(folder, "recipe.yaml", "optim.lr=0.5", "train.epochs=9", "--out", "run")
    assert says.startswith("run holds a run of another recipe; they differ in optim.lr, train.epochs\n  try: ")


def test_a_folder_of_something_else(folder: Path):
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter1.tex").write_text("precious")
    says = refused_by_cli(folder, "recipe.yaml", "--out", "thesis")
    assert says.startswith("--out thesis holds something that is no run of distmem\n  try: name another folder")
    says = refused_by_cli(folder, "recipe.yaml", "--out", "recipe.yaml")
    assert says.startswith("--out recipe.yaml is a file\n  try: name a folder")


def test_a_run_that_must_not_go_on(folder: Path):
    says = refused_by_cli(folder, "recipe.yaml", "--out", "run", "--resume", "never")
    assert says.startswith("--resume never, and run holds a run already\n  try: ")
    says = refused_by_cli(folder, "recipe.yaml", "--resume", "run")
    assert says.startswith("--resume run: there is no checkpoint in this folder\n  try: name one such as")
    says = refused_by_cli(folder, "recipe.yaml", "--resume", "auto")
    assert says.startswith("no unfinished run of this recipe in runs/stopped\n  try: ")


def test_a_recipe_of_the_run_that_is_damaged(folder: Path):
    (folder / "run" / "recipe.yaml").write_text("name: stopped\ntrain: [")
    says = refused_by_cli(folder, "recipe.yaml", "--out", "run")
    assert says.startswith("run/recipe.yaml:2:9: not valid YAML")
