"""Run a command to its end: pass signals on, keep the agent's noise in a log, show the first error as the message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from types import FrameType
from typing import Any

from distmem.errors import DistmemError, LaunchError, Stopped
from distmem.launchers import Command
from distmem.signals import STOP_SIGNALS

TAIL_LINES = 15


def start(command: Command, folder: Path) -> None:
    """Start the workers of the run in `folder` and wait for them.

    Raises Stopped when the run was stopped on request, the first rank's error otherwise, LaunchError when the
    processes ended without a word.
    """
    for old in (folder / "errors").glob("*.json"):
        old.unlink()
    log = folder / "logs" / "launcher.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stderr:
        process = subprocess.Popen(
            command.argv,
            env={**os.environ, **command.env},
            stderr=stderr,
            start_new_session=True,  # Ctrl-C reaches the workers once, through us
        )
        code = _wait(process)
    outcome = _outcome(folder)
    if outcome.get("state") == "stopped":
        raise Stopped(outcome["message"], remedy=f"`distmem run ... --out {folder}` goes on from there")
    if code == 0 and outcome.get("state") != "failed":
        return
    raise _first_error(folder) or LaunchError(
        f"the processes ended with {_described(code)} and left no message; the end of {log}:\n{_tail(log)}",
        remedy=_advice(code),
    )


def _wait(process: subprocess.Popen) -> int:
    def pass_on(number: int, _: FrameType | None) -> None:
        if process.poll() is None:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(folder: Path) -> dict[str, Any]:
    file = folder / "outcome.json"
    return json.loads(file.read_text()) if file.exists() else {}


class WorkerError(DistmemError):
    """What a rank reported; its traceback comes along for --debug."""

    def __init__(self, note: dict[str, Any], log: Path):
        self.exit_code = int(note["exit_code"])
        self.traceback = str(note["traceback"])
        rank = f"rank {note['rank']}: " if note["rank"] else ""
        super().__init__(f"{rank}{note['message']}\n  log: {log}")


def _first_error(folder: Path) -> WorkerError | None:
    """The earliest note: the others are mostly ranks that lost a neighbour."""
    notes = [json.loads(file.read_text()) for file in (folder / "errors").glob("*.json")]
    return WorkerError(min(notes, key=lambda note: note["time"]), folder / "logs") if notes else None


def _described(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _advice(code: int) -> str:
    if code == -signal.SIGKILL:
        return (
            "SIGKILL often means that the machine ran out of memory: `dmesg | tail` tells; take a smaller micro_batch"
        )
    return "`--debug` runs one process with full tracebacks"


def _tail(log: Path) -> str:
    return "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
