"""Real runs: what they leave behind, and how they end when something happens to them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from launched import ROOT, STEPS, assert_same_run

from distmem.launchers.files import render_launch_files

TYPES = {
    "name": str, "backend": str, "launcher": str, "world_size": int, "device": str, "precision": str,
    "steps": int, "epochs": int, "global_batch": int, "micro_batch": int, "accumulate": int,
    "final": dict, "throughput": dict, "memory": dict, "resumed_from": (dict, type(None)), "stages": list,
}  # fmt: skip


def check_files(folder: Path, launcher: str, world_size: int) -> None:
    """The files of the contract, and the fields of summary.json."""
    for name in ("recipe.yaml", "metrics.jsonl", "measured.json", "report.html", "summary.json", "model.safetensors"):
        assert (folder / name).stat().st_size > 0, name
    assert [path.name for path in sorted((folder / "stages").iterdir())] == ["01-prune", "02-retrain", "03-share"]
    steps = [path.name for path in sorted((folder / "checkpoints").glob("*"))]
    assert steps == ["best", f"step-{2 * STEPS - 3:08d}", f"step-{2 * STEPS:08d}"]
    summary = json.loads((folder / "summary.json").read_text())
    for key, kind in TYPES.items():
        assert isinstance(summary[key], kind), key
    assert (summary["name"], summary["backend"], summary["device"]) == ("small", "ddp", "cpu")
    assert (summary["launcher"], summary["world_size"]) == (launcher, world_size)
    assert (summary["steps"], summary["epochs"]) == (2 * STEPS, 2)
    assert (summary["global_batch"], summary["micro_batch"], summary["accumulate"]) == (128, 128 // world_size, 1)
    assert set(summary["final"]) == {"train_loss", "val_loss", "val_accuracy"}
    assert 0.5 < summary["final"]["val_accuracy"] <= 1
    assert summary["throughput"]["samples_per_s"] > 0
    assert summary["throughput"]["step_s_median"] > 0
    assert summary["memory"]["measured_peak_bytes"] > 10 << 20
    assert [row["name"] for row in summary["stages"]] == ["dense", "prune", "retrain", "share"]
    for row in summary["stages"]:
        assert row["total"] == 64 * 48 + 48 + 48 * 10 + 10
        assert row["compression_rate"] == pytest.approx(row["total"] / row["nonzeros"])
        assert (row["bytes"], 0 <= row["val_accuracy"] <= 1) == (4 * row["total"], True)
    measured = json.loads((folder / "measured.json").read_text())
    assert [row["rank"] for row in measured["per_rank"]] == list(range(world_size))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if (line["kind"], line["phase"]) == ("step", "train")] == [
        *range(1, 2 * STEPS + 1)
    ]
    assert sum(line["kind"] == "eval" for line in lines) == 4


def test_one_process(played):
    folder, ended = played("one_process")
    assert ended.code == 0, ended.said
    check_files(folder, "local", 1)
    assert os.access(folder / "launch.sh", os.X_OK)
    assert f"report: {folder.name}/report.html" in ended.out


def test_two_runs_at_once_of_two_processes_each(played):
    """Started in the same second: other folders, other ports, and one of them builds the cache."""
    first, second = played("two_processes_twice_at_once")
    assert (first.code, second.code) == (0, 0), first.said + second.said
    folders = sorted(played.folder.glob("two_processes_twice_at_once/runs/small/*"))
    assert len(folders) == 2
    for folder in folders:
        check_files(folder, "torchrun", 2)
        assert (folder / "logs" / "rank1.log").exists()
    assert_same_run(*folders)


@pytest.fixture(scope="module")
def two(played):
    """The folder of a run of two processes that nothing happened to."""
    played("two_processes_twice_at_once")
    return min(played.folder.glob("two_processes_twice_at_once/runs/small/*"))


def test_torchrun_by_hand(played, two):
    folder, ended = played("own_torchrun")
    assert ended.code == 0, ended.said
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["launcher"], summary["world_size"], summary["micro_batch"]) == ("torchrun", 2, 64)
    assert len(list((folder / "checkpoints").glob("step-*"))) == 1
    assert_same_run(folder, two)


def test_dry_run_and_its_script(played):
    """--dry-run starts and writes nothing; the script it prints does the same run, whatever the names of folders."""
    folder, printed, ended, left = played("printed_script")
    assert printed.code == 0, printed.said
    assert left == ["hooked.py", "small.yaml"]
    assert ended.code == 0, ended.said
    assert not list(folder.parents[1].glob("**/pwned"))
    check_files(folder, "local", 1)
    assert_same_run(folder, played("one_process")[0])


def test_signals_in_every_phase_of_one_process(played):
    folder, lives = played("stopped_in_one_process")
    assert [life.code for life in lives] == [75, 75, 75, 0], "\n".join(life.said for life in lives)
    for life, words in zip(lives, ("5 of 24 of train", "4 of 12 of 1-prune", "7 of 12 of 2-retrain"), strict=False):
        assert f"stopped on request after step {words}\n  try: `distmem run ... --out out` goes on" in life.out
    assert "passed over: out/checkpoints/step-00000005: state.safetensors is damaged" in lives[1].out
    assert "train: goes on after step 3 of 24 (out/checkpoints/step-00000003)" in lives[1].out
    assert json.loads((folder / "summary.json").read_text())["resumed_from"] == {
        "checkpoint": "out/stages/02-retrain/checkpoints/step-00000007", "phase": "2-retrain", "step": 7,
    }  # fmt: skip
    assert_same_run(folder, played("one_process")[0])


def test_hard_times_of_two_processes(played, two):
    told = played("hard_times_of_two_processes")
    assert told["term"].code == 75, told["term"].said
    assert "stopped on request after step 5 of 24 of train" in told["term"].out
    assert told["launcher killed"].code == -9
    assert told["orphans end"]
    assert told["saved"][-1] == "step-00000009"  # the ranks that lost their launcher saved what they had
    assert told["usr1 to rank 1"].code == 75, told["usr1 to rank 1"].said
    assert "stopped on request after step 4 of 12 of 1-prune" in told["usr1 to rank 1"].out
    assert told["restarted"].code == 0, told["restarted"].said
    assert "2-retrain: goes on after step 3 of 12" in told["restarted"].out
    assert told["restarted"].out.count("run folder: out\n") == 2
    assert_same_run(told["folder"], two)


def test_killed_rank(played, two):
    """The message names the rank, the signal and a way on, in a few lines."""
    told = played("killed_rank")
    one = told["rank 1"]
    assert one.code == 1, one.said
    said = one.out.partition("rank 1 was ended by SIGKILL\n")
    assert said[1], one.said
    assert said[2].count("\n") == 2
    assert "ran out of memory" in said[2]
    assert "`distmem run ... --out out` goes on from the newest checkpoint" in said[2]
    assert told["both"].code == 1, told["both"].said
    assert "was ended by SIGKILL\n" in told["both"].out
    assert "train: goes on after step 6 of 24" in told["both"].out
    assert told["finished"].code == 0, told["finished"].said
    assert "Traceback" not in one.out + told["both"].out
    assert_same_run(told["folder"], two)


def test_killed_at_random_moments(played):
    folder, events, ended = played("killed_at_random")
    assert ended.code == 0, [events, ended.said]
    assert_same_run(played("one_process")[0], folder)
    assert not list(folder.glob("**/.*.tmp")), events


def test_user_code_that_fails_on_rank_1(played):
    folder, ended = played("rank_1_raises")
    assert ended.code == 1, ended.said
    said = ended.out.partition("rank 1: ValueError: the number of apples is odd\n  at ")
    place = f"{folder.parent}/hooked.py:"
    assert said[2].startswith(place), ended.said
    assert said[2].endswith(f'raise ValueError("the number of apples is odd")\n  log: {folder.name}/logs/rank1.log\n')
    assert "Traceback" not in ended.out
    assert not (folder / "summary.json").exists()


def test_page_of_own_model(played):
    told = played("page_of_own_model")
    assert told["command"] == "PYTHONPATH=. distmem run rings.yaml"
    assert told["literal"].code == 0, told["literal"].said
    assert "2 x cpu" in told["script"].out, told["script"].said
    assert told["script"].code == 0, told["script"].said


def test_debug(played):
    fine, raised = played("debug")
    assert fine.code == 0, fine.said
    assert "1 x cpu" in fine.out
    assert "debug run finished: a few batches of each part; nothing was saved" in fine.out
    assert raised.code == 1, raised.said
    assert 'hooked.py", line' in raised.out
    assert "\nValueError: the number of apples is odd\n" in raised.out
    assert "distmem/engine.py" in raised.out


def test_second_ctrl_c_ends_at_once(played):
    ended, gone = played("impatience")
    assert ended.code == 75, ended.said
    assert "ended at once by a second Ctrl-C, without saving\n  try: " in ended.out
    assert gone


def test_requests_before_the_first_step(played):
    before_worker, before_agent, before_step = played("early")
    for ended, words in (
        (before_worker, "ended by SIGTERM before the end of a step"),
        (before_agent, "ended by SIGINT before the end of a step"),
        (before_step, "stopped on request after step 0 of 24 of train"),
    ):
        assert ended.code == 75, ended.said
        assert words in ended.out
        assert "Traceback" not in ended.out
    again = played.folder / "early"
    for name in "abc":  # nothing is left that stands in the way of the next start
        assert (again / name / "recipe.yaml").exists()
        assert not (again / name / "summary.json").exists()


def test_one_folder_has_one_run_at_a_time(played):
    first, second = played("one_folder_twice_at_once")
    assert first.code == 75, first.said
    assert second.code == 2, second.said
    assert "another process is at work on the run in out" in second.out


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "launch").iterdir()))
def test_launch_files_are_what_is_rendered(name):
    assert (ROOT / "launch" / name).read_text() == render_launch_files()[name]
    assert os.access(ROOT / "launch" / name, os.X_OK)
