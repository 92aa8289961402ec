"""Runs in processes of their own, as a user starts them, with a model that does harm at a chosen moment.

with_hook("raise", call=3, rank=1)     the environment in which rank 1 raises in its third training forward
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 180.0

STEPS = 12  # of an epoch of RECIPE
RECIPE = """\
name: small
model: {name: "hooked:Net"}
data: {name: digits}
optim: {name: adam, lr: 0.002}
train: {epochs: 2, batch_size: 128}
checkpoint: {every: 3steps, keep: 2, best: val_accuracy}
after:
  - prune: {method: global, sparsity: 0.5, gradual: {epochs: 1, every: 3steps}}
  - retrain: {epochs: 1}
  - share: {bits: 3}
"""

HOOKED = '''\
"""A small network; HOOK says at which training forward of this process, on which rank, what happens, once."""
import json, os, signal, time
import psutil
from torch import nn

HOOK = json.loads(os.environ.get("HOOK", "null"))
RANK = os.environ.get("RANK", "0")
calls = 0


def launcher():
    worker = psutil.Process()
    return next(p for p in worker.parents() if p.cmdline()[1:4] == ["-m", "distmem", "run"])


def wait_for_request():
    flag = signal.getsignal(signal.SIGTERM).__self__
    while not flag.is_set:
        time.sleep(0.01)


def act():
    action, name = HOOK["do"].split(":") if ":" in HOOK["do"] else (HOOK["do"], None)
    try:
        os.close(os.open(f"{HOOK['done']}-{RANK}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if action == "raise":
        raise ValueError("the number of apples is odd")
    elif action == "self":
        os.kill(os.getpid(), getattr(signal, name))
    elif action == "launcher":
        launcher().send_signal(getattr(signal, name))
        wait_for_request()
    elif action == "ctrl-c-twice":
        launcher().send_signal(signal.SIGINT)
        wait_for_request()
        launcher().send_signal(signal.SIGINT)
        time.sleep(600)


def moment(call):
    if HOOK and call == HOOK["call"] and HOOK["rank"] in (RANK, "all"):
        act()


class Net(nn.Module):
    def __init__(self, features: int = 64, classes: int = 10):
        super().__init__()
        self.fc1, self.drop, self.fc2 = nn.Linear(features, 48), nn.Dropout(0.2), nn.Linear(48, classes)
        with open(os.environ["PIDS"], "a") as file:
            file.write(f"{os.getpid()} {os.getppid()}\\n")
        moment(0)

    def forward(self, x):
        global calls
        if self.training:
            calls += 1
            moment(calls)
        return self.fc2(self.drop(self.fc1(x.flatten(1)).relu()))
'''

# sitecustomize.py, in the folder of the processes: a request to stop before the started program has begun
SITE = """\
import os, signal, sys, time
if os.environ.get("EARLY") and "distmem.worker" in sys.orig_argv and "torch" not in sys.modules:
    os.kill(os.getppid(), getattr(signal, os.environ["EARLY"]))
    time.sleep(60)
"""


@dataclass
class Ended:
    """A finished process: out is what a user saw."""

    code: int
    out: str

    @property
    def said(self) -> str:
        """What it said, for the message of an assert."""
        return f"exit code {self.code}\n{self.out}"


def workplace(folder: Path) -> Path:
    """A folder with the recipe and the model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yaml").write_text(RECIPE)
    (folder / "hooked.py").write_text(HOOKED)
    return folder


def with_hook(do: str, call: int, rank: int | str = 0, done: Path | str = "hook-done") -> dict[str, str]:
    """Environment; call: of the training forwards of a process, from 1, and 0 for the making of the model."""
    return {"HOOK": json.dumps({"do": do, "call": call, "rank": str(rank), "done": str(done)})}


def environment(cwd: Path, more: dict[str, str] | None = None) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join([str(cwd), str(ROOT)])
    binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**own, "PYTHONPATH": path, "PATH": binaries, "PIDS": str(cwd / "pids"), **(more or {})}


def start(cwd: Path, argv: list[str], env: dict[str, str] | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        argv,
        cwd=cwd,
        env=environment(cwd, env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen) -> Ended:
    """Wait for a process; with all it has started it is killed when it takes too long."""
    try:
        out, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
        out, _ = process.communicate()
        raise AssertionError(f"not ended after {TIMEOUT_S} s: {process.args}\n{out}") from None
    return Ended(process.returncode, out)


def call(cwd: Path, argv: list[str], env: dict[str, str] | None = None) -> Ended:
    return end(start(cwd, argv, env))


def distmem(cwd: Path, *words: object, env: dict[str, str] | None = None) -> Ended:
    """The command line in a process of its own."""
    return call(cwd, [sys.executable, "-m", "distmem", *map(str, words)], env)


def processes(cwd: Path) -> list[int]:
    """Processes that have made a model in this folder, and their parents."""
    return [int(pid) for line in (cwd / "pids").read_text().splitlines() for pid in line.split()]


def all_gone(pids: list[int], timeout_s: float = 60.0) -> bool:
    """Whether the processes have ended, or do so soon."""
    end_at = time.monotonic() + timeout_s
    while any(_alive(pid) for pid in pids):
        if time.monotonic() > end_at:
            return False
        time.sleep(0.05)
    return True


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def metrics(folder: Path) -> list[dict]:
    """Lines of metrics.jsonl without their times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "time_s"} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """The weights after each part of a run are equal bit for bit, and so is what was measured on the way."""
    files = [file.relative_to(one) for file in sorted(one.glob("**/*.safetensors")) if "checkpoints" not in file.parts]
    assert len(files) >= 4, files
    for file in files:
        first, second = load_file(one / file), load_file(other / file)
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), f"{file}: {name} differs between {one} and {other}"
    assert metrics(one) == metrics(other)
    assert _facts(one) == _facts(other)


def _facts(folder: Path) -> dict:
    summary = json.loads((folder / "summary.json").read_text())
    changing = ("wall_s", "settings")
    stages = [{key: value for key, value in row.items() if key not in changing} for row in summary["stages"]]
    return {**{key: summary[key] for key in ("final", "steps", "global_batch", "skipped_steps")}, "stages": stages}
