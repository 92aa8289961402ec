"""The pieces around a rank: requests to stop, arguments, and what a rank says when it fails."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import RankFailed, run_ranks

from distmem.errors import LaunchError, Stopped, UsageError
from distmem.launchers import Command, build_command, local_command, torchrun_command, worker_arguments
from distmem.launchers.agent import ended_by_signal
from distmem.launchers.start import WorkerError, start
from distmem.rank import as_launched
from distmem.recipe import recipe_from_text
from distmem.signals import STOP_SIGNALS, StopFlag, end_with_parent
from distmem.worker import lost_neighbour, parse_arguments, plain_message, report_failure

RECIPE = "name: r\nmodel: {name: mlp}\ndata: {name: digits}\n"


@pytest.fixture
def flag():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    flag = StopFlag()
    flag.install()
    yield flag
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_sets_the_flag(flag, number):
    assert not flag.is_set
    os.kill(os.getpid(), number)
    assert flag.is_set
    assert flag.signal == number.name


def test_a_second_ctrl_c_interrupts_and_other_signals_do_not(flag):
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
@pytest.mark.parametrize("gone_before", [False, True])
def test_a_child_hears_of_its_parents_death(tmp_path, gone_before):
    """grandchild -> parent (killed) -> this process."""
    heard = tmp_path / "heard"
    if (parent := os.fork()) == 0:
        me = os.getpid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, lambda *_: (heard.write_text("yes"), os._exit(0)))
            if gone_before:
                time.sleep(0.3)
            end_with_parent(signal.SIGTERM, me)
            (tmp_path / "ready").write_text("")
            time.sleep(30)
            os._exit(0)
        while not gone_before and not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(me, signal.SIGKILL)
    os.waitpid(parent, 0)
    end = time.monotonic() + 30
    while not heard.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert heard.exists()


def test_arguments_stand_in_any_order():
    words = ["--out", "o", "r.yaml", "a=1", "--debug", "b=2", "--resume", "c"]
    found = parse_arguments(words)
    assert (found.recipe, found.overrides, found.out, found.resume) == ("r.yaml", ["a=1", "b=2"], Path("o"), Path("c"))
    assert (found.debug, found.managed) == (True, False)


@pytest.mark.parametrize(
    ("env", "launcher", "procs"),
    [
        ({}, "local", 1),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "torchrun", 2),
        ({"WORLD_SIZE": "1"}, "local", 1),
    ],
)
def test_a_launcher_of_the_users_own_decides_the_processes(monkeypatch, env, launcher, procs):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    launch = recipe_from_text(RECIPE, overrides=["launch.procs_per_node=7", *as_launched()]).recipe.launch
    assert (launch.launcher, launch.procs_per_node) == (launcher, procs)


def namespace(out: Path | None, managed: bool, debug: bool = False) -> argparse.Namespace:
    return argparse.Namespace(out=out, managed=managed, debug=debug)


def test_a_failure_is_noted_for_the_launcher(tmp_path, capsys):
    try:
        raise ValueError("three wheels")
    except ValueError as error:
        report_failure(error, 3, namespace(tmp_path, managed=True))
    [file] = (tmp_path / "errors").iterdir()
    note = json.loads(file.read_text())
    assert (note["rank"], note["exit_code"], note["lost"]) == (3, 1, False)
    assert note["message"].startswith(f"ValueError: three wheels\n  at {__file__}:")
    assert "Traceback" in note["traceback"]
    assert capsys.readouterr().err == ""


def test_without_a_launcher_it_is_printed(tmp_path, capsys):
    for error, debug, traceback in (
        (UsageError("no", remedy="yes"), False, False),
        (UsageError("no"), True, True),
        (ValueError("three wheels"), False, True),
    ):
        try:
            raise error
        except Exception as raised:
            report_failure(raised, 0, namespace(tmp_path, managed=False, debug=debug))
        said = capsys.readouterr().err
        assert str(error) in said
        assert ("Traceback" in said) == traceback
    assert list(tmp_path.iterdir()) == []


def test_plain_message_names_the_users_line():
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - numpy's words are not ours
        torch.zeros(2).numpy().reshape(3)
    assert plain_message(raised.value).endswith("torch.zeros(2).numpy().reshape(3)")


def _neighbour_goes(world, file):
    if world.rank == 1:
        os._exit(7)
    try:
        while True:
            world.sum([1.0])
    except RuntimeError as error:
        file.write_text(f"{lost_neighbour(error)} {error}")
        os._exit(0)


def test_a_lost_neighbour_is_told_from_an_error_of_ones_own(tmp_path):
    with pytest.raises(RankFailed, match="rank 1: ended with exit code 7"):
        run_ranks(_neighbour_goes, 2, tmp_path / "said")
    said = (tmp_path / "said").read_text()
    assert said.startswith("True "), said
    assert lost_neighbour(KeyboardInterrupt())
    assert not lost_neighbour(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not lost_neighbour(ValueError("gloo"))


AGENT = """
============================================================
distmem.worker FAILED
------------------------------------------------------------
Failures:
[0]:
  time      : 2026-01-01_00:00:00
  host      : node
  rank      : 0 (local_rank: 0)
  exitcode  : {} (pid: 10)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
------------------------------------------------------------
Root Cause (first observed failure):
[1]:
  time      : 2026-01-01_00:00:00
  host      : node
  rank      : 13 (local_rank: 1)
  exitcode  : {} (pid: 11) (SIGKILL)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 11
============================================================
"""


@pytest.mark.parametrize(
    ("codes", "found"),
    [((1, -9), (13, 9)), ((-15, -11), (13, 11)), ((-6, -9), (0, 6)), ((1, 1), (0, 0)), ((-15, 1), (0, 0))],
)
def test_the_agents_table(codes, found):
    assert ended_by_signal("noise\n" + AGENT.format(*codes)) == found
    assert ended_by_signal("") == (0, 0)


def python(code: str) -> Command:
    return Command([sys.executable, "-c", code])


def note(folder: Path, time_: float, rank: int, message: str, code: int = 1, lost: bool = False) -> None:
    (folder / "errors").mkdir(exist_ok=True)
    values = {"time": time_, "rank": rank, "message": message, "exit_code": code, "traceback": "T", "lost": lost}
    (folder / "errors" / f"rank{rank}-{time_}.json").write_text(json.dumps(values))


def test_start_ends_well_only_with_a_result(tmp_path):
    start(python(f"open({str(tmp_path / 'outcome.json')!r}, 'w').write('{{\"state\": \"done\"}}')"), tmp_path)
    with pytest.raises(LaunchError, match="ended with exit code 0 and without a result"):
        start(python("import os; os._exit(0)"), tmp_path)  # the outcome of the earlier life does not count


def test_start_shows_the_end_of_what_was_said(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "launcher.log").write_text("from an earlier life\n")
    with pytest.raises(LaunchError) as raised:
        start(python("import sys; [print('line', i, file=sys.stderr) for i in range(100)]; sys.exit(9)"), tmp_path)
    said = str(raised.value)
    assert "exit code 9 and without a result; the end of" in said
    assert "line 84\n" not in said
    assert "line 85\n" in said
    assert "line 99\n" in said
    assert "earlier life" not in said


def test_start_without_a_program(tmp_path):
    with pytest.raises(LaunchError, match="cannot start /no/python: No such file"):
        start(Command(["/no/python"]), tmp_path)


def test_start_shows_the_first_error_that_is_no_consequence(tmp_path, monkeypatch):
    note(tmp_path, 0.0, 0, "of an earlier life")
    child = "import test_worker as t, pathlib, sys; p = pathlib.Path('.'); "
    child += "t.note(p, 1.0, 0, 'Connection closed', lost=True); t.note(p, 3.0, 2, 'late'); "
    child += "t.note(p, 2.0, 1, 'odd apples', code=2); sys.exit(1)"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkerError) as raised:
        start(python(child), Path())
    assert str(raised.value) == "rank 1: odd apples\n  log: logs/rank1.log"
    assert (raised.value.exit_code, raised.value.traceback) == (2, "T")


def test_start_names_the_signal(tmp_path):
    with pytest.raises(LaunchError, match=r"rank 0 was ended by SIGSEGV\n  log: .*\n  try: .*goes on from the newest"):
        start(python("import os; os.kill(os.getpid(), 11)"), tmp_path)
    with pytest.raises(LaunchError, match=r"rank 0 was ended by SIGKILL\n.*\n.*ran out of memory"):
        start(python("import os; os.kill(os.getpid(), 9)"), tmp_path)


def test_start_passes_requests_on_and_puts_handlers_back(tmp_path):
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    child = "import os, signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3)); "
    child += "os.kill(os.getppid(), signal.SIGUSR1); time.sleep(60)"
    with pytest.raises(Stopped, match="ended by SIGUSR1 before the end of a step") as raised:
        start(python(child), tmp_path)
    assert raised.value.exit_code == 75
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_what_the_user_has_set_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    child = "import os, sys; sys.exit(os.environ['OMP_NUM_THREADS'] + os.environ['OTHER'])"
    with pytest.raises(LaunchError, match="\n    35\n"):
        start(Command([sys.executable, "-c", child], {"OMP_NUM_THREADS": "1", "OTHER": "5"}), tmp_path)


def test_commands():
    worker = worker_arguments(Path("o/recipe.yaml"), Path("o"), Path("c"), debug=True)
    assert worker == ["o/recipe.yaml", "--out", "o", "--resume", "c", "--debug"]
    one = recipe_from_text(RECIPE, overrides=["launch.launcher=local"]).recipe
    assert build_command(one, worker, 8) == local_command(sys.executable, worker)
    overrides = ["launch.launcher=torchrun", "launch.procs_per_node=3", "launch.restarts=2"]
    many = build_command(recipe_from_text(RECIPE, overrides=overrides).recipe, worker, 8)
    assert many == torchrun_command(sys.executable, worker, "3", "2", "2")
    assert many.env["OMP_NUM_THREADS"] == "2"
    assert "--nproc-per-node 3 --max-restarts 2" in " ".join(many.argv)
    assert many.managed().argv == [*many.argv, "--managed"]


WORDS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=10).filter(
    lambda word: word != "\n"
)


@given(words=st.lists(WORDS, max_size=6), path=st.none() | WORDS)
def test_a_script_gives_the_same_words(words, path):
    """Read back by a shell's rules, whatever stands in them."""
    script = Command(["run", *words], {"A_NUMBER": "5"}).script(Path("/some/where else"), path)
    assert script.startswith("#!/usr/bin/env bash\n# written by distmem: ")
    body = script.split("\n", 2)[2]
    read = [word for word in shlex.split(body) if word != "\n"]  # of the lines that go on
    assert read[:5] == ["cd", "/some/where else", "||", "exit", "1"]
    assert read[read.index("exec") + 1 :][-len(words) - 1 :] == ["run", *words]


def test_a_script_is_run_by_bash_as_it_is_written(tmp_path):
    odd = ["a b", "it's", '"$(touch pwned)"', "`touch pwned`", "$HOME", "*", "\\", "new\nline", "--flag", "--", "ü"]
    show = "import sys, os; sys.stdout.buffer.write('\\0'.join([os.environ['N'], *sys.argv[1:]]).encode())"
    script = Command([sys.executable, "-c", show, *odd], {"N": "5"}).script(tmp_path)
    for env, number in (({}, "5"), ({"N": "7"}, "7")):
        found = subprocess.run(["bash", "-c", script], capture_output=True, env={**os.environ, **env}, cwd="/")
        assert found.stdout.decode().split("\0") == [number, *odd]
    assert list(tmp_path.iterdir()) == []
