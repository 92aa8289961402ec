"""Run a command to its end: pass signals on, keep the agent's noise in a log, show the first error as the message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any

from distmem.errors import DistmemError, LaunchError, Stopped
from distmem.launchers import Command
from distmem.launchers.agent import ended_by_signal
from distmem.signals import STOP_SIGNALS, end_with_parent

TAIL_LINES = 15


def start(command: Command, folder: Path) -> None:
    """Start the workers of the run in `folder` and wait for them.

    Raises Stopped when the run was stopped on request, the first rank's error otherwise, LaunchError when the
    processes ended without a word.
    """
    for old in (*(folder / "errors").glob("*.json"), folder / "outcome.json"):  # of an earlier life
        old.unlink(missing_ok=True)
    log = folder / "logs" / "launcher.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    child = _Child()
    with log.open("ab") as stderr:
        before = stderr.tell()
        code = child.run(command, stderr)
    state = _outcome(folder)
    if state.get("state") == "stopped":
        raise Stopped(state["message"], remedy=_go_on(folder))
    if state.get("state") == "done":
        return  # whatever a rank met on its way out: everything is written
    raise _failure(code, child, folder, log, log.read_bytes()[before:].decode(errors="replace"))


class _Child:
    """The started process and the requests to stop it: each is passed on once, a second SIGINT ends it at once."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.requests: list[signal.Signals] = []
        self.killed = False
        self._early: list[int] = []  # requests from before there was a process

    def run(self, command: Command, stderr: IO[bytes]) -> int:
        """Start the process and wait for it; gives its exit code, or minus the signal that ended it."""
        before = {number: signal.signal(number, self._pass_on) for number in STOP_SIGNALS}
        parent = os.getpid()
        try:
            self.process = subprocess.Popen(
                command.argv,
                env={**command.env, **_without_world(os.environ)},  # what the user has set comes first
                stderr=stderr,
                start_new_session=True,  # Ctrl-C reaches the workers once, through us
                preexec_fn=lambda: end_with_parent(signal.SIGTERM, parent),
            )
            while self._early:
                self.process.send_signal(self._early.pop(0))
            return self.process.wait()
        except OSError as error:
            raise LaunchError(f"cannot start {command.argv[0]}: {error.strerror}") from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and not self.requests:
            print("stopping at the end of this step; Ctrl-C again ends at once", file=sys.stderr)
        self.killed = number == signal.SIGINT and signal.SIGINT in self.requests
        self.requests.append(signal.Signals(number))
        if self.process is None:
            self._early.append(number)
        elif self.killed:
            self.process.kill()  # the ranks get SIGINT when their parent dies
        else:
            self.process.send_signal(number)


def _without_world(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without a world that is not ours: this launcher makes its own."""
    foreign = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return {k: v for k, v in environment.items() if k not in foreign and not k.startswith("TORCHELASTIC_")}


class WorkerError(DistmemError):
    """What a rank reported; its traceback comes along for --debug."""

    def __init__(self, note: dict[str, Any], log: Path):
        self.exit_code = int(note["exit_code"])
        self.traceback = str(note["traceback"])
        rank = f"rank {note['rank']}: " if note["rank"] else ""
        super().__init__(f"{rank}{note['message']}\n  log: {log}/rank{note['rank']}.log")


def _failure(code: int, child: _Child, folder: Path, log: Path, said: str) -> DistmemError:
    """The error to show: the first that is no consequence of another. said: what the launched processes logged."""
    note = _first_note(folder)
    if note is not None and not note["lost"]:
        return WorkerError(note, log.parent)
    if child.killed:
        return Stopped("ended at once by a second Ctrl-C, without saving", remedy=_go_on(folder))
    if child.requests:
        return Stopped(f"ended by {child.requests[0].name} before the end of a step", remedy=_go_on(folder))
    rank, number = (0, -code) if code < 0 else ended_by_signal(said)
    if number:
        name = signal.Signals(number).name
        return LaunchError(f"rank {rank} was ended by {name}\n  log: {log.parent}", remedy=_advice(name, folder))
    if note is not None:
        return WorkerError(note, log.parent)
    tail = "\n".join(f"    {line}" for line in said.splitlines()[-TAIL_LINES:])
    return LaunchError(
        f"the processes ended with exit code {code} and without a result"
        + (f"; the end of {log}:\n{tail}" * bool(tail)),
        remedy="`--debug` runs one process with full tracebacks",
    )


def _outcome(folder: Path) -> dict[str, Any]:
    file = folder / "outcome.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _first_note(folder: Path) -> dict[str, Any] | None:
    """The earliest note, before those of ranks that only lost a neighbour."""
    notes = [json.loads(file.read_text()) for file in (folder / "errors").glob("*.json")]
    return min(notes, key=lambda note: (note["lost"], note["time"]), default=None)


def _go_on(folder: Path) -> str:
    return f"`distmem run ... --out {folder}` goes on from there"


def _advice(name: str, folder: Path) -> str:
    again = f"`distmem run ... --out {folder}` goes on from the newest checkpoint"
    if name == "SIGKILL":
        return f"a smaller memory.micro_batch if the machine ran out of memory (`dmesg | tail` tells); {again}"
    return again
